"""Rows are cached, drawn, padded, and batched by length in an order of seed and epoch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_nli import word_tokenizer

from modeling_infoxlm.evaluation.encoders import tokenizer_hash
from modeling_infoxlm.evaluation.finetuning.rows import LengthBuckets, cached_rows, collate, draw


def test_rows_are_made_once_for_each_key(tmp_path: Path) -> None:
    made = []

    def encode() -> Iterator[dict[str, Any]]:
        made.append(1)
        yield from ({"input_ids": [0] * n, "labels": n} for n in (3, 1))

    options = {"cache_dir": str(tmp_path)}
    first = cached_rows(encode, key=["a", 1], **options)
    assert first[:] == {"input_ids": [[0, 0, 0], [0]], "labels": [3, 1], "length": [3, 1]}
    assert cached_rows(encode, key=["a", 1], **options)[:] == first[:]
    assert len(made) == 1
    for key in (["a", 2], ["a1"], ["", "a1"]):
        cached_rows(encode, key=key, **options)
    assert len(made) == 4


def test_tokenizers_of_other_rows_have_other_hashes() -> None:
    untyped = word_tokenizer(token_types=True)
    untyped.model_input_names = ["input_ids"]
    tokenizers = [word_tokenizer(), word_tokenizer(50), word_tokenizer(token_types=True), untyped]
    assert len({tokenizer_hash(tokenizer) for tokenizer in tokenizers}) == 4
    assert tokenizer_hash(word_tokenizer()) == tokenizer_hash(tokenizers[0])


def test_rows_are_padded_to_the_longest() -> None:
    given = (([0, 5, 2], 2), ([0, 2], 0))
    rows = [{"input_ids": ids, "labels": label, "length": len(ids)} for ids, label in given]
    left = word_tokenizer()
    left.padding_side, left.model_input_names = "left", ["input_ids"]  # answers are counted from the left
    for tokenizer in (word_tokenizer(), left):
        batch = collate(rows, tokenizer, ("labels",))
        assert {name: value.tolist() for name, value in batch.items()} == {
            "input_ids": [[0, 5, 2], [0, 2, 1]],
            "attention_mask": [[1, 1, 1], [1, 1, 0]],
            "labels": [[2], [0]],
        }
    typed = [{"input_ids": [0, 2], "token_type_ids": [0, 1]}, {"input_ids": [0], "token_type_ids": [1]}]
    assert collate(typed, word_tokenizer(token_types=True))["token_type_ids"].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("count", [1, 7, 50, 99, 100, 101, None])
def test_rows_are_drawn_from_each_group_by_its_share(count: int | None) -> None:
    groups = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    drawn = draw(groups, count)
    assert drawn == sorted(set(drawn)) and len(drawn) == min(100, count or 100)
    assert drawn == draw([group.upper() for group in groups[:60]] + ["0"] * 30 + ["1"] * 10, count)
    for group in "abc":
        share = len(drawn) * groups.count(group) / 100
        assert abs(sum(groups[row] == group for row in drawn) - share) < 1
    everywhere = np.mean([draw([""] * 1000, 50)])  # not the first ones, nor the last
    assert 400 < everywhere < 600


def test_an_epoch_has_each_row_once_and_like_lengths_together_however_a_step_is_cut() -> None:
    lengths = np.random.default_rng(1).integers(5, 200, 5003)
    batches = list(LengthBuckets(lengths, 32, seed=4))
    assert len(batches) == len(LengthBuckets(lengths, 32, seed=4)) == 157
    assert sorted(np.concatenate(batches).tolist()) == list(range(5003))
    assert sorted(map(len, batches))[:2] == [11, 32] and max(map(len, batches)) == 32
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.05 * lengths.sum()  # 1.95 times for batches drawn at random
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2  # neither short ones first nor last
    for count in (96, 100, 103):
        whole = list(LengthBuckets(lengths[:count], 8, seed=4))
        buckets = LengthBuckets(lengths[:count], 2, accumulated=4, seed=4)
        cut = list(buckets)
        steps = [sum(cut[i : i + 4], []) for i in range(0, len(cut), 4)]  # as the Trainer takes them
        assert steps == whole and len(whole[0]) == 8 and len(cut) == len(buckets)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        buckets = LengthBuckets(np.random.default_rng(1).integers(5, 50, 400), 8, seed=seed)
        buckets.set_epoch(epoch)
        torch.rand(3), np.random.random()
        return list(buckets)

    assert order(1, 2) == order(1, 2) != order(2, 2)
    # The batches of two epochs are not merely the same ones in another order.
    assert {tuple(batch) for batch in order(1, 2)} != {tuple(batch) for batch in order(1, 3)}
