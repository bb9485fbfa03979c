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
    """Mask ragged lists."""
    tokens = np.array([token for sequence in sequences for token in sequence], dtype=np.uint32)
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    return mask_tokens(tokens, lengths, keys, special=SPECIAL, **options)


def mask_equal(num_sequences: int, length: int, **options: Any) -> tuple[np.ndarray, Masked]:
    """Mask many sequences of `length` ordinary tokens; returns them and the result."""
    tokens = np.resize(np.array(ORDINARY, dtype=np.uint32), num_sequences * length)
    keys = hash64("equal", np.arange(num_sequences))
    return tokens, mask_tokens(tokens, np.full(num_sequences, length), keys, special=SPECIAL, **options)


@settings(deadline=None)
@given(sequences=BATCHES, seed=st.integers(0, 2**32), probability=PROBABILITIES)
def test_only_chosen_ordinary_positions_change(
    sequences: list[list[int]], seed: int, probability: float
) -> None:
    """Rows ascend without repeats, labels are the originals, special tokens stay, all other tokens stay."""
    tokens = np.array(sum(sequences, []), dtype=np.uint32)
    masked = mask(sequences, hash64(seed, np.arange(len(sequences))), probability=probability)
    assert np.all(np.diff(masked.rows) > 0)
    assert masked.labels.tolist() == tokens[masked.rows].tolist()
    assert not set(masked.labels.tolist()) & set(SPECIAL.all_ids)
    assert masked.input_ids.dtype == np.uint32
    restored = masked.input_ids.copy()
    restored[masked.rows] = masked.labels
    assert restored.tolist() == tokens.tolist()
    assert set(masked.input_ids[masked.rows].tolist()) <= {*ORDINARY, SPECIAL.mask}


@settings(deadline=None)
@given(sequences=BATCHES, seed=st.integers(0, 2**32), probability=PROBABILITIES)
def test_number_chosen_is_the_rounded_share(
    sequences: list[list[int]], seed: int, probability: float
) -> None:
    """floor(p m + u) for each sequence, u from its own key: never two more or less than the share."""
    keys = hash64(seed, np.arange(len(sequences)))
    masked = mask(sequences, keys, probability=probability)
    rows = masked.rows
    ends = np.cumsum([len(sequence) for sequence in sequences])
    draws = uniform(hash64(keys, "count"))
    for sequence, end, draw, counted in zip(sequences, ends, draws, masked.counts, strict=True):
        num_ordinary = sum(token in ORDINARY for token in sequence)
        num_chosen = np.sum((rows >= end - len(sequence)) & (rows < end))
        assert num_chosen == counted == int(np.floor(probability * num_ordinary + draw))


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
def test_choice_equals_a_slow_loop(
    too_few: bool, sequences: list[list[int]], seed: int, probability: float, special: bool
) -> None:
    """How many numbers are drawn at a time, and who has to draw again, must not change a single choice."""
    keys = hash64(seed, np.arange(len(sequences)))
    with pytest.MonkeyPatch.context() as patch:
        if too_few:
            patch.setattr(masking, "_expect_draws", lambda lengths, *_: np.ones_like(lengths))
        masked = mask(sequences, keys, probability=probability, mask_special_tokens=special)
    starts = np.cumsum([0, *map(len, sequences)])
    expected = [
        starts[i] + place
        for i, (sequence, key) in enumerate(zip(sequences, keys.tolist(), strict=True))
        for place in draw_one_after_another(sequence, key, probability, special)
    ]
    assert masked.rows.tolist() == expected
    assert len(masked.counts) == len(sequences)
    at_once = mask(sequences, keys, probability=probability, mask_special_tokens=special)
    assert masked.input_ids.tolist() == at_once.input_ids.tolist()


@pytest.mark.parametrize("probability", [0.15, 0.9, 1.0])
def test_few_allowed_tokens_among_many_special_ones_are_found(probability: float) -> None:
    """Most draws hit a special token here, and have to be made again and again."""
    sequences = [[0] * 500 + [5] * ordinary + [2] * 300 for ordinary in (0, 1, 2, 40)]
    masked = mask(sequences, hash64(np.arange(4)), probability=probability)
    shares = probability * np.array([0, 1, 2, 40])
    assert (abs(masked.counts - shares) < 1).all() and set(masked.labels.tolist()) == {5}


def test_subsets_round_special_tokens_are_equally_likely() -> None:
    """2 of the 4 ordinary places of 7: six subsets, 6,000 draws (99.9 % point for 5 degrees is 20.5)."""
    masked = mask([[0, 5, 6, 2, 7, 8, 2]] * 6000, hash64("round", np.arange(6000)), probability=0.5)
    subsets = Counter(map(tuple, (masked.rows.reshape(-1, 2) % 7).tolist()))
    assert set(subsets) == set(combinations((1, 2, 4, 5), 2))
    assert sum((count - 1000) ** 2 / 1000 for count in subsets.values()) < 20.5


def test_what_becomes_of_a_token_does_not_hang_on_its_place() -> None:
    """One draw names both place and action: 8 places x 3 actions (99.9 % point for 14 degrees is 36.1)."""
    _, masked = mask_equal(20_000, 8, probability=0.25, mask_share=0.5, random_share=0.25)
    inputs = masked.input_ids[masked.rows]
    action = np.where(inputs == SPECIAL.mask, 0, np.where(inputs == masked.labels, 1, 2))
    found = np.bincount(8 * action + masked.rows % 8, minlength=24).reshape(3, 8)
    expected = np.outer(found.sum(axis=1), found.sum(axis=0)) / found.sum()
    assert np.sum((found - expected) ** 2 / expected) < 36.1


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


def test_positions_of_long_sequences_are_chosen_evenly() -> None:
    """512 positions over 2,000 sequences; chi-square as for free draws, which is an upper bound here."""
    _, masked = mask_equal(2000, 512)
    counts = np.bincount(masked.rows % 512, minlength=512)
    assert (
        np.sum((counts - counts.mean()) ** 2 / counts.mean()) < 613
    )  # 99.9 % point for 511 degrees of freedom


def test_random_tokens_are_uniform_over_the_ordinary_ones() -> None:
    """Each of the 15 ordinary ids, none of the special ones (99.9 % point for 14 degrees is 36.1)."""
    _, masked = mask_equal(3000, 50, probability=1.0, mask_share=0.0, random_share=1.0)
    counts = np.bincount(masked.input_ids, minlength=20)
    expected = len(masked.input_ids) / len(ORDINARY)
    assert not counts[list(SPECIAL.all_ids)].any()
    assert np.sum((counts[ORDINARY] - expected) ** 2 / expected) < 36.1


def test_random_tokens_do_not_hang_on_their_place() -> None:
    """One draw names the place and seeds the token: 5 places x 15 tokens (99.9 % for 56 degrees is 94.5)."""
    _, masked = mask_equal(20_000, 5, probability=0.4, mask_share=0.0, random_share=1.0)
    token = np.searchsorted(ORDINARY, masked.input_ids[masked.rows])
    found = np.bincount(15 * (masked.rows % 5) + token, minlength=75).reshape(5, 15)
    expected = np.outer(found.sum(axis=1), found.sum(axis=0)) / found.sum()
    assert np.sum((found - expected) ** 2 / expected) < 94.5


def test_input_is_not_changed() -> None:
    """Tokens may be a read-only view of a shard."""
    tokens = np.array([5, 6, 7, 8], dtype=np.uint32)
    tokens.flags.writeable = False
    mask_tokens(
        tokens, np.array([4]), hash64([1]), special=SPECIAL, probability=1.0, mask_share=1.0, random_share=0.0
    )
    assert tokens.tolist() == [5, 6, 7, 8]
