"""What a release brings along to prove its card: results, figures, and how it was trained, as files.

    results/<task>_results.json   result files, as the programs wrote them
    .eval_results/<task>.yaml     the same numbers for the Hub's leaderboards, of whole test sets only
    training.json                 recipe, data, compute and held-out metrics, out of run.json and others
    figures/*.png

The card takes its numbers from these files and from nowhere else.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from modeling_infoxlm.configuration_infoxlm import LAST_LAYER, XLCO_LAYER_BY_DEPTH, InfoXLMConfig
from modeling_infoxlm.data.sources import HUB_PREFIX, hub_parts
from modeling_infoxlm.hub.benchmarks import comparable_sets
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import Each, check_shape, read_json, write_json, write_text
from modeling_infoxlm.runs.provenance import hash_weights, is_result, read_result
from modeling_infoxlm.runs.record import PLACES, RUN_FILE, TRAINER_STATE

TRAINING_FILE, TRAINING_SCHEMA = "training.json", "infoxlm-training-1"
RESULTS_FOLDER, FIGURES_FOLDER, LEADERBOARD_FOLDER = "results", "figures", ".eval_results"
RESULT_PATTERN = "*_results.json"

_DERIVED = ("total_train_batch_size", "batch_size")  # of several flags and the number of processes


def add_evidence(source: Path, release: Path, *, results: Sequence[Path] = ()) -> None:
    """Copy results and figures of a model into its release, and write how it was trained.

    Args:
        source: Folder of a run or of a checkpoint in one.
        release: Folder that is completed. It may hold its `release.json` already: results have to be of the
            vectors that it gives.
        results: Result files, or folders with them and figures, besides those in the folder of the run; only
            these are taken for a checkpoint.

    Raises:
        UsageError: If a given file is no result, or a result of another model; or two are of one task.
    """
    run = _run_of(source)
    # What lies in the folder of a run is of its last weights, not of a checkpoint on the way.
    is_end = run.resolve() == source.resolve()
    own = [path for path in sorted(run.glob(RESULT_PATTERN)) if is_end and is_result(path)]
    # The model that a run fine-tuned: the program names it, not what became of it, in its result.
    encoder = read_record(run / RUN_FILE, _RUN).get("identity", {}).get("model") or {}
    read = {path: read_result(path) for path in (*own, *_result_files(results))}
    for path, result in read.items():
        _check_model(path, result, source, release, encoder=encoder if path in own else {})
        if [other["task"] for other in read.values()].count(result["task"]) > 1:
            raise UsageError(f"{path} is one of two result files of the task {result['task']!r}; give one.")
        _copy(path, release / RESULTS_FOLDER / f"{result['task']}_results.json")
        entries = leaderboard_entries(result)
        if entries:
            text = yaml.safe_dump(entries, sort_keys=False)
            write_text(release / LEADERBOARD_FOLDER / f"{result['task']}.yaml", text)
    its_own = [run, run / FIGURES_FOLDER] if is_end else []
    for folder in (*its_own, *(path for path in results if path.is_dir())):
        for path in sorted(folder.glob("*.png")):
            refuse_outside(path, folder)
            _copy(path, release / FIGURES_FOLDER / path.name)
    write_training(source, release)


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, target)


def write_training(source: Path, release: Path) -> None:
    """Write `training.json` of a folder of a run, or of a checkpoint in one; nothing of any other."""
    run = _run_of(source)
    if (run / RUN_FILE).is_file():
        write_json(release / TRAINING_FILE, describe_training(run, source))


def _run_of(source: Path) -> Path:
    folder = source.resolve()
    return folder.parent if folder.name.startswith("checkpoint-") else source


def describe_training(run: Path, source: Path) -> dict[str, Any]:
    """How a model was trained; names of files stay, where they lay does not.

    Args:
        run: Folder with run.json.
        source: The run's folder, or a checkpoint in it.
    """
    record, is_end = read_record(run / RUN_FILE, _RUN), source.resolve() == run.resolve()
    identity = record["identity"]
    start = identity.get("model_name_or_path") or identity.get("model", {}).get("name_or_path")
    used = {**identity, **_effective(record, source)}
    recipe = {name: used[name] for name in identity if name not in PLACES and used[name] is not None}
    sources = record.get("corpus", {}).get("sources", ())
    files = [(source["languages"], file) for source in sources for file in source["files"]]
    on_hub = [file["path"] for _, file in files if file["path"].startswith(HUB_PREFIX)]
    return {
        "schema": TRAINING_SCHEMA,
        "base_model": record.get("base_model"),
        "starts_from": PurePath(start).name if start else None,
        "recipe": recipe,
        "non_default": [name for name in (*record.get("non_default", ()), *_DERIVED) if name in recipe],
        "languages": _shares(record, "mono"),
        "pairs": _shares(record, "bitext"),
        "num_parameters": record.get("num_parameters"),
        "compute": _compute(record, read_record(source / TRAINER_STATE, _STATE), is_end=is_end),
        "datasets": sorted({hub_parts(path)[0] for path in on_hub}),
        # Names without folders, which a dataset of the Hub does not have.
        "sources": [
            {
                "name": path if (path := file["path"]) in on_hub else PurePath(path).name,
                "languages": languages,
                "sha256": file["sha256"],
            }
            for languages, file in files
        ],
        **(_heldout(run) if is_end else {"heldout": {}}),
        "heldout_vectors": record.get("heldout_vectors"),
        "finished": bool(record.get("finished")) and is_end,
        "commit": record["commit"],
        "python": record["python"],
        "versions": record["versions"],
    }


def _shares(record: Mapping[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """Sentences, tokens and share of the examples that were drawn, for each language or pair."""
    corpus = record.get("corpus", {}).get(kind, {})
    drawn = (stream["groups"] for stream in record.get("streams", {}).values())
    groups: Mapping[str, Any] = next((one for one in drawn if one.keys() <= corpus.keys()), {})
    return {
        name: {
            "sentences": entry["num_sentences"] // (1 if kind == "mono" else 2),
            "tokens": entry["num_tokens"],
            "share": groups[name]["expected_share"],
        }
        for name, entry in sorted(corpus.items())
        if name in groups
    }


def _effective(record: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """What flags that were left unset came to, in the model's configuration and in the prepared text."""
    config = read_record(source / "config.json", Each(object))
    if config.get("model_type") == InfoXLMConfig.model_type:
        depth, layer = config.get("num_hidden_layers", 0), config.get("xlco_layer")
        config["xlco_layer"] = {None: XLCO_LAYER_BY_DEPTH.get(depth), LAST_LAYER: depth}.get(layer, layer)
    known = {**record.get("corpus", {}).get("settings", {}), **config}
    identity = record["identity"]
    is_last = identity.get("xlco_layer") == LAST_LAYER
    return {
        name: known.get(name)
        for name, value in identity.items()
        if value is None or (name == "xlco_layer" and is_last)
    }


def _compute(record: Mapping[str, Any], state: Mapping[str, Any], *, is_end: bool) -> dict[str, Any]:
    ends = [entry for entry in state.get("log_history", ()) if "train_runtime" in entry]
    return {
        "machine": record["machine"],
        "steps": state.get("global_step"),
        "tokens": state.get("num_input_tokens_seen") or None,
        "floating_point_operations": state.get("total_flos") or None,
        "seconds": ends[-1]["train_runtime"] if ends else None,
        # Of the run's last start, which may be later than a checkpoint.
        "resumed_at_step": record.get("resumed_at_step") if is_end else None,
    }


def _heldout(run: Path) -> dict[str, Any]:
    """Held-out measures of a run's end and start, and its warning if it ended worse than it began."""
    path = run / "eval_results.json"
    metrics = read_record(path, Each(object))
    end, start = (
        {name: value for name, value in metrics.items() if name.startswith(when)}
        for when in ("eval_", "start_")
    )
    check_shape(end | start, Each(float), path)
    return {
        "heldout": {name.removeprefix("eval_"): value for name, value in end.items()},
        "heldout_start": {name.removeprefix("start_"): value for name, value in start.items()},
        "heldout_warning": metrics.get("warning"),
    }


def _result_files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if path.is_dir():
            yield from (file for file in sorted(path.rglob(RESULT_PATTERN)) if is_result(file))
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"--results: there is no {path}.")


def _check_model(
    path: Path, result: Mapping[str, Any], source: Path, release: Path, *, encoder: Mapping[str, Any]
) -> None:
    """Refuse numbers of another model, or of other vectors: they would stand in this one's card."""
    model, measured = result["model"], result["settings"]
    released = read_record(release / "release.json", RELEASE) or read_record(source / "release.json", RELEASE)
    its_own = {hash_weights(source), hash_weights(release), released.get("source_sha256")} - {None}
    is_encoder = bool(encoder) and all(
        model[name] == encoder.get(name) for name in ("name_or_path", "revision", "sha256")
    )
    if model["sha256"] not in its_own and not is_encoder:
        raise UsageError(
            f"{path} was measured on {model['name_or_path']!r}, whose weights are not those of this model; "
            "measure the folder that is published, or take the file away."
        )
    if "layer" not in measured or released.get("layer") is None:
        return
    for name in ("layer", "pooling"):
        found, ours = measured.get(name), released.get(name)
        if ours is not None and found != ours and (found is not None or name == "layer"):
            raise UsageError(
                f"{path} is of {name} {found}, the release of {name} {ours}: "
                f"measure the release, or release what was measured by --{name} {found}."
            )


def leaderboard_entries(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A result in the Hub's `.eval_results` form, of whole test sets that are measured the same way there."""
    metric = result["metric"]
    entries = [
        EvalResultEntry(
            dataset_id=benchmark.repo_id,
            task_id=benchmark.config.format(language),
            value=result["scores"][language][metric]["value"],
            dataset_revision=result["dataset"]["revision"],
            notes=f"{metric} in percent; {RESULTS_FOLDER}/{result['task']}_results.json",
        )
        for language, benchmark in comparable_sets(result).items()
    ]
    return eval_result_entries_to_yaml(entries)


def refuse_outside(path: Path, folder: Path) -> None:
    """Refuse a link out of a folder: what it points at was not meant to be published.

    Raises:
        UsageError: If it is one.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{path} is a link to a file outside of {folder}; copy it, or remove it.")


# ----------------------------------------------------------------------------------------- what files hold

_POOLINGS = ("mean", "cls", None)
_VECTORS = ({"layer": int, "pooling": _POOLINGS}, None)
_GROUPS = Each({"num_sentences": int, "num_tokens": int})
_RUN = {
    "identity": {
        "model_name_or_path?": (str, None),
        "objectives?": (str, None),
        "model?": ({"name_or_path": str, "revision": (str, None), "sha256": (str, None)}, None),
    },
    "base_model?": (str, None),
    "non_default?": [str],
    "num_parameters?": (int, None),
    "corpus?": {
        "settings?": Each(object),
        "mono?": _GROUPS,
        "bitext?": _GROUPS,
        "sources?": [{"languages": [str], "files": [{"path": str, "sha256": (str, None)}]}],
    },
    "streams?": Each({"groups": Each({"expected_share": float})}),
    "heldout_vectors?": _VECTORS,
    "resumed_at_step?": (int, None),
    "machine": str,
    "commit": (str, None),
    "python": str,
    "versions": Each(str),
}
_STATE = {
    "log_history?": [{"train_runtime?": float}],
    "global_step?": (int, None),
    "num_input_tokens_seen?": (int, None),
    "total_flos?": (float, None),
}
RELEASE = {
    "format": str,
    "architecture": str,
    "num_parameters": int,
    "dtype": str,
    "source_sha256": (str, None),
    "layer?": (int, None),
    "pooling?": _POOLINGS,
    "normalize?": bool,
}
_SHARES = Each({"sentences": int, "tokens": int, "share": float})
TRAINING = {
    "base_model": (str, None),
    "starts_from": (str, None),
    "recipe": {"objectives?": (str, None), "xlco_layer?": (int, None), "xlco_pooling?": _POOLINGS},
    "non_default": [str],
    "languages": _SHARES,
    "pairs": _SHARES,
    "compute": {
        "machine": str,
        "steps": (int, None),
        "tokens": (int, None),
        "floating_point_operations": (float, None),
        "seconds": (float, None),
        "resumed_at_step": (int, None),
    },
    "datasets": [str],
    "sources": [{"name": str}],
    "heldout": Each(float),
    "heldout_start?": (Each(float), None),
    "heldout_warning?": (str, None),
    "heldout_vectors": _VECTORS,
    "finished": bool,
    "commit": (str, None),
    "python": str,
    "versions": Each(str),
}


def read_record(path: Path, shape: Any) -> dict[str, Any]:
    """A JSON file of one of these shapes, empty where there is none; `DataError` with file and key if not."""
    if not path.is_file():
        return {}
    content = read_json(path)
    check_shape(content, shape, path)
    return dict(content)
