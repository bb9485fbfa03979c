"""From text to a prepared corpus: check, tokenise, pack, and write token shards with a manifest.

Every source file becomes shards of its own, named after its content and everything that shaped them, with a
small JSON file beside them that is written last. So files are prepared in parallel, in any order and by any
number of independent jobs with byte-identical results, and a run that was killed redoes only what it had not
finished.
"""

from __future__ import annotations

import errno
import functools
import gc
import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import compress, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from modeling_infoxlm.data.errors import DataError
from modeling_infoxlm.data.heldout import HeldoutScan, HeldoutSentences, scan_pairs
from modeling_infoxlm.data.plan import (
    Plan,
    PrepareSettings,
    Source,
    Unit,
    digest,
    is_complete,
    make_plan,
    plain_text_encoder,
    require,
)
from modeling_infoxlm.data.ragged import PackedRows, join_pieces
from modeling_infoxlm.data.readers import (
    BadLineHandler,
    SkipBadLines,
    fail_on_bad_line,
    read_pairs,
    read_sentences,
    warn_of_extra_columns,
)
from modeling_infoxlm.data.shards import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Corpus,
    SpecialTokens,
    TokenStoreWriter,
    fsync_file,
)
from modeling_infoxlm.data.sources import BitextSource, MonoSource, describe
from modeling_infoxlm.data.tokenise import (
    CannotEncode,
    CheckedEncoder,
    IdsDiffer,
    SentencePieceEncoder,
    TextEncoder,
    TokenizersEncoder,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

T = TypeVar("T")
Pair = tuple[str, str]
Sides = tuple[PackedRows, PackedRows]
_AnyTask = TypeVar("_AnyTask", "_Task", "_ScanTask")

_BATCH = 2000  # lines checked, tokenised and packed at a time
_BYTES_PER_WORKER = 1 << 23  # a process takes seconds to import torch, longer than to prepare a few MB
_IDENTICAL_LIMIT = 0.9  # above this share of identical sides a pair file is taken for a mistake
_SHARD_FILE = re.compile(
    r"(?P<shard>.+-[0-9a-f]{16})(\.source|\.target)?\.(tokens|offsets|json)([.0-9]*\.partial)?"
)


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
    with _explained_full_disk(plan.folder):
        if not is_complete(plan):
            tasks = _tasks(plan, num_workers)
            _run(_prepare_unit, _unfinished(tasks), num_workers, "preparing files")
            _finish(plan, tasks)
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
    """Prepare every `num_shards`-th source, for independent jobs on one folder (a Slurm array, a shell loop).

    The job that finds all sources done writes the manifest. If one fails, run it again.

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
    with _explained_full_disk(plan.folder):
        if not is_complete(plan):
            tasks = _tasks(plan, num_workers)
            _run(_prepare_unit, _unfinished(tasks[shard_index::num_shards]), num_workers, "preparing files")
            if _unfinished(tasks):
                logger.info("part %d of %d is prepared; other parts are not yet", shard_index, num_shards)
                return None
            _finish(plan, tasks)
    return Corpus.open(plan.folder)


# --------------------------------------------------------------------------------------------------- the work


@dataclass(frozen=True)
class _Task:
    """All that a worker needs to prepare one source."""

    unit: Unit
    folder: Path
    name: str
    settings: PrepareSettings
    special: SpecialTokens
    tokenizer_file: Path
    sentencepiece_file: Path | None
    heldout_file: Path | None
    show_lines: bool

    @property
    def finished_file(self) -> Path:
        """Counts of the source; it is there if and only if the shards are complete."""
        return (
            self.folder
            / self.unit.record["kind"]
            / "-".join(self.unit.record["languages"])
            / f"{self.name}.json"
        )


def _work_folder(plan: Plan) -> Path:
    return plan.folder / "work"


def _tasks(plan: Plan, num_workers: int) -> list[_Task]:
    _work_folder(plan).mkdir(parents=True, exist_ok=True)
    warn_of_extra_columns([unit.source for unit in plan.units], plan.settings.bitext_columns)
    tokenizer_file = _work_folder(plan) / f"tokenizer-{plan.description['tokenizer']['sha256'][:16]}.json"
    _write_atomically(tokenizer_file, plain_text_encoder(plan.tokenizer_json))
    exact = _load_exact(tokenizer_file)
    heldout_file = _hold_out(plan, exact, num_workers) if plan.settings.heldout_fraction else None
    sentencepiece_file = _usable_sentencepiece(plan, tokenizer_file)
    # The name of the held-out file tells its content.
    key = digest(plan.key, heldout_file and heldout_file.name)
    return [
        _Task(
            unit=unit,
            folder=plan.folder,
            name=unit.shard_name(key),
            settings=plan.settings,
            special=plan.special,
            tokenizer_file=tokenizer_file,
            sentencepiece_file=sentencepiece_file,
            heldout_file=heldout_file,
            show_lines=num_workers <= 1,
        )
        for unit in plan.units
    ]


def _unfinished(tasks: Iterable[_Task]) -> list[_Task]:
    # The largest first, so that no worker is left alone with it at the end.
    return sorted(
        (task for task in tasks if not task.finished_file.exists()), key=lambda task: -task.unit.size
    )


def _run(
    function: Callable[[_AnyTask], str | None], tasks: Sequence[_AnyTask], num_workers: int, description: str
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


@contextmanager
def _explained_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"no space left in {folder}: the shard being written has been removed, all finished ones are "
            "kept; free some space and run the same command again."
        ) from error


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        fsync_file(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@functools.lru_cache(maxsize=1)
def _load_exact(tokenizer_file: Path) -> TokenizersEncoder:
    return TokenizersEncoder(Tokenizer.from_file(str(tokenizer_file)))


@functools.lru_cache(maxsize=1)
def _load_fast(tokenizer_file: Path, sentencepiece_file: Path) -> SentencePieceEncoder:
    return SentencePieceEncoder(sentencepiece_file, _load_exact(tokenizer_file))


def _usable_sentencepiece(plan: Plan, tokenizer_file: Path) -> Path | None:
    """The SentencePiece model to encode with, if there is one and it is the tokenizer's."""
    if plan.sentencepiece_file is None:
        logger.info("tokenising with tokenizers: there is no SentencePiece model beside the tokenizer")
        return None
    try:
        _load_fast(tokenizer_file, plan.sentencepiece_file)
    except CannotEncode as error:
        logger.warning("tokenising with tokenizers, not with %s: %s", plan.sentencepiece_file, error)
        return None
    logger.info("tokenising with sentencepiece (%s), checked against tokenizers", plan.sentencepiece_file)
    return plan.sentencepiece_file


# --------------------------------------------------------------------------------------------------- held out


def _scan_file(plan: Plan, unit: Unit) -> Path:
    settings = plan.settings
    wanted = (settings.heldout_fraction, settings.heldout_language, settings.heldout_max_pairs, settings.seed)
    return _work_folder(plan) / f"{unit.shard_name(digest(wanted, settings.bitext_columns))}.scan.npz"


def _hold_out(plan: Plan, encoder: TextEncoder, num_workers: int) -> Path:
    """Write the held-out pairs of every language pair; returns the file with all their sentences' hashes."""
    scans = [(unit, _scan_file(plan, unit)) for unit in plan.units if isinstance(unit.source, BitextSource)]
    todo = [_ScanTask(unit, path, plan.settings) for unit, path in scans if not path.exists()]
    _run(_scan_unit, todo, num_workers, "choosing held-out sentences")
    hashes: list[np.ndarray] = [np.empty(0, dtype=np.uint64)]
    candidates: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for unit, path in scans:
        scan = HeldoutScan.load(path)
        hashes.append(scan.sentences)
        candidates["-".join(unit.source.languages)] += scan.candidates
    for pair, found in candidates.items():
        _write_heldout(plan, encoder, pair, found)
    sentences = np.unique(np.concatenate(hashes))
    path = _work_folder(plan) / f"heldout-{hashlib.sha256(sentences.tobytes()).hexdigest()[:16]}.npy"
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial.npy")
    np.save(partial, sentences)
    os.replace(partial, path)
    return path


@dataclass(frozen=True)
class _ScanTask:
    unit: Unit
    path: Path
    settings: PrepareSettings


def _scan_unit(task: _ScanTask) -> None:
    source, settings = task.unit.source, task.settings
    assert isinstance(source, BitextSource)
    pairs = read_pairs(
        source,
        columns=settings.bitext_columns,
        revision=task.unit.revision,
        on_bad_line=_bad_line_handler(settings, SkipBadLines()),
    )
    # Twice as many as wanted, since some will prove too long.
    limit = 2 * settings.heldout_max_pairs
    scan = scan_pairs(pairs, settings.heldout_rule, languages=source.languages, limit=limit)
    with _explained_full_disk(task.path.parent):
        partial = task.path.with_name(f"{task.path.name}.{os.getpid()}.partial")
        scan.save(partial)
        os.replace(partial, task.path)


def _write_heldout(
    plan: Plan, encoder: TextEncoder, pair: str, candidates: list[tuple[int, str, str]]
) -> None:
    folder = plan.folder / "heldout"
    pairs, sides = _choose_heldout(plan, encoder, candidates)
    if not pairs:
        logger.warning("pair %s has no held-out sentences; raise heldout_fraction to evaluate on it", pair)
    with ExitStack() as stack:
        writer = _PairWriter(stack, folder / pair)
        writer.extend(sides)
    _write_atomically(folder / f"{pair}.tsv", "".join(f"{_cell(a)}\t{_cell(b)}\n" for a, b in pairs))
    _write_atomically(folder / f"{pair}.json", json.dumps(writer.entry(f"heldout/{pair}", Counter())))


def _cell(text: str) -> str:
    return re.sub(r"[\t\r\n]+", " ", text)


def _choose_heldout(
    plan: Plan, encoder: TextEncoder, candidates: Iterable[tuple[int, str, str]]
) -> tuple[list[Pair], Sides]:
    """The first usable candidates by hash; no sentence twice, or retrieval would have two right answers."""
    rule, seen = plan.settings.heldout_rule, set[tuple[int, int]]()
    pairs = [(source, target) for _, source, target in sorted(candidates)]
    encoded = _encode_pairs(encoder, pairs)
    usable = _drop_pairs(encoded, plan.settings, Counter())
    chosen: list[int] = []
    for number in np.flatnonzero(usable).tolist():
        sides = {(side, rule.content_hash(text)) for side, text in enumerate(pairs[number])}
        if len(chosen) < plan.settings.heldout_max_pairs and not seen & sides:
            seen |= sides
            chosen.append(number)
    order = np.array(chosen, dtype=np.int64)
    return [pairs[number] for number in chosen], (encoded[0].take(order), encoded[1].take(order))


# ------------------------------------------------------------------------------------------------- one source


class _Seen:
    """Remembers which texts have come by."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()

    def find_new(self, texts: Iterable[str]) -> list[bool]:
        """Whether each text comes for the first time; all are remembered."""
        hashes = self._hashes
        found = []
        for text in texts:
            before = len(hashes)
            hashes.add(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
            found.append(len(hashes) > before)
        return found


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


def _prepare_unit(task: _Task) -> str | None:
    """Prepare one source; returns a warning if it was not possible in the fast way."""
    exact = _load_exact(task.tokenizer_file)
    warning = None
    with _explained_full_disk(task.folder), _without_garbage_collection():
        try:
            entries = _prepare_source(task, _encoder(task))
        except IdsDiffer as difference:
            warning = (
                f"{describe(task.unit.source)} is prepared with tokenizers, not sentencepiece: {difference}"
            )
            entries = _prepare_source(task, exact)
        _write_atomically(task.finished_file, json.dumps(entries))
    return warning


def _encoder(task: _Task) -> TextEncoder:
    exact = _load_exact(task.tokenizer_file)
    if task.sentencepiece_file is None:
        return exact
    return CheckedEncoder(_load_fast(task.tokenizer_file, task.sentencepiece_file), exact)


def _prepare_source(task: _Task, encoder: TextEncoder) -> dict[str, dict[str, Any]]:
    if isinstance(task.unit.source, BitextSource):
        return _prepare_bitext(task, task.unit.source, encoder)
    return _prepare_mono(task, task.unit.source, encoder)


def _prepare_bitext(task: _Task, source: BitextSource, encoder: TextEncoder) -> dict[str, dict[str, Any]]:
    dropped: Counter[str] = Counter()
    blocks: dict[str, _BlockWriter] = {}
    shard = f"bitext/{source.pair}/{task.name}"
    mono_shards = {language: f"mono/{language}/{task.name}" for language in source.languages}
    with ExitStack() as stack:
        writer = _PairWriter(stack, task.folder / shard)
        if task.settings.mono_from_bitext:
            for language, mono_shard in mono_shards.items():
                blocks[language] = _block_writer(task, stack, mono_shard)
        seen = {language: _Seen() for language in blocks}
        for pairs in _usable_pairs(task, source, dropped):
            sides = _encode_pairs(encoder, pairs)
            kept = np.flatnonzero(_drop_pairs(sides, task.settings, dropped))
            writer.extend((sides[0].take(kept), sides[1].take(kept)))
            for language, block_writer, number in zip(blocks, blocks.values(), (0, 1), strict=False):
                new = seen[language].find_new(pairs[i][number] for i in kept)
                block_writer.extend(sides[number].take(kept[new]))
        _refuse_identical_sides(source, len(writer), dropped)
        for block_writer in blocks.values():
            block_writer.flush()
    mono = {language: blocks[language].entry(mono_shards[language], Counter()) for language in blocks}
    return {"bitext": {source.pair: writer.entry(shard, dropped)}, "mono": mono}


def _prepare_mono(task: _Task, source: MonoSource, encoder: TextEncoder) -> dict[str, dict[str, Any]]:
    settings = task.settings
    dropped: Counter[str] = Counter()
    shard = f"mono/{source.language}/{task.name}"
    with ExitStack() as stack:
        blocks = _block_writer(task, stack, shard)
        for texts in _usable_sentences(task, source, dropped):
            sentences = encoder.encode(texts)
            problems = _length_problems(sentences.lengths, settings.min_length, settings.max_length - 2)
            blocks.extend(sentences.take(_drop(problems, dropped)))
        blocks.flush()
    return {"bitext": {}, "mono": {source.language: blocks.entry(shard, dropped)}}


def _block_writer(task: _Task, stack: ExitStack, shard: str) -> _BlockWriter:
    return _BlockWriter(stack, task.folder / shard, task.special, task.settings.max_length)


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


def _encode_pairs(encoder: TextEncoder, pairs: Sequence[Pair]) -> Sides:
    rows = encoder.encode([text for side in (0, 1) for text in map(itemgetter(side), pairs)])
    lengths = np.split(rows.lengths, 2)
    tokens = np.split(rows.tokens, [lengths[0].sum()])
    return PackedRows(tokens[0], lengths[0]), PackedRows(tokens[1], lengths[1])


def _length_problems(lengths: np.ndarray, min_length: int, max_length: int) -> dict[str, np.ndarray]:
    """What may be wrong with sentences, the first reason first, and which have that problem, bool (n,)."""
    return {"empty": lengths == 0, "too_short": lengths < min_length, "too_long": lengths > max_length}


def _drop_pairs(sides: Sides, settings: PrepareSettings, dropped: Counter[str]) -> np.ndarray:
    """Which pairs are kept for their lengths, bool (n,); the others are counted by reason."""
    kept = np.ones(len(sides[0]), dtype=bool)
    for side in sides:
        problems = _length_problems(side.lengths, settings.min_length, settings.longest_side)
        kept &= _drop({reason: wrong & kept for reason, wrong in problems.items()}, dropped)
    shorter, longer = np.sort([side.lengths for side in sides], axis=0)
    return kept & _drop({"length_ratio": kept & (longer > settings.max_length_ratio * shorter)}, dropped)


def _drop(problems: Mapping[str, np.ndarray], dropped: Counter[str]) -> np.ndarray:
    """Which of n sentences have no problem, bool (n,); the others are counted by their first one."""
    kept = ~np.zeros_like(next(iter(problems.values())))
    for reason, wrong in problems.items():
        dropped[reason] += int((wrong & kept).sum())
        kept &= ~wrong
    return kept


def _usable_pairs(task: _Task, source: BitextSource, dropped: Counter[str]) -> Iterator[list[Pair]]:
    """Batches of pairs that pass every check that needs no tokens."""
    heldout, seen = _heldout_sentences(task), _Seen()
    bad_lines = SkipBadLines()
    lines = read_pairs(
        source,
        columns=task.settings.bitext_columns,
        revision=task.unit.revision,
        on_bad_line=_bad_line_handler(task.settings, bad_lines),
    )
    for batch in _batches(_with_progress(lines, task)):
        pairs = [(source.strip(), target.strip()) for source, target in batch]
        pairs = _keep(pairs, [bool(source and target) for source, target in pairs], "empty", dropped)
        pairs = _keep(pairs, [source != target for source, target in pairs], "identical_sides", dropped)
        if heldout:
            found = heldout.find([text for pair in pairs for text in pair]).reshape(-1, 2)
            pairs = _keep(pairs, (found.sum(axis=1) == 0).tolist(), "heldout", dropped)
        if task.settings.deduplicate:
            pairs = _keep(pairs, seen.find_new(map("\n".join, pairs)), "duplicate", dropped)
        if pairs:
            yield pairs
    dropped["bad_line"] += bad_lines.count


def _usable_sentences(task: _Task, source: MonoSource, dropped: Counter[str]) -> Iterator[list[str]]:
    """Batches of sentences that pass every check that needs no tokens."""
    heldout, seen = _heldout_sentences(task), _Seen()
    bad_lines = SkipBadLines()
    handler = _bad_line_handler(task.settings, bad_lines)
    lines = read_sentences(source, revision=task.unit.revision, on_bad_line=handler)
    for batch in _batches(_with_progress(lines, task)):
        texts = [text.strip() for text in batch]
        texts = _keep(texts, list(map(bool, texts)), "empty", dropped)
        if heldout:
            texts = _keep(texts, (~heldout.find(texts)).tolist(), "heldout", dropped)
        if task.settings.deduplicate:
            texts = _keep(texts, seen.find_new(texts), "duplicate", dropped)
        if texts:
            yield texts
    dropped["bad_line"] += bad_lines.count


def _keep(items: list[T], good: Sequence[bool], reason: str, dropped: Counter[str]) -> list[T]:
    """The good items; the others are counted."""
    if all(good):
        return items
    dropped[reason] += good.count(False)
    return list(compress(items, good))


def _bad_line_handler(settings: PrepareSettings, bad_lines: SkipBadLines) -> BadLineHandler:
    return bad_lines if settings.on_bad_line == "skip" else fail_on_bad_line


def _heldout_sentences(task: _Task) -> HeldoutSentences | None:
    if task.heldout_file is None:
        return None
    return HeldoutSentences(task.settings.heldout_rule, np.load(task.heldout_file, mmap_mode="r"))


def _with_progress(lines: Iterator[T], task: _Task) -> Iterator[T]:
    # Only when files are prepared one after the other: bars of several processes would overwrite each other.
    return iter(tqdm(lines, task.name, unit=" lines", delay=2, leave=False, disable=not task.show_lines))


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
    _write_atomically(plan.folder / MANIFEST_NAME, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    _remove_leftovers(plan, manifest)


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


def _remove_leftovers(plan: Plan, manifest: Mapping[str, Any]) -> None:
    """Remove working files, and shards of unfinished runs that had other sources or settings."""
    shutil.rmtree(_work_folder(plan), ignore_errors=True)
    groups = [manifest["mono"], manifest["bitext"]]
    used = {Path(shard).name for group in groups for entry in group.values() for shard in entry["shards"]}
    for kind in ("mono", "bitext"):
        for path in (plan.folder / kind).glob("*/*"):
            match = _SHARD_FILE.fullmatch(path.name)
            if match and match["shard"] not in used:
                path.unlink(missing_ok=True)
