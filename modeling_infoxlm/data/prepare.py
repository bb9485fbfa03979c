"""From text to a prepared corpus: check, tokenise, pack, and write token shards with a manifest.

Every source file becomes shards of its own, named after its content and everything that shaped them, with a
small JSON file beside them that is written last. So files are prepared in parallel, in any order and by any
number of independent jobs with byte-identical results, and a run that was killed redoes only what it had not
finished.
"""

from __future__ import annotations

import errno
import functools
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
from itertools import islice
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

T = TypeVar("T")
_AnyTask = TypeVar("_AnyTask", "_Task", "_ScanTask")

_BATCH = 1000  # sentences tokenised by one call
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
    tokenizer = _load_tokenizer(tokenizer_file)
    heldout_file = _hold_out(plan, tokenizer, num_workers) if plan.settings.heldout_fraction else None
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
    function: Callable[[_AnyTask], None], tasks: Sequence[_AnyTask], num_workers: int, description: str
) -> None:
    """Call `function` for each task, in this process or in a pool of spawned ones."""
    num_workers = min(num_workers, len(tasks), 1 + sum(task.unit.size for task in tasks) // _BYTES_PER_WORKER)
    if num_workers <= 1:
        for task in tqdm(tasks, description, unit="file", delay=2):
            function(task)
        return
    # Not fork: tokenizers and torch have threads, which a forked child inherits in an undefined state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_use_one_core) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        try:
            for future in tqdm(as_completed(futures), description, len(futures), unit="file", delay=2):
                future.result()
        except BrokenProcessPool:
            raise DataError("a worker process was killed, perhaps for memory; try fewer workers.") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _use_one_core() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many processes as cores already


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
def _load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


# --------------------------------------------------------------------------------------------------- held out


def _scan_file(plan: Plan, unit: Unit) -> Path:
    settings = plan.settings
    wanted = (settings.heldout_fraction, settings.heldout_language, settings.heldout_max_pairs, settings.seed)
    return _work_folder(plan) / f"{unit.shard_name(digest(wanted, settings.bitext_columns))}.scan.npz"


def _hold_out(plan: Plan, tokenizer: Tokenizer, num_workers: int) -> Path:
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
        _write_heldout(plan, tokenizer, pair, found)
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
    plan: Plan, tokenizer: Tokenizer, pair: str, candidates: list[tuple[int, str, str]]
) -> None:
    folder = plan.folder / "heldout"
    pairs = _choose_heldout(plan, tokenizer, candidates)
    if not pairs:
        logger.warning("pair %s has no held-out sentences; raise heldout_fraction to evaluate on it", pair)
    with ExitStack() as stack:
        writer = _PairWriter(stack, folder / pair)
        for _, ids in pairs:
            writer.append(ids)
    _write_atomically(folder / f"{pair}.tsv", "".join(f"{_cell(a)}\t{_cell(b)}\n" for (a, b), _ in pairs))
    _write_atomically(folder / f"{pair}.json", json.dumps(writer.entry(f"heldout/{pair}", Counter())))


def _cell(text: str) -> str:
    return re.sub(r"[\t\r\n]+", " ", text)


def _choose_heldout(
    plan: Plan, tokenizer: Tokenizer, candidates: Iterable[tuple[int, str, str]]
) -> list[tuple[tuple[str, str], tuple[list[int], list[int]]]]:
    """The first candidates by hash, and ids; no sentence twice, or retrieval would have two right answers."""
    rule, seen = plan.settings.heldout_rule, set[tuple[int, int]]()
    chosen: list[tuple[tuple[str, str], tuple[list[int], list[int]]]] = []
    for batch in _batches(sorted(candidates)):
        texts = [(source, target) for _, source, target in batch]
        for pair, ids in zip(texts, _encode_pairs(tokenizer, texts), strict=True):
            sides = {(side, rule.content_hash(text)) for side, text in enumerate(pair)}
            if seen & sides or _pair_problem(ids, plan.settings):
                continue
            seen |= sides
            chosen.append((pair, ids))
            if len(chosen) == plan.settings.heldout_max_pairs:
                return chosen
    return chosen


# ------------------------------------------------------------------------------------------------- one source


class _Seen:
    """Remembers which texts have come by."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()

    def is_new(self, text: str) -> bool:
        """Whether this text comes for the first time; it is remembered."""
        before = len(self._hashes)
        self._hashes.add(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        return len(self._hashes) > before


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

    def append(self, ids: tuple[list[int], list[int]]) -> None:
        for writer, side in zip(self._sides, ids, strict=True):
            writer.append(side)
        self._max_length = max(self._max_length, len(ids[0]) + len(ids[1]))

    def entry(self, shard: str, dropped: Counter[str]) -> dict[str, Any]:
        num_tokens = sum(writer.num_tokens for writer in self._sides)
        return _entry(len(self), 2 * len(self), num_tokens, self._max_length, dropped, shard)


class _BlockWriter:
    """Packs sentences into MLM blocks `<s> s1 </s> s2 </s> ... </s>`, never splitting one."""

    def __init__(self, stack: ExitStack, prefix: Path, special: SpecialTokens, max_length: int) -> None:
        self._writer = stack.enter_context(TokenStoreWriter(prefix))
        self._special = special
        self._limit = max_length
        self._block = [special.bos]
        self._num_sentences = 0
        self._max_length = 0

    def append(self, ids: list[int]) -> None:
        """Add one sentence of at most `max_length - 2` tokens."""
        if len(self._block) + len(ids) + 1 > self._limit:
            self.flush()
        self._block += [*ids, self._special.eos]
        self._num_sentences += 1

    def flush(self) -> None:
        """Write the block under way, if it holds a sentence."""
        if len(self._block) > 1:
            self._writer.append(self._block)
            self._max_length = max(self._max_length, len(self._block))
        self._block = [self._special.bos]

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


def _prepare_unit(task: _Task) -> None:
    with _explained_full_disk(task.folder):
        if isinstance(task.unit.source, BitextSource):
            entries = _prepare_bitext(task, task.unit.source)
        else:
            entries = _prepare_mono(task, task.unit.source)
        _write_atomically(task.finished_file, json.dumps(entries))


def _prepare_bitext(task: _Task, source: BitextSource) -> dict[str, dict[str, Any]]:
    tokenizer = _load_tokenizer(task.tokenizer_file)
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
        for pair, ids in _tokenised_pairs(_usable_pairs(task, source, dropped), tokenizer):
            problem = _pair_problem(ids, task.settings)
            if problem:
                dropped[problem] += 1
                continue
            writer.append(ids)
            for language, text, side in zip(
                blocks, pair, ids, strict=False
            ):  # no blocks were asked for: no turn
                if seen[language].is_new(text):
                    blocks[language].append(side)
        _refuse_identical_sides(source, len(writer), dropped)
        for block_writer in blocks.values():
            block_writer.flush()
    mono = {language: blocks[language].entry(mono_shards[language], Counter()) for language in blocks}
    return {"bitext": {source.pair: writer.entry(shard, dropped)}, "mono": mono}


def _prepare_mono(task: _Task, source: MonoSource) -> dict[str, dict[str, Any]]:
    tokenizer = _load_tokenizer(task.tokenizer_file)
    dropped: Counter[str] = Counter()
    shard = f"mono/{source.language}/{task.name}"
    with ExitStack() as stack:
        blocks = _block_writer(task, stack, shard)
        for batch in _batches(_usable_sentences(task, source, dropped)):
            for ids in _encode(tokenizer, batch):
                problem = _length_problem(ids, task.settings.min_length, task.settings.max_length - 2)
                if problem:
                    dropped[problem] += 1
                else:
                    blocks.append(ids)
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


def _encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    ids = _encode(tokenizer, [text for pair in pairs for text in pair])
    return list(zip(ids[::2], ids[1::2], strict=True))


def _tokenised_pairs(
    pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer
) -> Iterator[tuple[tuple[str, str], tuple[list[int], list[int]]]]:
    for batch in _batches(pairs):
        yield from zip(batch, _encode_pairs(tokenizer, batch), strict=True)


def _length_problem(ids: Sequence[int], min_length: int, max_length: int) -> str | None:
    if not ids:
        return "empty"
    if len(ids) < min_length:
        return "too_short"
    return "too_long" if len(ids) > max_length else None


def _pair_problem(ids: tuple[list[int], list[int]], settings: PrepareSettings) -> str | None:
    for side in ids:
        problem = _length_problem(side, settings.min_length, settings.longest_side)
        if problem:
            return problem
    shorter, longer = sorted(map(len, ids))
    return "length_ratio" if longer > settings.max_length_ratio * shorter else None


def _usable_pairs(task: _Task, source: BitextSource, dropped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Pairs that pass every check that needs no tokens."""
    heldout, seen = _heldout_sentences(task), _Seen()
    bad_lines = SkipBadLines()
    pairs = read_pairs(
        source,
        columns=task.settings.bitext_columns,
        revision=task.unit.revision,
        on_bad_line=_bad_line_handler(task.settings, bad_lines),
    )
    for raw_source, raw_target in _with_progress(pairs, task):
        pair = raw_source.strip(), raw_target.strip()
        if not all(pair):
            dropped["empty"] += 1
        elif pair[0] == pair[1]:
            dropped["identical_sides"] += 1
        elif heldout and any(text in heldout for text in pair):
            dropped["heldout"] += 1
        elif task.settings.deduplicate and not seen.is_new("\n".join(pair)):
            dropped["duplicate"] += 1
        else:
            yield pair
    dropped["bad_line"] += bad_lines.count


def _usable_sentences(task: _Task, source: MonoSource, dropped: Counter[str]) -> Iterator[str]:
    """Sentences that pass every check that needs no tokens."""
    heldout, seen = _heldout_sentences(task), _Seen()
    bad_lines = SkipBadLines()
    handler = _bad_line_handler(task.settings, bad_lines)
    for raw in _with_progress(read_sentences(source, revision=task.unit.revision, on_bad_line=handler), task):
        text = raw.strip()
        if not text:
            dropped["empty"] += 1
        elif heldout and text in heldout:
            dropped["heldout"] += 1
        elif task.settings.deduplicate and not seen.is_new(text):
            dropped["duplicate"] += 1
        else:
            yield text
    dropped["bad_line"] += bad_lines.count


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
