"""Nearest neighbours and margins against a slow search in numpy."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference.retrieval import accuracies, margin_matches, nearest, similarities

from modeling_infoxlm.evaluation.retrieval import mining
from modeling_infoxlm.evaluation.retrieval.mining import (
    Neighbours,
    best_matches,
    best_pairs,
    choose_search,
    find_neighbours,
    margin_scores,
    one_to_one,
    retrieval_accuracy,
    translations_found,
)
from modeling_infoxlm.runs.errors import UsageError


def random_vectors(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 5, generator=generator)
    return vectors * torch.rand(count, 1, generator=generator) * 100  # lengths must not matter


@pytest.fixture(params=[(1, 1), (7, 4), (1024, 4096)], ids=str)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Rows and columns of a tile of scores."""
    monkeypatch.setattr(mining, "TILE_ROWS", request.param[0])
    monkeypatch.setattr(mining, "TILE_COLUMNS", request.param[1])
    size: tuple[int, int] = request.param
    return size


def test_both_directions_against_the_slow_search_a_tile_of_scores_at_a_time(
    tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[torch.Size] = []
    update = mining._Nearest.update

    def spy(nearest: mining._Nearest, row: int, column: int, scores: torch.Tensor) -> None:
        sizes.append(scores.shape)
        update(nearest, row, column, scores)

    monkeypatch.setattr(mining._Nearest, "update", spy)
    source = random_vectors(40, 3)
    target = source + 0.8 * random_vectors(40, 4)
    expected = accuracies(source.numpy(), target.numpy())
    accuracy = retrieval_accuracy(source, target)
    assert max(rows * columns for rows, columns in sizes) <= tile[0] * tile[1]
    assert sum(rows * columns for rows, columns in sizes) == 2 * 40 * 40  # once in each direction
    assert expected[0] != expected[1] and 0 < min(expected) and max(expected) < 1
    assert [accuracy.source_to_target, accuracy.target_to_source] == pytest.approx(expected)
    assert accuracy.mean == pytest.approx(sum(expected) / 2)
    # Sentences 1 and 2 are the same on both sides: the first of equals is taken.
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    accuracy = retrieval_accuracy(vectors, vectors)
    assert accuracy.source_to_target == accuracy.target_to_source == pytest.approx(2 / 3)
    for rows in ((3, 4), (0, 0)):
        with pytest.raises(ValueError, match=rf"expected one translation.*\({rows[0]}, 2\) and \({rows[1]}"):
            retrieval_accuracy(torch.zeros(rows[0], 2), torch.zeros(rows[1], 2))


# ----------------------------------------------------------------------------------- k neighbours and margins


def corner_vectors(count: int, seed: int) -> torch.Tensor:
    """Corners of a cube, which fp32 multiplies exactly: many equal vectors and equal cosines."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, 4), generator=generator) * 2.0 - 1


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_k_neighbours_in_both_directions_with_ties(
    tile: tuple[int, int], k: int, similarity: mining.Similarity
) -> None:
    source, target = corner_vectors(20, 1), corner_vectors(30, 2)
    table = similarities(source.numpy(), target.numpy(), similarity)
    found = find_neighbours(source, target, k=k, similarity=similarity)
    for neighbours, scores in zip(found, (table, table.T), strict=True):
        expected = nearest(scores, k)
        assert neighbours.index.tolist() == expected.tolist()
        assert neighbours.score.tolist() == np.take_along_axis(scores, expected, axis=1).tolist()


def test_half_precision_vectors_are_multiplied_in_fp32() -> None:
    source, target = random_vectors(20, 1).half(), random_vectors(30, 2).half()
    expected = find_neighbours(source.float(), target.float(), k=4, similarity="dot")
    found = find_neighbours(source, target, k=4, similarity="dot")
    assert torch.equal(found[0].score, expected[0].score) and found[0].score.dtype == torch.float32


def positive_vectors(count: int, seed: int) -> torch.Tensor:
    """Vectors near their translations, all similarities positive, as a ratio wants them."""
    return 3 + random_vectors(count, 3).abs() + 0.3 * random_vectors(count, seed).abs()


def whole_vectors(count: int, seed: int) -> torch.Tensor:
    """Small positive whole numbers: dot products, their means and equal ratios are exact in fp32."""
    return corner_vectors(count, seed) + 2


MARGIN_CASES = [
    *((positive_vectors, margin, s) for margin in ("none", "ratio", "distance") for s in ("cosine", "dot")),
    *((corner_vectors, margin, s) for margin in ("none", "distance") for s in ("cosine", "dot")),
    (whole_vectors, "ratio", "dot"),
]


@pytest.mark.parametrize(("make", "margin", "similarity"), MARGIN_CASES)
def test_margins_are_those_of_a_slow_loop(
    make: Callable[[int, int], torch.Tensor], margin: mining.Margin, similarity: mining.Similarity
) -> None:
    source, target = make(40, 4), make(40, 5)
    k = 1 if margin == "none" else 4
    table = similarities(source.numpy(), target.numpy(), similarity)
    forth, back = find_neighbours(source, target, k=k, similarity=similarity)
    found = translations_found(source, target, similarity=similarity, margin=margin)
    for there, here, scores, hits in zip((forth, back), (back, forth), (table, table.T), found, strict=True):
        index, score = margin_matches(scores, margin, k)
        matches = best_matches(there, here, margin)
        assert matches.index.tolist() == index
        assert matches.score.tolist() == pytest.approx(score, rel=1e-5, abs=1e-6)
        assert hits.tolist() == [i == j for i, j in enumerate(index)]


def test_neighbours_that_were_not_found_are_left_out() -> None:
    nan = float("nan")
    forth = Neighbours(torch.tensor([[0.8, nan], [nan, nan]]), torch.tensor([[1, 0], [0, 0]]))
    back = Neighbours(torch.tensor([[0.3, 0.1], [0.6, nan]]), torch.tensor([[0, 1], [0, 0]]))
    scores = margin_scores(forth, back, "distance")
    assert scores[0, 0].item() == pytest.approx(0.8 - (0.8 + 0.6) / 2) and scores[1].isnan().all()
    matches = best_matches(forth, back, "distance")
    assert matches.index[0] == 1 and matches.score[1] == -torch.inf
    pairs = best_pairs(matches, best_matches(back, forth, "none"))
    assert (pairs.source.tolist(), pairs.target.tolist()) == ([0, 0], [1, 0])
    assert pairs.score.tolist() == pytest.approx([0.6, 0.3])


# ------------------------------------------------------------------------------------------------------ pairs


def test_pairs_are_the_best_of_both_sides_and_one_to_one_takes_from_the_best_down() -> None:
    def matches(count: int, others: int, seed: int) -> Neighbours:
        draw = np.random.default_rng(seed)
        score = torch.from_numpy(draw.integers(0, 9, count) / 8)
        return Neighbours(score, torch.from_numpy(draw.integers(0, others, count)))

    forth = Neighbours(torch.tensor([0.5, 0.9, 0.5]), torch.tensor([1, 0, 1]))
    pairs = best_pairs(forth, Neighbours(torch.tensor([0.9, 0.7]), torch.tensor([1, 2])))
    assert pairs.score.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert list(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True)) == [(1, 0), (2, 1), (0, 1)]
    for seed in range(2):
        pairs = best_pairs(matches(12, 9, seed), matches(9, 12, seed + 50))
        keys = list(zip((-pairs.score).tolist(), pairs.source.tolist(), pairs.target.tolist(), strict=True))
        assert keys == sorted(keys) and len({key[1:] for key in keys}) == len(keys) <= 21
        expected: list[tuple[float, int, int]] = []
        for key in keys:
            if all(key[1] != used[1] and key[2] != used[2] for used in expected):
                expected.append(key)
        chosen = one_to_one(pairs)
        found = list(zip(chosen.source.tolist(), chosen.target.tolist(), strict=True))
        assert found == [key[1:] for key in expected] and len(chosen) < len(pairs)


# ------------------------------------------------------------------------------------------------------ faiss


def test_faiss_finds_the_neighbours_of_the_exact_search() -> None:
    pytest.importorskip("faiss", reason="faiss is not installed (the extra eval)")
    source, target = random_vectors(60, 1), random_vectors(50, 2)
    exact = find_neighbours(source, target, k=3)
    found = find_neighbours(source, target, k=3, search="approximate")
    for one, other in zip(found, exact, strict=True):
        # So few lists are all searched; fp16 changes the third digit of a cosine, and so some near ties.
        torch.testing.assert_close(one.score, other.score, rtol=0, atol=2e-3)
        assert (one.index == other.index).float().mean() > 0.95


def test_exact_up_to_the_limit_and_faiss_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "_import_faiss", lambda: None)
    sizes = ((100_000, 100_000), (100_001, 1), (1, 100_001))
    assert [choose_search(*pair) for pair in sizes] == ["exact", "approximate", "approximate"]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"more than 100,000 .* pip install 'modeling-infoxlm\[eval\]'"):
        choose_search(100_001, 5)
    assert choose_search(100_000, 5) == "exact"
