"""Nearest neighbours between two sets of sentence vectors, and margins, which tell translations from hubs.

The exact search computes its scores a tile at a time, so memory grows with N + M and not with N x M. The
approximate one, for more than `EXACT_LIMIT` sentences, is an index of faiss (the extra `eval`).

Shapes: N and M sentences, D hidden, k neighbours; R rows and C columns of a tile.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_infoxlm.evaluation.batching import progress_bar
from modeling_infoxlm.runs.errors import import_extra

Similarity = Literal["cosine", "dot"]
Margin = Literal["none", "ratio", "distance"]
Search = Literal["exact", "approximate"]

TILE_ROWS, TILE_COLUMNS = 1024, 4096  # 16 MB of fp32 scores, which stay in the cache of a CPU
EXACT_LIMIT = 100_000  # sentences of the larger side: minutes on a few cores, the square of it in time
NEIGHBOURS = 4  # of a margin, as in arXiv 1811.01136

# Of the approximate search. 4 * sqrt(M) lists and 39 to 256 rows for each are what faiss advises.
_PROBES = 32
_TRAINING_ROWS_PER_LIST = 48
_ROWS_AT_ONCE = 16384


@dataclass(frozen=True)
class Neighbours:
    """Vectors of the other side that are nearest to, or fit best, each of N vectors."""

    # similarities (N, k), the highest first, nan where an approximate search found fewer than k; or margin
    # scores of the best match (N,), -inf where none was found
    score: Tensor
    # numbers of the neighbours, of equal ones the first, in the same shape; 0 where none was found
    index: Tensor


@dataclass(frozen=True)
class RetrievalAccuracy:
    """Share of sentences, 0..1, whose nearest neighbour on the other side is their translation."""

    source_to_target: float
    target_to_source: float

    @property
    def mean(self) -> float:
        """Mean of both directions."""
        return (self.source_to_target + self.target_to_source) / 2


def retrieval_accuracy(source: Tensor, target: Tensor) -> RetrievalAccuracy:
    """Top-1 accuracy in both directions of aligned vectors, (N, D) (as Tatoeba: cosine, no margin)."""
    forth, back = translations_found(source, target)
    return RetrievalAccuracy(forth.float().mean().item(), back.float().mean().item())


def translations_found(
    source: Tensor, target: Tensor, *, margin: Margin = "none", **options: Any
) -> tuple[Tensor, Tensor]:
    """Whether the best match (see `match`) of each source and target vector is its translation, (N,) each.

    Raises:
        ValueError: If there is not exactly one translation for each sentence.
    """
    if source.shape != target.shape or not len(source):
        shapes = f"{tuple(source.shape)} and {tuple(target.shape)}"
        raise ValueError(f"expected one translation for each sentence, found {shapes}.")
    forth, back = match(source, target, margin=margin, **options)
    expected = torch.arange(len(source), device=forth.index.device)
    return forth.index == expected, back.index == expected


def margin_scores(forth: Neighbours, back: Neighbours, margin: Margin) -> Tensor:
    """Score each of N sentences with each of its neighbours against what is usual around the two, (N, k).

    A sentence that is near to everything (a hub) is no translation of all of it. So the similarity of x and y
    is compared with the mean b of the similarities of x and of y to their k nearest neighbours each:
    `ratio` a / b, `distance` a - b, `none` a (Artetxe and Schwenk, arXiv 1811.01136, section 3).
    """
    if margin == "none":
        return forth.score
    usual = (forth.score.nanmean(dim=1, keepdim=True) + back.score.nanmean(dim=1)[forth.index]) / 2
    return forth.score / usual if margin == "ratio" else forth.score - usual


def best_matches(forth: Neighbours, back: Neighbours, margin: Margin) -> Neighbours:
    """The neighbour with the highest margin score of each of the N sentences, (N,)."""
    scores = margin_scores(forth, back, margin)
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    best = scores.amax(dim=1, keepdim=True)
    last = torch.iinfo(forth.index.dtype).max
    return Neighbours(best[:, 0], forth.index.masked_fill(scores < best, last).amin(dim=1))


def match(
    source: Tensor, target: Tensor, *, margin: Margin, k: int = NEIGHBOURS, **options: Any
) -> tuple[Neighbours, Neighbours]:
    """The best match on the other side of each of N and M vectors, (N, D) and (M, D): (N,) and (M,).

    With a margin the candidates are the k nearest neighbours, as in LASER. For options see `find_neighbours`.
    """
    forth, back = find_neighbours(source, target, k=1 if margin == "none" else k, **options)
    return best_matches(forth, back, margin), best_matches(back, forth, margin)


def best_pairs(forth: Neighbours, back: Neighbours) -> pd.DataFrame:
    """The best match of every sentence of both sides as pairs, the best first, each once.

    Returns:
        Columns `score`, descending, and `source` and `target`, the numbers of the sentences.
    """
    score = torch.cat([forth.score, back.score]).double().cpu().numpy()
    found, others = forth.index.cpu().numpy(), back.index.cpu().numpy()
    source = np.concatenate([np.arange(len(found)), others])
    target = np.concatenate([found, np.arange(len(others))])
    pairs = pd.DataFrame({"score": score, "source": source, "target": target})[np.isfinite(score)]
    pairs = pairs.sort_values(["score", "source", "target"], ascending=[False, True, True])
    # A pair that both sides chose stands twice, and its two scores may differ by rounding.
    return pairs.drop_duplicates(["source", "target"], ignore_index=True)


def one_to_one(pairs: pd.DataFrame) -> pd.DataFrame:
    """Keep each sentence in its best pair alone: best first, a pair with a used sentence is dropped."""
    used_source, used_target = set[int](), set[int]()
    chosen = np.zeros(len(pairs), dtype=bool)
    for i, (source, target) in enumerate(
        zip(pairs["source"].tolist(), pairs["target"].tolist(), strict=True)
    ):
        if source not in used_source and target not in used_target:
            used_source.add(source)
            used_target.add(target)
            chosen[i] = True
    return pairs[chosen]


def choose_search(num_source: int, num_target: int) -> Search:
    """Exact up to `EXACT_LIMIT` sentences a side, approximate beyond, for which faiss has to be installed."""
    if max(num_source, num_target) <= EXACT_LIMIT:
        return "exact"
    _import_faiss()
    return "approximate"


def find_neighbours(
    source: Tensor,
    target: Tensor,
    *,
    k: int,
    similarity: Similarity = "cosine",
    search: Search = "exact",
    progress: bool = False,
) -> tuple[Neighbours, Neighbours]:
    """The k nearest neighbours of each sentence on the other side, in both directions; all if they are fewer.

    Args:
        source: (N, D), fp32 or fp16; products are computed in fp32.
        target: (M, D).
        k: Neighbours.
        similarity: Of two vectors. With `"dot"` the vectors are used as they are, so they may lie in a
            memory-mapped file.
        search: `"exact"` takes (N + M) x k numbers beside the vectors and time that grows with N x M.
            `"approximate"` looks at the lists of vectors that are nearest to a query; some of its true
            neighbours may be missed. It runs on the CPU.
        progress: Show a progress bar when it takes longer than two seconds.
    """
    if similarity == "cosine":
        source, target = F.normalize(source, dim=-1), F.normalize(target, dim=-1)
    find = _exact_neighbours if search == "exact" else _approximate_neighbours
    return find(source, target, k, progress)


def _exact_neighbours(
    source: Tensor, target: Tensor, k: int, progress: bool
) -> tuple[Neighbours, Neighbours]:
    forth, back = _Nearest.of(source, min(k, len(target))), _Nearest.of(target, min(k, len(source)))
    rows = range(0, len(source), TILE_ROWS)
    with progress_bar(len(rows), "searching", " tiles", show=progress) as bar:
        for row in rows:
            some = source[row : row + TILE_ROWS].float()
            for column in range(0, len(target), TILE_COLUMNS):
                scores = some @ target[column : column + TILE_COLUMNS].float().t()
                forth.update(row, column, scores)
                # On the CPU a search along columns takes far longer than turning the tile.
                back.update(column, row, scores.t().contiguous())
            bar.update()
    return forth, back


class _Nearest(Neighbours):
    """The k highest scores of each vector so far, and the indices of the vectors that have them."""

    @classmethod
    def of(cls, vectors: Tensor, k: int) -> "_Nearest":
        shape, device = (len(vectors), k), vectors.device
        score = torch.full(shape, -torch.inf, device=device)
        return cls(score, torch.zeros(shape, dtype=torch.long, device=device))

    def update(self, row: int, column: int, scores: Tensor) -> None:
        """Take the scores (R, C) of vectors from `row` on with others from `column` on.

        Not `topk`: which of equal scores it takes is not defined.
        """
        rows = torch.arange(row, row + len(scores), device=scores.device)
        for remaining in reversed(range(self.score.shape[1])):
            score, index = scores.max(dim=1)
            kept = torch.nonzero(score > self.score[rows, -1])[:, 0]
            if not len(kept):
                return
            rows, score, index = rows[kept], score[kept], index[kept]
            self._insert(rows, score, index + column)
            if remaining:  # look for the next one where there may be one: after a few tiles, in few rows
                scores = scores.index_select(0, kept).scatter_(1, index[:, None], -torch.inf)

    def _insert(self, rows: Tensor, score: Tensor, index: Tensor) -> None:
        """Put a score behind those of its row that are as high, which came earlier."""
        scores = torch.cat([self.score[rows], score[:, None]], dim=1)
        indices = torch.cat([self.index[rows], index[:, None]], dim=1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        self.score[rows] = scores[:, :-1]
        self.index[rows] = indices.gather(1, order)[:, :-1]


def _approximate_neighbours(
    source: Tensor, target: Tensor, k: int, progress: bool
) -> tuple[Neighbours, Neighbours]:
    # One after the other: only one index is in memory at a time.
    forth = _search_index(_build_index(target), source, min(k, len(target)), progress)
    return forth, _search_index(_build_index(source), target, min(k, len(source)), progress)


def _import_faiss() -> Any:
    purpose = f"searches among more than {EXACT_LIMIT:,} sentences"
    return import_extra("faiss", extra="eval", purpose=purpose)


def _build_index(candidates: Tensor) -> Any:
    """Lists of like vectors, which are kept in fp16: 2 x D bytes and a number of 8 bytes for each."""
    faiss = _import_faiss()
    lists = max(1, math.isqrt(16 * len(candidates)))
    index = faiss.index_factory(candidates.shape[1], f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    every = max(1, len(candidates) // (lists * _TRAINING_ROWS_PER_LIST))
    index.train(_as_numpy(candidates[::every]))
    for start in range(0, len(candidates), _ROWS_AT_ONCE):
        index.add(_as_numpy(candidates[start : start + _ROWS_AT_ONCE]))
    index.nprobe = _PROBES
    return index


def _search_index(index: Any, queries: Tensor, k: int, progress: bool) -> Neighbours:
    score, found = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.long)
    with progress_bar(len(queries), "searching", " sentences", show=progress) as bar:
        for start in range(0, len(queries), _ROWS_AT_ONCE):
            some = _as_numpy(queries[start : start + _ROWS_AT_ONCE])
            scores, indices = (torch.from_numpy(part) for part in index.search(some, k))
            missing = indices < 0
            score[start : start + len(some)] = scores.masked_fill(missing, torch.nan)
            found[start : start + len(some)] = indices.masked_fill(missing, 0)
            bar.update(len(some))
    return Neighbours(score, found)


def _as_numpy(vectors: Tensor) -> np.ndarray:
    return np.ascontiguousarray(vectors.float().cpu().numpy())
