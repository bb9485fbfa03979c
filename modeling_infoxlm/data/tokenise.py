"""Tokenizers as the data needs them: identity, special tokens, and the ids of many texts at once.

The tokenizers library makes all ids. Where a tokenizer cuts at spaces before anything else, as XLM-R's does,
each word is encoded once and remembered, which is several times faster and gives the same ids.

Shape letters: n texts, T tokens of all of them, V ids of the vocabulary.
"""

from __future__ import annotations

import functools
import json
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from modeling_infoxlm.data.ragged import PackedRows, SpecialTokens, concatenate_ranges, sums_of_runs
from modeling_infoxlm.data.sampling import hash64
from modeling_infoxlm.runs.errors import DataError
from modeling_infoxlm.runs.files import text_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLANK = "\u2581\u0120 "  # how SentencePiece and byte-level BPE write a space
_MOST_WORDS = 1 << 18  # remembered at a time, some 50 MB
# Every character at which str.split() splits. Python's notion of a space is wider than that of Unicode.
_SPACES = [chr(code) for code in range(0x3001) if chr(code).isspace()]
# Of the vowel signs that make a grapheme cluster with what stands before them, these two are called letters.
_SIGNS_CALLED_LETTERS = "\u0e33\u0eb3"


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Ids of the special tokens that the data needs; those of BERT-like tokenizers go by `[CLS]` and `[SEP]`.

    Raises:
        DataError: If one of the five is missing.
    """
    ids = {
        "bos": tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id,
        "pad": tokenizer.pad_token_id,
        "eos": tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "mask": tokenizer.mask_token_id,
    }
    missing = [name for name, value in ids.items() if value is None]
    if missing:
        raise DataError(
            f"tokenizer {tokenizer.name_or_path} has no {', '.join(missing)} token; all five are needed."
        )
    return SpecialTokens(
        **ids, vocab_size=len(tokenizer), all_ids=tuple(sorted(set(tokenizer.all_special_ids)))
    )


def tokenizer_json(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer as text, without what earlier calls may have left in it.

    Raises:
        DataError: If it is not a fast one.
    """
    if not tokenizer.is_fast:
        raise DataError(f"{type(tokenizer).__name__} is not a fast tokenizer; load one with AutoTokenizer.")
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return str(copy.to_str())


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a manifest remembers a tokenizer by: the hash of its JSON."""
    return text_sha256(tokenizer_json(tokenizer))


def plain_text_encoder(tokenizer_json: str) -> str:
    """The same tokenizer, as JSON, except that special tokens are never found in the text.

    They keep their ids but get names that no text contains: "<s>" is a tag in HTML, and as a token it would
    end up inside sentences and break MLM blocks. Setting `encode_special_tokens` is not enough: a Unigram
    model has "<s>" among its pieces, with the best score.
    """
    content = json.loads(tokenizer_json)
    hidden = {
        token["content"]: f"\U0010ffff{token['id']}" for token in content["added_tokens"] if token["special"]
    }
    for token in content["added_tokens"]:
        token["content"] = hidden.get(token["content"], token["content"])
    model = content["model"]
    if isinstance(model["vocab"], dict):  # BPE, WordPiece
        model["vocab"] = {hidden.get(piece, piece): index for piece, index in model["vocab"].items()}
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    else:  # Unigram
        model["vocab"] = [(hidden.get(piece, piece), score) for piece, score in model["vocab"]]
    content["post_processor"] = None
    return json.dumps(content)


class TextEncoder:
    """Turns texts into ids without special tokens.

    Words are looked up. A word that was not met before is encoded on its own: a tokenizer that cuts at spaces
    first looks no further than the word. Only its normaliser, which comes before that, may look across a
    space, at one with a combining sign behind it; such texts are encoded whole, and so are those with a space
    of Python's that is none of the tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Encode with `tokenizer`, in which special tokens have names that no text contains."""
        self.tokenizer = tokenizer
        first, second, both, *spaced = (
            encoding.ids
            for encoding in tokenizer.encode_batch_fast(
                ["a", "b", "a b", *(f"a{space}b" for space in _SPACES)], add_special_tokens=False
            )
        )
        cuts_first = _cuts_at_spaces_first(json.loads(tokenizer.to_str()))
        self._is_by_words = cuts_first and first + second == both
        # At these characters `str.split` splits and the tokenizer does not.
        self._odd_spaces = [space for space, ids in zip(_SPACES, spaced, strict=True) if ids != both]
        self._lock = threading.Lock()  # jobs may be threads, which learn words together
        self._forget()

    def encode(self, texts: Sequence[str]) -> PackedRows:
        """The ids of n texts."""
        if not self._is_by_words:
            return self._encode_whole(texts)
        with self._lock:
            return self._encode_words(texts)

    def _encode_words(self, texts: Sequence[str]) -> PackedRows:
        if len(self._numbers) > _MOST_WORDS:
            self._forget()
        words = [text.split() for text in texts]
        num_words = np.fromiter(map(len, words), np.int64, len(words))
        num_known = len(self._numbers)
        lookup = map(self._numbers.__getitem__, chain.from_iterable(words))
        numbers = np.fromiter(lookup, np.int64, num_words.sum())
        self._learn(list(islice(self._numbers, num_known, None)))
        rows = self._words.take(numbers)
        rows = PackedRows(rows.tokens, sums_of_runs(rows.lengths, num_words))
        odd = sums_of_runs(self._is_odd[numbers], num_words) > 0
        return self._replace(rows, odd | self._have_odd_spaces(texts), texts)

    def _encode_whole(self, texts: Sequence[str]) -> PackedRows:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return PackedRows.from_lists([encoding.ids for encoding in encodings])

    def _replace(self, rows: PackedRows, odd: np.ndarray, texts: Sequence[str]) -> PackedRows:
        """The same rows, those of odd texts encoded anew as a whole."""
        where = np.flatnonzero(odd)
        if not where.size:
            return rows
        order = np.arange(len(rows))
        order[where] = len(rows) + np.arange(len(where))
        return PackedRows.join([rows, self._encode_whole([texts[i] for i in where.tolist()])]).take(order)

    def _forget(self) -> None:
        # It numbers a word when it is asked for it.
        self._numbers: defaultdict[str, int] = defaultdict(count().__next__)
        self._words = PackedRows.from_lists([])
        self._is_odd = np.empty(0, dtype=bool)

    def _learn(self, words: list[str]) -> None:
        if not words:
            return
        self._words = PackedRows.join([self._words, self._encode_whole(words)])
        odd = np.fromiter((_joins_the_space(word[0]) for word in words), bool, len(words))
        self._is_odd = np.concatenate([self._is_odd, odd])

    def _have_odd_spaces(self, texts: Sequence[str]) -> np.ndarray:
        odd = np.zeros(len(texts), dtype=bool)
        everything = "".join(texts)
        for space in self._odd_spaces:
            if space in everything:
                odd |= np.fromiter((space in text for text in texts), bool, len(texts))
        return odd


def _cuts_at_spaces_first(content: dict[str, Any]) -> bool:
    """Whether a tokenizer, given as its JSON, encodes each word as if it stood alone, whatever its model."""
    if any(not token["special"] for token in content["added_tokens"]):
        return False  # an added word may hold spaces
    first = content["pre_tokenizer"] or {"type": None}
    steps = first["pretokenizers"] if first["type"] == "Sequence" else [first]
    return steps[0]["type"] in ("WhitespaceSplit", "BertPreTokenizer") and all(
        step["type"] == "Metaspace" and step["prepend_scheme"] == "always" for step in steps[1:]
    )


@functools.cache
def _joins_the_space(first: str) -> bool:
    """Whether a word with this first character may make a grapheme cluster with the space before it."""
    is_sign = unicodedata.category(first) in ("Mn", "Mc", "Me", "Cf", "Lm", "Sk")
    return is_sign or first in _SIGNS_CALLED_LETTERS


class RowHashes:
    """64 bits for each sequence of ids, equal for equal ones: a sum over products of id and place."""

    def __init__(self, vocab_size: int) -> None:
        """Draw a number for each id."""
        self._ids = hash64("id", np.arange(vocab_size))
        self._places = np.empty(0, dtype=np.uint64)

    def __call__(self, rows: PackedRows) -> np.ndarray:
        """Hashes of n sequences, uint64 (n,)."""
        longest = int(rows.lengths.max(initial=0))
        if longest > len(self._places):
            self._places = hash64("place", np.arange(2 * longest))
        places = concatenate_ranges(np.zeros_like(rows.lengths), rows.lengths)
        products = self._ids[rows.tokens] * self._places[places]
        return sums_of_runs(products.view(np.int64), rows.lengths).view(np.uint64)


@functools.lru_cache(maxsize=1)
def find_known(tokenizer: Tokenizer, special_ids: tuple[int, ...]) -> np.ndarray:
    """Which ids stand for a known piece of text: not special, not unknown, not only a space; bool (V,)."""
    known = np.zeros(tokenizer.get_vocab_size(), dtype=bool)
    for piece, number in tokenizer.get_vocab().items():
        known[number] = bool(piece.strip(_BLANK))
    known[[number for number in special_ids if number < len(known)]] = False
    return known
