"""Nearest neighbours against a slow search in numpy."""

import numpy as np
import pytest
import torch

from modeling_infoxlm.evaluation import mining
from modeling_infoxlm.evaluation.mining import nearest_neighbours, retrieval_accuracy


def slow_neighbours(queries: np.ndarray, candidates: np.ndarray) -> list[int]:
    """One cosine at a time, as the definition says."""
    found = []
    for query in queries:
        cosines = [query @ other / (np.linalg.norm(query) * np.linalg.norm(other)) for other in candidates]
        found.append(int(np.argmax(cosines)))
    return found


def random_vectors(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 5, generator=generator)
    return vectors * torch.rand(count, 1, generator=generator) * 100  # lengths must not matter


@pytest.fixture(params=[(1, 1), (7, 4), (6, 30), (1024, 4096)], ids=str)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Rows and columns of a tile of scores."""
    monkeypatch.setattr(mining, "TILE_ROWS", request.param[0])
    monkeypatch.setattr(mining, "TILE_COLUMNS", request.param[1])
    size: tuple[int, int] = request.param
    return size


def test_neighbours_are_those_of_the_highest_cosine(tile: tuple[int, int]) -> None:
    queries, candidates = random_vectors(20, 1), random_vectors(30, 2)
    expected = slow_neighbours(queries.double().numpy(), candidates.double().numpy())
    assert nearest_neighbours(queries, candidates).tolist() == expected
    by_product = (queries @ candidates.t()).argmax(dim=1).tolist()
    assert by_product != expected  # the lengths of this data do matter to a dot product


def test_the_first_of_equals_is_taken(tile: tuple[int, int]) -> None:
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert nearest_neighbours(torch.tensor([[0.0, 3.0]]), candidates).tolist() == [1]
    # Sentences 1 and 2 are the same on both sides, so 2 is never the first.
    accuracy = retrieval_accuracy(candidates, candidates)
    assert accuracy.source_to_target == accuracy.target_to_source == pytest.approx(2 / 3)


def test_no_more_than_a_tile_of_scores_is_there_at_once(
    tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[torch.Size] = []
    update = mining._Best.update

    def spy(best: mining._Best, row: int, column: int, scores: torch.Tensor) -> None:
        sizes.append(scores.shape)
        update(best, row, column, scores)

    monkeypatch.setattr(mining._Best, "update", spy)
    nearest_neighbours(random_vectors(20, 1), random_vectors(30, 2))
    assert all(rows <= tile[0] and columns <= tile[1] for rows, columns in sizes)
    assert sum(rows * columns for rows, columns in sizes) == 20 * 30


def test_both_directions_against_the_slow_search(tile: tuple[int, int]) -> None:
    source = random_vectors(40, 3)
    target = source + 0.8 * random_vectors(40, 4)
    forth = slow_neighbours(source.double().numpy(), target.double().numpy())
    back = slow_neighbours(target.double().numpy(), source.double().numpy())
    accuracy = retrieval_accuracy(source, target)
    expected = [np.mean(np.array(found) == np.arange(40)) for found in (forth, back)]
    assert expected[0] != expected[1] and 0 < min(expected) and max(expected) < 1
    assert [accuracy.source_to_target, accuracy.target_to_source] == pytest.approx(expected)
    assert accuracy.mean == pytest.approx(sum(expected) / 2)


def test_directions_by_hand() -> None:
    """Source 0 finds target 0, but both targets are nearest to source 0."""
    source = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    target = torch.tensor([[1.0, 0.1], [1.0, 0.5]])
    accuracy = retrieval_accuracy(source, target)
    assert (accuracy.source_to_target, accuracy.target_to_source) == (1.0, 0.5)


def test_translations_of_themselves_are_all_found() -> None:
    vectors = random_vectors(30, 5)
    assert retrieval_accuracy(vectors, -2 * -vectors).mean == 1.0
    assert retrieval_accuracy(vectors, vectors.roll(1, dims=0)).mean == 0.0


def test_no_query() -> None:
    assert nearest_neighbours(torch.zeros(0, 5), random_vectors(3, 1)).tolist() == []


@pytest.mark.parametrize("rows", [(3, 4), (0, 0)])
def test_not_one_translation_for_each_sentence(rows: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"expected one translation.*\({rows[0]}, 2\) and \({rows[1]}, 2\)"):
        retrieval_accuracy(torch.zeros(rows[0], 2), torch.zeros(rows[1], 2))
