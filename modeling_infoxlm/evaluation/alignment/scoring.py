"""Scores of word alignments against gold: error rate, precision, recall, F1 (Och and Ney, 2003)."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from modeling_infoxlm.evaluation.results import Estimate, estimate_share

Link = tuple[int, int]  # source word, target word

METRICS = ("aer", "precision", "recall", "f1")


class AlignmentCounts(NamedTuple):
    """What a score of alignments is made of; counts of several sentences are added.

    Attributes:
        predicted: Links found.
        sure: Sure links of the gold.
        in_sure: Links found that are sure.
        in_possible: Links found that are possible; a sure link is possible too.
    """

    predicted: int
    sure: int
    in_sure: int
    in_possible: int


def alignment_scores(
    predicted: Iterable[Link], sure: Iterable[Link], possible: Iterable[Link]
) -> AlignmentCounts:
    """Compare the links of one sentence with the gold.

    Args:
        predicted: Links (source word, target word).
        sure: Links that an aligner must find.
        possible: Links that it may find, with or without the sure ones among them.
    """
    found, must = set(predicted), set(sure)
    may = must | set(possible)
    return AlignmentCounts(len(found), len(must), len(found & must), len(found & may))


def alignment_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Each of `METRICS`, in percent (Och and Ney, 2003, section 5).

    Args:
        counts: Sums or means of `AlignmentCounts` over sentences, (..., 4).

    Returns:
        Each rate, (...). A ratio of nothing to nothing is 0.
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
