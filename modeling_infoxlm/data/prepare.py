"""From text to a prepared corpus: check, tokenise, pack, and write token shards with a manifest.

1. Every source file is read once: lines are checked and tokenised, and what is usable is written, beside
   hashes of its ids (`_read_unit`).
2. From the hashes of all files it is decided what is held out and what came before (`_decide`).
3. What is kept of each file becomes its shards, and the manifest comes last (`_write_unit`, `_finish`).

Every result is a file named after its content and everything that shaped it, written whole or not at all. So
files are prepared in parallel, in any order and by any number of jobs with byte-identical results, each by
one of them (`claims`), and a run that was killed redoes only what it had not finished.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import multiprocessing
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple, dataclass
from itertools import compress, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from modeling_infoxlm.data.claims import POLL_SECONDS, Watch, claimed, make_once
from modeling_infoxlm.data.heldout import Candidate, HeldoutScan, choose_distinct, is_among
from modeling_infoxlm.data.plan import (
    Plan,
    PrepareSettings,
    Source,
    Unit,
    digest,
    is_complete,
    make_plan,
    make_work_folder,
    require,
)
from modeling_infoxlm.data.ragged import PackedRows, join_pieces, sums_of_runs
from modeling_infoxlm.data.readers import (
    BadLineHandler,
    SkipBadLines,
    fail_on_bad_line,
    read_pairs,
    read_sentences,
    warn_of_extra_columns,
)
from modeling_infoxlm.data.sampling import hash64
from modeling_infoxlm.data.shards import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Corpus,
    SpecialTokens,
    TokenStore,
    TokenStoreWriter,
    read_manifest,
    shard_files,
)
from modeling_infoxlm.data.sources import BitextSource, MonoSource, describe
from modeling_infoxlm.data.tokenise import RowHashes, TextEncoder, find_known, plain_text_encoder
from modeling_infoxlm.runs.errors import DataError
from modeling_infoxlm.runs.files import whole_file, write_text, writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

T = TypeVar("T")
Texts = tuple[str, ...]  # a sentence, or the two sides of a pair
Sides = tuple[PackedRows, ...]

_BATCH = 2000  # lines checked, tokenised and packed at a time
_ROWS = 50_000  # tokenised ones copied at a time
_BYTES_PER_WORKER = 1 << 23  # a process takes seconds to import torch, longer than to prepare a few MB
_COPIED_BYTES_PER_WORKER = 1 << 27
_IDENTICAL_LIMIT = 0.9  # above this share of identical sides a pair file is taken for a mistake
_UNKNOWN_LIMIT = 0.05  # above this share of <unk> a file is warned of
_SHARD_FILE = re.compile(
    r"(?P<shard>.+-[0-9a-f]{16})(\.source|\.target)?\.(tokens|offsets|json)(\.[0-9a-f.]*partial)?"
)
_HELDOUT_FILE = re.compile(
    r"(?P<pair>\w+-\w+)\.(?:(?:source|target)\.(?:tokens|offsets)|tsv|json)(?P<partial>\.[0-9a-f.]*partial)?"
)
_WORK_FILE = re.compile(r".+-[0-9a-f]{16}([.].+)?")


def prepare(
    sources: Sequence[Source],
    *,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    settings: PrepareSettings | None = None,
    num_workers: int = 1,
) -> Corpus:
    """Prepare a corpus, or go on where an earlier run stopped, or just open it if it is complete.

    The shards depend on the sources, the tokenizer and the settings only, not on `num_workers`. More than one
    worker needs the usual `if __name__ == "__main__":` in the calling script, since workers are spawned.

    Args:
        sources: From `parse_bitext_sources` and `parse_mono_sources`.
        tokenizer: Any fast tokenizer of transformers with `<s>`, `</s>`, pad, unknown and mask tokens.
        output_dir: Folder for the shards and `manifest.json`.
        settings: All that shapes the output; None takes the defaults.
        num_workers: Files prepared at the same time, each by one process.

    Returns:
        The prepared corpus.

    Raises:
        DataError: If a source cannot be used, a language has no usable line, the disk is full, or the folder
            was prepared with another tokenizer, other settings or other text.
    """
    plan = make_plan(sources, tokenizer, Path(output_dir), settings or PrepareSettings(), num_workers)
    with writing(plan.folder):
        _prepare_or_wait(plan, num_workers, lambda tasks: tasks)
    return Corpus.open(plan.folder)


def prepare_part(
    sources: Sequence[Source],
    *,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    settings: PrepareSettings | None = None,
    num_workers: int = 1,
    shard_index: int,
    num_shards: int,
) -> Corpus | None:
    """Read every `num_shards`-th source, for independent jobs on one folder (a Slurm array, a shell loop).

    The job that finds all sources read writes the corpus. If one fails, run it again.

    Args:
        sources: As for `prepare`; the same in all jobs.
        tokenizer: As for `prepare`.
        output_dir: As for `prepare`; the same in all jobs.
        settings: As for `prepare`; the same in all jobs.
        num_workers: As for `prepare`, in this job.
        shard_index: Number of this job, from 0.
        num_shards: Number of jobs.

    Returns:
        The corpus if all of it is prepared now, else None.

    Raises:
        DataError: As `prepare`.
    """
    require(0 <= shard_index < num_shards, f"shard_index {shard_index} is not in 0..{num_shards - 1}.")
    plan = make_plan(sources, tokenizer, Path(output_dir), settings or PrepareSettings(), num_workers)
    with writing(plan.folder):
        if not _prepare_or_wait(plan, num_workers, lambda tasks: tasks[shard_index::num_shards]):
            logger.info("part %d of %d is prepared; other parts are not yet", shard_index, num_shards)
            return None
    return Corpus.open(plan.folder)


class _DoneElsewhere(Exception):
    """Another job has written the manifest."""


def _prepare_or_wait(plan: Plan, num_workers: int, share: Callable[[list[_Task]], list[_Task]]) -> bool:
    """Prepare what no other job does; False if files of other shares are not read yet."""
    try:
        if not is_complete(plan):
            tasks = _tasks(plan, num_workers)
            _work_through("reading files", _read_unit, share(tasks), plan.folder, num_workers)
            if not all(task.is_read() for task in tasks):
                return False
            _decide(plan, tasks)
            # What is left is copying: another set of processes pays for large corpora only.
            few = min(num_workers, 1 + sum(task.unit.size for task in tasks) // _COPIED_BYTES_PER_WORKER)
            _work_through("writing shards", _write_unit, tasks, plan.folder, few)
            _finish(plan, tasks)
    except (_DoneElsewhere, FileNotFoundError) as error:  # whose working files are gone then
        if not (plan.folder / MANIFEST_NAME).exists():
            raise
        logger.info("another job has prepared %s (%s)", plan.folder, error)
        is_complete(plan)
    _remove_leftovers(plan.folder)
    return True


# --------------------------------------------------------------------------------------------------- the work


@dataclass(frozen=True)
class _Task:
    """All that a worker needs to prepare one source."""

    unit: Unit
    folder: Path
    raw_name: str  # of what is read of the source; `name` of what is kept, which depends on all other sources
    name: str
    settings: PrepareSettings
    special: SpecialTokens
    tokenizer_file: Path
    show_lines: bool

    @property
    def languages(self) -> tuple[str, ...]:
        """One, or source and target."""
        return self.unit.source.languages

    @property
    def group(self) -> tuple[str, str]:
        """Kind and language or pair, as in the manifest."""
        return self.unit.record["kind"], "-".join(self.languages)

    @property
    def raw_stores(self) -> list[Path]:
        """Shards of what is usable, one a side."""
        return [_work_folder(self.folder) / f"{self.raw_name}.{side}" for side in range(len(self.languages))]

    @property
    def reading(self) -> Path:
        """What was found in the source; written when its shards are complete."""
        return _work_folder(self.folder) / f"{self.raw_name}.npz"

    @property
    def keeping(self) -> Path:
        """Which of the usable rows are kept."""
        return _work_folder(self.folder) / f"{self.name}.keep.npz"

    @property
    def finished_file(self) -> Path:
        """Counts of the source; it is there if and only if the shards are complete."""
        kind, name = self.group
        return self.folder / kind / name / f"{self.name}.json"

    def claim(self, step: str) -> Path:
        """File that stands for the claim to do a step."""
        return _work_folder(self.folder) / f"{self.name}.{step}.claim"

    def is_read(self) -> bool:
        """Whether the source is read; its tokens are not needed any more when the shards are complete."""
        stores = (path for prefix in self.raw_stores for path in shard_files(prefix))
        return self.reading.exists() and (
            self.finished_file.exists() or all(path.exists() for path in stores)
        )

    def is_written(self) -> bool:
        """Whether the shards are complete."""
        return self.finished_file.exists()


def _work_folder(folder: Path) -> Path:
    return folder / "work"


def _tasks(plan: Plan, num_workers: int) -> list[_Task]:
    work = make_work_folder(plan.folder)
    warn_of_extra_columns([unit.source for unit in plan.units], plan.settings.columns)
    tokenizer_file = work / f"tokenizer-{plan.description['tokenizer']['sha256'][:16]}.json"
    write_text(tokenizer_file, plain_text_encoder(plan.tokenizer_json))
    return [
        _Task(
            unit=unit,
            folder=plan.folder,
            raw_name=unit.shard_name(digest(plan.key, "usable")),
            name=unit.shard_name(plan.corpus_key),
            settings=plan.settings,
            special=plan.special,
            tokenizer_file=tokenizer_file,
            show_lines=num_workers <= 1,
        )
        for unit in plan.units
    ]


def _work_through(
    description: str,
    function: Callable[[_Task], str | None],
    tasks: Sequence[_Task],
    folder: Path,
    num_workers: int,
) -> None:
    """Do all tasks that no other job does, and wait for those that others do.

    Raises:
        _DoneElsewhere: If another job finishes the corpus meanwhile.
    """
    is_done, step = (_Task.is_read, "read") if function is _read_unit else (_Task.is_written, "write")
    watch, has_said = Watch(), False
    # The largest first, so that no worker is left alone with it at the end.
    while todo := sorted((task for task in tasks if not is_done(task)), key=lambda task: -task.unit.size):
        if (folder / MANIFEST_NAME).exists():
            raise _DoneElsewhere(f"{len(todo)} files were left")
        if free := [task for task in todo if watch.is_free(task.claim(step))]:
            _run(function, free, num_workers, description)
        else:
            if not has_said:
                logger.info("%s: waiting for other jobs, which are at %d of them", description, len(todo))
            has_said = True
            time.sleep(POLL_SECONDS)


def _run(
    function: Callable[[_Task], str | None], tasks: Sequence[_Task], num_workers: int, description: str
) -> None:
    """Call `function` for each task, here or in a pool of spawned processes; what it returns is a warning."""
    num_workers = min(num_workers, len(tasks), 1 + sum(task.unit.size for task in tasks) // _BYTES_PER_WORKER)
    if num_workers <= 1:
        for task in tqdm(tasks, description, unit="file", delay=2):
            _warn(function(task))
        return
    # Not fork: tokenizers and torch have threads, which a forked child inherits in an undefined state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_use_one_core) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        try:
            for future in tqdm(as_completed(futures), description, len(futures), unit="file", delay=2):
                _warn(future.result())
        except BrokenProcessPool:
            raise DataError("a worker process was killed, perhaps for memory; try fewer workers.") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _warn(message: str | None) -> None:
    if message:
        logger.warning(message)


def _use_one_core() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many processes as cores already


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    # Lists of words and ids set off the search for cycles again and again; they have none, and it took a
    # quarter of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@functools.lru_cache(maxsize=1)
def _load_encoder(tokenizer_file: Path) -> TextEncoder:
    return TextEncoder(Tokenizer.from_file(str(tokenizer_file)))


# ------------------------------------------------------------------------------------------------- one source


class _PairWriter:
    """Writes the two sides of pairs to the shards `PREFIX.source` and `PREFIX.target`."""

    def __init__(self, stack: ExitStack, prefix: Path) -> None:
        self._sides = [
            stack.enter_context(TokenStoreWriter(prefix.with_name(f"{prefix.name}.{side}")))
            for side in ("source", "target")
        ]
        self._max_length = 0

    def __len__(self) -> int:
        return len(self._sides[0])

    def extend(self, sides: Sides) -> None:
        """Add n pairs."""
        assert len(sides) == 2
        for writer, side in zip(self._sides, sides, strict=True):
            writer.extend(side)
        self._max_length = int((sides[0].lengths + sides[1].lengths).max(initial=self._max_length))

    def entry(self, shard: str, dropped: Counter[str]) -> dict[str, Any]:
        num_tokens = sum(writer.num_tokens for writer in self._sides)
        return _entry(len(self), 2 * len(self), num_tokens, self._max_length, dropped, shard)


class _BlockWriter:
    """Packs sentences into MLM blocks `<s> s1 </s> s2 </s> ... </s>`, never splitting one."""

    def __init__(self, stack: ExitStack, prefix: Path, special: SpecialTokens, max_length: int) -> None:
        self._writer = stack.enter_context(TokenStoreWriter(prefix))
        self._special = special
        self._limit = max_length
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
        return np.diff(
            np.array(bounds[:-1] or bounds)
        )  # the last one ends where the sentences do: it may go on

    def _write(self, sentences: PackedRows, counts: np.ndarray) -> None:
        blocks = join_pieces(sentences, counts, self._special)
        self._writer.extend(blocks)
        self._max_length = int(blocks.lengths.max(initial=self._max_length))

    def entry(self, shard: str, dropped: Counter[str]) -> dict[str, Any]:
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


# ------------------------------------------------------------------------------------------- reading a source


def _read_unit(task: _Task) -> str | None:
    """Read one source; returns what there is to warn of."""
    with claimed(task.claim("read")) as mine, _without_garbage_collection():
        if not mine or task.is_read():
            return None
        for path in _work_folder(task.folder).glob(f"{task.raw_name}.*.partial"):
            path.unlink()  # of a job that was killed
        return _read_source(task, _load_encoder(task.tokenizer_file))


def _read_source(task: _Task, encoder: TextEncoder) -> str | None:
    source, settings, unknown = task.unit.source, task.settings, _Unknown(task)
    dropped: Counter[str] = Counter()
    ids: list[np.ndarray] = [np.empty((0, len(task.languages)), dtype=np.uint64)]
    contents, hash_rows = list(ids), RowHashes(task.special.vocab_size)
    limit = 2 * settings.heldout_max_pairs  # some share a sentence with others
    scan = HeldoutScan(settings.heldout_rule, task.languages, limit) if settings.heldout_fraction else None
    with ExitStack() as stack:
        writers = [stack.enter_context(TokenStoreWriter(prefix)) for prefix in task.raw_stores]
        for texts in _usable_texts(task, dropped):
            sides = _encode(encoder, texts)
            hashes = np.stack([hash_rows(side) for side in sides], axis=1)
            problems = {
                "empty": _some_side(side.lengths == 0 for side in sides),
                "unknown": unknown.find(sides),
            }
            if len(sides) == 2:
                problems["identical_sides"] = hashes[:, 0] == hashes[:, 1]
            kept = _drop_unfit(sides, _drop(problems, dropped), settings, dropped)
            if scan is not None:
                content = [settings.heldout_rule.content_hashes(side) for side in zip(*texts, strict=True)]
                contents.append(np.stack(content, axis=1)[kept])
                if len(sides) == 2:
                    scan.add(texts, np.stack(content, axis=1), hashes, kept)
            ids.append(hashes[kept])
            for writer, side in zip(writers, sides, strict=True):
                writer.extend(side.take(kept))
        if isinstance(source, BitextSource):
            _refuse_identical_sides(source, len(writers[0]), dropped)
    _save(
        task.reading,
        ids=np.concatenate(ids),
        contents=np.concatenate(contents),
        heldout=np.empty(0, np.uint64) if scan is None else scan.sentences(),
        candidates=_as_bytes([] if scan is None else [astuple(candidate) for candidate in scan.candidates]),
        dropped=_as_bytes(dropped),
    )
    return unknown.warning()


def _usable_texts(task: _Task, dropped: Counter[str]) -> Iterator[list[Texts]]:
    """Batches of sentences or pairs with text on every side."""
    bad_lines = SkipBadLines()
    handler = bad_lines if task.settings.on_bad_line == "skip" else fail_on_bad_line
    for batch in _batches(_with_progress(_lines(task, handler), task)):
        texts = [tuple(map(str.strip, row)) for row in batch]
        texts = _keep(texts, list(map(all, texts)), "empty", dropped)
        if texts:
            yield texts
    dropped["bad_line"] += bad_lines.count


def _lines(task: _Task, handler: BadLineHandler) -> Iterator[Texts]:
    source, revision = task.unit.source, task.unit.revision
    if isinstance(source, MonoSource):
        return zip(read_sentences(source, revision=revision, on_bad_line=handler))  # noqa: B905  # 1-tuples
    return read_pairs(source, columns=task.settings.columns, revision=revision, on_bad_line=handler)


class _Unknown:
    """What a tokenizer does not know of a source."""

    def __init__(self, task: _Task) -> None:
        self._name, self._unk = describe(task.unit.source), task.special.unk
        self._known = _known_ids(task.tokenizer_file, task.special.all_ids)
        self._counts = np.zeros((2, len(task.languages)), dtype=np.int64)  # unknown tokens, all tokens

    def find(self, sides: Sides) -> np.ndarray:
        """Rows with a side without one known piece, whose ids are those of any such text, bool (n,)."""
        self._counts += [
            [int((side.tokens == self._unk).sum()) for side in sides],
            [len(side.tokens) for side in sides],
        ]
        return _some_side(sums_of_runs(self._known[side.tokens], side.lengths) == 0 for side in sides)

    def warning(self) -> str | None:
        """Of a share that shows a script that the tokenizer has not learnt."""
        share = (self._counts[0] / self._counts[1].clip(min=1)).max()
        if share <= _UNKNOWN_LIMIT:
            return None
        return (
            f"{self._name}: {share:.0%} of the tokens are <unk>; the tokenizer does not know this script, "
            "and sentences that differ in unknown letters only are the same to the model; train one on it."
        )


def _some_side(problems: Iterable[np.ndarray]) -> np.ndarray:
    return np.logical_or.reduce(list(problems))


@functools.lru_cache(maxsize=1)
def _known_ids(tokenizer_file: Path, special_ids: tuple[int, ...]) -> np.ndarray:
    return find_known(_load_encoder(tokenizer_file).tokenizer, special_ids)


def _refuse_identical_sides(source: BitextSource, num_kept: int, dropped: Counter[str]) -> None:
    identical = dropped["identical_sides"]
    num_read = num_kept + sum(dropped.values()) - dropped["bad_line"]
    if identical > _IDENTICAL_LIMIT * num_read:
        raise DataError(
            f"{describe(source)}: both sides are the same in {identical:,} of {num_read:,} pairs of "
            f"{source.pair}; each side must be in its own language. One file given twice, or a wrong column?"
        )


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _encode(encoder: TextEncoder, texts: Sequence[Texts]) -> Sides:
    """Token ids of each side of n rows; both sides go through the tokenizer together."""
    num_sides = len(texts[0]) if texts else 2
    rows = encoder.encode([text for side in range(num_sides) for text in map(itemgetter(side), texts)])
    order = np.arange(len(rows)).reshape(num_sides, -1)
    return tuple(rows.take(numbers) for numbers in order)


def _drop_unfit(
    sides: Sides, kept: np.ndarray, settings: PrepareSettings, dropped: Counter[str]
) -> np.ndarray:
    """Which of the rows `kept` have lengths that fit, bool (n,); the others are counted by reason."""
    longest = settings.longest_side if len(sides) == 2 else settings.max_seq_length - 2
    for side in sides:
        problems = {"too_short": side.lengths < settings.min_length, "too_long": side.lengths > longest}
        kept = kept & _drop({reason: wrong & kept for reason, wrong in problems.items()}, dropped)
    shorter, longer = np.sort([sides[0].lengths, sides[-1].lengths], axis=0)
    return kept & _drop({"length_ratio": kept & (longer > settings.max_length_ratio * shorter)}, dropped)


def _drop(problems: Mapping[str, np.ndarray], dropped: Counter[str]) -> np.ndarray:
    """Which of n sentences have no problem, bool (n,); the others are counted by their first one."""
    kept = ~np.zeros_like(next(iter(problems.values())))
    for reason, wrong in problems.items():
        dropped[reason] += int((wrong & kept).sum())
        kept &= ~wrong
    return kept


def _keep(items: list[T], good: Sequence[bool], reason: str, dropped: Counter[str]) -> list[T]:
    """The good items; the others are counted."""
    if all(good):
        return items
    dropped[reason] += good.count(False)
    return list(compress(items, good))


def _with_progress(lines: Iterator[T], task: _Task) -> Iterator[T]:
    # Only when files are prepared one after the other: bars of several processes would overwrite each other.
    return iter(tqdm(lines, task.name, unit=" lines", delay=2, leave=False, disable=not task.show_lines))


def _save(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays to an `.npz` file without pickle, whole or not at all."""
    with whole_file(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _as_bytes(content: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)


def _loaded(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


def _loaded_json(path: Path, name: str) -> Any:
    return json.loads(_loaded(path, name).tobytes())


# ---------------------------------------------------------------------------------------------- what is kept


def _decide(plan: Plan, tasks: Sequence[_Task]) -> None:
    """Decide once, for all jobs, which rows of each source are kept, and write the held-out pairs."""
    work = _work_folder(plan.folder)
    make_once(
        work / f"decided-{plan.corpus_key[:16]}",
        work / f"decided-{plan.corpus_key[:16]}.claim",
        lambda: _decide_all(plan, tasks),
    )


def _decide_all(plan: Plan, tasks: Sequence[_Task]) -> None:
    dropped: dict[str, Counter[str]] = {task.name: Counter() for task in tasks}
    keys = {task.name: _loaded(task.reading, "ids") for task in tasks}
    kept = {name: np.ones(len(key), dtype=bool) for name, key in keys.items()}
    if plan.settings.heldout_fraction:
        _write_all_heldout(plan, tasks)
        heldout = np.unique(np.concatenate([_loaded(task.reading, "heldout") for task in tasks]))
        for task in tasks:
            secret = is_among(keys[task.name], heldout) | is_among(_loaded(task.reading, "contents"), heldout)
            kept[task.name] = _drop({"heldout": secret.any(axis=1)}, dropped[task.name])
    if plan.settings.deduplicate:
        for together in _grouped(tasks, lambda task: [task.group]).values():
            names = [task.name for task, _ in together]
            rows = [_as_one(keys[name][kept[name]]) for name in names]
            for name, first in zip(names, _first_of(rows), strict=True):
                dropped[name]["duplicate"] += int((~first).sum())
                kept[name][kept[name]] = first
    new = _new_sentences(tasks, keys, kept) if plan.settings.mono_from_bitext else {}
    for task in tasks:
        _save(
            task.keeping,
            kept=kept[task.name],
            new=new.get(task.name, np.empty(0, dtype=bool)),
            dropped=_as_bytes(dropped[task.name]),
        )
    write_text(_work_folder(plan.folder) / f"decided-{plan.corpus_key[:16]}", "")


def _grouped(
    tasks: Iterable[_Task], names: Callable[[_Task], Sequence[T]]
) -> dict[T, list[tuple[_Task, int]]]:
    """Tasks by each of their names, with its number."""
    groups: dict[T, list[tuple[_Task, int]]] = defaultdict(list)
    for task in tasks:
        for number, name in enumerate(names(task)):
            groups[name].append((task, number))
    return groups


def _new_sentences(
    tasks: Sequence[_Task], keys: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Which sides of the pairs kept come for the first time in their language, bool (kept, 2) by source."""
    found = {task.name: np.zeros((int(kept[task.name].sum()), 2), dtype=bool) for task in tasks}
    # Text of one language comes first, whatever the order: it is not left out for being in a bitext as well.
    ordered = sorted(tasks, key=lambda task: len(task.languages))
    for together in _grouped(ordered, lambda task: task.languages).values():
        rows = [keys[task.name][kept[task.name], side] for task, side in together]
        for (task, side), first in zip(together, _first_of(rows), strict=True):
            found[task.name][:, side] = first
    return found


def _as_one(hashes: np.ndarray) -> np.ndarray:
    """One hash of each row of hashes, which tells source from target."""
    return hash64(*hashes.T) if hashes.shape[1] > 1 else hashes[:, 0]


def _first_of(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Which values come for the first time, in arrays that follow each other, bool of their shapes."""
    together = np.concatenate(parts)
    first = np.zeros(len(together), dtype=bool)
    first[np.unique(together, return_index=True)[1]] = True
    return np.split(first, np.cumsum([len(part) for part in parts])[:-1])


def _write_all_heldout(plan: Plan, tasks: Sequence[_Task]) -> None:
    encoder = _load_encoder(tasks[0].tokenizer_file)
    pairs = _grouped((task for task in tasks if len(task.languages) == 2), lambda task: [task.group[1]])
    for pair, together in pairs.items():
        found = [
            Candidate(key, tuple(sides), *texts)
            for task, _ in together
            for key, sides, *texts in _loaded_json(task.reading, "candidates")
        ]
        _write_heldout(plan, encoder, pair, choose_distinct(found, plan.settings.heldout_max_pairs))


def _write_heldout(plan: Plan, encoder: TextEncoder, pair: str, chosen: Sequence[Candidate]) -> None:
    folder = plan.folder / "heldout"
    texts = [(candidate.source, candidate.target) for candidate in chosen]
    if not texts:
        logger.warning("pair %s has no held-out sentences; raise heldout_fraction to evaluate on it", pair)
    with ExitStack() as stack:
        writer = _PairWriter(stack, folder / pair)
        writer.extend(_encode(encoder, texts))
    write_text(folder / f"{pair}.tsv", "".join(f"{_cell(a)}\t{_cell(b)}\n" for a, b in texts))
    write_text(folder / f"{pair}.json", json.dumps(writer.entry(f"heldout/{pair}", Counter())))


def _cell(text: str) -> str:
    return re.sub(r"[\t\r\n]+", " ", text)


# ----------------------------------------------------------------------------------------------- the shards


def _write_unit(task: _Task) -> None:
    """Write the shards of one source: what is kept of its usable rows."""
    with claimed(task.claim("write")) as mine:
        if not mine or task.is_written():
            return
        for path in task.finished_file.parent.glob(f"{task.name}.*.partial"):
            path.unlink()  # of a job that was killed
        dropped = Counter(_loaded_json(task.reading, "dropped")) + Counter(
            _loaded_json(task.keeping, "dropped")
        )
        write = _write_pairs if len(task.languages) == 2 else _write_blocks
        write_text(task.finished_file, json.dumps(write(task, dropped)))
        for prefix in task.raw_stores:
            for path in shard_files(prefix):
                path.unlink(missing_ok=True)


def _kept_rows(task: _Task) -> Iterator[Sides]:
    """The rows kept of each side, some thousands at a time."""
    stores = [TokenStore([prefix]) for prefix in task.raw_stores]
    numbers = np.flatnonzero(_loaded(task.keeping, "kept"))
    for start in range(0, len(numbers), _ROWS):
        yield tuple(PackedRows(*store.gather(numbers[start : start + _ROWS])) for store in stores)


def _write_pairs(task: _Task, dropped: Counter[str]) -> dict[str, dict[str, Any]]:
    _, pair = task.group
    shard = f"bitext/{pair}/{task.name}"
    languages = task.languages if task.settings.mono_from_bitext else ()
    mono_shards = [f"mono/{language}/{task.name}" for language in languages]
    new, position = _loaded(task.keeping, "new"), 0
    with ExitStack() as stack:
        writer = _PairWriter(stack, task.folder / shard)
        blocks = [_block_writer(task, stack, mono_shard) for mono_shard in mono_shards]
        for sides in _kept_rows(task):
            writer.extend(sides)
            for number, block_writer in enumerate(blocks):
                block_writer.extend(sides[number].take(new[position : position + len(sides[0]), number]))
            position += len(sides[0])
        for block_writer in blocks:
            block_writer.flush()
    mono = [block.entry(mono_shard, Counter()) for block, mono_shard in zip(blocks, mono_shards, strict=True)]
    return {"bitext": {pair: writer.entry(shard, dropped)}, "mono": dict(zip(languages, mono, strict=True))}


def _write_blocks(task: _Task, dropped: Counter[str]) -> dict[str, dict[str, Any]]:
    _, language = task.group
    shard = f"mono/{language}/{task.name}"
    with ExitStack() as stack:
        blocks = _block_writer(task, stack, shard)
        for (sentences,) in _kept_rows(task):
            blocks.extend(sentences)
        blocks.flush()
    return {"bitext": {}, "mono": {language: blocks.entry(shard, dropped)}}


def _block_writer(task: _Task, stack: ExitStack, shard: str) -> _BlockWriter:
    return _BlockWriter(stack, task.folder / shard, task.special, task.settings.max_seq_length)


# ----------------------------------------------------------------------------------------------- the manifest


def _finish(plan: Plan, tasks: Sequence[_Task]) -> None:
    """Write the manifest, which makes the folder a corpus, and remove what is no longer needed."""
    finished = [json.loads(task.finished_file.read_text(encoding="utf-8")) for task in tasks]
    bitext = _merge(entries["bitext"] for entries in finished)
    mono = _merge(entries["mono"] for entries in finished)
    _refuse_empty(mono, bitext)
    manifest = {
        "format_version": FORMAT_VERSION,
        **plan.description,
        "mono": mono,
        "bitext": bitext,
        "heldout": _heldout_entries(plan, bitext),
    }
    write_text(plan.folder / MANIFEST_NAME, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def _merge(parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Add up the entries of all files of each language or pair."""
    grouped: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for part in parts:
        for name, entry in part.items():
            grouped[name].append(entry)
    return {name: _sum(grouped[name]) for name in sorted(grouped)}


def _sum(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    for entry in entries:
        dropped.update(entry["dropped"])
    totals = {
        name: sum(entry[name] for entry in entries)
        for name in ("num_examples", "num_sentences", "num_tokens")
    }
    return {
        **totals,
        "max_length": max(entry["max_length"] for entry in entries),
        "dropped": dict(sorted(dropped.items())),
        "shards": [shard for entry in entries for shard in entry["shards"]],
    }


def _refuse_empty(*groups: Mapping[str, Mapping[str, Any]]) -> None:
    empty = {name: entry for group in groups for name, entry in group.items() if not entry["num_examples"]}
    if empty:
        found = "; ".join(f"{name} (dropped: {_listed(entry['dropped'])})" for name, entry in empty.items())
        raise DataError(f"no usable line in {found}; mend or leave out its files.")


def _listed(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in dropped.items()) or "nothing"


def _heldout_entries(plan: Plan, pairs: Iterable[str]) -> dict[str, Any]:
    if not plan.settings.heldout_fraction:
        return {}
    entries = {pair: json.loads((plan.folder / "heldout" / f"{pair}.json").read_text()) for pair in pairs}
    return {pair: entry for pair, entry in entries.items() if entry["num_examples"]}


def _remove_leftovers(folder: Path) -> None:
    """Remove working files, and what unfinished runs left in a complete folder; leave other files alone."""
    manifest = read_manifest(folder)
    shards = {
        Path(shard).name
        for group in (manifest["mono"], manifest["bitext"])
        for entry in group.values()
        for shard in entry["shards"]
    }
    _remove_files(folder, shards, manifest["bitext"])


def remove_prepared(folder: Path) -> None:
    """Remove a corpus, complete or not, and nothing that `prepare` did not write.

    Args:
        folder: Its folder; a link to one is left alone, for who made it keeps the corpus elsewhere.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    (folder / MANIFEST_NAME).unlink(missing_ok=True)  # first: what a kill leaves is no corpus
    _remove_files(folder, shards=(), pairs=())
    for empty in (*folder.glob("*/*"), *folder.glob("*"), folder):
        with suppress(OSError):  # a file, or it holds files of somebody else
            empty.rmdir()


def _remove_files(folder: Path, shards: Container[str], pairs: Container[str]) -> None:
    """Remove working files, and all shards and held-out pairs but those named."""
    work = _work_folder(folder)
    leftovers = [path for path in work.glob("*") if _WORK_FILE.fullmatch(path.name)]
    leftovers += folder.glob(f"{MANIFEST_NAME}.*.partial")
    for kind in ("mono", "bitext"):
        for path in (folder / kind).glob("*/*"):
            match = _SHARD_FILE.fullmatch(path.name)
            if match and (path.name.endswith(".partial") or match["shard"] not in shards):
                leftovers.append(path)
    for path in (folder / "heldout").glob("*"):
        match = _HELDOUT_FILE.fullmatch(path.name)
        if match and (match["partial"] or match["pair"] not in pairs):
            leftovers.append(path)
    for path in leftovers:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not there, or it holds files of somebody else
        work.rmdir()
