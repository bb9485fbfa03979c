"""Runs as they lie in folders: settings, log, held-out measures and result files of each, arm by arm."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_infoxlm.evaluation.report.result_files import ResultFile
from modeling_infoxlm.evaluation.results import RESULT_SUFFIX
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import Each, check_shape, read_json
from modeling_infoxlm.runs.provenance import is_result, read_result
from modeling_infoxlm.runs.record import RUN_FILE, TRAINER_STATE
from modeling_infoxlm.studies.plan import CELL_FILE, TRAINING

# What says nothing of an arm: the seed, who computes, and where the text lies once more.
_OF_NO_ARM = {"seed", "arithmetic", "prepared_data"}


@dataclass(frozen=True)
class PretrainingRun:
    """One run and all that was measured of it."""

    arm: str  # name of what it shares with runs of other seeds
    seed: int
    folder: Path
    settings: Mapping[str, Any]  # that shaped it, but the seed; empty of a model that was not trained here
    history: Sequence[Mapping[str, Any]]  # log entries
    tokens: int  # it was trained on
    heldout: Mapping[str, float]  # measures of held-out pairs at the end (`eval_`) and the start (`start_`)
    results: Mapping[str, Mapping[str, Any]]  # contents of result files by their paths below the folder


def read_runs(paths: Sequence[Path]) -> list[PretrainingRun]:
    """All runs of some folders, those of one arm after another.

    Raises:
        UsageError: If a folder is not there, or none holds a run.
    """
    named: dict[str, str] = {}
    runs = [run for path in paths for run in _runs_in(path, named)]
    if not runs:
        where = ", ".join(map(str, paths))
        raise UsageError(f"no run in {where}; give folders of `infoxlm pretrain` or of `infoxlm study`.")
    order = list(dict.fromkeys(run.arm for run in runs))
    return sorted(runs, key=lambda run: (order.index(run.arm), run.seed))


def _runs_in(path: Path, names: dict[str, str]) -> Iterator[PretrainingRun]:
    """Runs of a folder; `names` has the arm of each folder of a study, or set of settings, met so far."""
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}; give folders of runs.")
    cells = {
        file.parent: _read(file, {"arm": str, "seed": int, "number": int}) for file in path.rglob(CELL_FILE)
    }
    for folder, cell in sorted(cells.items(), key=lambda item: (item[1]["number"], item[0])):
        if cell["number"] >= 0:  # else arms begin with it
            arm = _arm(names, str(folder.parent), cell["arm"], folder.parent)
            yield _run(folder, folder / TRAINING, arm, cell["seed"])
    for file in sorted(path.rglob(RUN_FILE)):
        # A study's training that is under way: its flags lie beside it.
        is_step = file.match(f"{TRAINING}/{RUN_FILE}") and file.parent.with_suffix(".json").is_file()
        if (is_step and file.parent != path) or any(cell in file.parents for cell in cells):
            continue
        identity = _identity(file.parent)
        if "objectives" in identity:  # else it is of fine-tuning
            key = json.dumps(_settings(identity), sort_keys=True)
            arm = _arm(names, key, file.parent.resolve().name, file.parent)
            yield _run(file.parent, file.parent, arm, int(identity["seed"]))


def _arm(names: dict[str, str], key: str, name: str, folder: Path) -> str:
    """Name of an arm; where another has it, the folder."""
    return names.setdefault(key, str(folder) if name in names.values() else name)


def _run(folder: Path, training: Path, arm: str, seed: int) -> PretrainingRun:
    state = _read(training / TRAINER_STATE, {"log_history?": [{"step": int}]})
    heldout = _read(training / "eval_results.json", Each(object))
    files = sorted(path for path in folder.rglob(f"*{RESULT_SUFFIX}") if is_result(path))
    return PretrainingRun(
        arm=arm,
        seed=seed,
        folder=folder,
        settings=_settings(_identity(training)),
        history=state.get("log_history", ()),
        tokens=int(state.get("num_input_tokens_seen") or 0),
        heldout={name: value for name, value in heldout.items() if isinstance(value, float)},
        results={path.relative_to(folder).as_posix(): read_result(path) for path in files},
    )


def _identity(folder: Path) -> dict[str, Any]:
    return dict(_read(folder / RUN_FILE, {"identity?": Each(object)}).get("identity", {}))


def _settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in _OF_NO_ARM}


def _read(path: Path, shape: Any) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_json(path)
    check_shape(content, shape, path)
    return dict(content)


def result_files(runs: Sequence[PretrainingRun]) -> list[ResultFile]:
    """Result files of all runs under the names of their arms: the pre-training's seed is theirs."""
    contents = [
        (run.folder / path, {**content, **_as_of_arm(run, content)})
        for run in runs
        for path, content in run.results.items()
    ]
    return [ResultFile(number, path, content) for number, (path, content) in enumerate(contents, 1)]


def _as_of_arm(run: PretrainingRun, content: Mapping[str, Any]) -> dict[str, Any]:
    identity = {name: value for name, value in content.get("identity", {}).items() if name != "model"}
    model = {**content["model"], "name_or_path": run.arm, "revision": run.arm, "sha256": None}
    model |= dict.fromkeys(("config_sha256", "tokenizer_sha256"))
    return {"model": model, "seed": run.seed, "identity": identity}
