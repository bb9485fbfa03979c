"""Carrying out a study: one command after the other, each in a process of its own, none of them twice.

A step that was cut goes on where it stopped, as its command does; one that failed is tried again by the next
call, and the others go on without it.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modeling_infoxlm.runs.errors import Interrupted, UsageError
from modeling_infoxlm.runs.files import read_json, write_json
from modeling_infoxlm.studies.plan import CELL_FILE, TRAINING, Step, Study

LOCK_FILE = ".lock"
PROGRAM = (sys.executable, "-m", "modeling_infoxlm.cli")
# What a study publishes of a cell; weights, predictions and text stay where they are.
_KEPT = (CELL_FILE, "*/run.json", "*/trainer_state.json", "*/*_results.json")


class StudyFailed(ValueError):
    """Steps of a study failed."""


def carry_out(study: Study) -> int:
    """Run what is left of a study; returns how many steps there were to do.

    Raises:
        UsageError: If a step was done with other flags, or another process is at work in the study's folder.
        Interrupted: If a signal came; the step under way has saved what it could.
        StudyFailed: If steps failed; the others are done.
    """
    steps = study.steps()
    with _locked(study.output_dir) as lock:
        return _carry_out(study, steps, lock)


def _carry_out(study: Study, steps: Sequence[Step], lock: int) -> int:
    todo = [step for step in steps if not _is_done(step)]
    for folder in {step.folder for step in steps if step not in todo}:
        _keep(study, folder)  # a kill may have come between a step's end and this
    failed: list[Step] = []
    with tqdm(total=len(steps), initial=len(steps) - len(todo), unit="step", dynamic_ncols=True) as bar:
        for step in todo:
            bar.set_description(step.title)
            # Nothing can be measured of a model that is not there.
            if not any(step.folder == other.folder and other.name == TRAINING for other in failed):
                if _run(step, lock):
                    _keep(study, step.folder)
                else:
                    failed.append(step)
                    bar.write(f"{step.title} failed, see {_log_of(step)}: {_last_line(_log_of(step))}")
            bar.update()
    if failed:
        raise StudyFailed(f"{len(failed)} of {len(steps)} steps failed; the same command tries them again.")
    return len(todo)


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a study's folder; commands get the file, so that one left over holds it still."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_FILE, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another `infoxlm study` is at work in {folder}, or a command that it left when it was "
                "killed: wait for it, or end it."
            ) from error
        yield lock.fileno()


def _is_done(step: Step) -> bool:
    done = _cell(step.folder).get("steps", {}).get(step.name)
    if done is None:
        return False
    now = {"command": step.command, "flags": json.loads(json.dumps(step.flags))}
    changed = [
        name for name in now["flags"] | done["flags"] if now["flags"].get(name) != done["flags"].get(name)
    ]
    if changed or done["command"] != step.command:
        what = ", ".join(sorted(changed)) or "another command"
        raise UsageError(
            f"{step.title} was done with other flags ({what}): remove {step.folder} to do it anew, "
            "or give the study another output_dir."
        )
    return True


def _cell(folder: Path) -> dict[str, Any]:
    path = folder / CELL_FILE
    return dict(read_json(path)) if path.is_file() else {}


def _log_of(step: Step) -> Path:
    return step.folder / f"{step.name}.log"


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


def _run(step: Step, lock: int) -> bool:
    """Run a step's command, which holds the lock as well; whether it came to its end."""
    recipe, began = step.folder / f"{step.name}.json", time.time()
    write_json(recipe, step.flags)
    command = [*PROGRAM, step.command, "--config", str(recipe)]
    with (
        open(_log_of(step), "a", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,)) as process,
        _handing_on(process) as received,
    ):
        code = process.wait()
    if received:
        raise Interrupted(f"{step.title} was stopped; the same command goes on.")
    if code == 0:
        cell: dict[str, Any] = {"arm": step.arm, "seed": step.seed, "number": step.number}
        cell["steps"] = _cell(step.folder).get("steps", {})
        seconds = round(time.time() - began, 1)
        cell["steps"][step.name] = {"command": step.command, "flags": step.flags, "seconds": seconds}
        write_json(step.folder / CELL_FILE, cell)
    return code == 0


@contextmanager
def _handing_on(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Hand signals on to the process, which saves and ends; gives the list of those that came."""
    received: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        received.append(number)
        # Ctrl-C comes to both from the terminal.
        if number != signal.SIGINT or os.getpgid(process.pid) != os.getpgrp():
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep(study: Study, folder: Path) -> None:
    """Copy what a cell has measured to the folder of results."""
    if study.results_dir is None:
        return
    target = study.results_dir / folder.relative_to(study.output_dir)
    for path in (path for pattern in _KEPT for path in folder.glob(pattern)):
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if copy.resolve() != path.resolve():
            shutil.copyfile(path, copy)
