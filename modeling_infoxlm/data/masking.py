"""Masking as a pure function of (tokens, keys), for a whole batch of packed rows at once.

Which positions are chosen and what becomes of them hangs on each sequence's own tokens and key only,
never on the batch around it or on a generator's state: the same example gets the same mask in any batch,
worker or resumed run.

Shape letters: B sequences, T tokens of all sequences one after another, M masked positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modeling_infoxlm.data.ragged import SpecialTokens, sums_of_runs
from modeling_infoxlm.data.sampling import hash64, random64, uniform

LOW_BITS = (1 << 32) - 1


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
        lengths: Tokens of each sequence, int64 (B,), sum T. Positions are drawn with 32 random bits: in
            sequences of more than some million tokens they would no longer be equally likely.
        keys: One uint64 for each sequence, (B,); everything random follows from it.
        special: The tokenizer's special tokens.
        probability: Share of the tokens to choose, in [0, 1].
        mask_share: Share of the chosen that become `<mask>`.
        random_share: Share of the chosen that become a random ordinary token (never a special one).
        mask_special_tokens: Let special tokens be chosen and predicted too, as the released code of
            InfoXLM does.

    Returns:
        The masked batch. A short sequence may have no chosen position at all.
    """
    forbidden = _find_any(tokens, () if mask_special_tokens else special.all_ids)
    num_allowed = lengths - sums_of_runs(forbidden, lengths)
    counts = np.floor(probability * num_allowed + uniform(hash64(keys, "count"))).astype(np.int64)
    rows, bits = _draw_rows(forbidden, lengths, hash64(keys, "position"), counts, num_allowed)

    action = bits & LOW_BITS  # the upper half said which row
    masked, replaced = round(mask_share * 2**32), round((mask_share + random_share) * 2**32)
    is_random = (action >= masked) & (action < replaced)
    input_ids = tokens.copy()
    input_ids[rows[action < masked]] = special.mask
    input_ids[rows[is_random]] = _draw_ordinary_tokens(random64(bits[is_random], 0), special)
    return Masked(input_ids=input_ids, rows=rows, labels=tokens[rows], counts=counts)


def _find_any(tokens: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Tokens that are one of `ids`, bool (T,)."""
    found = np.zeros(len(tokens), dtype=bool)
    for first, last in _runs(ids):  # two comparisons for <s>, <pad>, </s>, <unk> together instead of four
        found |= (tokens >= first) & (tokens <= last)
    return found


def _runs(ids: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(ids)):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _draw_rows(
    forbidden: np.ndarray, lengths: np.ndarray, keys: np.ndarray, counts: np.ndarray, num_allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `counts` allowed rows of each sequence: ascending, int64 (M,), with the bits of each, uint64 (M,).

    Positions are drawn with replacement, and the first `counts` different allowed ones are taken. So all
    subsets are equally likely, and only little more has to be drawn than is chosen: no token gets a random
    number of its own, and nothing is sorted.
    """
    starts = np.cumsum(lengths) - lengths
    taken = np.zeros(len(forbidden), dtype=bool)
    draw_of_row = np.empty(len(forbidden), dtype=np.int64)
    draws = [np.empty(0, dtype=np.uint64)]
    todo = np.flatnonzero(counts)
    num_draws = _expect_draws(lengths[todo], num_allowed[todo], counts[todo])
    while todo.size:
        sequence = np.repeat(np.arange(len(todo)), num_draws)
        rows, bits = _draw(sequence, num_draws, keys[todo], starts[todo], lengths[todo])
        found = _find_first(rows, draw_of_row, sum(map(len, draws))) & ~forbidden[rows]
        found, enough = _limit(found, sequence, num_draws, counts[todo])
        taken[rows[found]] = True
        draws.append(bits)
        # The few that too often drew what they had already draw the same once more, and then go on.
        todo, num_draws = todo[~enough], 2 * num_draws[~enough]
    chosen = np.flatnonzero(taken)
    return chosen, np.concatenate(draws)[draw_of_row[chosen]]


def _expect_draws(lengths: np.ndarray, num_allowed: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How often to draw so that `counts` different allowed positions almost surely come up, int64."""
    # The coupon collector: after i of m the next new one takes length / (m - i) draws on average.
    mean = lengths * np.log((num_allowed + 0.5) / (num_allowed - counts + 0.5))
    excess = mean - counts
    return np.ceil(mean + 3 * np.sqrt(excess * (1 + excess / counts)) + 2).astype(np.int64)


def _draw(
    sequence: np.ndarray, num_draws: np.ndarray, keys: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Uniform rows of the sequences, as many of each as it has draws, int64, and their bits, uint64."""
    number = np.arange(len(sequence)) - (np.cumsum(num_draws) - num_draws)[sequence]
    bits = random64(keys[sequence], number)
    position = ((bits >> 32) * lengths.astype(np.uint64)[sequence]) >> 32
    return position.astype(np.int64) + starts[sequence], bits


def _find_first(rows: np.ndarray, draw_of_row: np.ndarray, offset: int) -> np.ndarray:
    """Draws whose row did not come up before, bool; their numbers, from `offset` on, go to `draw_of_row`."""
    numbers = np.arange(offset, offset + len(rows))
    # Where rows are equal the last one written stays; written backwards, that is the first one drawn.
    draw_of_row[rows[::-1]] = numbers[::-1]
    return np.asarray(draw_of_row[rows] == numbers)


def _limit(
    found: np.ndarray, sequence: np.ndarray, num_draws: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of the draws found those that are taken, and which sequences have enough of them."""
    rank = np.cumsum(found)
    ends = np.cumsum(num_draws)
    before = rank[ends - num_draws] - found[ends - num_draws]
    last = before + counts
    return found & (rank <= last[sequence]), rank[ends - 1] >= last


def _draw_ordinary_tokens(bits: np.ndarray, special: SpecialTokens) -> np.ndarray:
    """Uniform ids out of the vocabulary without the special tokens, int64, of the shape of `bits`."""
    special_ids = np.unique(special.all_ids)
    rank = np.floor(uniform(bits) * (special.vocab_size - len(special_ids))).astype(np.int64)
    # The ordinary token of rank r has r ordinary ids below it, and as many special ones as this finds.
    return rank + np.searchsorted(special_ids - np.arange(len(special_ids)), rank, side="right")
