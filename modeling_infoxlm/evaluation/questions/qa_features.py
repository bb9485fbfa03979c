"""Questions and contexts as token windows that a span head reads, and back from tokens to the text.

A window is `<s> question </s></s> piece of the context </s>` for XLM-R, `[CLS] question [SEP] piece [SEP]`
for BERT. Answers are cut from the original context: a token keeps the characters that it stands for, also
those that the tokenizer's normalisation changed or joined.

Shapes: N questions, F windows, T tokens.
"""

import functools
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from modeling_infoxlm.evaluation.encoders import tokenizer_hash
from modeling_infoxlm.evaluation.finetuning.rows import TEXTS_PER_CALL, cached_rows
from modeling_infoxlm.evaluation.questions.question_sets import Question
from modeling_infoxlm.runs.errors import UsageError

LABELS = ("start_positions", "end_positions")

_FORMAT = "windows 1"  # of cached rows; to be changed when their content changes
_SPACE, _INVISIBLE = 1, 2


@dataclass(frozen=True)
class WindowSettings:
    """How questions and contexts become windows."""

    max_seq_length: int = 384  # tokens of a window, special ones included
    # tokens by which the next window of a long context lies further on, as in the scripts of BERT and XTREME
    doc_stride: int = 128
    max_query_length: int = 64  # questions are cut there, in tokens


@dataclass(frozen=True)
class PairLayout:
    """What a tokenizer puts around a question and a context, as ids and token types."""

    # special tokens before the question, between the two, and behind the context
    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]  # their token types
    text_types: tuple[int, int]  # token types of the question and of the context
    has_types: bool  # whether the model takes token types

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "PairLayout":
        """Read it off a pair of tokens."""
        pair = tokenizer.backend_tokenizer.encode("1", "1")
        sides = pair.sequence_ids
        first, second = sides.index(0), sides.index(1)
        gap, end = (len(sides) - sides[::-1].index(side) for side in (0, 1))
        groups = (slice(0, first), slice(gap, second), slice(end, None))
        return cls(
            tuple(tuple(pair.ids[group]) for group in groups),
            tuple(tuple(pair.type_ids[group]) for group in groups),
            (pair.type_ids[first], pair.type_ids[second]),
            "token_type_ids" in tokenizer.model_input_names,
        )

    @property
    def num_special(self) -> int:
        """Special tokens of a window."""
        return sum(map(len, self.ids))

    def token_types(self, question: int, context: int) -> list[int]:
        """Token types of a window with so many tokens of the question and of the context."""
        texts = [self.text_types[0]] * question, [self.text_types[1]] * context
        return [*self.types[0], *texts[0], *self.types[1], *texts[1], *self.types[2]]


@dataclass(frozen=True)
class Windows:
    """Windows of many questions, in the order of the questions."""

    # for the model: `input_ids`, `token_type_ids` where it takes them, and as labels the positions of the
    # first and last token of the answer, both 0 where the window does not hold all of it
    rows: Dataset
    question: np.ndarray  # number of the question of each window, (F,)
    context_at: np.ndarray  # position in the window of the first token of the context, (F,)
    first: np.ndarray  # number in the context of that token, (F,)
    begins: np.ndarray  # where each window's context begins in the next two, and the end, (F + 1,)
    starts: np.ndarray  # first character of each token of the contexts of all windows, (T,)
    ends: np.ndarray  # its last character, exclusive, (T,)

    @classmethod
    def of_rows(cls, rows: Dataset) -> "Windows":
        """Read the columns that are not for the model."""
        names = ("question", "context_at", "first")
        question, context_at, first = (rows.data.column(name).to_numpy() for name in names)
        ends = rows.data.column("ends").combine_chunks()
        starts = rows.data.column("starts").combine_chunks().flatten().to_numpy()
        begins = np.append(0, np.cumsum(ends.value_lengths().to_numpy()))
        return cls(rows, question, context_at, first, begins, starts, ends.flatten().to_numpy())

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.question)

    @property
    def num_with_answer(self) -> int:
        """Windows that hold the whole answer."""
        return int(np.count_nonzero(self.rows.data.column(LABELS[1]).to_numpy()))

    @property
    def size(self) -> np.ndarray:
        """Tokens of the context in each window, (F,)."""
        return np.diff(self.begins)

    def characters(
        self, window: np.ndarray, start: np.ndarray, end: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """First character of K spans of tokens, and their last, exclusive, (K,) each.

        `window` are the numbers of their windows, `start` and `end` the positions there of first and last
        token.
        """
        base = self.begins[window] - self.context_at[window]
        return self.starts[base + start], self.ends[base + end]

    def own_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions that an answer may begin at in each window, first and end exclusive, (F,) each.

        Where windows overlap, a token belongs to the one in which it is further from the edge, as in BERT's
        script for SQuAD.
        """
        begin, end = self.context_at.copy(), self.context_at + self.size
        later = np.flatnonzero(self.question[1:] == self.question[:-1]) + 1
        border = (self.first[later] + self.first[later - 1] + self.size[later - 1] + 1) // 2
        begin[later] += border - self.first[later]
        end[later - 1] = self.context_at[later - 1] + border - self.first[later - 1]
        return begin, end


def check_windows(tokenizer: PreTrainedTokenizerBase, settings: WindowSettings) -> PairLayout:
    """Return what the tokenizer puts around a question and a context.

    A `UsageError` if it is not a fast one, or windows are too short for a question and a step.
    """
    tokenizer_hash(tokenizer)  # refuses slow ones, which do not know where in the text a token stands
    layout = PairLayout.of(tokenizer)
    least = settings.max_query_length + settings.doc_stride + layout.num_special
    if settings.max_seq_length < least:
        raise UsageError(
            f"max_seq_length is {settings.max_seq_length}, but a question of {settings.max_query_length} "
            f"tokens, a doc_stride of {settings.doc_stride} and {layout.num_special} special tokens need "
            f"{least}; raise the first or lower one of the others."
        )
    return layout


def build_windows(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    settings: WindowSettings,
    *,
    cache_dir: str | None = None,
) -> Windows:
    """Tokenise questions and contexts and cut them to windows, or read what was made so before.

    For `cache_dir` see `cached_rows`, for what is refused `check_windows`.
    """
    key = (_FORMAT, tokenizer_hash(tokenizer), settings, *questions)
    layout = check_windows(tokenizer, settings)
    encode = functools.partial(_encode, questions, tokenizer, layout, settings)
    return Windows.of_rows(cached_rows(encode, key=key, cache_dir=cache_dir))


def _encode(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    layout: PairLayout,
    settings: WindowSettings,
) -> Iterator[dict[str, Any]]:
    """Rows of all windows; questions one after another about the same context have it tokenised once."""
    for begin in range(0, len(questions), TEXTS_PER_CALL):
        part = questions[begin : begin + TEXTS_PER_CALL]
        contexts = list(dict.fromkeys(item.context for item in part))
        number_of = {text: number for number, text in enumerate(contexts)}
        encoded = [
            (ids, _whole_characters(text, offsets))
            for text, (ids, offsets) in zip(contexts, _tokenise(tokenizer, contexts), strict=True)
        ]
        queries = _tokenise(tokenizer, [item.text for item in part])
        for number, (item, (query, _)) in enumerate(zip(part, queries, strict=True), start=begin):
            ids, offsets = encoded[number_of[item.context]]
            answer = _answer_tokens(item, offsets)
            for row in _windows(query[: settings.max_query_length], ids, offsets, answer, layout, settings):
                yield {"question": number, **row}


def _windows(
    query: list[int],
    context: list[int],
    offsets: np.ndarray,
    answer: tuple[int, int] | None,
    layout: PairLayout,
    settings: WindowSettings,
) -> Iterator[dict[str, Any]]:
    """Windows that together cover a context; an empty one has a window too."""
    room = settings.max_seq_length - layout.num_special - len(query)
    context_at = len(layout.ids[0]) + len(query) + len(layout.ids[1])
    for first in range(0, max(1, len(context) - room + settings.doc_stride), settings.doc_stride):
        piece = context[first : first + room]
        start, end = 0, 0
        if answer is not None and first <= answer[0] and answer[1] < first + room:
            start, end = (position - first + context_at for position in answer)
        row = {
            "input_ids": [*layout.ids[0], *query, *layout.ids[1], *piece, *layout.ids[2]],
            "start_positions": start,
            "end_positions": end,
            "context_at": context_at,
            "first": first,
            "starts": offsets[first : first + room, 0],
            "ends": offsets[first : first + room, 1],
        }
        if layout.has_types:
            row["token_type_ids"] = layout.token_types(len(query), len(piece))
        yield row


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Ids of each text without special tokens, and its tokens' offsets, (T, 2)."""
    backend = tokenizer.backend_tokenizer
    # What an earlier call left in it; transformers sets both anew at each call.
    backend.no_padding()
    backend.no_truncation()
    for encoding in backend.encode_batch(list(texts), add_special_tokens=False):
        yield encoding.ids, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _answer_tokens(question: Question, offsets: np.ndarray) -> tuple[int, int] | None:
    """First and last token of the context that the first gold answer touches; None if it touches none."""
    if not question.answers:
        return None
    answer = question.answers[0]
    text = answer.text.strip()
    begin = answer.start + answer.text.find(text)
    start = int(np.searchsorted(offsets[:, 1], begin, side="right"))
    end = int(np.searchsorted(offsets[:, 0], begin + len(text), side="left")) - 1
    return (start, end) if text and start <= end else None


def _whole_characters(text: str, offsets: np.ndarray) -> np.ndarray:
    """Offsets (T, 2) without white space around, and with characters that normalisation joined to others.

    A tokenizer may count the space before a word to its first token. And where a letter and its marks, or two
    half-width characters, become one, that one's offsets name the first alone: an answer would lose the rest.
    """
    if not len(offsets):
        return offsets
    kinds = _character_kinds()[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)]
    starts = _next_without(kinds == _SPACE)[offsets[:, 0]]
    ends = np.maximum(_last_without(kinds == _SPACE)[offsets[:, 1]], starts)
    # Visible characters between two tokens belong to the first.
    limits = np.append(offsets[1:, 0], len(text))
    ends = np.maximum(ends, np.minimum(_next_without(kinds == 0)[ends], limits))
    return np.stack([starts, ends], axis=1)


def _next_without(flags: np.ndarray) -> np.ndarray:
    """For each boundary of characters the first from it on that no flagged character follows, (n + 1,)."""
    positions = np.append(np.where(flags, len(flags), np.arange(len(flags))), len(flags))
    return np.minimum.accumulate(positions[::-1])[::-1]


def _last_without(flags: np.ndarray) -> np.ndarray:
    """For each boundary of characters the last up to it that no flagged character precedes, (n + 1,)."""
    return np.maximum.accumulate(np.append(0, np.where(flags, 0, np.arange(1, len(flags) + 1))))


@functools.cache
def _character_kinds() -> np.ndarray:
    """White space, and control and format characters such as a soft hyphen, among all code points."""
    kinds = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    for code in range(sys.maxunicode + 1):
        if chr(code).isspace():
            kinds[code] = _SPACE
        elif unicodedata.category(chr(code)) in ("Cc", "Cf"):
            kinds[code] = _INVISIBLE
    return kinds
