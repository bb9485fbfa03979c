"""Nearest neighbours between two sets of sentence vectors.

Shapes: N and M sentences, D hidden.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_PER_CHUNK = 4096


@dataclass(frozen=True)
class RetrievalAccuracy:
    """Share of sentences, 0..1, whose nearest neighbour on the other side is their translation."""

    source_to_target: float
    target_to_source: float

    @property
    def mean(self) -> float:
        """Mean of both directions."""
        return (self.source_to_target + self.target_to_source) / 2


def nearest_neighbours(queries: Tensor, candidates: Tensor) -> Tensor:
    """Index of the candidate with the highest cosine to each query; the first one of equals.

    Args:
        queries: (N, D).
        candidates: (M, D).

    Returns:
        (N,).
    """
    queries, candidates = F.normalize(queries, dim=-1), F.normalize(candidates, dim=-1)
    return torch.cat([(rows @ candidates.t()).argmax(dim=1) for rows in queries.split(ROWS_PER_CHUNK)])


def retrieval_accuracy(source: Tensor, target: Tensor) -> RetrievalAccuracy:
    """Top-1 accuracy in both directions of line-aligned sentences (the Tatoeba protocol: cosine, no margin).

    Args:
        source: Sentence vectors, (N, D).
        target: Vectors of their translations, (N, D).

    Raises:
        ValueError: If there is not exactly one translation for each sentence.
    """
    if source.shape != target.shape or not len(source):
        raise ValueError(
            "expected one translation for each sentence, "
            f"found {tuple(source.shape)} and {tuple(target.shape)}."
        )
    expected = torch.arange(len(source), device=source.device)
    forth = (nearest_neighbours(source, target) == expected).float().mean().item()
    back = (nearest_neighbours(target, source) == expected).float().mean().item()
    return RetrievalAccuracy(source_to_target=forth, target_to_source=back)
