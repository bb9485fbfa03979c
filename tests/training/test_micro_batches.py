"""A batch that is cut must hold the same sequences, in order, within the budget, without a copy of tokens."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_infoxlm.training.micro_batches import kept_lengths, split_batch

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=12)


def part(lengths: list[int], *, seed: int = 0) -> dict[str, Any]:
    """A masked part; about every fourth token is masked, in some sequences none."""
    rng = np.random.default_rng(seed)
    masked = rng.random(sum(lengths)) < 0.25
    rows = np.flatnonzero(masked)
    bounds = np.cumsum([0, *lengths])
    return {
        "input_ids": torch.from_numpy(rng.integers(4, 50, sum(lengths))),
        "lengths": lengths,
        "masked_rows": torch.from_numpy(rows),
        "masked_lengths": np.diff(np.searchsorted(rows, bounds)).tolist(),
        "labels": torch.from_numpy(rng.integers(4, 50, len(rows))),
    }


def side(lengths: list[int]) -> dict[str, Any]:
    return {"input_ids": torch.arange(sum(lengths)), "lengths": lengths}


def batch_of(mlm: list[int], tlm: list[int], xlco: list[int]) -> dict[str, Any]:
    keys = [length + 1 for length in xlco]
    return {"mlm": part(mlm), "tlm": part(tlm, seed=1), "xlco": {"query": side(xlco), "key": side(keys)}}


def tokens(micro_batch: dict[str, Any]) -> int:
    return sum(sum(kept_lengths(part)) for part in micro_batch.values())


def joined(micro_batches: list[dict[str, Any]], *path: str) -> dict[str, Any]:
    """The pieces of one part put together again; the first name is that of the part."""
    pieces: list[dict[str, Any]] = [batch[path[0]] for batch in micro_batches if path[0] in batch]
    for name in path[1:]:
        pieces = [piece[name] for piece in pieces]
    whole: dict[str, Any] = {"lengths": [n for piece in pieces for n in piece["lengths"]]}
    whole["input_ids"] = torch.cat([piece["input_ids"] for piece in pieces])
    if "labels" in pieces[0]:
        starts = np.cumsum([0, *(len(piece["input_ids"]) for piece in pieces)])
        rows = [piece["masked_rows"] + int(start) for piece, start in zip(pieces, starts, strict=False)]
        whole["masked_rows"] = torch.cat(rows)
        whole["masked_lengths"] = [n for piece in pieces for n in piece["masked_lengths"]]
        whole["labels"] = torch.cat([piece["labels"] for piece in pieces])
    return whole


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        equal = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert equal, name


@given(LENGTHS, LENGTHS, LENGTHS, st.integers(1, 400), st.booleans(), st.booleans())
def test_the_pieces_are_the_batch(
    mlm: list[int], tlm: list[int], xlco: list[int], budget: int, by_objective: bool, whole: bool
) -> None:
    batch = batch_of(mlm, tlm, xlco)
    found = split_batch(
        batch, tokens_per_device=budget, by_objective=by_objective, whole=("xlco",) if whole else ()
    )
    for path in (("mlm",), ("tlm",), ("xlco", "query"), ("xlco", "key")):
        expected = batch[path[0]] if len(path) == 1 else batch[path[0]][path[1]]
        assert_same(joined(found, *path), expected)
    if not (by_objective or whole):  # under DDP its backward pass is the one that exchanges the gradients
        assert found[-1].keys() == {"mlm", "tlm", "xlco"}
    for micro_batch in found:
        assert all(kept_lengths(piece) for piece in micro_batch.values())  # no part without a sequence
        if "xlco" in micro_batch:  # each query with its key
            query, key = micro_batch["xlco"]["query"]["lengths"], micro_batch["xlco"]["key"]["lengths"]
            assert key == [length + 1 for length in query]
        single = all(len(kept_lengths(piece)) == 1 for piece in micro_batch.values())
        whole_contrast = whole and "xlco" in micro_batch
        shares = len(found) == max(len(mlm), len(tlm), len(xlco))  # cut as finely as it can be
        assert tokens(micro_batch) <= budget or single or whole_contrast or shares or by_objective


@pytest.mark.parametrize(
    ("lengths", "budget", "by_objective", "expected"),
    [
        # Every micro-batch has a share of every part; one with few sequences is left out at first.
        (([50] * 6, [20] * 6, [10] * 6), 160, False, [{"mlm": 2, "tlm": 2, "xlco": 2}] * 3),
        (
            ([10] * 4, [10], [10, 10]), 20, False,
            [{"mlm": 1}, {"mlm": 1}, {"mlm": 1, "xlco": 1}, {"mlm": 1, "tlm": 1, "xlco": 1}],
        ),
        (([3, 4], [5], [6, 7]), None, True, [{"xlco": 2}, {"tlm": 1}, {"mlm": 2}]),
        (([3, 4], [5], [6, 7]), 7, True, [{"xlco": 1}, {"xlco": 1}, {"tlm": 1}, {"mlm": 2}]),
    ],
)  # fmt: skip
def test_numbers_of_sequences_in_each_micro_batch(
    lengths: tuple[list[int], ...], budget: int | None, by_objective: bool, expected: list[dict[str, int]]
) -> None:
    found = split_batch(batch_of(*lengths), tokens_per_device=budget, by_objective=by_objective)
    counts = [{name: len(kept_lengths(piece)) for name, piece in one.items()} for one in found]
    assert counts == expected
    assert all(list(one) == list(other) for one, other in zip(counts, expected, strict=True))


@pytest.mark.parametrize(
    ("lengths", "budget", "pieces"),
    [
        ([5, 45, 30, 20, 60, 40], 100, [[5, 45, 30, 20], [60, 40]]),
        ([10, 90, 10], 30, [[10], [90], [10]]),  # one longer than the budget is not cut
    ],
)
def test_pieces_are_balanced_views(lengths: list[int], budget: int, pieces: list[list[int]]) -> None:
    batch = {"mlm": part(lengths)}
    split = split_batch(batch, tokens_per_device=budget, by_objective=False)
    found = [micro_batch["mlm"] for micro_batch in split]
    assert [piece["lengths"] for piece in found] == pieces
    for name in ("input_ids", "labels"):
        storage = batch["mlm"][name].untyped_storage().data_ptr()
        assert {piece[name].untyped_storage().data_ptr() for piece in found} == {storage}


def test_without_a_budget_the_batch_is_what_it_was() -> None:
    batch = batch_of([3, 4], [5], [6, 7])
    assert split_batch(batch, tokens_per_device=None, by_objective=False, whole=("xlco",)) == [batch]
    (whole,) = split_batch(batch, tokens_per_device=25, by_objective=False)
    assert all(whole[name] is part for name, part in batch.items())
    keys_do_not_count = {"xlco": {"query": side([5, 5]), "key": side([500, 500])}}
    assert len(split_batch(keys_do_not_count, tokens_per_device=10, by_objective=False)) == 1


def test_a_contrast_within_the_batch_is_kept_whole_and_first() -> None:
    batch = batch_of([10] * 4, [10] * 4, [10] * 4)
    for by_objective in (False, True):
        found = split_batch(batch, tokens_per_device=20, by_objective=by_objective, whole=("xlco",))
        assert list(found[0]) == ["xlco"] and kept_lengths(found[0]["xlco"]) == [10] * 4
        assert all("xlco" not in one and tokens(one) == 20 for one in found[1:])
    (alone,) = split_batch({"xlco": batch["xlco"]}, tokens_per_device=20, by_objective=False, whole=("xlco",))
    assert alone["xlco"] is batch["xlco"]
