"""From the similarities of two sentences' sub-words to links: optimal transport, mutual argmax, itermax.

Functions of tensors alone, for evaluation and for objectives that label their own words. XLM-Align's
training labels are `itermax_alignment(sinkhorn(source @ target.mT)[0])`.

Shapes: K layers or other leading dimensions, m and n sub-words of a source and a target, D hidden.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Method = Literal["ot", "argmax", "itermax"]

SINKHORN_ITERATIONS = 2  # of the released aligner
ITERMAX_ALPHA, ITERMAX_ROUNDS = 0.9, 2  # SimAlign's
_SMALLEST = 1e-6  # what XLM-Align puts in place of a similarity that is not positive


def align_states(
    source: Tensor, target: Tensor, method: Method, *, iterations: int = SINKHORN_ITERATIONS
) -> Tensor:
    """Align the states (..., m, D) and (..., n, D) of a pair as published: (..., m, n) of bool.

    `"ot"` takes dot products and `iterations` rounds of `sinkhorn`; `"argmax"` cosines; `"itermax"` cosines
    on SimAlign's scale, 0..1.
    """
    if method == "ot":
        return transport_alignment(source @ target.mT, iterations=iterations)
    cosine = F.normalize(source, dim=-1) @ F.normalize(target, dim=-1).mT
    return argmax_alignment(cosine) if method == "argmax" else itermax_alignment((cosine + 1) / 2)


def sinkhorn(similarity: Tensor, *, iterations: int = SINKHORN_ITERATIONS) -> tuple[Tensor, Tensor]:
    """Scale dot products (..., m, n) to a transport plan, columns and rows in turn (XLM-Align, section 3.2).

    No exponential and no temperature. Similarities that are not positive become 1e-6, as in the training code
    (the released aligner means to do so, but writes to a copy).

    Returns:
        The plan after the last scaling of rows (they sum to 1), and before it (columns sum to 1).
    """
    rows_scaled = torch.where(similarity > 0, similarity, _SMALLEST)
    columns_scaled = rows_scaled
    for _ in range(iterations):
        columns_scaled = rows_scaled / rows_scaled.sum(dim=-2, keepdim=True)
        rows_scaled = columns_scaled / columns_scaled.sum(dim=-1, keepdim=True)
    return rows_scaled, columns_scaled


def transport_alignment(similarity: Tensor, *, iterations: int = SINKHORN_ITERATIONS) -> Tensor:
    """Sub-words that are each other's best in the transport plan, (..., m, n) of bool; see `sinkhorn`."""
    rows_scaled, columns_scaled = sinkhorn(similarity, iterations=iterations)
    return _highest(rows_scaled, dim=-1) & _highest(columns_scaled, dim=-2)


def argmax_alignment(similarity: Tensor) -> Tensor:
    """Sub-words that are each other's most similar, (..., m, n) of bool; the first one of equals."""
    return _highest(similarity, dim=-1) & _highest(similarity, dim=-2)


def itermax_alignment(similarity: Tensor, *, rounds: int = ITERMAX_ROUNDS) -> Tensor:
    """Mutual argmax, repeated for sub-words without a partner (SimAlign, section 3.2): (..., m, n) of bool.

    In later rounds a partner may be aligned already, at 0.9 of its similarity. No similarity may be negative.
    """
    aligned = argmax_alignment(similarity)
    if min(similarity.shape[-2:]) <= 2:  # as in the released code
        return aligned
    for _ in range(rounds - 1):
        free_rows = ~aligned.any(dim=-1, keepdim=True)
        free_columns = ~aligned.any(dim=-2, keepdim=True)
        both_left = free_rows.any(dim=-2, keepdim=True) & free_columns.any(dim=-1, keepdim=True)
        weight = (ITERMAX_ALPHA * free_rows + ITERMAX_ALPHA * free_columns).clamp(max=1)
        aligned = aligned | argmax_alignment(similarity * weight) & (free_rows | free_columns) & both_left
    return aligned


def _highest(scores: Tensor, *, dim: int) -> Tensor:
    """Mark the highest score along a dimension, the first one of equals."""
    marked = torch.zeros_like(scores, dtype=torch.bool)
    return marked.scatter_(dim, scores.argmax(dim=dim, keepdim=True), True)
