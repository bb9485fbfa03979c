"""Sequences of different lengths, one after another in one buffer.

Shape letters: n sequences, T tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


def concatenate_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Join the ranges [start, start + length), (n,) each, end to end, int64 (T,).

    They are the rows of ragged sequences in a packed buffer.
    """
    rows = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    rows += np.arange(len(rows))
    return rows


def sums_of_runs(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sum up runs of values, (T,), by their lengths, (n,); an empty run gives 0. int64 (n,)."""
    filled = np.flatnonzero(lengths)  # reduceat gives an empty run the value behind it
    sums = np.zeros(len(lengths), dtype=np.int64)
    if filled.size:
        starts = np.cumsum(lengths) - lengths
        sums[filled] = np.add.reduceat(values, starts[filled], dtype=np.int64)
    return sums


@dataclass(frozen=True)
class PackedRows:
    """Sequences of different lengths, one after another.

    Attributes:
        tokens: uint32 (T,).
        lengths: int64 (n,), sum T.
    """

    tokens: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int]]) -> PackedRows:
        """Pack lists of ids."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        tokens = np.fromiter(chain.from_iterable(sequences), np.uint32, lengths.sum())
        return cls(tokens, lengths)

    @classmethod
    def join(cls, parts: Sequence[PackedRows]) -> PackedRows:
        """The sequences of all parts, one part after another."""
        return cls(
            np.concatenate([part.tokens for part in parts]), np.concatenate([part.lengths for part in parts])
        )

    def take(self, order: np.ndarray) -> PackedRows:
        """The sequences `order`, (m,), in that order; or those where a mask `order`, bool (n,), holds."""
        starts = np.cumsum(self.lengths) - self.lengths
        lengths = self.lengths[order]
        return PackedRows(self.tokens[concatenate_ranges(starts[order], lengths)], lengths)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokenizer's special tokens, and the size of its vocabulary.

    `bos`, pad, `eos`, unk and mask; `all_ids`, sorted, are never masked and never drawn as a replacement.
    """

    bos: int
    pad: int
    eos: int
    unk: int
    mask: int
    vocab_size: int
    all_ids: tuple[int, ...]


def join_pieces(pieces: PackedRows, counts: np.ndarray, special: SpecialTokens) -> PackedRows:
    """Write `<s> a </s>`, `<s> a </s> b </s>` and so on: `<s>` before a sequence, `</s>` behind each piece.

    One separator between pieces, unlike the pair mode of XLM-R's tokenizer, which writes two.

    Args:
        pieces: Bare ids; the pieces of a sequence stand one after another.
        counts: Pieces of each sequence, at least 1, int64 (n,).
        special: The tokenizer's special tokens.
    """
    first = np.cumsum(counts) - counts
    widths = pieces.lengths + 1  # each piece has its separator behind it,
    widths[first] += 1  # and the first of a sequence <s> before it
    ends = np.cumsum(widths)
    tokens = np.full(widths.sum(), special.eos, dtype=np.uint32)
    tokens[(ends - widths)[first]] = special.bos
    is_piece = np.ones(len(tokens), dtype=bool)
    is_piece[(ends - widths)[first]] = False
    is_piece[ends - 1] = False
    tokens[is_piece] = pieces.tokens
    return PackedRows(tokens, sums_of_runs(widths, counts))
