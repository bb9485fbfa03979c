"""Write the shards of a source: what is kept of its usable rows, as pairs, or packed into blocks for MLM."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from modeling_infoxlm.data.ragged import PackedRows, SpecialTokens, join_pieces
from modeling_infoxlm.data.shards import TokenStore, TokenStoreWriter, shard_files
from modeling_infoxlm.data.work import Sides, Task, load, load_fact
from modeling_infoxlm.runs.files import write_text

_ROWS = 50_000  # tokenised ones copied at a time


def write_source(task: Task) -> None:
    """Write the shards of one source, then its counts; what was read of it goes."""
    dropped = Counter(load_fact(task.reading, "dropped")) + Counter(load_fact(task.keeping, "dropped"))
    write = _write_pairs if len(task.languages) == 2 else _write_blocks
    write_text(task.finished_file, json.dumps(write(task, dropped)))
    for prefix in task.raw_stores:
        for path in shard_files(prefix):
            path.unlink(missing_ok=True)


def _kept_rows(task: Task) -> Iterator[Sides]:
    """The rows kept of each side, some thousands at a time."""
    stores = [TokenStore([prefix]) for prefix in task.raw_stores]
    numbers = np.flatnonzero(load(task.keeping, "kept"))
    for start in range(0, len(numbers), _ROWS):
        yield tuple(PackedRows(*store.gather(numbers[start : start + _ROWS])) for store in stores)


def _write_pairs(task: Task, dropped: Counter[str]) -> dict[str, dict[str, Any]]:
    _, pair = task.group
    shard = f"bitext/{pair}/{task.name}"
    languages = task.languages if task.settings.mono_from_bitext else ()
    mono = {language: f"mono/{language}/{task.name}" for language in languages}
    new, position = load(task.keeping, "new"), 0
    with ExitStack() as stack:
        writer = PairWriter(stack, task.folder / shard)
        blocks = {language: _BlockWriter(stack, task, mono_shard) for language, mono_shard in mono.items()}
        for sides in _kept_rows(task):
            writer.extend(sides)
            for number, block_writer in enumerate(blocks.values()):
                block_writer.extend(sides[number].take(new[position : position + len(sides[0]), number]))
            position += len(sides[0])
        for block_writer in blocks.values():
            block_writer.flush()
    entries = {language: blocks[language].entry(mono[language], Counter()) for language in languages}
    return {"bitext": {pair: writer.entry(shard, dropped)}, "mono": entries}


def _write_blocks(task: Task, dropped: Counter[str]) -> dict[str, dict[str, Any]]:
    _, language = task.group
    shard = f"mono/{language}/{task.name}"
    with ExitStack() as stack:
        blocks = _BlockWriter(stack, task, shard)
        for (sentences,) in _kept_rows(task):
            blocks.extend(sentences)
        blocks.flush()
    return {"bitext": {}, "mono": {language: blocks.entry(shard, dropped)}}


class PairWriter:
    """Writes the two sides of pairs to the shards `PREFIX.source` and `PREFIX.target`."""

    def __init__(self, stack: ExitStack, prefix: Path) -> None:
        """Begin; the shards are complete when `stack` is left."""
        self._sides = [
            stack.enter_context(TokenStoreWriter(prefix.with_name(f"{prefix.name}.{side}")))
            for side in ("source", "target")
        ]
        self._max_length = 0

    def extend(self, sides: Sides) -> None:
        """Add n pairs."""
        for writer, side in zip(self._sides, sides, strict=True):
            writer.extend(side)
        self._max_length = int((sides[0].lengths + sides[1].lengths).max(initial=self._max_length))

    def entry(self, shard: str, dropped: Counter[str]) -> dict[str, Any]:
        """What the manifest says of the pairs."""
        num_pairs, num_tokens = len(self._sides[0]), sum(writer.num_tokens for writer in self._sides)
        return _entry(num_pairs, 2 * num_pairs, num_tokens, self._max_length, dropped, shard)


class _BlockWriter:
    """Packs sentences into MLM blocks `<s> s1 </s> s2 </s> ... </s>`, never splitting one."""

    def __init__(self, stack: ExitStack, task: Task, shard: str) -> None:
        self._writer = stack.enter_context(TokenStoreWriter(task.folder / shard))
        self._special: SpecialTokens = task.special
        self._limit = task.settings.max_seq_length
        self._open = PackedRows.from_lists([])  # sentences of the block under way
        self._num_sentences = 0
        self._max_length = 0

    def extend(self, sentences: PackedRows) -> None:
        """Add sentences of at most `max_length - 2` tokens."""
        self._num_sentences += len(sentences)
        waiting = PackedRows.join([self._open, sentences])
        counts = self._count_sentences(waiting.lengths)
        self._write(waiting.take(np.arange(counts.sum())), counts)
        self._open = waiting.take(np.arange(counts.sum(), len(waiting)))

    def flush(self) -> None:
        """Write the block under way, if it holds a sentence."""
        if len(self._open):
            self._write(self._open, np.array([len(self._open)]))
        self._open = PackedRows.from_lists([])

    def _count_sentences(self, lengths: np.ndarray) -> np.ndarray:
        """Sentences of each block that is complete, since the sentence that follows does not fit into it."""
        ends = np.cumsum(lengths + 1)  # each sentence has </s> behind it
        bounds = [0]
        while bounds[-1] < len(ends):
            filled = ends[bounds[-1] - 1] if bounds[-1] else 0
            bounds.append(int(np.searchsorted(ends, filled + self._limit - 1, side="right")))  # one for <s>
        # The last one ends where the sentences do: it may go on.
        return np.diff(np.array(bounds[:-1] or bounds))

    def _write(self, sentences: PackedRows, counts: np.ndarray) -> None:
        blocks = join_pieces(sentences, counts, self._special)
        self._writer.extend(blocks)
        self._max_length = int(blocks.lengths.max(initial=self._max_length))

    def entry(self, shard: str, dropped: Counter[str]) -> dict[str, Any]:
        """What the manifest says of the blocks."""
        num_tokens = self._writer.num_tokens
        return _entry(len(self._writer), self._num_sentences, num_tokens, self._max_length, dropped, shard)


def _entry(
    num_examples: int, num_sentences: int, num_tokens: int, max_length: int, dropped: Counter[str], shard: str
) -> dict[str, Any]:
    return {
        "num_examples": num_examples,
        "num_sentences": num_sentences,
        "num_tokens": num_tokens,
        "max_length": max_length,
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "shards": [shard],
    }
