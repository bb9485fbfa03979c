"""The work of preparing: a task for each source, the files it leaves, how jobs and processes share it."""

from __future__ import annotations

import functools
import gc
import json
import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from modeling_infoxlm.data.claims import POLL_SECONDS, Watch, claimed
from modeling_infoxlm.data.plan import Plan, PrepareSettings, Unit, digest, work_folder
from modeling_infoxlm.data.ragged import PackedRows, SpecialTokens
from modeling_infoxlm.data.shards import MANIFEST_NAME, shard_files
from modeling_infoxlm.data.tokenise import TextEncoder, plain_text_encoder
from modeling_infoxlm.runs.errors import DataError
from modeling_infoxlm.runs.files import whole_file, write_text

logger = logging.getLogger(__name__)

Sides = tuple[PackedRows, ...]  # sentences, or the two sides of pairs

_BYTES_PER_WORKER = 1 << 23  # a process takes seconds to import torch, longer than to prepare a few MB


@dataclass(frozen=True)
class Task:
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
        return self.unit.record["kind"], self.unit.source.name

    @property
    def raw_stores(self) -> list[Path]:
        """Shards of what is usable, one a side."""
        return [work_folder(self.folder) / f"{self.raw_name}.{side}" for side in range(len(self.languages))]

    @property
    def reading(self) -> Path:
        """What was found in the source; written when its shards are complete."""
        return work_folder(self.folder) / f"{self.raw_name}.npz"

    @property
    def keeping(self) -> Path:
        """Which of the usable rows are kept."""
        return work_folder(self.folder) / f"{self.name}.keep.npz"

    @property
    def finished_file(self) -> Path:
        """Counts of the source; it is there if and only if the shards are complete."""
        kind, name = self.group
        return self.folder / kind / name / f"{self.name}.json"

    @property
    def encoder(self) -> TextEncoder:
        """The tokenizer, with the words that it has met in this process."""
        return _load_encoder(self.tokenizer_file)

    def is_read(self) -> bool:
        """Whether the source is read; its tokens are not needed any more when the shards are complete."""
        stores = (path for prefix in self.raw_stores for path in shard_files(prefix))
        return self.reading.exists() and (self.is_written() or all(path.exists() for path in stores))

    def is_written(self) -> bool:
        """Whether the shards are complete."""
        return self.finished_file.exists()


@functools.lru_cache(maxsize=1)
def _load_encoder(tokenizer_file: Path) -> TextEncoder:
    return TextEncoder(Tokenizer.from_file(str(tokenizer_file)))


def make_tasks(plan: Plan, num_workers: int) -> list[Task]:
    """A task for each source, and the tokenizer's file that they read."""
    sha256 = plan.description["tokenizer"]["sha256"]
    tokenizer_file = work_folder(plan.folder) / f"tokenizer-{sha256[:16]}.json"
    write_text(tokenizer_file, plain_text_encoder(plan.tokenizer_json))
    return [
        Task(
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


# ------------------------------------------------------------------------------------ what is left in between


def save(path: Path, facts: Mapping[str, Any], **arrays: np.ndarray) -> None:
    """Write facts that JSON can hold, and arrays, to an `.npz` file without pickle, whole or not at all."""
    texts = {name: np.frombuffer(json.dumps(fact).encode(), dtype=np.uint8) for name, fact in facts.items()}
    with whole_file(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **texts, **arrays)


def load(path: Path, name: str) -> np.ndarray:
    """An array of such a file."""
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


def load_fact(path: Path, name: str) -> Any:
    """A fact of such a file."""
    return json.loads(load(path, name).tobytes())


def drop(problems: Mapping[str, np.ndarray], dropped: Counter[str]) -> np.ndarray:
    """Which of n sentences have no problem, bool (n,); the others are counted by their first one."""
    kept = ~np.zeros_like(next(iter(problems.values())))
    for reason, wrong in problems.items():
        dropped[reason] += int((wrong & kept).sum())
        kept &= ~wrong
    return kept


# ---------------------------------------------------------------------------------------- who does which task


class DoneElsewhere(Exception):
    """Another job has written the manifest."""


@dataclass(frozen=True)
class Step:
    """What is done with every task, whole or not at all; `do` returns what there is to warn of."""

    name: str
    description: str
    do: Callable[[Task], str | None]
    is_done: Callable[[Task], bool]

    def claim(self, task: Task) -> Path:
        """File that stands for the claim to do a task."""
        return work_folder(task.folder) / f"{task.name}.{self.name}.claim"

    def run(self, task: Task) -> str | None:
        """Do a task unless another job does."""
        with claimed(self.claim(task)) as mine:
            if not mine or self.is_done(task):
                return None
            # Lists of words and ids set off the search for cycles again and again; they have none, and it
            # took a quarter of the time.
            gc.disable()
            try:
                return self.do(task)
            finally:
                gc.enable()


def work_through(step: Step, tasks: Sequence[Task], num_workers: int) -> None:
    """Do all tasks that no other job does, and wait for those that others do.

    Raises:
        DoneElsewhere: If another job finishes the corpus meanwhile.
    """
    watch, has_said = Watch(), False
    # The largest first, so that no worker is left alone with it at the end.
    while todo := sorted(
        (task for task in tasks if not step.is_done(task)), key=lambda task: -task.unit.size
    ):
        if (todo[0].folder / MANIFEST_NAME).exists():
            raise DoneElsewhere(f"{len(todo)} files were left")
        if free := [task for task in todo if watch.is_free(step.claim(task))]:
            _run(step, free, num_workers)
            continue
        if not has_said:
            logger.info("%s: waiting for other jobs, which are at %d of them", step.description, len(todo))
        has_said = True
        time.sleep(POLL_SECONDS)


def _run(step: Step, tasks: Sequence[Task], num_workers: int) -> None:
    """Do each task, here or in a pool of spawned processes."""
    num_workers = min(num_workers, len(tasks), 1 + sum(task.unit.size for task in tasks) // _BYTES_PER_WORKER)
    if num_workers <= 1:
        for task in tqdm(tasks, step.description, unit="file", delay=2):
            _warn(step.run(task))
        return
    # Not fork: tokenizers and torch have threads, which a forked child inherits in an undefined state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_use_one_core) as pool:
        futures = [pool.submit(step.run, task) for task in tasks]
        try:
            for future in tqdm(as_completed(futures), step.description, len(futures), unit="file", delay=2):
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
