"""What objectives are trained on: numbered examples of a prepared corpus, drawn, joined and masked.

Everything between the example numbers and the packed arrays runs on whole arrays: numbers -> (group, index)
-> gather tokens -> insert special tokens -> mask. `register_stream` says which stream an objective reads.

Shape letters: n examples (in a part, also sequences), T tokens of all of them, M masked positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from modeling_infoxlm.data.masking import mask_tokens
from modeling_infoxlm.data.ragged import PackedRows, SpecialTokens, join_pieces
from modeling_infoxlm.data.sampling import ExampleSampler, hash64, uniform
from modeling_infoxlm.data.shards import Corpus, TokenStore
from modeling_infoxlm.runs.errors import DataError
from modeling_infoxlm.runs.flags import check_numbers, flag

ConcatenatePairs = Literal["random", "adjacent", "code_mixed", "none"]
PackedPart = dict[str, np.ndarray]
PART_FIELDS = {
    "input_ids": "token",
    "lengths": "sequence",
    "masked_rows": "masked",
    "masked_lengths": "sequence",
    "labels": "masked",
}
"""What a field of a part has one of: a token, a sequence, or a masked row. Others are refused by a cut."""
Lengths = dict[str, float]

VIEWS = np.array([[0], [1]])
"""Query and key, broadcast over the example numbers: (2, 1)."""


@dataclass(frozen=True)
class StreamSettings:
    """What a training item is made of; its fields but the seed are flags.

    A stream of an objective from outside the package may have one more, `NAME_examples`: 1 without it.
    """

    objectives: str = flag(
        "mlm,tlm,xlco",
        "Objectives to train, with commas: mlm, tlm, xlco, registered ones; a batch has the parts they read.",
    )
    mlm_examples: int = flag(1, "MLM blocks in one item (README: one of each).")
    tlm_examples: int = flag(1, "TLM pairs in one item (README: one of each).")
    xlco_examples: int = flag(1, "XlCo examples, of two views each, in one item (README: one of each).")
    sampling_alpha: float = flag(
        0.7,
        "Exponent of the language probabilities, p ~ n^alpha; 1 is as they come, 0 all alike "
        '(LayoutXLM notes, "following InfoXLM").',
    )
    pair_sampling_alpha: float = flag(
        0.7, "The same for language pairs (the paper gives the formula, but no exponent for pairs)."
    )
    mask_probability: float = flag(
        0.15, "Share of the tokens masked: 80% <mask>, 10% random, 10% kept (XLM-R, released code)."
    )
    mask_special_tokens: bool = flag(False, "Mask <s> and </s> like other tokens, as the released code does.")
    xlco_masking: bool = flag(
        True, "Mask the inputs of XlCo too, as the released code does; nothing is predicted there."
    )
    concatenate_pairs: ConcatenatePairs = flag(
        "random",
        "Second pair that is joined to each XlCo example: random, another of its language pair, drawn anew "
        "every time; adjacent, pairs 2k and 2k + 1 (released code); code_mixed, a random one with both "
        "languages on each side half the time (the paper's text); or none.",
    )
    seed: int = 1

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        check_numbers(self)
        names = self.objective_names()
        if not names or len(set(names)) < len(names) or not STREAMS.keys() >= set(names):
            raise ValueError(
                f"objectives must name one or more of {', '.join(STREAMS)}, each once; "
                f"found {self.objectives!r}."
            )
        if self.concatenate_pairs not in get_args(ConcatenatePairs):
            choices = ", ".join(get_args(ConcatenatePairs))
            raise ValueError(f"concatenate_pairs must be one of {choices}; found {self.concatenate_pairs!r}.")

    def objective_names(self) -> tuple[str, ...]:
        """The objectives in the order in which they were given, such as ("mlm", "tlm", "xlco")."""
        given = self.objectives.split(",") if isinstance(self.objectives, str) else self.objectives
        return tuple(name.strip() for name in given)

    @property
    def streams(self) -> dict[str, str]:
        """For each objective the name of the stream, and part of a batch, that it reads."""
        return {name: STREAMS[name][0] for name in self.objective_names()}

    def examples_of(self, stream: str) -> int:
        """Examples of a stream in one dataset item."""
        return int(vars(self).get(f"{stream}_examples", 1))


def gather(stores: Sequence[TokenStore], store: np.ndarray, index: np.ndarray) -> PackedRows:
    """Read sequences, (n,), out of several stores, in the order asked, by one read of each store."""
    by_store = np.argsort(store, kind="stable")
    used, first = np.unique(store[by_store], return_index=True)
    members = np.split(by_store, first[1:])
    reads = [stores[number].gather(index[member]) for number, member in zip(used, members, strict=True)]
    tokens = np.concatenate([tokens for tokens, _ in reads])
    lengths = np.concatenate([lengths for _, lengths in reads])
    return PackedRows(tokens, lengths).take(np.argsort(by_store, kind="stable"))


def add_special_tokens(pieces: PackedRows, pieces_per_sequence: int, special: SpecialTokens) -> PackedRows:
    """Write `<s> a </s>` for one piece in each sequence, `<s> a </s> b </s>` for two; see `join_pieces`."""
    counts = np.full(len(pieces) // pieces_per_sequence, pieces_per_sequence)
    return join_pieces(pieces, counts, special)


STREAMS: dict[str, tuple[str, type["Stream"]]] = {}
"""For each objective the stream that it reads: its name, also that of a part of a batch, and its class."""


def register_stream(objective: str, kind: type["Stream"] | None = None, *, like: str | None = None) -> None:
    """Say which examples an objective is trained on.

    Args:
        objective: Its name.
        kind: Class of a stream of its own.
        like: Objective whose stream, and part of a batch, it shares instead.
    """
    if (kind is None) == (like is None):
        raise ValueError(f"objective {objective!r} needs a stream of its own, or `like` another; not both.")
    STREAMS[objective] = (objective, kind) if kind is not None else STREAMS[str(like)]


class Stream(ABC):
    """One endless numbered list of examples and how they become a part of a batch.

    Args:
        corpus: The prepared corpus.
        settings: What an item is made of.
        name: Name of the stream; with the seed it decides the order.

    Attributes:
        text: `"mono"` for monolingual text, `"bitext"` for sentence pairs.
        sampler: Which example is number i.
        stores: Where the texts lie; both sides of a language pair, one after the other.
        copies: How many of the corpus's examples an example is made of, and
        special: how many special tokens are added: for the lengths in `run.json`.
    """

    text: ClassVar[Literal["mono", "bitext"]] = "bitext"

    def __init__(self, corpus: Corpus, settings: StreamSettings, name: str) -> None:
        self.name, self.copies, self.special = name, 1, 3
        self._corpus, self._settings = corpus, settings
        stores: Mapping[str, Any] = getattr(corpus, self.text)
        _check_stores(stores, name, self.text)
        alpha = settings.sampling_alpha if self.text == "mono" else settings.pair_sampling_alpha
        self.sampler = ExampleSampler(self.count(stores), alpha, settings.seed, name)
        self.examples_per_item = settings.examples_of(name)
        groups = self.sampler.groups
        if self.text == "mono":
            self.stores = [corpus.mono[language] for language in groups]
        else:  # store 2 * group + side, where side 0 is the source
            self.stores = [side for pair in groups for side in _sides(corpus, pair)]

    def count(self, stores: Mapping[str, Any]) -> dict[str, int]:
        """Examples of each language or language pair."""
        return {group: len(store) for group, store in stores.items()}

    @abstractmethod
    def pack(self, numbers: np.ndarray) -> dict[str, Any]:
        """Read, join and mask the examples with these numbers, (n,).

        Returns:
            Views with `input_ids` (T,) and `lengths` (n,), or one view and what `PART_FIELDS` knows of it.
        """

    def toss(self, purpose: str, *numbers: np.ndarray) -> np.ndarray:
        """Fair coins, 0 or 1, int64, one for each combination of the (broadcast) numbers."""
        return (hash64(self._settings.seed, purpose, *numbers) >> 63).astype(np.int64)

    def sequences(self, store: np.ndarray, index: np.ndarray) -> PackedRows:
        """`<s> a </s>` or `<s> a </s> b </s>` of pieces (n, pieces of a sequence) of the stores.

        Raises:
            DataError: If one is longer than the corpus was prepared for.
        """
        pieces = gather(self.stores, store.reshape(-1), index.reshape(-1))
        return self.checked(add_special_tokens(pieces, store.shape[-1], self._corpus.special))

    def checked(self, sequences: PackedRows) -> PackedRows:
        """The sequences themselves; `prepare` cuts so that a longer one is a damaged corpus."""
        longest, allowed = sequences.lengths.max(), self._corpus.max_length
        if longest > allowed:
            raise DataError(
                f"a sequence of the {self.name} part has {longest} tokens, but the corpus was prepared for "
                f"at most {allowed}; prepare it again (sides of pairs: at most {(allowed - 3) // 2} tokens)."
            )
        return sequences

    def masked(self, sequences: PackedRows, *numbers: np.ndarray) -> PackedPart:
        """Masked for prediction; see `PretrainingCollator` for the fields."""
        keys = hash64(self._settings.seed, f"{self.name} mask", *numbers).reshape(-1)
        return _mask_for_prediction(sequences, keys, self._corpus.special, self._settings)

    def tokens_per_example(self, group: str) -> Lengths:
        """Tokens of an example of this language or pair, special tokens included."""
        entry = self._corpus.manifest[self.text][group]
        mean = entry["num_tokens"] / entry["num_examples"]
        return {
            "mean_tokens": self.copies * mean + self.special,
            "most_tokens": self.copies * entry["max_length"] + self.special,
        }


def _sides(corpus: Corpus, pair: str) -> tuple[TokenStore, TokenStore]:
    return corpus.bitext[pair].source, corpus.bitext[pair].target


def _check_stores(stores: Mapping[str, Any], objective: str, text: str) -> None:
    kind, flag = ("monolingual text", "mono_files") if text == "mono" else ("sentence pairs", "bitext_files")
    if not stores:
        raise DataError(
            f"objective {objective} needs {kind}, but the prepared corpus has none; "
            f"give {flag} or take {objective} out of objectives."
        )
    empty = [name for name, store in stores.items() if len(store) == 0]
    if empty:
        names = ", ".join(empty)
        raise DataError(f"the prepared corpus has no {kind} for {names}; prepare it again without them.")


class MlmStream(Stream):
    """Blocks of monolingual text with masked tokens to predict."""

    text = "mono"

    def __init__(self, corpus: Corpus, settings: StreamSettings, name: str = "mlm") -> None:
        """Lay out the languages of `corpus.mono`."""
        super().__init__(corpus, settings, name)
        self.special = 0

    def pack(self, numbers: np.ndarray) -> PackedPart:
        """One block for each number, masked."""
        language, index = self.sampler.locate(numbers)
        return self.masked(self.checked(gather(self.stores, language, index)), numbers)


class TlmStream(Stream):
    """Sentence pairs `<s> a </s> b </s>`, either side first, with masked tokens to predict."""

    def __init__(self, corpus: Corpus, settings: StreamSettings, name: str = "tlm") -> None:
        """Lay out the language pairs of `corpus.bitext`."""
        super().__init__(corpus, settings, name)

    def pack(self, numbers: np.ndarray) -> PackedPart:
        """One pair for each number, masked."""
        group, index = self.sampler.locate(numbers)
        first_side = self.toss(f"{self.name} direction", numbers)
        store = 2 * group[:, None] + np.stack([first_side, 1 - first_side], axis=1)
        return self.masked(self.sequences(store, np.repeat(index, 2)), numbers)


class XlcoStream(Stream):
    """Two views of the same content, `query` and `key`, that translate each other.

    A view is one side of a pair, or of two pairs joined (mixup contrast). Which side the query takes, and for
    each view which of its two sentences comes first, are fair coins of their own.
    """

    def __init__(self, corpus: Corpus, settings: StreamSettings, name: str = "xlco") -> None:
        """Lay out the language pairs of `corpus.bitext`."""
        super().__init__(corpus, settings, name)
        num_pairs = super().count(corpus.bitext)
        self._num_pairs = np.array([num_pairs[name] for name in self.sampler.groups], dtype=np.int64)
        # Of both views; the most that two pairs joined may have, whichever pairs meet.
        self.copies = 1 if settings.concatenate_pairs == "none" else 2
        self.special = 2 + 2 * self.copies

    def count(self, stores: Mapping[str, Any]) -> dict[str, int]:
        """Pairs of each language pair, or couples of them."""
        counts = super().count(stores)
        return _count_couples(counts) if self._settings.concatenate_pairs == "adjacent" else counts

    def pack(self, numbers: np.ndarray) -> dict[str, PackedPart]:
        """Two views for each number: `query` and `key`, each with `input_ids` (T,) and `lengths` (n,)."""
        sequences = self.sequences(*self._choose_sentences(numbers))
        if self._settings.xlco_masking:
            part = self.masked(sequences, VIEWS, numbers)
            sequences = PackedRows(part["input_ids"], part["lengths"])
        return _split_views(sequences)

    def _choose_sentences(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Store and index of every sentence, (2 views, n, sentences of a view)."""
        group, index = self.sampler.locate(numbers)
        side = self.toss("xlco roles", numbers) ^ VIEWS
        if self._settings.concatenate_pairs == "none":
            return (2 * group + side)[:, :, None], np.stack([index, index])[:, :, None]
        first, second, flip = self._choose_partners(numbers, group, index)
        sides = np.stack([side, side ^ flip], axis=2)
        indices = np.stack([np.stack([first, second], axis=1)] * 2)
        swap = self.toss("xlco order", VIEWS, numbers)
        order = np.stack([swap, 1 - swap], axis=2)
        store = 2 * group[:, None] + np.take_along_axis(sides, order, axis=2)
        return store, np.take_along_axis(indices, order, axis=2)

    def _choose_partners(
        self, numbers: np.ndarray, group: np.ndarray, index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The two pairs to join, and 1 where the second takes the other language within a view, each (n,)."""
        unmixed = np.zeros_like(index)
        if self._settings.concatenate_pairs == "adjacent":
            return 2 * index, 2 * index + 1, unmixed
        draw = uniform(hash64(self._settings.seed, "xlco partner", numbers))
        # 1 .. size - 1 steps round the group never lead back to the pair itself, unless it is the only one.
        size = self._num_pairs[group]
        partner = (index + 1 + np.floor(draw * (size - 1)).astype(np.int64)) % size
        if self._settings.concatenate_pairs == "random":
            return index, partner, unmixed
        return index, partner, self.toss("xlco code mixing", numbers)


for _name, _kind in {"mlm": MlmStream, "tlm": TlmStream, "xlco": XlcoStream}.items():
    register_stream(_name, _kind)


def _split_views(sequences: PackedRows) -> dict[str, PackedPart]:
    """The first half of the sequences as `query`, the second as `key`."""
    query_lengths, key_lengths = np.split(sequences.lengths, 2)
    query_tokens, key_tokens = np.split(sequences.tokens, [query_lengths.sum()])
    return {
        "query": {"input_ids": query_tokens, "lengths": query_lengths},
        "key": {"input_ids": key_tokens, "lengths": key_lengths},
    }


def _count_couples(num_pairs: Mapping[str, int]) -> dict[str, int]:
    """Examples of each language pair when pairs 2k and 2k + 1 are joined; an odd last one is left out."""
    for name, count in num_pairs.items():
        if count < 2:
            raise DataError(
                f"concatenate_pairs=adjacent joins pairs two by two, but bitext {name} has only {count}; "
                "use concatenate_pairs=random, or leave this language pair out."
            )
    return {name: count // 2 for name, count in num_pairs.items()}


def _mask_for_prediction(
    sequences: PackedRows, keys: np.ndarray, special: SpecialTokens, settings: StreamSettings
) -> PackedPart:
    """`input_ids` (T,), `lengths` (n,), `masked_rows` (M,), `masked_lengths` (n,), `labels` (M,)."""
    masked = mask_tokens(
        sequences.tokens,
        sequences.lengths,
        keys,
        special=special,
        probability=settings.mask_probability,
        mask_special_tokens=settings.mask_special_tokens,
    )
    return {
        "input_ids": masked.input_ids,
        "lengths": sequences.lengths,
        "masked_rows": masked.rows,
        "masked_lengths": masked.counts,
        "labels": masked.labels,
    }
