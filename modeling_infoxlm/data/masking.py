"""Masking as a pure function of (tokens, keys), for a whole batch of packed rows at once.

Which positions are chosen and what becomes of them hangs on each sequence's own tokens and key only,
never on the batch around it or on a generator's state: the same example gets the same mask in any batch,
worker or resumed run.

Shape letters: B sequences, T tokens of all sequences one after another, M masked positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from modeling_infoxlm.data.ragged import concatenate_ranges, sums_of_runs
from modeling_infoxlm.data.sampling import hash64, random64, uniform
from modeling_infoxlm.data.shards import SpecialTokens

# Lottery ticket of a token, one uint64, so that a single plain sort draws for every sequence at once:
# sequence (20 bits) | random (28 bits) | position in the sequence (16 bits).
# The position names the token after the sort, and settles equal random parts alike on every machine.
POSITION_BITS = 16
RANDOM_BITS = 28
SEQUENCE_SHIFT = POSITION_BITS + RANDOM_BITS
MAX_SEQUENCE_LENGTH = 1 << POSITION_BITS
MAX_SEQUENCES = 1 << (64 - SEQUENCE_SHIFT)
CHUNK_TOKENS = 1 << 16  # tokens that are drawn for at a time; larger arrays fall out of the cache
BLOCKED = 0xFFFFFFFF  # random part, beyond all others, of a token that may not be chosen


@dataclass(frozen=True)
class Masked:
    """A masked batch.

    Attributes:
        input_ids: Tokens with the chosen positions masked, replaced or kept, (T,), of the given dtype.
        rows: Chosen positions in `input_ids`, ascending, int64 (M,).
        labels: Original tokens at `rows`, (M,), of the given dtype.
        counts: Chosen positions of each sequence, int64 (B,), sum M.
    """

    input_ids: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    counts: np.ndarray


def mask_tokens(
    tokens: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    *,
    special: SpecialTokens,
    probability: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    mask_special_tokens: bool = False,
) -> Masked:
    """Choose positions of each sequence and mask them as BERT does: 80 % `<mask>`, 10 % random, 10 % kept.

    Of a sequence with m tokens that may be chosen, floor(probability * m + u) are chosen with u uniform
    in [0, 1), all subsets of that size being equally likely.

    Args:
        tokens: Token ids of all sequences one after another, integers (T,); not changed.
        lengths: Tokens of each sequence, int64 (B,), sum T.
        keys: One uint64 for each sequence, (B,); everything random follows from it.
        special: The tokenizer's special tokens.
        probability: Share of the tokens to choose, in [0, 1].
        mask_share: Share of the chosen that become `<mask>`.
        random_share: Share of the chosen that become a random ordinary token (never a special one).
        mask_special_tokens: Let special tokens be chosen and predicted too, as the released code of
            InfoXLM does.

    Returns:
        The masked batch. A short sequence may have no chosen position at all.

    Raises:
        ValueError: If the shapes do not fit together, a share is impossible, or the batch is beyond
            1,048,576 sequences or 65,536 tokens in one of them.
    """
    _check_arguments(tokens, lengths, keys, probability, mask_share, random_share)
    never_chosen = () if mask_special_tokens else special.all_ids
    rows, counts = [], []
    for first_row, sequences, chunk in _chunks(tokens, lengths):
        chosen, num_chosen = _choose(chunk, lengths[sequences], keys[sequences], never_chosen, probability)
        rows.append(chosen + first_row)
        counts.append(num_chosen)
    return _replace(
        tokens,
        lengths,
        keys,
        np.concatenate(rows),
        np.concatenate(counts),
        special,
        (mask_share, random_share),
    )


def _chunks(tokens: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, slice, np.ndarray]]:
    """Cut between sequences into chunks whose arrays stay in the cache; a chunk has one sequence at least.

    Yields:
        First row, sequences, and tokens of each chunk.
    """
    ends = np.cumsum(lengths)
    first, first_row = 0, 0
    while first < len(lengths) or first == 0:
        last = max(first + 1, int(np.searchsorted(ends, first_row + CHUNK_TOKENS, side="right")))
        end_row = int(ends[min(last, len(ends)) - 1]) if len(ends) else 0
        yield first_row, slice(first, last), tokens[first_row:end_row]
        first, first_row = last, end_row


def _choose(
    tokens: np.ndarray, lengths: np.ndarray, keys: np.ndarray, never: Sequence[int], probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the chosen tokens, ascending, int64 (M,), and how many each sequence has, int64 (B,)."""
    allowed = _find_others(tokens, never)
    num_allowed = sums_of_runs(allowed, lengths)
    num_chosen = np.floor(probability * num_allowed + uniform(hash64(keys, "count"))).astype(np.int64)
    return _draw_rows(allowed, num_allowed, lengths, hash64(keys, "position"), num_chosen), num_chosen


def _replace(
    tokens: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    rows: np.ndarray,
    counts: np.ndarray,
    special: SpecialTokens,
    shares: tuple[float, float],
) -> Masked:
    """Mask, replace or keep each chosen token."""
    mask_share, random_share = shares
    sequence = np.repeat(np.arange(len(lengths)), counts)
    position = rows - (np.cumsum(lengths) - lengths)[sequence]
    labels = tokens[rows]
    action = uniform(random64(hash64(keys, "action")[sequence], position))
    replacement = np.where(action < mask_share, labels.dtype.type(special.mask), labels)
    random = np.flatnonzero((action >= mask_share) & (action < mask_share + random_share))
    bits = random64(hash64(keys, "token")[sequence[random]], position[random])
    replacement[random] = _draw_ordinary_tokens(bits, special)
    input_ids = tokens.copy()
    input_ids[rows] = replacement
    return Masked(input_ids=input_ids, rows=rows, labels=labels, counts=counts)


def _find_others(tokens: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Tokens that are none of `ids`, bool (T,)."""
    # "sort" compares with one id after another when they are few: 15 times faster here than the default
    # table.
    return np.isin(tokens, np.asarray(ids, dtype=tokens.dtype), invert=True, kind="sort")


def _draw_rows(
    allowed: np.ndarray,
    num_allowed: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    num_chosen: np.ndarray,
) -> np.ndarray:
    """Rows of the `num_chosen` lowest tickets of each sequence, ascending, int64 (M,).

    To sort all tickets would take most of the time of masking. The expected value of the highest one chosen
    splits them nearly right; only those near it are sorted.
    """
    position = _positions(lengths)
    random = (random64(np.repeat(keys, lengths), position) >> (64 - RANDOM_BITS)).astype(np.uint32)
    random |= ~allowed * np.uint32(BLOCKED)
    limit = _expected_limit(num_chosen, num_allowed)
    chosen = random < np.repeat(limit, lengths)
    missing = num_chosen - sums_of_runs(chosen, lengths)  # below 0: so many too many
    low, high = _bands(limit, missing, num_allowed)
    near = _between(random, low, high, lengths)
    num_near = sums_of_runs(near, lengths)
    too_narrow = num_near < np.abs(missing)
    if too_narrow.any():
        low[too_narrow], high[too_narrow] = 0, 1 << RANDOM_BITS
        near = _between(random, low, high, lengths)
        num_near = sums_of_runs(near, lengths)
    chosen &= ~near
    # Of the sorted ones of a sequence, those that bring it to its number.
    num_taken = num_chosen - sums_of_runs(chosen, lengths)
    chosen[_lowest(near, random, lengths, num_near, num_taken)] = True
    return np.flatnonzero(chosen)


def _positions(lengths: np.ndarray) -> np.ndarray:
    """Position of each token in its sequence, int64 (T,)."""
    return concatenate_ranges(np.zeros_like(lengths), lengths)


def _expected_limit(num_chosen: np.ndarray, num_allowed: np.ndarray) -> np.ndarray:
    """Random part below which as many tickets are expected as are to be chosen, uint32 (B,)."""
    share = num_chosen / np.maximum(num_allowed, 1)
    return (share * 2.0**RANDOM_BITS).astype(np.uint32)


def _bands(limit: np.ndarray, missing: np.ndarray, num_allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Random parts, from `low` to below `high`, among which the missing or surplus tickets should be, (B,).

    Above the limit where tickets are missing, below it where there are too many, empty where it is right.
    """
    count = np.abs(missing)
    wanted = np.where(count > 0, count + 4 * np.sqrt(count) + 4, 0)  # four standard deviations more
    width = np.sign(missing) * wanted * (2.0**RANDOM_BITS / np.maximum(num_allowed, 1))
    other = (limit + width).clip(0, 1 << RANDOM_BITS).astype(np.uint32)
    return np.minimum(limit, other), np.maximum(limit, other)


def _between(random: np.ndarray, low: np.ndarray, high: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Whether each token's random part lies in the band of its sequence, bool (T,)."""
    # One comparison: below `low` the difference wraps round to a large number.
    difference = random - np.repeat(low, lengths)
    return difference < np.repeat(high - low, lengths)


def _lowest(
    near: np.ndarray, random: np.ndarray, lengths: np.ndarray, num_near: np.ndarray, num_taken: np.ndarray
) -> np.ndarray:
    """Rows of the `num_taken` lowest tickets of each sequence among those that are `near`, int64."""
    rows = np.flatnonzero(near)
    sequence = np.repeat(np.arange(len(lengths)), num_near)
    starts = np.cumsum(lengths) - lengths
    tickets = sequence.astype(np.uint64) << SEQUENCE_SHIFT
    tickets |= random[rows].astype(np.uint64) << POSITION_BITS
    tickets |= (rows - starts[sequence]).astype(np.uint64)
    tickets.sort()  # sequence by sequence, and within each the lowest first
    taken = tickets[concatenate_ranges(np.cumsum(num_near) - num_near, num_taken)]
    position = (taken & (MAX_SEQUENCE_LENGTH - 1)).astype(np.int64)
    return np.repeat(starts, num_taken) + position


def _draw_ordinary_tokens(bits: np.ndarray, special: SpecialTokens) -> np.ndarray:
    """Uniform ids out of the vocabulary without the special tokens, int64, of the shape of `bits`."""
    special_ids = np.unique(special.all_ids)
    rank = np.floor(uniform(bits) * (special.vocab_size - len(special_ids))).astype(np.int64)
    # The ordinary token of rank r has r ordinary ids below it, and as many special ones as this finds.
    return rank + np.searchsorted(special_ids - np.arange(len(special_ids)), rank, side="right")


def _check_arguments(
    tokens: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    probability: float,
    mask_share: float,
    random_share: float,
) -> None:
    if len(keys) != len(lengths) or int(lengths.sum()) != len(tokens):
        raise ValueError(
            "masking expects one key for each length, and lengths that sum to the number of tokens; found "
            f"{len(keys)} keys, {len(lengths)} lengths with sum {int(lengths.sum())}, {len(tokens)} tokens."
        )
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"the masking probability must be in [0, 1]; found {probability}.")
    if mask_share < 0.0 or random_share < 0.0 or mask_share + random_share > 1.0:
        raise ValueError(
            f"mask_share and random_share must be >= 0 and sum to <= 1; found {mask_share}, {random_share}."
        )
    if len(lengths) > MAX_SEQUENCES or lengths.max(initial=0) > MAX_SEQUENCE_LENGTH:
        raise ValueError(
            f"masking takes at most {MAX_SEQUENCES} sequences of at most {MAX_SEQUENCE_LENGTH} tokens; found "
            f"{len(lengths)} sequences, the longest of {lengths.max()} tokens."
        )
