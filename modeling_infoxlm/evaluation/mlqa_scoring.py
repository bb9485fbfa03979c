"""F1 and exact match of answers by the rules of MLQA's own script (mlqa_evaluation_v1.py, arXiv 1910.07475).

The language of the answer, which is that of the context, decides what is removed and what a word is:

    everywhere  lower case; punctuation of every script and ASCII symbols are removed
    en es de vi articles are removed
    ar          every "ال" is removed, also inside a word: the script's pattern means more than an article
    zh          each of U+4E00 to U+9FA5 is a word, and so is each run of other characters
    others      words stand between white space, no articles; so a Thai or Japanese answer is one word, and
                its F1 is close to exact match
"""

import functools
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = {
    "en": r"\b(?:a|an|the)\b",
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    # As in the script, for numbers that can be compared: "^" never matches behind "\s".
    "ar": r"\sال^|ال",
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
}
_CHINESE_WORDS = re.compile(r"[\u4e00-\u9fa5]|[^\s\u4e00-\u9fa5]+")


def normalize_answer(text: str, language: str) -> str:
    """Bring an answer into the form that is compared, words with one space between them.

    Args:
        text: Answer.
        language: Its language, `zh` or a code that begins with it such as `zh-Hans`.

    Example:
        >>> normalize_answer("The  Beatles!", "en")
        'beatles'
        >>> normalize_answer("《人民日報》 2008", "zh")
        '人 民 日 報 2008'
    """
    base = re.split(r"[-_]", language.lower())[0]
    text = text.lower().translate(_punctuation())
    if base in _ARTICLES:
        text = re.sub(_ARTICLES[base], " ", text)
    return " ".join(_CHINESE_WORDS.findall(text) if base == "zh" else text.split())


def f1_score(prediction: str, answers: Sequence[str], language: str) -> float:
    """Overlap of words with the gold answer that it is largest with, in 0..1.

    Args:
        prediction: Empty if the question was not answered.
        answers: Gold answers; none means that the question has no answer, as in SQuAD 2.0, and an empty
            prediction is right.
        language: Language of the answers.
    """
    if not answers:
        return exact_match_score(prediction, answers, language)
    words = normalize_answer(prediction, language).split()
    return max(_f1(words, normalize_answer(answer, language).split()) for answer in answers)


def exact_match_score(prediction: str, answers: Sequence[str], language: str) -> float:
    """Whether it equals a gold answer after normalisation, 1 or 0; see `f1_score`."""
    normalized = normalize_answer(prediction, language)
    return float(any(normalized == normalize_answer(answer, language) for answer in answers or [""]))


def _f1(prediction: list[str], answer: list[str]) -> float:
    common = (Counter(prediction) & Counter(answer)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(answer)
    return 2 * precision * recall / (precision + recall)


@functools.cache
def _punctuation() -> dict[int, None]:
    """What is removed: all characters of a Unicode category P*, and ASCII symbols such as `$` and `+`."""
    every = map(chr, range(sys.maxunicode + 1))
    found = {character for character in every if unicodedata.category(character).startswith("P")}
    return dict.fromkeys(map(ord, found.union(string.punctuation)))
