"""Sentence vectors and retrieval, one sentence and one score at a time."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch


def sentence_vectors(model: Any, rows: Iterable[list[int]], layer: int, pooling: str) -> np.ndarray:
    """Vectors (N, D) of whole sequences by the padded forward of transformers, fp64."""
    vectors = []
    for ids in rows:
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].double()
        vectors.append((states[0] if pooling == "cls" else states.mean(dim=0)).numpy())
    return np.stack(vectors)


def similarities(queries: np.ndarray, candidates: np.ndarray, similarity: str = "cosine") -> np.ndarray:
    """(N, M), fp64."""
    table = np.empty((len(queries), len(candidates)))
    for i, query in enumerate(queries.astype(np.float64)):
        for j, other in enumerate(candidates.astype(np.float64)):
            lengths = np.linalg.norm(query) * np.linalg.norm(other) if similarity == "cosine" else 1.0
            table[i, j] = query @ other / lengths
    return table


def accuracies(source: np.ndarray, target: np.ndarray, similarity: str = "cosine") -> list[float]:
    """Share of sentences, 0..1, whose highest similarity is to their translation: forth and back."""
    table = similarities(source, target, similarity)
    return [float(np.mean(scores.argmax(axis=1) == np.arange(len(scores)))) for scores in (table, table.T)]


def nearest(table: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest of each row, of equals the first."""
    return np.argsort(-table, axis=1, kind="stable")[:, :k]


def margin_matches(table: np.ndarray, margin: str, k: int) -> tuple[list[int], list[float]]:
    """For each row the candidate among its k nearest with the highest margin, and the margin: loops."""
    forth, back = nearest(table, k), nearest(table.T, k)
    indices, scores = [], []
    for i, row in enumerate(forth):
        best = (-np.inf, 0)
        for j in sorted(row.tolist()):
            usual = sum(table[i, n] for n in row) / (2 * len(row))
            usual += sum(table[n, j] for n in back[j]) / (2 * len(back[j]))
            score = {"none": table[i, j], "ratio": table[i, j] / usual, "distance": table[i, j] - usual}
            if score[margin] > best[0]:
                best = (score[margin], j)
        scores.append(best[0])
        indices.append(best[1])
    return indices, scores
