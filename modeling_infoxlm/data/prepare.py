"""From text to a prepared corpus: check, tokenise, pack, and write token shards with a manifest.

1. Every source file is read once: lines are checked and tokenised, and what is usable is written, beside
   hashes of its ids (`read_source`).
2. From the hashes of all files it is decided what is held out and what came before (`decide`).
3. What is kept of each file becomes its shards (`write_source`), and the manifest comes last.

Every result is a file named after its content and everything that shaped it, written whole or not at all. So
files are prepared in parallel, in any order and by any number of jobs with byte-identical results, each by
one of them (`claims`), and a run that was killed redoes only what it had not finished.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_infoxlm.data.decide import decide
from modeling_infoxlm.data.plan import Plan, PrepareSettings, is_complete, make_plan, work_folder
from modeling_infoxlm.data.read_source import read_source
from modeling_infoxlm.data.readers import warn_of_extra_columns
from modeling_infoxlm.data.shards import FORMAT_VERSION, MANIFEST_NAME, Corpus, read_manifest
from modeling_infoxlm.data.sources import Source
from modeling_infoxlm.data.work import DoneElsewhere, Step, Task, make_tasks, work_through
from modeling_infoxlm.data.write_source import write_source
from modeling_infoxlm.runs.errors import DataError
from modeling_infoxlm.runs.files import write_text, writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_COPIED_BYTES_PER_WORKER = 1 << 27
# What `prepare` writes. What it does not write stays.
_OURS = re.compile(
    r"(?:manifest\.json|work/.+-[0-9a-f]{16}(?:\..+)?"
    r"|(?P<shard>(?:mono|bitext)/[^/]+/[^/]+-[0-9a-f]{16}|heldout/\w+-\w+)"
    r"(?:\.source|\.target)?\.(?:tokens|offsets|json|tsv))(?P<partial>\.[0-9a-f.]*partial)?"
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
    _prepare_or_wait(plan, num_workers, slice(None))
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

    All but `shard_index`, the number of this job from 0, is the same in all jobs, and as for `prepare`.

    Returns:
        The corpus if all of it is prepared now, else None.
    """
    if not 0 <= shard_index < num_shards:
        raise DataError(f"shard_index {shard_index} is not in 0..{num_shards - 1}.")
    plan = make_plan(sources, tokenizer, Path(output_dir), settings or PrepareSettings(), num_workers)
    if _prepare_or_wait(plan, num_workers, slice(shard_index, None, num_shards)):
        return Corpus.open(plan.folder)
    logger.info("part %d of %d is prepared; other parts are not yet", shard_index, num_shards)
    return None


def _prepare_or_wait(plan: Plan, num_workers: int, share: slice) -> bool:
    """Prepare what no other job does; False if files of other shares are not read yet."""
    with writing(plan.folder):
        try:
            if not is_complete(plan) and not _prepare(plan, num_workers, share):
                return False
        except (DoneElsewhere, FileNotFoundError) as error:  # whose working files are gone then
            if not (plan.folder / MANIFEST_NAME).exists():
                raise
            logger.info("another job has prepared %s (%s)", plan.folder, error)
            is_complete(plan)
        manifest = read_manifest(plan.folder)
        entries = [entry for kind in ("mono", "bitext", "heldout") for entry in manifest[kind].values()]
        _remove_files(plan.folder, {shard for entry in entries for shard in entry["shards"]})
    return True


def _prepare(plan: Plan, num_workers: int, share: slice) -> bool:
    warn_of_extra_columns([unit.source for unit in plan.units], plan.settings.columns)
    tasks = make_tasks(plan, num_workers)
    work_through(Step("read", "reading files", read_source, Task.is_read), tasks[share], num_workers)
    if not all(task.is_read() for task in tasks):
        return False
    decide(plan, tasks)
    # What is left is copying: another set of processes pays for large corpora only.
    few = min(num_workers, 1 + sum(task.unit.size for task in tasks) // _COPIED_BYTES_PER_WORKER)
    work_through(Step("write", "writing shards", write_source, Task.is_written), tasks, few)
    _write_manifest(plan, tasks)
    return True


# ----------------------------------------------------------------------------------------------- the manifest


def _write_manifest(plan: Plan, tasks: Sequence[Task]) -> None:
    """Write the manifest, which makes the folder a corpus."""
    finished = [json.loads(task.finished_file.read_text(encoding="utf-8")) for task in tasks]
    bitext = _merge(entries["bitext"] for entries in finished)
    mono = _merge(entries["mono"] for entries in finished)
    _refuse_empty({**mono, **bitext})
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
    dropped = sum((Counter(entry["dropped"]) for entry in entries), Counter[str]())
    totals = ("num_examples", "num_sentences", "num_tokens")
    return {
        **{name: sum(entry[name] for entry in entries) for name in totals},
        "max_length": max(entry["max_length"] for entry in entries),
        "dropped": dict(sorted(dropped.items())),
        "shards": [shard for entry in entries for shard in entry["shards"]],
    }


def _refuse_empty(entries: Mapping[str, Mapping[str, Any]]) -> None:
    found = []
    for name, entry in entries.items():
        if not entry["num_examples"]:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in entry["dropped"].items())
            found.append(f"{name} (dropped: {reasons or 'nothing'})")
    if found:
        raise DataError(f"no usable line in {'; '.join(found)}; mend or leave out its files.")


def _heldout_entries(plan: Plan, pairs: Iterable[str]) -> dict[str, Any]:
    if not plan.settings.heldout_fraction:
        return {}
    entries = {pair: json.loads((plan.folder / "heldout" / f"{pair}.json").read_text()) for pair in pairs}
    return {pair: entry for pair, entry in entries.items() if entry["num_examples"]}


# -------------------------------------------------------------------------------------------- what is removed


def remove_prepared(folder: Path) -> None:
    """Remove a corpus, complete or not, and nothing that `prepare` did not write.

    Args:
        folder: Its folder; a link to one is left alone, for who made it keeps the corpus elsewhere.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    (folder / MANIFEST_NAME).unlink(missing_ok=True)  # first: what a kill leaves is no corpus
    _remove_files(folder, shards=())
    for empty in (*folder.glob("*/*"), *folder.glob("*"), folder):
        with suppress(OSError):  # a file, or it holds files of somebody else
            empty.rmdir()


def _remove_files(folder: Path, shards: Container[str]) -> None:
    """Remove working files, what kills left, and all shards and held-out pairs but those named."""
    for path in (*folder.glob("*"), *folder.glob("*/*"), *folder.glob("*/*/*")):
        match = _OURS.fullmatch(path.relative_to(folder).as_posix())
        if match and path.name != MANIFEST_NAME and (match["partial"] or match["shard"] not in shards):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not there, or it holds files of somebody else
        work_folder(folder).rmdir()
