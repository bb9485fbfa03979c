"""The bound of a sentence and its translation, where the information is known."""

import math

import pytest
import torch

from modeling_infoxlm.evaluation.information import (
    best_temperature,
    grouped_cosines,
    infonce_terms,
    sentence_bound,
)


def gaussian_pair(
    rho: float, *, pairs: int, size: int, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Vectors whose coordinates are correlated by rho, and their information in nats."""
    generator = torch.Generator().manual_seed(seed)
    source, noise = torch.randn(2, pairs, size, generator=generator)
    target = rho * source + math.sqrt(1 - rho**2) * noise
    return source, target, -size / 2 * math.log(1 - rho**2) if rho < 1 else math.inf


@pytest.mark.parametrize("rho", [0.05, 0.2])
def test_small_information_of_gaussians_is_bounded_closely(rho: float) -> None:
    source, target, truth = gaussian_pair(rho, pairs=4000, size=64)
    bound = sentence_bound(source, target, num_candidates=500)
    assert truth < math.log(500) / 3
    assert bound.estimate.low < truth  # a bound, but for the noise of the sample
    assert bound.estimate.value == pytest.approx(truth, abs=0.05 + 0.15 * truth)
    assert bound.estimate.count == 2000


def test_large_information_is_cut_at_the_logarithm_of_the_candidates() -> None:
    """Where truth and logarithm are near each other the bound lies clearly below both."""
    source, target, truth = gaussian_pair(0.9, pairs=800, size=64)
    for candidates in (10, 100, 400):
        bound = sentence_bound(source, target, num_candidates=candidates).estimate
        assert math.log(candidates) - 0.01 < bound.value <= math.log(candidates) + 1e-6
        assert math.log(candidates) < truth / 5
    source, target, truth = gaussian_pair(0.38, pairs=4000, size=64)
    bound = sentence_bound(source, target, num_candidates=200).estimate
    assert abs(truth - math.log(200)) < 0.5
    assert 0.5 * truth < bound.high < truth - 0.2


@pytest.mark.parametrize("seed", range(2))
def test_independent_vectors_have_none(seed: int) -> None:
    source = gaussian_pair(0, pairs=2000, size=16, seed=seed)[0]
    target = gaussian_pair(0, pairs=2000, size=16, seed=100 + seed)[0]
    bound = sentence_bound(source, target, num_candidates=500)
    assert bound.estimate.low <= 0 and abs(bound.estimate.value) < 0.03


def test_the_temperature_is_chosen_on_pairs_that_are_not_measured() -> None:
    """Related halves and unrelated ones: what is seen in the first says nothing of the second."""
    source, target, _ = gaussian_pair(0.9, pairs=200, size=64)
    source[100:] = gaussian_pair(0, pairs=100, size=64, seed=5)[0]
    bound = sentence_bound(source, target, num_candidates=100)
    assert bound.tuned == pytest.approx(math.log(100), abs=0.01)
    assert bound.estimate.value < 0


def test_terms_by_the_definition() -> None:
    source, target, _ = gaussian_pair(0.5, pairs=13, size=6)
    terms = infonce_terms(grouped_cosines(source, target, 6), 0.3)
    expected = []
    for start in (0, 6):  # the thirteenth pair is left over
        for i in range(start, start + 6):
            group = range(start, start + 6)
            forth = [float(torch.cosine_similarity(source[i], target[j], dim=0)) / 0.3 for j in group]
            back = [float(torch.cosine_similarity(source[j], target[i], dim=0)) / 0.3 for j in group]
            losses = [math.log(sum(map(math.exp, scores))) - scores[i - start] for scores in (forth, back)]
            expected.append(math.log(6) - sum(losses) / 2)
    assert terms.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rho", [0.2, 0.8])
def test_no_other_temperature_gives_more(rho: float) -> None:
    cosines = grouped_cosines(*gaussian_pair(rho, pairs=300, size=24)[:2], 100)
    chosen = best_temperature(cosines)
    best = infonce_terms(cosines, chosen).mean()
    assert all(infonce_terms(cosines, chosen * factor).mean() < best for factor in (0.5, 0.9, 1.1, 2.0))


@pytest.mark.parametrize("pairs, candidates", [(9, 5), (10, 1)])
def test_too_few_pairs_or_candidates(pairs: int, candidates: int) -> None:
    vectors = torch.randn(pairs, 3)
    with pytest.raises(ValueError, match=f"at least 2 x {candidates} pairs"):
        sentence_bound(vectors, vectors, num_candidates=candidates)
