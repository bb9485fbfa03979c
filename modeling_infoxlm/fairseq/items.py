"""Items of fairseq's token files as blocks and pairs of bare sentences, mended where its tools left them odd.

The released tools tokenise each line with its special tokens and then put `<s>` before it once more. So a
block of text is `<s> <s> a </s> <s> b </s>`, a pair for TLM looks the same, and a line for XlCo is
`<s> <s> a </s>`. Here an item is taken apart at `</s>` and every `<s>` goes; what is written anew has one, at
the beginning.

Shapes: n items, m sentences, T tokens.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from modeling_infoxlm.data.ragged import PackedRows, join_pieces, sums_of_runs
from modeling_infoxlm.data.shards import SpecialTokens
from modeling_infoxlm.fairseq.mmap import IndexedItems
from modeling_infoxlm.process import UsageError

BitextKind = Literal["tlm", "xlco"]
Pairs = tuple[PackedRows, PackedRows]

_SAMPLE = 1000  # items that tell what kind of file it is
_CLEAR = 0.9  # share of them that must agree


@dataclass(frozen=True)
class Sentences:
    """Items taken apart.

    Attributes:
        rows: The m sentences that hold a token, without special tokens.
        counts: Sentences of each item, (n,).
        num_empty: Sentences of each item without a token, (n,).
        extra_bos: Tokens `<s>` of each item beyond the first, (n,).
        is_open: Items without `</s>` at their end: the released tools cut long ones, bool (n,).
        is_marked: Items with a padding or mask token, which no sentence has, bool (n,).
    """

    rows: PackedRows
    counts: np.ndarray
    num_empty: np.ndarray
    extra_bos: np.ndarray
    is_open: np.ndarray
    is_marked: np.ndarray

    def mended(self) -> Counter[str]:
        """How many items, or empty sentences, were mended."""
        return Counter(
            doubled_bos=int((self.extra_bos > 0).sum()),
            unclosed=int(self.is_open.sum()),
            empty_sentences=int(self.num_empty.sum()),
        )

    def of(self, kept: np.ndarray) -> PackedRows:
        """The sentences of the items where `kept`, bool (n,), holds."""
        return self.rows.take(np.repeat(kept, self.counts))


def take_apart(items: PackedRows, special: SpecialTokens, first: int, origin: str) -> Sentences:
    """Take items apart into sentences.

    Args:
        items: n items, each beginning with `<s>`.
        special: Special tokens of the vocabulary.
        first: Number of the first item, for messages.
        origin: Their file, for messages.

    Raises:
        UsageError: If an item does not begin with `<s>`.
    """
    tokens, ends = items.tokens, np.cumsum(items.lengths)
    starts = ends - items.lengths
    is_bos, is_eos = tokens == special.bos, tokens == special.eos
    if not is_bos[starts].all():
        number = int(np.argmin(is_bos[starts]))
        raise UsageError(
            f"{origin}: item {first + number:,} begins with the id {tokens[starts[number]]}, not with <s> "
            f"({special.bos}); expected what the released tools write, and the tokenizer that they used."
        )
    begins = np.zeros(len(tokens), dtype=bool)
    begins[starts] = True
    begins[1:] |= is_eos[:-1]
    owner = np.repeat(np.arange(len(items)), items.lengths)
    is_word = ~(is_bos | is_eos)
    lengths = np.bincount((np.cumsum(begins) - 1)[is_word], minlength=int(begins.sum()))
    return Sentences(
        rows=PackedRows(tokens[is_word], lengths[lengths > 0]),
        counts=np.bincount(owner[begins][lengths > 0], minlength=len(items)),
        num_empty=np.bincount(owner[begins][lengths == 0], minlength=len(items)),
        extra_bos=sums_of_runs(is_bos, items.lengths) - 1,
        is_open=~is_eos[ends - 1],
        is_marked=sums_of_runs(np.isin(tokens, (special.pad, special.mask)), items.lengths) > 0,
    )


def blocks(
    sentences: Sentences, special: SpecialTokens, max_length: int, dropped: Counter[str]
) -> tuple[PackedRows, int]:
    """MLM blocks `<s> s1 </s> s2 </s> ... </s>` of items, and how many sentences they hold.

    Items that make no block are counted in `dropped`, by reason.
    """
    lengths = 1 + sentences.counts + _summed(sentences)
    problems = {
        "special_token": sentences.is_marked,
        "empty": sentences.counts == 0,
        "too_long": lengths > max_length,
    }
    kept = _keep(problems, dropped)
    counts = sentences.counts[kept]
    return join_pieces(sentences.of(kept), counts, special), int(counts.sum())


def pairs(sentences: Sentences, kind: BitextKind, longest_side: int, dropped: Counter[str]) -> Pairs:
    """Both sides of the pairs in items; what makes no pair is counted.

    Args:
        sentences: Items; for `"xlco"` an even number, source and target in turn.
        kind: `"tlm"`: an item is a pair. `"xlco"`: two items are one.
        longest_side: Most tokens of a side.
        dropped: Pairs left out, by reason; added to.
    """
    items_of_pair = 1 if kind == "tlm" else 2
    counts = sentences.counts.reshape(-1, items_of_pair)
    wanted = 2 // items_of_pair
    broken = {
        "special_token": sentences.is_marked.reshape(-1, items_of_pair).any(axis=1),
        "empty": (counts < wanted).any(axis=1),
        "not_a_pair": (counts > wanted).any(axis=1),
    }
    kept = _keep(broken, dropped)
    rows = sentences.of(np.repeat(kept, items_of_pair))
    fitting = _keep({"too_long": (rows.lengths.reshape(-1, 2) > longest_side).any(axis=1)}, dropped)
    order = np.arange(len(rows)).reshape(-1, 2)[fitting]
    return rows.take(order[:, 0]), rows.take(order[:, 1])


def find_kind(items: IndexedItems, special: SpecialTokens, origin: str) -> BitextKind:
    """Tell from the first items whether they are pairs (TLM) or single sentences (XlCo).

    Raises:
        UsageError: If they are neither.
    """
    sample = take_apart(items.read(0, min(_SAMPLE, len(items))), special, 0, origin)
    if (sample.counts == 2).mean() >= _CLEAR:
        return "tlm"
    if (sample.counts == 1).mean() >= _CLEAR:
        return "xlco"
    found = ", ".join(f"{number} in {share:.0%}" for number, share in _shares(sample.counts).items())
    raise UsageError(
        f"{origin}: neither pairs (2 sentences an item, TLM) nor single sentences (1, XlCo): found {found}; "
        "if it is a bitext all the same, give --kind."
    )


def _shares(counts: np.ndarray) -> dict[int, float]:
    values, numbers = np.unique(counts, return_counts=True)
    return dict(zip(values.tolist(), (numbers / len(counts)).tolist(), strict=True))


def is_mirrored(items: IndexedItems, special: SpecialTokens, origin: str) -> bool:
    """Whether the second half of a TLM file is the first with sides swapped, as its tool writes it."""
    half, odd = divmod(len(items), 2)
    if odd:
        return False
    for first, rows in items.batches(half):
        ahead = take_apart(rows, special, first, origin)
        again = take_apart(items.read(half + first, half + first + len(rows)), special, half + first, origin)
        if not _are_swapped(ahead, again):
            return False
    return True


def _are_swapped(one: Sentences, other: Sentences) -> bool:
    if not np.array_equal(one.counts, other.counts):
        return False
    whole = one.counts == 2
    rows, others = one.of(whole), other.of(whole)
    swapped = others.take(np.arange(len(others)).reshape(-1, 2)[:, ::-1].reshape(-1))
    return np.array_equal(rows.lengths, swapped.lengths) and np.array_equal(rows.tokens, swapped.tokens)


def _summed(sentences: Sentences) -> np.ndarray:
    """Tokens of each item without special ones, (n,)."""
    return sums_of_runs(sentences.rows.lengths, sentences.counts)


def _keep(problems: Mapping[str, Any], dropped: Counter[str]) -> np.ndarray:
    """Which have no problem, bool; the others are counted by their first one."""
    kept = ~np.zeros_like(next(iter(problems.values())))
    for reason, wrong in problems.items():
        dropped[reason] += int((wrong & kept).sum())
        kept &= ~wrong
    return kept
