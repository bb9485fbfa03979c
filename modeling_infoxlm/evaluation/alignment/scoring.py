"""Scores of word alignments against gold: error rate, precision, recall, F1 (Och and Ney, 2003)."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from modeling_infoxlm.evaluation.results import Estimate, estimate_share

Link = tuple[int, int]  # source word, target word

METRICS = ("aer", "precision", "recall", "f1")


class AlignmentCounts(NamedTuple):
    """What a score of alignments is made of; counts of several sentences are added."""

    predicted: int  # links found
    sure: int  # sure links of the gold
    in_sure: int  # links found that are sure
    in_possible: int  # links found that are possible; a sure link is possible too


def alignment_scores(
    predicted: Iterable[Link], sure: Iterable[Link], possible: Iterable[Link]
) -> AlignmentCounts:
    """Compare the links of one sentence with the gold; a sure link is possible, listed there or not."""
    found, must = set(predicted), set(sure)
    may = must | set(possible)
    return AlignmentCounts(len(found), len(must), len(found & must), len(found & may))


def alignment_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Each of `METRICS`, (...), in percent (Och and Ney, 2003, section 5); nothing to nothing is 0.

    `counts` are sums or means of `AlignmentCounts` over sentences, (..., 4).
    """
    predicted, sure, in_sure, in_possible = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    precision, recall = _ratio(in_possible, predicted), _ratio(in_sure, sure)
    missed = predicted + sure - in_sure - in_possible
    aer, f1 = _ratio(missed, predicted + sure), _ratio(2 * precision * recall, precision + recall)
    return {"aer": 100 * aer, "precision": 100 * precision, "recall": 100 * recall, "f1": 100 * f1}


def estimate_rates(counts: Sequence[AlignmentCounts]) -> dict[str, Estimate]:
    """Each of `METRICS` with its interval, by resampling sentences."""

    def rate(metric: str, means: np.ndarray) -> np.ndarray:
        return alignment_rates(means)[metric]

    return {metric: estimate_share(np.array(counts), partial(rate, metric)) for metric in METRICS}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
