"""Slow oracle of MLQA's scores, one character at a time, from the rules and without a regular expression."""

import unicodedata
from fractions import Fraction

ARTICLES = {
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "vi": "của là cái chiếc những",
}
ASCII_SYMBOLS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def words(answer: str, language: str) -> list[str]:
    """Words of an answer that are compared."""
    kept = ""
    for character in answer.lower():
        if character not in ASCII_SYMBOLS and unicodedata.category(character)[0] != "P":
            kept += character
    if language in ARTICLES:
        kept = without_words(kept, ARTICLES[language].split())
    if language == "ar":
        kept = " ".join(kept.split("\u0627\u0644"))
    if language == "zh":
        kept = apart(kept)
    return kept.split()


def without_words(text: str, unwanted: list[str]) -> str:
    """Put a space in place of each unwanted word; a word is a longest run of letters and digits."""
    result = run = ""
    for character in text + "\n":
        if character.isalnum() or character == "_":
            run += character
            continue
        result += (" " if run in unwanted else run) + character
        run = ""
    return result


def apart(text: str) -> str:
    """Put spaces around each Chinese character of the first block up to U+9FA5."""
    result = ""
    for character in text:
        result += f" {character} " if 0x4E00 <= ord(character) <= 0x9FA5 else character
    return result


def exact(prediction: str, answers: list[str], language: str) -> int:
    """1 if some answer has the same words."""
    found = 0
    for answer in answers:
        found |= int(words(prediction, language) == words(answer, language))
    return found


def f1(prediction: str, answers: list[str], language: str) -> Fraction:
    """Twice the shared words over all words, of the best answer."""
    best = Fraction(0)
    for answer in answers:
        left, right = words(prediction, language), words(answer, language)
        shared, rest = 0, list(right)
        for word in left:
            if word in rest:
                rest.remove(word)
                shared += 1
        if shared:
            best = max(best, Fraction(2 * shared, len(left) + len(right)))
    return best


def evaluate(gold: dict[str, list[str]], predictions: dict[str, str], language: str) -> tuple[float, float]:
    """F1 and exact match in percent over all questions; one that was not answered counts 0."""
    total_f1, total_exact = Fraction(0), 0
    for key, answers in gold.items():
        if key in predictions:
            total_f1 += f1(predictions[key], answers, language)
            total_exact += exact(predictions[key], answers, language)
    return float(100 * total_f1 / len(gold)), 100 * total_exact / len(gold)
