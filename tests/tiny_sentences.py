"""A corpus whose sentences say who they are, and batches of it read back."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modeling_infoxlm.data.batches import JointDataset
from modeling_infoxlm.data.ragged import SpecialTokens
from modeling_infoxlm.data.shards import Corpus, PairStore, TokenStore, TokenStoreWriter
from modeling_infoxlm.data.streams import StreamSettings

SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=999, vocab_size=1000, all_ids=(0, 1, 2, 3, 999))
MAX_LENGTH = 40
NUM_BLOCKS = {"de": 20, "en": 60, "sw": 5}
NUM_PAIRS = {"de-en": 31, "en-fr": 8, "en-sw": 2}
FIRST_PAIR = {"de-en": 0, "en-fr": 31, "en-sw": 39}
PLAIN = StreamSettings(mask_probability=0.0, xlco_masking=False)
Sentence = tuple[int, int]
"""Number of a pair among all pairs, and its side: 0 source, 1 target."""


def sentence_ids(pair: int, side: int) -> list[int]:
    """A sentence that says who it is: one id of its own, 3 to 10 times."""
    return [100 + 2 * pair + side] * (3 + (5 * pair + 3 * side) % 8)


def write_store(prefix: Path, sequences: list[list[int]]) -> TokenStore:
    """Write one shard and open it."""
    with TokenStoreWriter(prefix) as writer:
        for ids in sequences:
            writer.append(ids)
    return TokenStore([prefix])


def block_ids(language: int, number: int) -> list[int]:
    """An MLM block of two sentences that is unlike every other."""
    return [0, 300 + number, 400 + language, 2, *[500 + number] * (number % 5), 2]


def numbered_corpus(folder: Path) -> Corpus:
    """Three languages and three language pairs, of unequal sizes."""
    mono = {
        language: write_store(folder / language, [block_ids(i, number) for number in range(count)])
        for i, (language, count) in enumerate(NUM_BLOCKS.items())
    }
    bitext = {}
    for name, count in NUM_PAIRS.items():
        pairs = range(FIRST_PAIR[name], FIRST_PAIR[name] + count)
        sides = [
            write_store(folder / f"{name}.{side}", [sentence_ids(pair, side) for pair in pairs])
            for side in (0, 1)
        ]
        bitext[name] = PairStore(sides[0], sides[1], *name.split("-"))
    return Corpus(folder, manifest(mono, bitext), SPECIAL, MAX_LENGTH, mono, bitext, {})


def manifest(mono: dict[str, TokenStore], bitext: dict[str, PairStore]) -> dict[str, Any]:
    """The lengths that `prepare` writes into a manifest."""

    def entry(*stores: TokenStore) -> dict[str, int]:
        lengths = sum(store.lengths(np.arange(len(store))) for store in stores)
        sizes = (len(lengths), int(lengths.sum()), int(lengths.max()))
        return dict(zip(("num_examples", "num_tokens", "max_length"), sizes, strict=True))

    return {
        "mono": {name: entry(store) for name, store in mono.items()},
        "bitext": {name: entry(pairs.source, pairs.target) for name, pairs in bitext.items()},
    }


def split(part: dict[str, Any]) -> list[list[int]]:
    """The sequences of a packed part."""
    ends = np.cumsum(part["lengths"])
    return [piece.tolist() for piece in np.split(np.asarray(part["input_ids"]), ends[:-1])]


def read(sequence: list[int]) -> list[Sentence]:
    """The sentences of `<s> a </s> b </s>`, after checking the layout and that no sentence lost a token."""
    assert sequence[0] == SPECIAL.bos and sequence[-1] == SPECIAL.eos
    sentences, rest = [], sequence[1:]
    while rest:
        end = rest.index(SPECIAL.eos)
        pair, side = divmod(rest[0] - 100, 2)
        assert rest[:end] == sentence_ids(pair, side)
        sentences.append((pair, side))
        rest = rest[end + 1 :]
    return sentences


def group_of(pair: int) -> str:
    """Language pair that a pair belongs to."""
    return max((name for name in FIRST_PAIR if FIRST_PAIR[name] <= pair), key=FIRST_PAIR.__getitem__)


def views(corpus: Corpus, num_items: int, **options: Any) -> Iterator[tuple[list[Sentence], list[Sentence]]]:
    """Query and key sentences of unmasked XlCo examples."""
    plain = replace(PLAIN, objectives=("xlco",), **options)
    part = JointDataset(corpus, plain, num_items).pack(np.arange(num_items))["xlco"]
    for query, key in zip(split(part["query"]), split(part["key"]), strict=True):
        yield read(query), read(key)


def flatten(batch: dict[str, Any]) -> dict[str, list[int]]:
    """A collated or packed batch as comparable lists."""
    flat = {}
    for name, part in batch.items():
        if isinstance(part, dict):
            flat.update({f"{name}.{key}": value for key, value in flatten(part).items()})
        else:
            flat[name] = part if isinstance(part, list) else part.tolist()
    return flat
