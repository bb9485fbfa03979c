"""Scores of word alignments: those of Och and Ney."""

import numpy as np
import pytest

from modeling_infoxlm.evaluation.alignment.scoring import (
    AlignmentCounts,
    alignment_rates,
    alignment_scores,
    estimate_rates,
)


def test_scores_of_hand_made_sentences() -> None:
    # Three links; two are sure, one of the three is wrong though (2, 1) would have been possible.
    counts = alignment_scores({(0, 0), (1, 1), (2, 2)}, {(0, 0), (1, 1)}, {(2, 1)})
    assert counts == AlignmentCounts(predicted=3, sure=2, in_sure=2, in_possible=2)
    rates = alignment_rates(np.array(counts))
    aer = 100 * (1 - (2 + 2) / (3 + 2))
    assert rates == pytest.approx({"precision": 200 / 3, "recall": 100, "f1": 80, "aer": aer})
    # A possible link counts for precision and never for recall.
    counts = alignment_scores([(0, 0), (1, 1)], [(0, 0), (3, 3)], [(0, 0), (1, 1), (3, 3)])
    assert counts == AlignmentCounts(predicted=2, sure=2, in_sure=1, in_possible=2)
    assert alignment_rates(np.array(counts))["aer"] == pytest.approx(25)
    for counts in (AlignmentCounts(0, 0, 0, 0), AlignmentCounts(0, 3, 0, 0), AlignmentCounts(3, 0, 0, 0)):
        rates = alignment_rates(np.array(counts))
        assert rates["f1"] == rates["precision"] == rates["recall"] == 0
        assert rates["aer"] == (100 if sum(counts) else 0)


def test_rates_are_of_all_sentences_together() -> None:
    # A long sentence with errors and a short one without: the mean of the sentences' own rates would be 25.
    counts = [AlignmentCounts(9, 9, 4, 5), AlignmentCounts(1, 1, 1, 1)]
    estimate = estimate_rates(counts)["aer"]
    assert estimate.value == pytest.approx(100 * (1 - (5 + 6) / 20))
    assert estimate.count == 2
    assert 0 <= estimate.low < 20 and 70 < estimate.high <= 100  # two sentences say little
