"""Nearest neighbours between two sets of sentence vectors.

The scores are computed a tile at a time, so memory grows with N + M and not with N x M.

Shapes: N and M sentences, D hidden; R rows and C columns of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ROWS, TILE_COLUMNS = 1024, 4096  # 16 MB of fp32 scores, which stay in the cache of a CPU


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
        candidates: (M, D), at least one.

    Returns:
        (N,).
    """
    best = _Best(queries)
    for row, column, scores in _tiles(queries, candidates):
        best.update(row, column, scores)
    return best.index


def retrieval_accuracy(source: Tensor, target: Tensor) -> RetrievalAccuracy:
    """Top-1 accuracy in both directions of line-aligned sentences (the Tatoeba protocol: cosine, no margin).

    Both directions are read off the same scores.

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
    forth, back = _Best(source), _Best(target)
    for row, column, scores in _tiles(source, target):
        forth.update(row, column, scores)
        # On the CPU a search along columns takes far longer than turning the tile.
        back.update(column, row, scores.t().contiguous())
    expected = torch.arange(len(source), device=source.device)
    hits = [(best.index == expected).float().mean().item() for best in (forth, back)]
    return RetrievalAccuracy(source_to_target=hits[0], target_to_source=hits[1])


def _tiles(queries: Tensor, candidates: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Cosines (R, C) of all queries with all candidates, with the first row and column of each tile."""
    queries, candidates = F.normalize(queries, dim=-1), F.normalize(candidates, dim=-1)
    for row in range(0, len(queries), TILE_ROWS):
        for column in range(0, len(candidates), TILE_COLUMNS):
            tile = queries[row : row + TILE_ROWS] @ candidates[column : column + TILE_COLUMNS].t()
            yield row, column, tile


class _Best:
    """Highest score of each vector so far, and the index of the vector that has it."""

    def __init__(self, vectors: Tensor) -> None:
        self.score = vectors.new_full((len(vectors),), -torch.inf)
        self.index = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)

    def update(self, row: int, column: int, scores: Tensor) -> None:
        """Take the scores (R, C) of vectors from `row` on with others from `column` on."""
        score, index = scores.max(dim=1)
        known_score, known_index = (part[row : row + len(scores)] for part in (self.score, self.index))
        higher = score > known_score  # of equals the earlier one stays
        torch.where(higher, score, known_score, out=known_score)
        torch.where(higher, index + column, known_index, out=known_index)
