"""Slow oracle of the cross-lingual contrast, one sum at a time, from the paper and the released criterion.

Shape letters: B batch, D hidden, Q queue size. Everything is float64 and goes through autograd, so the oracle
gives gradients as well as values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SlowContrast:
    """Sum over the batch in nats, and the share of queries whose own key scores highest."""

    loss_sum: Tensor
    accuracy: float


def project(vectors: Tensor, weight: Tensor | None) -> Tensor:
    """Bias-free linear map z_o = sum_i weight[o, i] x_i of each row of (B, D); without a weight, the rows."""
    if weight is None:
        return vectors
    rows = []
    for vector in vectors:
        rows.append(torch.stack([dot(output, vector) for output in weight]))
    return torch.stack(rows)


def contrast(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
    similarity: str = "dot",
    in_batch_negatives: bool = False,
    symmetric: bool = False,
) -> SlowContrast:
    """InfoNCE of query i against key i, the queue and, if asked, the other keys of the batch.

    The keys and the queue are constants: the released code encodes them without gradient.
    """
    score = {"dot": dot, "cosine": cosine}[similarity]
    keys, queue = key.detach(), negatives.detach()
    loss, hits = torch.zeros((), dtype=torch.float64), 0
    for i in range(len(query)):
        candidates = [keys[i]]
        if in_batch_negatives:
            candidates += [keys[j] for j in range(len(keys)) if j != i]
        candidates += list(queue)
        logits = [score(query[i], candidate) / temperature for candidate in candidates]
        row_loss = cross_entropy_to_first(logits)
        hits += all(bool(logits[0] > logit) for logit in logits[1:])
        if symmetric:
            others = [query[j] for j in range(len(query)) if j != i]
            column = [score(candidate, keys[i]) / temperature for candidate in [query[i], *others]]
            row_loss = (row_loss + cross_entropy_to_first(column)) / 2
        loss = loss + row_loss
    return SlowContrast(loss_sum=loss, accuracy=hits / max(len(query), 1))


def cross_entropy_to_first(logits: Sequence[Tensor]) -> Tensor:
    """Return -log(exp(logits[0]) / sum_c exp(logits[c])), the largest taken out so that no exp overflows."""
    largest = max(float(logit.detach()) for logit in logits)
    total = torch.zeros((), dtype=torch.float64)
    for logit in logits:
        total = total + torch.exp(logit - largest)
    return torch.log(total) + largest - logits[0]


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Sum over d of left_d right_d, for two (D,) vectors."""
    return (left * right).sum()


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """Dot product over the product of the two lengths."""
    return dot(left, right) / (torch.sqrt(dot(left, left)) * torch.sqrt(dot(right, right)))
