"""What is kept: from the hashes of all sources, which rows are held out, or came before."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TypeVar

import numpy as np

from modeling_infoxlm.data.claims import make_once
from modeling_infoxlm.data.heldout import Candidate, choose_distinct, is_among
from modeling_infoxlm.data.plan import Plan, work_folder
from modeling_infoxlm.data.read_source import encode_sides
from modeling_infoxlm.data.sampling import hash64
from modeling_infoxlm.data.work import Task, drop, load, load_fact, save
from modeling_infoxlm.data.write_source import PairWriter
from modeling_infoxlm.runs.files import write_text

logger = logging.getLogger(__name__)

T = TypeVar("T")


def decide(plan: Plan, tasks: Sequence[Task]) -> None:
    """Decide once, for all jobs, which rows of each source are kept, and write the held-out pairs."""
    decided = work_folder(plan.folder) / f"decided-{plan.corpus_key[:16]}"

    def make() -> None:
        _decide(plan, tasks)
        write_text(decided, "")

    make_once(decided, decided.with_name(f"{decided.name}.claim"), make)


def _decide(plan: Plan, tasks: Sequence[Task]) -> None:
    dropped: dict[str, Counter[str]] = {task.name: Counter() for task in tasks}
    keys = {task.name: load(task.reading, "ids") for task in tasks}
    kept = {name: np.ones(len(key), dtype=bool) for name, key in keys.items()}
    if plan.settings.heldout_fraction:
        _write_all_heldout(plan, tasks)
        heldout = np.unique(np.concatenate([load(task.reading, "heldout") for task in tasks]))
        for task in tasks:
            secret = is_among(keys[task.name], heldout) | is_among(load(task.reading, "contents"), heldout)
            kept[task.name] = drop({"heldout": secret.any(axis=1)}, dropped[task.name])
    if plan.settings.deduplicate:
        for together in _grouped(tasks, lambda task: [task.group]).values():
            names = [task.name for task, _ in together]
            rows = [_as_one(keys[name][kept[name]]) for name in names]
            for name, first in zip(names, _first_of(rows), strict=True):
                dropped[name]["duplicate"] += int((~first).sum())
                kept[name][kept[name]] = first
    new = _new_sentences(tasks, keys, kept) if plan.settings.mono_from_bitext else {}
    nothing = np.empty(0, dtype=bool)
    for task in tasks:
        facts = {"dropped": dropped[task.name]}
        save(task.keeping, facts, kept=kept[task.name], new=new.get(task.name, nothing))


def _grouped(tasks: Iterable[Task], names: Callable[[Task], Sequence[T]]) -> dict[T, list[tuple[Task, int]]]:
    """Tasks by each of their names, with its number."""
    groups: dict[T, list[tuple[Task, int]]] = defaultdict(list)
    for task in tasks:
        for number, name in enumerate(names(task)):
            groups[name].append((task, number))
    return groups


def _new_sentences(
    tasks: Sequence[Task], keys: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]
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


# ----------------------------------------------------------------------------------- pairs that are held out


def _write_all_heldout(plan: Plan, tasks: Sequence[Task]) -> None:
    pairs = _grouped((task for task in tasks if len(task.languages) == 2), lambda task: [task.group[1]])
    for pair, together in pairs.items():
        found = [
            Candidate(key, tuple(sides), *texts)
            for task, _ in together
            for key, sides, *texts in load_fact(task.reading, "candidates")
        ]
        chosen = choose_distinct(found, plan.settings.heldout_max_pairs)
        _write_heldout(tasks[0], pair, [(candidate.source, candidate.target) for candidate in chosen])


def _write_heldout(task: Task, pair: str, texts: Sequence[tuple[str, str]]) -> None:
    folder = task.folder / "heldout"
    if not texts:
        logger.warning("pair %s has no held-out sentences; raise heldout_fraction to evaluate on it", pair)
    with ExitStack() as stack:
        writer = PairWriter(stack, folder / pair)
        writer.extend(encode_sides(task.encoder, texts))
    write_text(folder / f"{pair}.tsv", "".join(f"{_cell(a)}\t{_cell(b)}\n" for a, b in texts))
    write_text(folder / f"{pair}.json", json.dumps(writer.entry(f"heldout/{pair}", Counter())))


def _cell(text: str) -> str:
    return re.sub(r"[\t\r\n]+", " ", text)
