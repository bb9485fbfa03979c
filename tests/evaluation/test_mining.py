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


@pytest.mark.parametrize("rows_per_chunk", [1, 7, 4096])
def test_neighbours_are_those_of_the_highest_cosine(
    monkeypatch: pytest.MonkeyPatch, rows_per_chunk: int
) -> None:
    monkeypatch.setattr(mining, "ROWS_PER_CHUNK", rows_per_chunk)
    queries, candidates = random_vectors(20, 1), random_vectors(30, 2)
    expected = slow_neighbours(queries.double().numpy(), candidates.double().numpy())
    assert nearest_neighbours(queries, candidates).tolist() == expected
    by_product = (queries @ candidates.t()).argmax(dim=1).tolist()
    assert by_product != expected  # the lengths of this data do matter to a dot product


def test_the_first_of_equals_is_taken() -> None:
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert nearest_neighbours(torch.tensor([[0.0, 3.0]]), candidates).tolist() == [1]


def test_both_directions_against_the_slow_search() -> None:
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


@pytest.mark.parametrize("rows", [(3, 4), (0, 0)])
def test_not_one_translation_for_each_sentence(rows: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"expected one translation.*\({rows[0]}, 2\) and \({rows[1]}, 2\)"):
        retrieval_accuracy(torch.zeros(rows[0], 2), torch.zeros(rows[1], 2))
