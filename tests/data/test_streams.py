"""Streams: what is joined with what, in which layout, and how often."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sentences import (
    NUM_BLOCKS,
    NUM_PAIRS,
    PLAIN,
    SPECIAL,
    block_ids,
    flatten,
    group_of,
    read,
    sentence_ids,
    split,
    views,
    write_store,
)

from modeling_infoxlm.data.batches import JointDataset
from modeling_infoxlm.data.ragged import PackedRows, join_pieces
from modeling_infoxlm.data.shards import Corpus, PairStore
from modeling_infoxlm.data.streams import StreamSettings
from modeling_infoxlm.runs.errors import DataError

# ---- the pieces


def test_special_tokens_round_one_and_two_pieces() -> None:
    """One separator between two sentences, none doubled, also round an empty piece."""
    pieces = PackedRows(np.array([5, 6, 7, 8], dtype=np.uint32), np.array([2, 1, 0, 1]))
    one = join_pieces(pieces, np.ones(4, dtype=np.int64), SPECIAL)
    assert one.tokens.tolist() == [0, 5, 6, 2, 0, 7, 2, 0, 2, 0, 8, 2]
    assert one.lengths.tolist() == [4, 3, 2, 3]
    two = join_pieces(pieces, np.array([2, 2]), SPECIAL)
    assert two.tokens.tolist() == [0, 5, 6, 2, 7, 2, 0, 2, 8, 2]
    assert two.lengths.tolist() == [6, 4]
    ragged = join_pieces(pieces, np.array([1, 3]), SPECIAL)
    assert ragged.tokens.tolist() == [0, 5, 6, 2, 0, 7, 2, 2, 8, 2]
    assert ragged.lengths.tolist() == [4, 6]
    assert pieces.lengths.tolist() == [2, 1, 0, 1]


# ---- MLM


def test_mlm_epoch_is_every_block_once(corpus: Corpus) -> None:
    """With alpha 1 an epoch is the corpus, each block as it was written."""
    plain = replace(PLAIN, objectives=("mlm",), sampling_alpha=1.0)
    blocks = split(JointDataset(corpus, plain, 85).pack(np.arange(85))["mlm"])
    written = [block_ids(i, n) for i, count in enumerate(NUM_BLOCKS.values()) for n in range(count)]
    assert sorted(blocks) == sorted(written)
    assert blocks != written


@pytest.mark.parametrize("objective", ["mlm", "tlm"])
def test_labels_restore_the_unmasked_part(corpus: Corpus, objective: Any) -> None:
    """Rows and labels belong together, and masking changes neither which examples come nor their lengths."""

    def pack(streams: StreamSettings) -> dict[str, Any]:
        only = replace(streams, objectives=(objective,))
        return JointDataset(corpus, only, 200).pack(np.arange(200))[objective]

    masked, plain = pack(StreamSettings()), pack(PLAIN)
    assert len(masked["masked_rows"]) > 100
    assert masked["input_ids"].tolist() != plain["input_ids"].tolist()
    masked["input_ids"][masked["masked_rows"]] = masked["labels"]
    assert masked["input_ids"].tolist() == plain["input_ids"].tolist()
    assert masked["lengths"].tolist() == plain["lengths"].tolist()
    assert not set(masked["labels"].tolist()) & set(SPECIAL.all_ids)
    everything = pack(StreamSettings(mask_special_tokens=True))
    assert {SPECIAL.bos, SPECIAL.eos} <= set(everything["labels"].tolist())


def test_masks_are_new_in_every_epoch(corpus: Corpus) -> None:
    """The same block is masked elsewhere when it comes again (dynamic masking)."""
    dataset = JointDataset(corpus, StreamSettings(objectives=("mlm",), sampling_alpha=1.0), 85 * 20)
    plain = JointDataset(corpus, replace(PLAIN, objectives=("mlm",), sampling_alpha=1.0), 85 * 20)
    blocks = split(plain.pack(np.arange(85 * 20))["mlm"])
    masked = split(dataset.pack(np.arange(85 * 20))["mlm"])
    longest = max(blocks, key=len)
    seen = {tuple(after) for before, after in zip(blocks, masked, strict=True) if before == longest}
    assert len(seen) >= 5  # of 20 masks of six tokens; a mask fixed for the example would give 1


# ---- TLM


def test_tlm_joins_both_sides_in_both_directions(corpus: Corpus) -> None:
    """Each sequence is one pair, source or target first about equally often."""
    part = JointDataset(corpus, replace(PLAIN, objectives=("tlm",)), 2000).pack(np.arange(2000))["tlm"]
    sequences = [read(sequence) for sequence in split(part)]
    assert all(len(sentences) == 2 for sentences in sequences)
    assert all(first[0] == second[0] and first[1] == 1 - second[1] for first, second in sequences)
    assert abs(np.mean([first[1] for first, _ in sequences]) - 0.5) < 0.04
    assert len({first[0] for first, _ in sequences}) == sum(NUM_PAIRS.values())


# ---- XlCo


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
@pytest.mark.parametrize("joined", ["none", "random", "adjacent", "code_mixed"])
def test_views_are_translations_of_each_other(corpus: Corpus, joined: Any, seed: int) -> None:
    """Of one pair, roles swapped half the time, or of two pairs of one language pair.

    (c1, d2) stands against (d1, c2) in half of the code-mixed examples, else each view has one language.
    """
    mixed, swapped = [], []
    for query, key in views(corpus, 200, concatenate_pairs=joined, seed=seed):
        assert len(query) == len(key) == (1 if joined == "none" else 2)
        assert len({pair for pair, _ in query}) == len(query), "never a pair with itself"
        assert len({group_of(pair) for pair, _ in query}) == 1
        assert sorted(key) == sorted((pair, 1 - side) for pair, side in query)
        mixed.append(len({side for _, side in query}) == 2)
        swapped.append(query[0][1])
    assert 0.3 < np.mean(swapped) < 0.7
    assert 0.3 < np.mean(mixed) < 0.7 if joined == "code_mixed" else not any(mixed)


def test_adjacent_joins_pairs_two_by_two(corpus: Corpus) -> None:
    """2k with 2k + 1 as in the released code, each couple once in an epoch; the odd last pair stays out."""
    epoch = 15 + 4 + 1
    found = views(corpus, epoch, concatenate_pairs="adjacent", pair_sampling_alpha=1.0)
    couples = sorted(tuple(sorted(pair for pair, _ in query)) for query, _ in found)
    starts = [*range(0, 30, 2), *range(31, 39, 2), 39]
    assert couples == [(start, start + 1) for start in starts]


@pytest.mark.parametrize("joined", ["random", "adjacent", "code_mixed"])
def test_roles_and_both_orders_are_independent_fair_coins(corpus: Corpus, joined: Any) -> None:
    """8 combinations of 4,000 examples, chi-square (99.9 % point for 7 degrees is 24.3)."""
    coins = Counter(
        (query[0][1], query[0][0] < query[1][0], key[0][0] < key[1][0])
        for query, key in views(corpus, 4000, concatenate_pairs=joined, seed=3)
    )
    assert len(coins) == 8 and sum((count - 500) ** 2 / 500 for count in coins.values()) < 24.3


def test_random_partner_is_any_other_pair_equally_often(corpus: Corpus) -> None:
    """All 28 couples of the 8 pairs of en-fr come up (chi-square, 99.9 % point for 27 degrees is 55.5)."""
    only = replace(corpus, bitext={"en-fr": corpus.bitext["en-fr"]})
    couples = Counter(frozenset(pair for pair, _ in query) for query, _ in views(only, 5600))
    assert len(couples) == 28
    assert sum((count - 200) ** 2 / 200 for count in couples.values()) < 55.5


@pytest.mark.parametrize("concatenate_pairs", ["random", "code_mixed"])
def test_a_single_pair_is_joined_to_itself(corpus: Corpus, tmp_path: Path, concatenate_pairs: Any) -> None:
    """The one case without another pair to join."""
    single = PairStore(
        write_store(tmp_path / "a", [sentence_ids(0, 0)]),
        write_store(tmp_path / "b", [sentence_ids(0, 1)]),
        "x",
        "y",
    )
    lonely = replace(corpus, bitext={"x-y": single})
    for query, key in views(lonely, 20, concatenate_pairs=concatenate_pairs):
        assert [pair for pair, _ in query + key] == [0, 0, 0, 0]
    with pytest.raises(DataError, match="bitext x-y has only 1; use concatenate_pairs=random"):
        JointDataset(lonely, StreamSettings(objectives=("xlco",), concatenate_pairs="adjacent"), 1)


def test_xlco_masks_both_views_and_nothing_special(corpus: Corpus) -> None:
    """About 13.5 % of the ordinary tokens differ from the text: 15 % chosen, less the kept."""
    masking = StreamSettings(objectives=("xlco",))
    masked = JointDataset(corpus, masking, 2000).pack(np.arange(2000))["xlco"]
    plain = JointDataset(corpus, replace(masking, xlco_masking=False), 2000).pack(np.arange(2000))["xlco"]
    for view in ("query", "key"):
        ordinary = ~np.isin(plain[view]["input_ids"], SPECIAL.all_ids)
        changed = masked[view]["input_ids"] != plain[view]["input_ids"]
        assert not changed[~ordinary].any()
        assert abs(changed[ordinary].mean() - 0.135) < 0.006
        assert set(masked[view]) == {"input_ids", "lengths"}


def test_streams_views_and_seeds_are_independent(corpus: Corpus, tmp_path: Path) -> None:
    """Sentences of equal length everywhere: equal masks would betray a shared key."""
    same = write_store(tmp_path / "same", [[50] * 18])
    block = write_store(tmp_path / "block", [[0, *[50] * 18, 2, *[50] * 18, 2]])
    twins = replace(corpus, mono={"x": block}, bitext={"x-y": PairStore(same, same, "x", "y")})
    batch = JointDataset(twins, StreamSettings(), 300).pack(np.arange(300))
    parts = [batch["mlm"], batch["tlm"], batch["xlco"]["query"], batch["xlco"]["key"]]
    masks = [(part["input_ids"] == SPECIAL.mask).reshape(300, 39) for part in parts]
    for i, one in enumerate(masks):
        assert one.mean() > 0.1
        for other in masks[:i]:
            assert abs(np.corrcoef(one[:, 1:].ravel(), other[:, 1:].ravel())[0, 1]) < 0.05
    # Item i holds the same pair in TLM and XlCo only by chance.
    batch = JointDataset(corpus, replace(PLAIN, concatenate_pairs="none"), 1000).pack(np.arange(1000))
    sides = batch["tlm"], batch["xlco"]["query"]
    tlm, xlco = ([read(sequence)[0][0] for sequence in split(side)] for side in sides)
    assert np.mean([a == b for a, b in zip(tlm, xlco, strict=True)]) < 0.1
    seeds = [flatten(JointDataset(corpus, StreamSettings(seed=n), 8).pack(range(8))) for n in (1, 2)]
    assert all(seeds[0][name] != seeds[1][name] for name in seeds[0])
