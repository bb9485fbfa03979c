"""Read a source once: check its lines, tokenise them, and write what is usable, beside hashes of its ids.

Shape letters: n sentences or pairs of a batch, V ids of the vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple
from itertools import islice

import numpy as np
from tqdm import tqdm

from modeling_infoxlm.data.heldout import HeldoutScan
from modeling_infoxlm.data.plan import PrepareSettings
from modeling_infoxlm.data.ragged import sums_of_runs
from modeling_infoxlm.data.readers import SkipBadLines, fail_on_bad_line, read_rows
from modeling_infoxlm.data.shards import TokenStoreWriter
from modeling_infoxlm.data.sources import Source
from modeling_infoxlm.data.tokenise import RowHashes, TextEncoder, find_known
from modeling_infoxlm.data.work import Sides, Task, drop, save
from modeling_infoxlm.runs.errors import DataError

Texts = tuple[str, ...]  # a sentence, or the two sides of a pair

_BATCH = 2000  # lines checked, tokenised and packed at a time
_IDENTICAL_LIMIT = 0.9  # above this share of identical sides a pair file is taken for a mistake
_UNKNOWN_LIMIT = 0.05  # above this share of <unk> a file is warned of


def read_source(task: Task) -> str | None:
    """Read one source; returns what there is to warn of.

    Raises:
        DataError: If it cannot be read, or nearly all its pairs have equal sides.
    """
    source, settings, unknown = task.unit.source, task.settings, _Unknown(task)
    dropped: Counter[str] = Counter()
    ids: list[np.ndarray] = [np.empty((0, len(task.languages)), dtype=np.uint64)]
    contents, hash_rows = list(ids), RowHashes(task.special.vocab_size)
    limit = 2 * settings.heldout_max_pairs  # some share a sentence with others
    scan = HeldoutScan(settings.heldout_rule, task.languages, limit) if settings.heldout_fraction else None
    with ExitStack() as stack:
        writers = [stack.enter_context(TokenStoreWriter(prefix)) for prefix in task.raw_stores]
        for texts in _usable_texts(task, dropped):
            sides = encode_sides(task.encoder, texts)
            hashes = np.stack([hash_rows(side) for side in sides], axis=1)
            problems = {
                "empty": np.any([side.lengths == 0 for side in sides], axis=0),
                "unknown": unknown.find(sides),
            }
            if len(sides) == 2:
                problems["identical_sides"] = hashes[:, 0] == hashes[:, 1]
            kept = _drop_unfit(sides, drop(problems, dropped), settings, dropped)
            if scan is not None:
                content = [settings.heldout_rule.content_hashes(side) for side in zip(*texts, strict=True)]
                contents.append(np.stack(content, axis=1)[kept])
                if len(sides) == 2:
                    scan.add(texts, np.stack(content, axis=1), hashes, kept)
            ids.append(hashes[kept])
            for writer, side in zip(writers, sides, strict=True):
                writer.extend(side.take(kept))
        if source.is_bitext:
            _refuse_identical_sides(source, len(writers[0]), dropped)
    candidates = [] if scan is None else [astuple(candidate) for candidate in scan.candidates]
    save(
        task.reading,
        {"dropped": dropped, "candidates": candidates},
        ids=np.concatenate(ids),
        contents=np.concatenate(contents),
        heldout=np.empty(0, np.uint64) if scan is None else scan.sentences(),
    )
    return unknown.warning()


def _usable_texts(task: Task, dropped: Counter[str]) -> Iterator[list[Texts]]:
    """Batches of sentences or pairs with text on every side."""
    bad_lines = SkipBadLines()
    handler = bad_lines if task.settings.on_bad_line == "skip" else fail_on_bad_line
    lines = read_rows(
        task.unit.source, columns=task.settings.columns, revision=task.unit.revision, on_bad_line=handler
    )
    # Only when files are prepared one after the other: bars of several processes would overwrite each other.
    rows = iter(tqdm(lines, task.name, unit=" lines", delay=2, leave=False, disable=not task.show_lines))
    while batch := list(islice(rows, _BATCH)):
        stripped = [tuple(map(str.strip, row)) for row in batch]
        texts = [row for row in stripped if all(row)]
        dropped["empty"] += len(batch) - len(texts)
        if texts:
            yield texts
    dropped["bad_line"] += bad_lines.count


def encode_sides(encoder: TextEncoder, texts: Sequence[Texts]) -> Sides:
    """Token ids of each side of n rows; both sides go through the tokenizer together."""
    num_sides = len(texts[0]) if texts else 2
    rows = encoder.encode([row[side] for side in range(num_sides) for row in texts])
    order = np.arange(len(rows)).reshape(num_sides, -1)
    return tuple(rows.take(numbers) for numbers in order)


class _Unknown:
    """What a tokenizer does not know of a source."""

    def __init__(self, task: Task) -> None:
        self._name, self._unk = str(task.unit.source), task.special.unk
        self._known = find_known(task.encoder.tokenizer, task.special.all_ids)
        self._counts = np.zeros((2, len(task.languages)), dtype=np.int64)  # unknown tokens, all tokens

    def find(self, sides: Sides) -> np.ndarray:
        """Rows with a side without one known piece, whose ids are those of any such text, bool (n,)."""
        self._counts += [
            [int((side.tokens == self._unk).sum()) for side in sides],
            [len(side.tokens) for side in sides],
        ]
        known = [sums_of_runs(self._known[side.tokens], side.lengths) for side in sides]
        return np.any([count == 0 for count in known], axis=0)

    def warning(self) -> str | None:
        """Of a share that shows a script that the tokenizer has not learnt."""
        share = (self._counts[0] / self._counts[1].clip(min=1)).max()
        if share <= _UNKNOWN_LIMIT:
            return None
        return (
            f"{self._name}: {share:.0%} of the tokens are <unk>; the tokenizer does not know this script, "
            "and sentences that differ in unknown letters only are the same to the model; train one on it."
        )


def _drop_unfit(
    sides: Sides, kept: np.ndarray, settings: PrepareSettings, dropped: Counter[str]
) -> np.ndarray:
    """Which of the rows `kept` have lengths that fit, bool (n,); the others are counted by reason."""
    longest = settings.longest_side if len(sides) == 2 else settings.max_seq_length - 2
    for side in sides:
        problems = {"too_short": side.lengths < settings.min_length, "too_long": side.lengths > longest}
        kept = kept & drop({reason: wrong & kept for reason, wrong in problems.items()}, dropped)
    shorter, longer = np.sort([sides[0].lengths, sides[-1].lengths], axis=0)
    return kept & drop({"length_ratio": kept & (longer > settings.max_length_ratio * shorter)}, dropped)


def _refuse_identical_sides(source: Source, num_kept: int, dropped: Counter[str]) -> None:
    identical = dropped["identical_sides"]
    num_read = num_kept + sum(dropped.values()) - dropped["bad_line"]
    if identical > _IDENTICAL_LIMIT * num_read:
        raise DataError(
            f"{source}: both sides are the same in {identical:,} of {num_read:,} pairs of "
            f"{source.name}; each side must be in its own language. One file given twice, or a wrong column?"
        )
