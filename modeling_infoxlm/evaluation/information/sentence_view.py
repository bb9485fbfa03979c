"""A lower bound of the information of a sentence and its translation, the two views of XlCo.

X a sentence and Y its translation (InfoNCE, van den Oord et al., arXiv 1807.03748):

    I(X; Y) >= log K - cross entropy of a softmax that finds Y among K sentences,

for any score; here cosine / temperature. It is never above log K.

Shapes: N pairs, K candidates, G groups of K pairs, D hidden.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from modeling_infoxlm.evaluation.results import Estimate, bootstrap

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-3, 1e2
_BISECTIONS = 16  # the logarithm of the temperature to 1e-4


@dataclass(frozen=True)
class SentenceBound:
    """A bound of the information of a sentence and its translation."""

    estimate: Estimate  # on the second half of the pairs, in nats
    tuned: float  # the same on the first half, which chose the temperature: higher than honest
    temperature: float  # of the softmax


def sentence_bound(source: Tensor, target: Tensor, *, num_candidates: int, seed: int = 0) -> SentenceBound:
    """InfoNCE bound of line-aligned vectors, (N, D) each, in random order; scores are cosine / temperature.

    The first half of the pairs chooses the temperature, the second half is measured: chosen and measured on
    the same pairs the number could exceed the information. Pairs are taken in groups of K candidates; what is
    left over of a half is not used. The bootstrap draws pairs and keeps their candidates.

    Raises:
        ValueError: If a half has fewer than K pairs, K is below 2, or the sides differ in shape.
    """
    half = len(source) // 2
    if source.shape != target.shape or num_candidates < 2 or half < num_candidates:
        raise ValueError(
            f"expected two sides of equal shape with at least 2 x {num_candidates} pairs, and 2 candidates "
            f"or more; found {tuple(source.shape)} and {tuple(target.shape)}."
        )
    first, second = (
        grouped_cosines(source[part], target[part], num_candidates)
        for part in (slice(None, half), slice(half, None))
    )
    temperature = best_temperature(first)
    terms = infonce_terms(second, temperature).cpu().numpy()
    return SentenceBound(
        bootstrap(terms, seed=seed), float(infonce_terms(first, temperature).mean()), temperature
    )


def grouped_cosines(source: Tensor, target: Tensor, num_candidates: int) -> Tensor:
    """Cosines of sentences (N, D) and translations (N, D) in groups of K, (G, K, K); pairs: the diagonal."""
    count = len(source) // num_candidates * num_candidates
    source, target = (
        F.normalize(side[:count].float(), dim=-1).unflatten(0, (-1, num_candidates))
        for side in (source, target)
    )
    return source @ target.transpose(1, 2)


def infonce_terms(scores: Tensor, temperature: float) -> Tensor:
    """Terms whose mean is the InfoNCE bound in nats, none above log K, (G * K,), of scores (G, K, K).

    Each pair's own score is on the diagonal. A term is the mean of two: the sentence seeks its translation,
    the translation its sentence. Both have the bound's expectation below the information, so their mean has
    it too.
    """
    logits = scores.double() / temperature  # in fp32 the sum with log K may round to above log K
    log_sums = (logits.logsumexp(dim=2) + logits.logsumexp(dim=1)) / 2
    own = logits.diagonal(dim1=1, dim2=2)
    return (math.log(scores.shape[1]) + own - log_sums).flatten()


def best_temperature(scores: Tensor) -> float:
    """The temperature at which the mean of `infonce_terms` is highest, in 0.001..100.

    The bound is concave in 1 / temperature (a linear function minus logarithms of sums of exponentials), so
    the sign of its slope says on which side the highest point lies.
    """
    low, high = -math.log(HIGHEST_TEMPERATURE), -math.log(LOWEST_TEMPERATURE)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _slope(scores, math.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def _slope(scores: Tensor, scale: float) -> float:
    """Slope of the bound in scale = 1 / temperature: own scores minus those that the softmax expects."""
    logits = scores * scale
    expected = ((logits.softmax(dim=dim) * scores).sum(dim=dim) for dim in (2, 1))
    return float((scores.diagonal(dim1=1, dim2=2) - sum(expected) / 2).mean())
