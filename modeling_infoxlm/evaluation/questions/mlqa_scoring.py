"""F1 and exact match of answers by the rules of MLQA or of SQuAD v1.1.

By those of MLQA's own script (mlqa_evaluation_v1.py, arXiv 1910.07475) the language of the answer, which is
that of the context, decides what is removed and what a word is:

    everywhere  lower case; punctuation of every script and ASCII symbols are removed
    en es de vi articles are removed
    ar          every "ال" is removed, also inside a word: the script's pattern means more than an article
    zh          each of U+4E00 to U+9FA5 is a word, and so is each run of other characters
    others      words stand between white space, no articles; so a Thai or Japanese answer is one word, and
                its F1 is close to exact match

By those of SQuAD v1.1's script (arXiv 1606.05250), which XTREME (arXiv 2003.11080) has for XQuAD and
TyDiQA-GoldP, every language is taken for English: ASCII punctuation and English articles are removed, and
words stand between white space.
"""

import functools
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

Rules = Literal["mlqa", "squad"]

_ARTICLES = {
    "en": r"\b(?:a|an|the)\b",
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    # As in the script, for numbers that can be compared: "^" never matches behind "\s".
    "ar": r"\sال^|ال",
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
}
_ASCII_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
_CHINESE_WORDS = re.compile(r"[\u4e00-\u9fa5]|[^\s\u4e00-\u9fa5]+")


def normalize_answer(text: str, language: str, *, rules: Rules = "mlqa") -> str:
    """Bring an answer into the form that is compared, words with one space between them.

    The language may be longer than its code, such as `zh-Hans`.

    Example:
        >>> normalize_answer("The  Beatles!", "en")
        'beatles'
        >>> normalize_answer("《人民日報》 2008", "zh")
        '人 民 日 報 2008'
        >>> normalize_answer("《人民日報》 2008", "zh", rules="squad")
        '《人民日報》 2008'
    """
    if rules == "squad":
        text = text.lower().translate(_ASCII_PUNCTUATION)
        return " ".join(re.sub(_ARTICLES["en"], " ", text).split())
    base = re.split(r"[-_]", language.lower())[0]
    text = text.lower().translate(_punctuation())
    if base in _ARTICLES:
        text = re.sub(_ARTICLES[base], " ", text)
    return " ".join(_CHINESE_WORDS.findall(text) if base == "zh" else text.split())


def count_blank(answers: Iterable[Sequence[str]], language: str, *, rules: Rules = "mlqa") -> int:
    """Questions whose gold answers are all nothing but what is removed: only a blank prediction is right."""
    return sum(
        bool(golds) and not any(normalize_answer(gold, language, rules=rules) for gold in golds)
        for golds in answers
    )


def score_answers(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    languages: Sequence[str],
    *,
    rules: Rules = "mlqa",
) -> dict[str, np.ndarray]:
    """`f1` and `exact_match` of each of N predictions, (N,) each; see `f1_score`."""
    rows = list(zip(predictions, references, languages, strict=True))
    return {
        "f1": np.array([f1_score(*row, rules=rules) for row in rows]),
        "exact_match": np.array([exact_match_score(*row, rules=rules) for row in rows]),
    }


def f1_score(prediction: str, answers: Sequence[str], language: str, *, rules: Rules = "mlqa") -> float:
    """Overlap of words with the gold answer that it is largest with, in 0..1; the prediction may be empty.

    No gold answer means that the question has none, as in SQuAD 2.0, and an empty prediction is right.
    """
    if not answers:
        return exact_match_score(prediction, answers, language, rules=rules)
    words = normalize_answer(prediction, language, rules=rules).split()
    return max(_f1(words, normalize_answer(answer, language, rules=rules).split()) for answer in answers)


def exact_match_score(
    prediction: str, answers: Sequence[str], language: str, *, rules: Rules = "mlqa"
) -> float:
    """Whether it equals a gold answer after normalisation, 1 or 0; see `f1_score`."""
    normalized = normalize_answer(prediction, language, rules=rules)
    golds = (normalize_answer(answer, language, rules=rules) for answer in answers or [""])
    return float(any(normalized == gold for gold in golds))


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
