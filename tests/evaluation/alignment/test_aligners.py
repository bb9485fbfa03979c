"""Aligners of sub-words, against slow loops written from the papers."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_infoxlm.evaluation.alignment.aligners import (
    argmax_alignment,
    itermax_alignment,
    sinkhorn,
    transport_alignment,
)
from modeling_infoxlm.evaluation.alignment.scoring import Link


def similarities(seed: int, *, lowest: float = -1.0) -> Tensor:
    """Random, of random shape, with ties."""
    draw = random.Random(seed)
    m, n = draw.randint(1, 7), draw.randint(1, 7)
    return torch.tensor([[round(draw.uniform(lowest, 3), 1) for _ in range(n)] for _ in range(m)])


def mutual(rows_by: list[list[float]], columns_by: list[list[float]]) -> set[Link]:
    """Pairs that are the row's best in one table and the column's best in the other."""
    columns = [list(column) for column in zip(*columns_by, strict=True)]
    firsts = [row.index(max(row)) for row in rows_by]
    return {(i, j) for i, j in enumerate(firsts) if columns[j].index(max(columns[j])) == i}


def slow_sinkhorn(similarity: list[list[float]], rounds: int) -> tuple[list[list[float]], list[list[float]]]:
    """XLM-Align: divide by the sums over sources, then over targets, in turn; return both."""
    m, n = len(similarity), len(similarity[0])
    pi = [[value if value > 0 else 1e-6 for value in row] for row in similarity]
    xi = pi
    for _ in range(rounds):
        sums = [sum(pi[i][j] for i in range(m)) for j in range(n)]
        xi = [[pi[i][j] / sums[j] for j in range(n)] for i in range(m)]
        pi = [[value / sum(row) for value in row] for row in xi]
    return pi, xi


def slow_itermax(similarity: list[list[float]], rounds: int) -> set[Link]:
    """SimAlign: words without a partner look again, at 0.9 where the other has one."""
    m, n = len(similarity), len(similarity[0])
    found = mutual(similarity, similarity)
    if min(m, n) <= 2:
        return found
    for _ in range(rounds - 1):
        rows_taken, columns_taken = {i for i, _ in found}, {j for _, j in found}
        if len(rows_taken) == m or len(columns_taken) == n:
            break
        weighted = [
            [
                similarity[i][j] * {0: 1.0, 1: 0.9, 2: 0.0}[(i in rows_taken) + (j in columns_taken)]
                for j in range(n)
            ]
            for i in range(m)
        ]
        new = {(i, j) for i, j in mutual(weighted, weighted) if not (i in rows_taken and j in columns_taken)}
        if not new - found:
            break
        found = found | new
    return found


def links_of(aligned: Tensor) -> set[Link]:
    return {(i, j) for i, j in aligned.nonzero().tolist()}


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_transport_equals_the_slow_loop(rounds: int) -> None:
    for seed in range(60):
        similarity = similarities(seed).double()
        pi, xi = slow_sinkhorn(similarity.tolist(), rounds)
        fast_pi, fast_xi = sinkhorn(similarity, iterations=rounds)
        assert torch.allclose(fast_pi, torch.tensor(pi, dtype=torch.float64), rtol=1e-9)
        assert torch.allclose(fast_xi, torch.tensor(xi, dtype=torch.float64), rtol=1e-9)
        expected = mutual(fast_pi.tolist(), fast_xi.tolist())
        assert links_of(transport_alignment(similarity, iterations=rounds)) == expected


def test_transport_leaves_its_input_alone_and_differs_from_argmax() -> None:
    # Target 0 is near to both; the plan leaves it to source 0 and gives target 1 to source 1.
    similarity = torch.tensor([[10.0, 1.0], [9.0, 8.0]])
    assert links_of(argmax_alignment(similarity)) == {(0, 0)}
    assert links_of(transport_alignment(similarity)) == {(0, 0), (1, 1)}
    assert similarity.tolist() == [[10.0, 1.0], [9.0, 8.0]]
    for seed in range(100):  # argmax equals the slow loop with ties
        similarity = similarities(seed)
        assert links_of(argmax_alignment(similarity)) == mutual(similarity.tolist(), similarity.tolist())


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_itermax_equals_the_slow_loop(rounds: int) -> None:
    more = 0
    for seed in range(200):
        similarity = similarities(seed, lowest=0.0).double()
        expected = slow_itermax(similarity.tolist(), rounds)
        assert links_of(itermax_alignment(similarity, rounds=rounds)) == expected
        more += len(expected) - len(mutual(similarity.tolist(), similarity.tolist()))
    assert more > 50 or rounds == 1


@pytest.mark.parametrize("method", [transport_alignment, argmax_alignment, itermax_alignment])
def test_layers_are_aligned_each_by_itself(method: Any) -> None:
    layers = torch.rand(5, 6, 4, generator=torch.Generator().manual_seed(1))
    together = method(layers)
    assert all(torch.equal(together[k], method(layers[k])) for k in range(5))
