"""Token ids of many texts at once: by the tokenizers library, or several times faster by SentencePiece.

The ids are those of the tokenizers library whichever encoder makes them. SentencePiece is not trusted but
checked: where the two could differ, the tokenizers library decides.

Shape letters: n texts, T tokens of all of them.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from modeling_infoxlm.data.ragged import PackedRows, concatenate_ranges, sums_of_runs
from modeling_infoxlm.data.sampling import hash64, uniform

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_FILE_NAME = "sentencepiece.bpe.model"

_SPACE = "\u2581"  # how SentencePiece writes a space
_BLANK = f"{_SPACE}\u0120 "  # and how byte-level BPE does
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # kinds of pieces in a SentencePiece model
_SHIFT = 0.002  # of scores; far above what float32 rounds away in a word, far below most differences
_CHECKED_FIRST, _CHECKED_EVERY = 100, 500
_MOST_WORDS = 1 << 18  # remembered at a time, some 50 MB
# Every character at which str.split() splits. Python's notion of a space is wider than that of Unicode.
_SPACES = [chr(code) for code in range(0x3001) if chr(code).isspace()]


class CannotEncode(ValueError):
    """A SentencePiece model that is not the tokenizer it lies beside."""


class IdsDiffer(ValueError):
    """Two encoders gave different ids for the same text."""


class TextEncoder(Protocol):
    """Turns texts into token ids without special tokens."""

    def encode(self, texts: Sequence[str]) -> PackedRows:
        """The ids of n texts."""
        ...


def find_sentencepiece_model(tokenizer: PreTrainedTokenizerBase) -> Path | None:
    """The SentencePiece model that a tokenizer was made of, if it lies beside it.

    Args:
        tokenizer: Any tokenizer; its `vocab_file` and the folder it was loaded from are looked at.

    Returns:
        The file, or None.
    """
    vocab_file = getattr(tokenizer, "vocab_file", None)  # not every class of tokenizers has one
    candidates = [Path(vocab_file)] if vocab_file else []
    candidates.append(Path(tokenizer.name_or_path) / MODEL_FILE_NAME)
    return next((path for path in candidates if path.suffix == ".model" and path.is_file()), None)


class TokenizersEncoder:
    """The tokenizers library itself, for every fast tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Encode with `tokenizer`, in which special tokens have names that no text contains."""
        self.tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> PackedRows:
        """The ids of n texts."""
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return PackedRows.from_lists([encoding.ids for encoding in encodings])


class SentencePieceEncoder:
    """SentencePiece, with the ids of the tokenizers library.

    Both cut words at spaces and then look for the pieces of highest total score, so words are encoded one by
    one and remembered. A new word is looked at for the two ways in which the libraries may differ:

    - The normaliser. The tokenizers library normalises whole grapheme clusters, SentencePiece the longest
      match in its table. They disagree on decomposed letters (two vowel signs of Tamil or Bengali that make
      one), and at characters that become a space. So both normalise every new word, and where they disagree,
      the tokenizers library encodes the text.
    - Nearly equal scores. One adds in float64, the other in float32 ("casse" + "r" and "ca" + "sser" are
      2e-5 apart). So every new word is encoded by two models whose scores were shifted by small random
      numbers, up in the one and down in the other: unless both give the same pieces, or if two neighbours
      could change places ("m" + "mm"), the tokenizers library encodes the word.
    """

    def __init__(self, model_file: Path, exact: TokenizersEncoder) -> None:
        """Load the model and hold it against the tokenizer.

        Args:
            model_file: SentencePiece model of type Unigram.
            exact: The tokenizer whose ids are wanted.

        Raises:
            CannotEncode: If the model and the tokenizer do not have the same pieces and scores.
        """
        raw = model_file.read_bytes()
        self._exact = exact
        self._ids = _match_vocabularies(raw, exact.tokenizer)
        self._up, self._down = (_shifted(raw, shift) for shift in (_SHIFT, -_SHIFT))
        self._roots = _number_roots(self._up)
        self._odd_spaces = self._find_odd_spaces()
        self._forget()

    def encode(self, texts: Sequence[str]) -> PackedRows:
        """The ids of n texts."""
        if len(self._numbers) > _MOST_WORDS:
            self._forget()
        words = [text.split() for text in texts]
        num_words = np.fromiter(map(len, words), np.int64, len(words))
        num_known = len(self._numbers)
        lookup = map(self._numbers.__getitem__, chain.from_iterable(words))
        numbers = np.fromiter(lookup, np.int64, num_words.sum())
        if len(self._numbers) > num_known:
            self._learn(list(islice(self._numbers, num_known, None)))
        rows = self._words.take(numbers)
        texts_rows = PackedRows(rows.tokens, sums_of_runs(rows.lengths, num_words))
        odd = sums_of_runs(self._is_odd[numbers], num_words) > 0
        odd |= self._have_odd_spaces(texts)
        return self._replace(texts_rows, odd, texts)

    def _replace(self, rows: PackedRows, odd: np.ndarray, texts: Sequence[str]) -> PackedRows:
        """The same rows, those of odd texts encoded anew by the tokenizers library."""
        where = np.flatnonzero(odd)
        if not where.size:
            return rows
        order = np.arange(len(rows))
        order[where] = len(rows) + np.arange(len(where))
        return PackedRows.join([rows, self._exact.encode([texts[i] for i in where.tolist()])]).take(order)

    # ---- words

    def _forget(self) -> None:
        # It numbers a word when it is asked for it.
        self._numbers: defaultdict[str, int] = defaultdict(count().__next__)
        self._words = PackedRows(np.empty(0, np.uint32), np.empty(0, np.int64))
        self._is_odd = np.empty(0, dtype=bool)

    def _learn(self, words: list[str]) -> None:
        up, down = self._up.encode(words), self._down.encode(words)
        rows = PackedRows.from_lists(up)
        unsure = np.fromiter((a != b for a, b in zip(up, down, strict=True)), bool, len(words))
        unsure |= self._have_exchangeable_neighbours(rows)
        rows = self._replace(PackedRows(self._ids[rows.tokens], rows.lengths), unsure, words)
        self._words = PackedRows.join([self._words, rows])
        self._is_odd = np.concatenate([self._is_odd, self._find_odd(words)])

    def _have_exchangeable_neighbours(self, rows: PackedRows) -> np.ndarray:
        """Whether two different neighbours repeat one string, and could change places, bool (n,)."""
        roots = self._roots[rows.tokens]
        found = np.zeros(len(roots), dtype=bool)
        found[1:] = (roots[1:] == roots[:-1]) & (rows.tokens[1:] != rows.tokens[:-1])
        return sums_of_runs(found, rows.lengths) > 0  # a pair across two words does no harm

    def _find_odd(self, words: Sequence[str]) -> np.ndarray:
        """Words on which the normalisers disagree or that may melt with the space before them, bool (n,)."""
        if self._are_normalised_alike(words):
            return np.fromiter((_joins_the_space(word[0]) for word in words), bool, len(words))
        if len(words) == 1:
            return np.ones(1, dtype=bool)
        middle = len(words) // 2
        return np.concatenate([self._find_odd(words[:middle]), self._find_odd(words[middle:])])

    def _are_normalised_alike(self, words: Sequence[str]) -> bool:
        text = " ".join(words)
        theirs = self._exact.tokenizer.normalizer.normalize_str(text)
        # A text may contain SentencePiece's sign for a space; only one of the two takes it for a space.
        return _SPACE not in theirs and self._up.normalize(text) == _SPACE + theirs.replace(" ", _SPACE)

    # ---- spaces

    def _find_odd_spaces(self) -> list[str]:
        """Characters at which `str.split` splits and the tokenizer does not."""
        (expected,) = _as_lists(self._exact.encode(["a b"]))
        found = _as_lists(self._exact.encode([f"a{space}b" for space in _SPACES]))
        return [space for space, ids in zip(_SPACES, found, strict=True) if ids != expected]

    def _have_odd_spaces(self, texts: Sequence[str]) -> np.ndarray:
        odd = np.zeros(len(texts), dtype=bool)
        everything = "".join(texts)
        for space in self._odd_spaces:
            if space in everything:
                odd |= np.fromiter((space in text for text in texts), bool, len(texts))
        return odd


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


def find_known(tokenizer: Tokenizer, special_ids: Sequence[int]) -> np.ndarray:
    """Which ids stand for a known piece of text: not special, not unknown, not only a space; bool (V,)."""
    known = np.zeros(tokenizer.get_vocab_size(), dtype=bool)
    for piece, number in tokenizer.get_vocab().items():
        known[number] = bool(piece.strip(_BLANK))
    known[[number for number in special_ids if number < len(known)]] = False
    return known


class CheckedEncoder:
    """A fast encoder whose ids are compared with those of the tokenizers library on a sample of the texts.

    The sample is taken by number: the first texts, and then one in several hundred, to the end.
    """

    def __init__(self, fast: TextEncoder, exact: TextEncoder) -> None:
        """Start at text number 0."""
        self._fast = fast
        self._exact = exact
        self._num_seen = 0

    def encode(self, texts: Sequence[str]) -> PackedRows:
        """The ids of n texts.

        Raises:
            IdsDiffer: With the first text of the sample that has other ids.
        """
        rows = self._fast.encode(texts)
        numbers = self._num_seen + np.arange(len(texts))
        self._num_seen += len(texts)
        sample = np.flatnonzero((numbers < _CHECKED_FIRST) | (numbers % _CHECKED_EVERY == 0))
        checked = [texts[i] for i in sample.tolist()]
        expected = _as_lists(self._exact.encode(checked))
        for text, found, wanted in zip(checked, _as_lists(rows.take(sample)), expected, strict=True):
            if found != wanted:
                raise IdsDiffer(f"{text!r} has the ids {found}, expected {wanted}")
        return rows


@functools.cache
def _joins_the_space(first: str) -> bool:
    """Whether a word with this first character may make a grapheme cluster with the space before it."""
    return unicodedata.category(first) in ("Mn", "Mc", "Me", "Cf", "Lm", "Sk")


def _as_lists(rows: PackedRows) -> list[list[int]]:
    ends = np.cumsum(rows.lengths).tolist()
    return [rows.tokens[start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)]


# ------------------------------------------------------------------------------------------------- the models


def _match_vocabularies(raw: bytes, tokenizer: Tokenizer) -> np.ndarray:
    """The tokenizer's id of each piece of the model, uint32.

    They differ: fairseq, which trained XLM-R, put special tokens of its own before the pieces.
    """
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    if model["type"] != "Unigram" or any(not token["special"] for token in content["added_tokens"]):
        raise CannotEncode("the tokenizer is not a Unigram model without added words")
    hidden = {token["id"] for token in content["added_tokens"]}
    theirs = {
        piece: (index, np.float32(score))
        for index, (piece, score) in enumerate(model["vocab"])
        if index not in hidden
    }
    ids, missing = _look_up(_model_proto(raw).pieces, theirs, model["unk_id"])
    if missing or len(theirs) != (ids != model["unk_id"]).sum():
        raise CannotEncode("the SentencePiece model has other pieces or scores than the tokenizer")
    return ids


def _look_up(
    pieces: Sequence[Any], theirs: dict[str, tuple[int, np.float32]], unknown: int
) -> tuple[np.ndarray, bool]:
    """Ids of the pieces, and whether one is missing, has another score, or is of a kind not known here."""
    ids = np.full(len(pieces), unknown, dtype=np.uint32)
    missing = False
    for index, piece in enumerate(pieces):
        if piece.type == _NORMAL:
            ids[index], score = theirs.get(piece.piece, (unknown, np.float32(np.nan)))
            missing |= score != np.float32(piece.score)
        else:
            missing |= piece.type not in (_UNKNOWN, _CONTROL)
    return ids, missing


def _model_proto(raw: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    # The class is made at run time, where no type checker sees it.
    return sentencepiece_model_pb2.ModelProto.FromString(raw)  # type: ignore[attr-defined]


def _shifted(raw: bytes, shift: float) -> Any:
    """A processor whose scores are shifted by up to `shift`; with -shift, each the other way."""
    from sentencepiece import SentencePieceProcessor

    model = _model_proto(raw)
    shifts = shift * (2 * uniform(hash64("shift of a score", np.arange(len(model.pieces)))) - 1)
    for piece, change in zip(model.pieces, shifts.tolist(), strict=True):
        piece.score += change
    return SentencePieceProcessor(model_proto=model.SerializeToString(), num_threads=1)


def _number_roots(processor: Any) -> np.ndarray:
    """A number for each piece, equal for pieces that repeat one string: "m" and "mm", "ha" and "haha"."""
    numbers: defaultdict[str, int] = defaultdict(count().__next__)
    pieces = processor.id_to_piece(list(range(processor.vocab_size())))
    roots = (piece[: (piece + piece).find(piece, 1)] for piece in pieces)
    return np.fromiter((numbers[root] for root in roots), np.int64, len(pieces))
