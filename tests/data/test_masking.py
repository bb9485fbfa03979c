"""Masking: what is chosen, how often, what becomes of it, and that it hangs on nothing but tokens and key."""

from collections import Counter
from itertools import combinations, count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_infoxlm.data import masking
from modeling_infoxlm.data.masking import Masked, mask_tokens
from modeling_infoxlm.data.ragged import SpecialTokens
from modeling_infoxlm.data.sampling import hash64, random64, uniform

# <mask> stands in the middle here and not only at the end, so that drawing around it is tested too.
SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=9, vocab_size=20, all_ids=(0, 1, 2, 3, 9))
ORDINARY = [token for token in range(20) if token not in SPECIAL.all_ids]
BATCHES = st.lists(st.lists(st.integers(0, 19), max_size=40), min_size=1, max_size=12)
PROBABILITIES = st.one_of(st.sampled_from([0.0, 0.15, 1.0]), st.floats(0, 1))


def mask(sequences: list[list[int]], keys: np.ndarray, **options: Any) -> Masked:
    """Mask ragged lists; as the tokens of a shard they may not be written to."""
    tokens = np.array([token for sequence in sequences for token in sequence], dtype=np.uint32)
    tokens.flags.writeable = False
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    return mask_tokens(tokens, lengths, keys, special=SPECIAL, **options)


def mask_equal(num_sequences: int, length: int, **options: Any) -> tuple[np.ndarray, Masked]:
    """Mask many sequences of `length` ordinary tokens; returns them and the result."""
    tokens = np.resize(np.array(ORDINARY, dtype=np.uint32), num_sequences * length)
    keys = hash64("equal", np.arange(num_sequences))
    return tokens, mask_tokens(tokens, np.full(num_sequences, length), keys, special=SPECIAL, **options)


def draw_one_after_another(sequence: list[int], key: int, probability: float, special: bool) -> list[int]:
    """What is to be chosen: the first different allowed positions that the key's generator names."""
    allowed = {i for i, token in enumerate(sequence) if special or token in ORDINARY}
    keys = np.array([key], dtype=np.uint64)
    num_chosen = int(np.floor(probability * len(allowed) + uniform(hash64(keys, "count"))[0]))
    chosen: set[int] = set()
    numbers = count()
    while len(chosen) < num_chosen:
        drawn = int(random64(hash64(keys, "position"), next(numbers))[0]) >> 32
        chosen |= {drawn * len(sequence) >> 32} & allowed
    return sorted(chosen)


@settings(deadline=None)
@given(sequences=BATCHES, seed=st.integers(0, 2**32), probability=PROBABILITIES, special=st.booleans())
@pytest.mark.parametrize("too_few", [False, True], ids=["", "too few draws at first"])
def test_choice_equals_a_slow_loop_and_nothing_else_changes(
    too_few: bool, sequences: list[list[int]], seed: int, probability: float, special: bool
) -> None:
    """How many numbers are drawn at a time, and who has to draw again, must not change a single choice."""
    tokens, keys = np.array(sum(sequences, []), dtype=np.uint32), hash64(seed, np.arange(len(sequences)))
    with pytest.MonkeyPatch.context() as patch:
        if too_few:
            patch.setattr(masking, "_expect_draws", lambda lengths, *_: np.ones_like(lengths))
        masked = mask(sequences, keys, probability=probability, mask_special_tokens=special)
    expected = [
        draw_one_after_another(sequence, key, probability, special)
        for sequence, key in zip(sequences, keys.tolist(), strict=True)
    ]
    starts = np.cumsum([0, *map(len, sequences)])
    assert masked.rows.tolist() == [
        starts[i] + place for i, places in enumerate(expected) for place in places
    ]
    assert masked.counts.tolist() == [len(places) for places in expected]
    at_once = mask(sequences, keys, probability=probability, mask_special_tokens=special)
    assert masked.input_ids.tolist() == at_once.input_ids.tolist()

    assert masked.labels.tolist() == tokens[masked.rows].tolist()
    inputs, restored = masked.input_ids[masked.rows], masked.input_ids.copy()
    restored[masked.rows] = masked.labels
    assert restored.dtype == np.uint32 and restored.tolist() == tokens.tolist()
    assert set(inputs[inputs != masked.labels].tolist()) <= {*ORDINARY, SPECIAL.mask}


def test_subsets_round_special_tokens_are_equally_likely() -> None:
    """2 of the 4 ordinary places of 7: six subsets, 6,000 draws (99.9 % point for 5 degrees is 20.5)."""
    masked = mask([[0, 5, 6, 2, 7, 8, 2]] * 6000, hash64("round", np.arange(6000)), probability=0.5)
    subsets = Counter(map(tuple, (masked.rows.reshape(-1, 2) % 7).tolist()))
    assert set(subsets) == set(combinations((1, 2, 4, 5), 2))
    assert sum((count - 1000) ** 2 / 1000 for count in subsets.values()) < 20.5


@settings(deadline=None)
@given(sequences=BATCHES, seed=st.integers(0, 2**32))
def test_a_sequence_is_masked_alike_alone_and_in_any_batch(sequences: list[list[int]], seed: int) -> None:
    """Resume, other batch sizes and other worker counts put the same example among other neighbours."""
    keys = hash64(seed, np.arange(len(sequences)))
    alone = [mask([sequence], keys[i : i + 1]) for i, sequence in enumerate(sequences)]
    together = mask(sequences, keys)
    backwards = mask(sequences[::-1], keys[::-1])
    joined = [result.input_ids.tolist() for result in alone]
    assert together.input_ids.tolist() == sum(joined, [])
    assert backwards.input_ids.tolist() == sum(joined[::-1], [])
    assert together.labels.tolist() == sum((result.labels.tolist() for result in alone), [])


def test_share_chosen_and_what_becomes_of_it() -> None:
    """15 % of the tokens; of these 80 % <mask>, 10 % random (1 in 15 the old token), 10 % kept."""
    tokens, masked = mask_equal(4000, 100)
    inputs, num_chosen = masked.input_ids[masked.rows], len(masked.rows)
    assert num_chosen / len(tokens) == pytest.approx(0.15, abs=0.0005)
    num_masked, num_kept = np.sum(inputs == SPECIAL.mask), np.sum(inputs == masked.labels)
    assert num_masked / num_chosen == pytest.approx(0.8, abs=0.006)
    assert num_kept / num_chosen == pytest.approx(0.1 + 0.1 / 15, abs=0.005)
    assert (num_chosen - num_masked - num_kept) / num_chosen == pytest.approx(0.1 * 14 / 15, abs=0.005)


def dependence(rows: np.ndarray, columns: np.ndarray) -> float:
    """Chi-square of the table of two numbers of each draw."""
    found = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(found, (rows, columns), 1)
    expected = np.outer(found.sum(axis=1), found.sum(axis=0)) / found.sum()
    return float(np.sum((found - expected) ** 2 / expected))


def test_what_becomes_of_a_token_does_not_hang_on_its_place() -> None:
    """One draw names place, action and the seed of a random token.

    8 places x 3 actions and 5 places x 15 tokens (99.9 % points for 14 and 56 degrees are 36.1 and 94.5).
    """
    _, masked = mask_equal(20_000, 8, probability=0.25, mask_share=0.5, random_share=0.25)
    inputs = masked.input_ids[masked.rows]
    action = np.where(inputs == SPECIAL.mask, 0, np.where(inputs == masked.labels, 1, 2))
    assert dependence(masked.rows % 8, action) < 36.1
    _, masked = mask_equal(20_000, 5, probability=0.4, mask_share=0.0, random_share=1.0)
    token = np.searchsorted(ORDINARY, masked.input_ids[masked.rows])
    assert dependence(masked.rows % 5, token) < 94.5


def test_random_tokens_are_uniform_over_the_ordinary_ones() -> None:
    """Each of the 15 ordinary ids, none of the special ones (99.9 % point for 14 degrees is 36.1)."""
    _, masked = mask_equal(3000, 50, probability=1.0, mask_share=0.0, random_share=1.0)
    counts = np.bincount(masked.input_ids, minlength=20)
    expected = len(masked.input_ids) / len(ORDINARY)
    assert not counts[list(SPECIAL.all_ids)].any()
    assert np.sum((counts[ORDINARY] - expected) ** 2 / expected) < 36.1
