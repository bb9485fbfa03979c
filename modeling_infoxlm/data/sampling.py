"""Which example is number i of a stream: sampling and shuffling as pure functions, O(1) in memory and time.

A stream is an endless numbered list of examples. Number i is computed from (seed, stream, i, counts,
exponent) alone, so a resumed run, another number of data workers or another world size sees the same
examples, and nothing is shuffled in memory. All randomness is a hash of what is being decided, never the
state of a generator.

Shape letters: n numbers asked for, G groups (languages, or language pairs).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""Step of the splitmix64 generator: 2**64 divided by the golden ratio, made odd."""

WORD = 2**64 - 1

FEISTEL_ROUNDS = 6


def random64(key: ArrayLike, counter: ArrayLike) -> np.ndarray:
    """Output number `counter` of the splitmix64 generator that starts at `key` (Steele et al., OOPSLA 2014).

    Both are uint64 and broadcast against each other; so is what is returned, random bits.
    """
    counters = np.asarray(counter, dtype=np.uint64)
    keys = np.asarray(key, dtype=np.uint64)
    if not counters.ndim and not keys.ndim:
        return np.asarray(_random64_of_numbers(int(keys), int(counters)), dtype=np.uint64)
    # At least one axis: numpy warns when a scalar wraps, and modulo 2**64 is meant.
    bits = np.atleast_1d(counters) * GOLDEN_GAMMA + (np.atleast_1d(keys) + GOLDEN_GAMMA)
    shifted = bits >> 30
    bits ^= shifted
    bits *= 0xBF58476D1CE4E5B9
    bits ^= np.right_shift(bits, 27, out=shifted)
    bits *= 0x94D049BB133111EB
    bits ^= np.right_shift(bits, 31, out=shifted)
    return bits


@lru_cache(maxsize=4096)
def _random64_of_numbers(key: int, counter: int) -> int:
    """The same for two numbers, as in the seeds and purposes that every batch hashes anew."""
    bits = (counter * GOLDEN_GAMMA + key + GOLDEN_GAMMA) & WORD
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & WORD
    return bits ^ (bits >> 31)


def hash64(*parts: str | ArrayLike) -> np.ndarray:
    """Hash of several parts into 64 uniform bits, element by element.

    Args:
        *parts: Texts, integers or integer arrays; arrays are broadcast. Order matters.

    Returns:
        uint64 of the broadcast shape. Texts hash the same on every machine and in every process.

    Example:
        >>> keys = hash64(1, "mlm", np.arange(8))  # one key for each of eight examples
    """
    state = np.zeros((), dtype=np.uint64)
    for part in parts:
        number = _hash_text(part) if isinstance(part, str) else np.asarray(part)
        state = random64(state, number.astype(np.uint64))
    return state


@lru_cache(maxsize=4096)
def _hash_text(text: str) -> np.ndarray:
    # Not hash(): Python salts it, so it differs from process to process.
    return np.frombuffer(blake2b(text.encode("utf-8"), digest_size=8).digest(), dtype="<u8").reshape(())


def uniform(bits: np.ndarray) -> np.ndarray:
    """Turn random 64-bit words into float64 in [0, 1), from their upper 53 bits."""
    return (bits >> 11) * 2.0**-53


def permute(index: np.ndarray, size: ArrayLike, key: ArrayLike) -> np.ndarray:
    """Place of each index in a pseudo-random permutation of [0, size) that is never written out.

    For one size and key this is a bijection of [0, size). A Feistel network over a grid of about sqrt(size) x
    sqrt(size) cells that covers [0, size), with cycle walking: a result in the few cells that lie outside is
    permuted again until it is inside (Black and Rogaway, CT-RSA 2002). A grid and not a power of two: only
    about one in sqrt(size) results then has to walk.

    Args:
        index: Positions before shuffling, integers in [0, size), (n,).
        size: Size of the permuted range, one or (n,).
        key: Which permutation, uint64, one or (n,).

    Returns:
        Positions after shuffling, int64 (n,).
    """
    index, sizes, keys = np.broadcast_arrays(index, size, np.asarray(key, dtype=np.uint64))
    wrong = np.flatnonzero((index < 0) | (index >= sizes))
    if wrong.size:
        found = f"index {index[wrong[0]]}, size {sizes[wrong[0]]}"
        raise ValueError(f"permute expects 0 <= index < size; found {found}.")
    sizes = sizes.astype(np.uint64)
    places = _permute_grid(index.astype(np.uint64), sizes, keys)
    outside = np.flatnonzero(places >= sizes)
    while outside.size:
        places[outside] = _permute_grid(places[outside], sizes[outside], keys[outside])
        outside = outside[places[outside] >= sizes[outside]]
    return places.astype(np.int64)


def _permute_grid(cell: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """One pass of the Feistel network over the cells of a near-square grid that holds at least `sizes`."""
    num_rows = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    num_columns = (sizes + num_rows - 1) // num_rows
    row, column = np.divmod(cell, num_columns)
    for round_ in range(0, FEISTEL_ROUNDS, 2):
        row = (row + random64(keys, column * FEISTEL_ROUNDS + round_) % num_rows) % num_rows
        column = (column + random64(keys, row * FEISTEL_ROUNDS + (round_ + 1)) % num_columns) % num_columns
    return row * num_columns + column


def sampling_probabilities(counts: Sequence[int] | np.ndarray, alpha: float) -> np.ndarray:
    """Probability of each group, p_l proportional to (n_l / n) ** alpha, float64 (G,).

    InfoXLM samples languages with alpha 0.7 (LayoutXLM notes, "following InfoXLM"). 1 keeps the natural
    shares, 0 makes all groups equal.

    Args:
        counts: Examples of each group, all >= 1, (G,).
        alpha: Exponent in [0, 1].
    """
    sizes = np.asarray(counts, dtype=np.float64)
    if sizes.size == 0 or sizes.min() < 1:
        raise ValueError(
            f"sampling needs at least one group, and examples in each; found counts {list(counts)}."
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"the sampling exponent alpha must be in [0, 1]; found {alpha}.")
    weights = (sizes / sizes.sum()) ** alpha
    return weights / weights.sum()


def apportion(total: int, probabilities: np.ndarray) -> np.ndarray:
    """Split `total` seats in proportion to `probabilities`, (G,), by largest remainder.

    Returns:
        Seats of each group, int64 (G,), which sum to `total`; each within 1 of `total * probabilities`.
    """
    quotas = total * probabilities
    seats = np.floor(quotas).astype(np.int64)
    by_remainder = np.argsort(seats - quotas, kind="stable")
    seats[by_remainder[: total - int(seats.sum())]] += 1
    return seats


class ExampleSampler:
    """Says which example of which group is number i of a stream.

    An epoch has as many numbers as there are examples. In each epoch every group holds exactly its share of
    the places (its probability, rounded), in shuffled order, and goes on through its own examples where the
    last epoch stopped; when all were met, it is shuffled anew. So after any number of epochs two examples of
    a group were met equally often, give or take one.

    Attributes:
        groups: Names, sorted, (G,).
        counts: Examples of each group, int64 (G,).
        probabilities: Sampling probability of each group, float64 (G,).
        places: Places of each group in one epoch, int64 (G,).
        epoch_size: Numbers in one epoch.
    """

    def __init__(self, counts: Mapping[str, int], alpha: float, seed: int, stream: str) -> None:
        """Lay out one epoch; see `sampling_probabilities` for counts and alpha.

        Streams of one seed, by their names, are shuffled independently.
        """
        self.groups = sorted(counts)
        self.counts = np.array([counts[group] for group in self.groups], dtype=np.int64)
        self.probabilities = sampling_probabilities(self.counts, alpha)
        self.epoch_size = int(self.counts.sum())
        self.places = apportion(self.epoch_size, self.probabilities)
        self._ends = np.cumsum(self.places)
        self._starts = self._ends - self.places
        self._epoch_key = hash64(seed, stream, "order of an epoch")
        self._group_keys = np.stack([hash64(seed, stream, "order of a group", name) for name in self.groups])

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the examples with these numbers from 0, as many epochs on as wanted, int64 (n,).

        Returns:
            Group of each (place in `groups`) and index of the example within its group, both int64 (n,).
        """
        epoch, position = np.divmod(np.asarray(numbers, dtype=np.int64), self.epoch_size)
        place = permute(position, self.epoch_size, hash64(self._epoch_key, epoch))
        group = np.searchsorted(self._ends, place, side="right")
        occurrence = epoch * self.places[group] + (place - self._starts[group])
        finished_passes, step = np.divmod(occurrence, self.counts[group])
        index = permute(step, self.counts[group], hash64(self._group_keys[group], finished_passes))
        return group, index

    def describe_groups(self) -> dict[str, dict[str, float]]:
        """For each group its `examples`, sampling `probability` and `expected_share` of an epoch."""
        rows = zip(self.groups, self.counts, self.probabilities, self.places, strict=True)
        return {
            name: {
                "examples": int(count),
                "probability": float(probability),
                "expected_share": int(places) / self.epoch_size,
            }
            for name, count, probability, places in rows
        }
