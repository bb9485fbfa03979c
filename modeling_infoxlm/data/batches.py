"""From a prepared corpus to packed training batches: the parts "mlm", "tlm" and "xlco".

Item i of the dataset holds the next few examples of each stream. Everything between the example numbers and
the batch runs on whole arrays: numbers -> (group, index) -> gather tokens -> insert special tokens -> mask.

Shape letters: n examples (in a part, also sequences), T tokens of all of them, M masked positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from modeling_infoxlm.data.masking import mask_tokens
from modeling_infoxlm.data.ragged import PackedRows, SpecialTokens, join_pieces
from modeling_infoxlm.data.sampling import ExampleSampler, hash64, uniform
from modeling_infoxlm.data.shards import Corpus, TokenStore
from modeling_infoxlm.runs.errors import DataError

Objective = Literal["mlm", "tlm", "xlco"]
ConcatenatePairs = Literal["random", "adjacent", "code_mixed", "none"]
PackedPart = dict[str, np.ndarray]
Lengths = dict[str, float]

VIEWS = np.array([[0], [1]])
"""Query and key, broadcast over the example numbers: (2, 1)."""


@dataclass(frozen=True)
class StreamSettings:
    """What a training item is made of.

    Attributes:
        objectives: Which parts a batch has.
        mlm_examples: MLM blocks in one dataset item.
        tlm_examples: TLM pairs in one dataset item.
        xlco_examples: XlCo examples (two views each) in one dataset item. The released recipe has one of each
            objective.
        sampling_alpha: Exponent of the language probabilities (0.7: LayoutXLM notes, "following InfoXLM").
        pair_sampling_alpha: Exponent of the language pair probabilities (the same formula; the paper's value
            is unknown).
        mask_probability: Share of the tokens that are chosen (0.15: BERT, XLM-R and the released code).
        mask_special_tokens: Let `<s>` and `</s>` be chosen too, as the released code does.
        xlco_masking: Mask the inputs of XlCo like those of MLM, as the released code does; nothing is
            predicted there.
        concatenate_pairs: How a second pair is joined to each XlCo example (mixup contrast). "random":
            another pair of the same language pair, drawn anew every time. "adjacent": pairs 2k and 2k +
            1, always, as the released code does. "code_mixed": like random, and half the time each view
            holds both languages, as the paper writes. "none": no second pair. A language pair with a
            single pair joins it to itself under random and code_mixed, and is refused under adjacent.
        seed: Seed of the order, the partners, the directions and the masks.
    """

    objectives: tuple[Objective, ...] = ("mlm", "tlm", "xlco")
    mlm_examples: int = 1
    tlm_examples: int = 1
    xlco_examples: int = 1
    sampling_alpha: float = 0.7
    pair_sampling_alpha: float = 0.7
    mask_probability: float = 0.15
    mask_special_tokens: bool = False
    xlco_masking: bool = True
    concatenate_pairs: ConcatenatePairs = "random"
    seed: int = 1

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        self._check_objectives()
        for name in ("mlm_examples", "tlm_examples", "xlco_examples"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1; found {getattr(self, name)}. "
                    "To leave an objective out, take its name out of objectives."
                )
        for name in ("sampling_alpha", "pair_sampling_alpha", "mask_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1]; found {getattr(self, name)}.")
        if self.concatenate_pairs not in get_args(ConcatenatePairs):
            choices = ", ".join(get_args(ConcatenatePairs))
            raise ValueError(f"concatenate_pairs must be one of {choices}; found {self.concatenate_pairs!r}.")

    def _check_objectives(self) -> None:
        unknown = [name for name in self.objectives if name not in get_args(Objective)]
        if unknown or not self.objectives or len(set(self.objectives)) < len(self.objectives):
            choices = ", ".join(get_args(Objective))
            raise ValueError(
                f"objectives must name one or more of {choices}, each once; found {self.objectives!r}."
            )


def gather(stores: Sequence[TokenStore], store: np.ndarray, index: np.ndarray) -> PackedRows:
    """Read sequences out of several stores, one read for each store that is asked.

    Args:
        stores: The stores.
        store: Which store, (n,).
        index: Which of its sequences, (n,).

    Returns:
        The n sequences in the order asked.
    """
    by_store = np.argsort(store, kind="stable")
    used, first = np.unique(store[by_store], return_index=True)
    members = np.split(by_store, first[1:])
    reads = [stores[number].gather(index[member]) for number, member in zip(used, members, strict=True)]
    tokens = np.concatenate([tokens for tokens, _ in reads])
    lengths = np.concatenate([lengths for _, lengths in reads])
    return PackedRows(tokens, lengths).take(np.argsort(by_store, kind="stable"))


def add_special_tokens(pieces: PackedRows, pieces_per_sequence: int, special: SpecialTokens) -> PackedRows:
    """Write `<s> a </s>` for one piece in each sequence, `<s> a </s> b </s>` for two.

    Args:
        pieces: Bare ids; the pieces of a sequence stand one after another.
        pieces_per_sequence: How many pieces make a sequence.
        special: The tokenizer's special tokens.

    Returns:
        The complete sequences.
    """
    counts = np.full(len(pieces) // pieces_per_sequence, pieces_per_sequence)
    return join_pieces(pieces, counts, special)


class Stream(Protocol):
    """One endless numbered list of examples and how they become a part of a batch."""

    sampler: ExampleSampler
    examples_per_item: int

    def pack(self, numbers: np.ndarray) -> dict[str, Any]:
        """Read, join and mask the examples with these numbers, (n,)."""
        ...

    def tokens_per_example(self, group: str) -> Lengths:
        """Tokens of an example of this language or pair, special tokens included."""
        ...


def _lengths_of(entry: Mapping[str, Any], *, copies: int, special: int) -> Lengths:
    """Tokens of an example that is made of `copies` examples of a manifest's entry and special tokens."""
    mean = entry["num_tokens"] / entry["num_examples"]
    return {"mean_tokens": copies * mean + special, "most_tokens": copies * entry["max_length"] + special}


class MlmStream:
    """Blocks of monolingual text with masked tokens to predict."""

    def __init__(self, corpus: Corpus, settings: StreamSettings) -> None:
        """Lay out the languages of `corpus.mono`."""
        counts = {language: len(store) for language, store in corpus.mono.items()}
        self.sampler = ExampleSampler(counts, settings.sampling_alpha, settings.seed, "mlm")
        self.examples_per_item = settings.mlm_examples
        self._stores = [corpus.mono[language] for language in self.sampler.groups]
        self._corpus = corpus
        self._settings = settings

    def pack(self, numbers: np.ndarray) -> PackedPart:
        """One block for each number, as `_mask_for_prediction` returns them."""
        language, index = self.sampler.locate(numbers)
        sequences = gather(self._stores, language, index)
        _check_lengths(sequences.lengths, self._corpus.max_length, "mlm")
        keys = hash64(self._settings.seed, "mlm mask", numbers)
        return _mask_for_prediction(sequences, keys, self._corpus.special, self._settings)

    def tokens_per_example(self, group: str) -> Lengths:
        """Tokens of a block."""
        return _lengths_of(self._corpus.manifest["mono"][group], copies=1, special=0)


class TlmStream:
    """Sentence pairs `<s> a </s> b </s>`, either side first, with masked tokens to predict."""

    def __init__(self, corpus: Corpus, settings: StreamSettings) -> None:
        """Lay out the language pairs of `corpus.bitext`."""
        counts = {name: len(pairs) for name, pairs in corpus.bitext.items()}
        self.sampler = ExampleSampler(counts, settings.pair_sampling_alpha, settings.seed, "tlm")
        self.examples_per_item = settings.tlm_examples
        self._sides = _list_sides(corpus, self.sampler.groups)
        self._corpus = corpus
        self._settings = settings

    def pack(self, numbers: np.ndarray) -> PackedPart:
        """One pair for each number, as `_mask_for_prediction` returns them."""
        group, index = self.sampler.locate(numbers)
        first_side = _toss(self._settings.seed, "tlm direction", numbers)
        store = 2 * group[:, None] + np.stack([first_side, 1 - first_side], axis=1)
        pieces = gather(self._sides, store.reshape(-1), np.repeat(index, 2))
        sequences = add_special_tokens(pieces, 2, self._corpus.special)
        _check_lengths(sequences.lengths, self._corpus.max_length, "tlm")
        keys = hash64(self._settings.seed, "tlm mask", numbers)
        return _mask_for_prediction(sequences, keys, self._corpus.special, self._settings)

    def tokens_per_example(self, group: str) -> Lengths:
        """Tokens of `<s> a </s> b </s>`."""
        return _lengths_of(self._corpus.manifest["bitext"][group], copies=1, special=3)


class XlcoStream:
    """Two views of the same content, `query` and `key`, that translate each other.

    A view is one side of a pair, or of two pairs joined (mixup contrast). Which side the query takes, and for
    each view which of its two sentences comes first, are fair coins of their own.
    """

    def __init__(self, corpus: Corpus, settings: StreamSettings) -> None:
        """Lay out the language pairs of `corpus.bitext`."""
        num_pairs = {name: len(pairs) for name, pairs in corpus.bitext.items()}
        adjacent = settings.concatenate_pairs == "adjacent"
        counts = _count_couples(num_pairs) if adjacent else num_pairs
        self.sampler = ExampleSampler(counts, settings.pair_sampling_alpha, settings.seed, "xlco")
        self.examples_per_item = settings.xlco_examples
        self._sides = _list_sides(corpus, self.sampler.groups)
        self._num_pairs = np.array([num_pairs[name] for name in self.sampler.groups], dtype=np.int64)
        self._corpus = corpus
        self._settings = settings

    def pack(self, numbers: np.ndarray) -> dict[str, PackedPart]:
        """Two views for each number: `query` and `key`, each with `input_ids` (T,) and `lengths` (n,)."""
        store, index = self._choose_sentences(numbers)
        pieces = gather(self._sides, store.reshape(-1), index.reshape(-1))
        sequences = add_special_tokens(pieces, store.shape[2], self._corpus.special)
        _check_lengths(sequences.lengths, self._corpus.max_length, "xlco")
        return _split_views(self._mask(sequences, numbers))

    def tokens_per_example(self, group: str) -> Lengths:
        """Tokens of both views; the most that two pairs joined may have, whichever pairs meet."""
        copies = 1 if self._settings.concatenate_pairs == "none" else 2
        return _lengths_of(self._corpus.manifest["bitext"][group], copies=copies, special=2 + 2 * copies)

    def _choose_sentences(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Store and index of every sentence, (2 views, n, sentences of a view)."""
        group, index = self.sampler.locate(numbers)
        side = _toss(self._settings.seed, "xlco roles", numbers) ^ VIEWS
        if self._settings.concatenate_pairs == "none":
            return (2 * group + side)[:, :, None], np.stack([index, index])[:, :, None]
        first, second, flip = self._choose_partners(numbers, group, index)
        sides = np.stack([side, side ^ flip], axis=2)
        indices = np.stack([np.stack([first, second], axis=1)] * 2)
        swap = _toss(self._settings.seed, "xlco order", VIEWS, numbers)
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
        return index, partner, _toss(self._settings.seed, "xlco code mixing", numbers)

    def _mask(self, sequences: PackedRows, numbers: np.ndarray) -> PackedRows:
        if not self._settings.xlco_masking:
            return sequences
        keys = hash64(self._settings.seed, "xlco mask", VIEWS, numbers).reshape(-1)
        part = _mask_for_prediction(sequences, keys, self._corpus.special, self._settings)
        return PackedRows(part["input_ids"], part["lengths"])


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


def _list_sides(corpus: Corpus, names: Sequence[str]) -> list[TokenStore]:
    """Both sides of each language pair: store 2 * group + side, where side 0 is the source."""
    return [store for name in names for store in (corpus.bitext[name].source, corpus.bitext[name].target)]


def _toss(seed: int, purpose: str, *numbers: np.ndarray) -> np.ndarray:
    """Fair coins, 0 or 1, int64, one for each combination of the (broadcast) numbers."""
    return (hash64(seed, purpose, *numbers) >> 63).astype(np.int64)


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


def _check_lengths(lengths: np.ndarray, max_length: int, part: str) -> None:
    # `prepare` cuts so that this cannot happen; a damaged corpus would fail in the position embeddings only.
    if lengths.max() > max_length:
        raise DataError(
            f"a sequence of the {part} part has {lengths.max()} tokens, but the corpus was prepared for at "
            f"most {max_length}; prepare it again (sides of pairs: at most {(max_length - 3) // 2} tokens)."
        )


class JointDataset(Dataset[dict[str, Any]]):
    """The training streams as one map-style dataset.

    Item i holds the examples i * r .. i * r + r - 1 of each stream, r being its examples per item. The
    streams are independent: none is cut to the shortest, and each goes round its own examples as often as
    needed. An item is a function of its number alone, so it is the same in any worker, after a resume and
    at any world size.

    Example:
        >>> dataset = JointDataset(Corpus.open("prepared/"), StreamSettings(), num_items=2048 * 150_000)
        >>> loader = DataLoader(dataset, batch_size=16, collate_fn=PretrainingCollator(), num_workers=2)
    """

    def __init__(self, corpus: Corpus, settings: StreamSettings, num_items: int) -> None:
        """Lay out the streams of the wanted objectives.

        Args:
            corpus: The prepared corpus.
            settings: What an item is made of.
            num_items: Length of the dataset: items that the whole run needs.

        Raises:
            DataError: If an objective is wanted that the corpus has no data for.
            ValueError: If `num_items` is less than 1.
        """
        if num_items < 1:
            raise ValueError(f"num_items must be at least 1; found {num_items}.")
        self.num_items = num_items
        self.streams: dict[str, Stream] = _open_streams(corpus, settings)

    def __len__(self) -> int:
        """Number of items."""
        return self.num_items

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The packed parts of one item."""
        return self.pack([index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The packed parts of many items, already joined; DataLoader prefers this to `__getitem__`."""
        return [self.pack(indices)]

    def pack(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Make the packed parts of several items in one go.

        Args:
            indices: Item numbers.

        Returns:
            For each objective its part, with numpy arrays, as `PretrainingCollator` documents them.

        Raises:
            IndexError: If an item number is outside [0, num_items).
            ValueError: If no item is asked for.
        """
        items = np.asarray(indices, dtype=np.int64)
        if items.size == 0:
            raise ValueError("pack needs at least one item; found none.")
        if items.min() < 0 or items.max() >= self.num_items:
            raise IndexError(f"items must be in [0, {self.num_items}); found {items.min()} .. {items.max()}.")
        return {
            objective: stream.pack(_number_examples(items, stream.examples_per_item))
            for objective, stream in self.streams.items()
        }

    def describe(self) -> dict[str, dict[str, object]]:
        """What the streams hold, for logs and `run.json`.

        Returns:
            For each objective `examples_per_item`, `epoch_size` and `groups`: for each language or pair its
            `examples`, sampling `probability` and `expected_share` of an epoch (the probability rounded to
            whole examples, which every epoch keeps exactly), and `mean_tokens` and `most_tokens` of an
            example as it is trained on. The lengths come from the manifest, whatever the size of the corpus.
        """
        return {objective: _describe_stream(stream) for objective, stream in self.streams.items()}


def _describe_stream(stream: Stream) -> dict[str, object]:
    groups = {
        name: {**group, **stream.tokens_per_example(name)}
        for name, group in stream.sampler.describe_groups().items()
    }
    epoch_size = stream.sampler.epoch_size
    return {"examples_per_item": stream.examples_per_item, "epoch_size": epoch_size, "groups": groups}


def _open_streams(corpus: Corpus, settings: StreamSettings) -> dict[str, Stream]:
    _check_data(corpus, settings.objectives)
    makers: dict[Objective, Callable[[Corpus, StreamSettings], Stream]] = {
        "mlm": MlmStream,
        "tlm": TlmStream,
        "xlco": XlcoStream,
    }
    return {name: make(corpus, settings) for name, make in makers.items() if name in settings.objectives}


def _check_data(corpus: Corpus, objectives: Sequence[Objective]) -> None:
    needs: dict[Objective, tuple[str, Mapping[str, Any], str]] = {
        "mlm": ("monolingual text", corpus.mono, "mono_files"),
        "tlm": ("sentence pairs", corpus.bitext, "bitext_files"),
        "xlco": ("sentence pairs", corpus.bitext, "bitext_files"),
    }
    for objective in objectives:
        kind, stores, flag = needs[objective]
        if not stores:
            raise DataError(
                f"objective {objective} needs {kind}, but the prepared corpus has none; "
                f"give {flag} or take {objective} out of objectives."
            )
        empty = [name for name, store in stores.items() if len(store) == 0]
        if empty:
            names = ", ".join(empty)
            raise DataError(f"the prepared corpus has no {kind} for {names}; prepare it again without them.")


def _number_examples(items: np.ndarray, per_item: int) -> np.ndarray:
    """Numbers of the examples in these items: i * r .. i * r + r - 1 for each item i, (n,)."""
    return (items[:, None] * per_item + np.arange(per_item)).reshape(-1)


class PretrainingCollator:
    """Joins the packed parts of several items into one batch of tensors.

    The batch, without the parts whose objective is off (T, n and M are each part's own)::

        {"mlm": {"input_ids": LongTensor (T,), "lengths": list[int] (n), "masked_rows": LongTensor (M,),
                 "masked_lengths": list[int] (n), "labels": LongTensor (M,)},
         "tlm": the same,
         "xlco": {"query": {"input_ids", "lengths"}, "key": {"input_ids", "lengths"}}}

    `masked_rows` count from the start of their own part and ascend; `masked_lengths` says how many of them
    each sequence has, so that a part can be cut between sequences without looking at tensors. Sequences
    are in item order.
    """

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate what `JointDataset` returned, one or several packed dictionaries."""
        return {name: _collate([item[name] for item in items]) for name in items[0]}


def _collate(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if "query" in parts[0]:
        return {view: _collate([part[view] for part in parts]) for view in ("query", "key")}
    batch: dict[str, Any] = {
        "input_ids": _to_tensor([part["input_ids"] for part in parts]),
        "lengths": np.concatenate([part["lengths"] for part in parts]).tolist(),
    }
    if "masked_rows" in parts[0]:
        first_rows = np.cumsum([0, *(len(part["input_ids"]) for part in parts)])
        rows = [part["masked_rows"] + first for part, first in zip(parts, first_rows, strict=False)]
        batch["masked_rows"] = _to_tensor(rows)
        batch["masked_lengths"] = np.concatenate([part["masked_lengths"] for part in parts]).tolist()
        batch["labels"] = _to_tensor([part["labels"] for part in parts])
    return batch


def _to_tensor(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(arrays, dtype=np.int64))
