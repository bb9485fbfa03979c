"""Result files of a report: found, told apart, grouped to the runs of one experiment, and named."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_infoxlm.evaluation.results import RESULT_SUFFIX
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import read_json, text_sha256
from modeling_infoxlm.runs.provenance import read_result

logger = logging.getLogger(__name__)

_NO_OTHER_EXPERIMENT = ("seed", "data_seed", "save_n_best")  # of what makes another run
_HASH_SHOWN = 10  # digits of a hash, enough to tell files apart


@dataclass(frozen=True)
class ResultFile:
    """A result file and its number in the report's list."""

    number: int  # from 1
    path: Path  # as it was found
    content: Mapping[str, Any] = field(repr=False)  # all of it

    @property
    def data(self) -> str:
        """What it was measured on: hash of the files, or revision of the dataset on the Hub.

        What is not known is not the same as anything else.
        """
        dataset = self.content["dataset"]
        return str(dataset["sha256"] or dataset["revision"] or f"unknown, of file {self.number}")

    @property
    def model(self) -> str:
        """Which weights were measured: their hash, or name and revision."""
        model = self.content["model"]
        revision = model["revision"] or f"unknown, of file {self.number}"
        return str(model["sha256"] or f"{model['name_or_path']}@{revision}")

    @property
    def settings(self) -> dict[str, Any]:
        """All that shaped the numbers but data, model and seed: of the result, and of the run it ended."""
        identity = self.content.get("identity", {})
        computed = {name: value for name, value in identity.items() if name not in _NO_OTHER_EXPERIMENT}
        if "files" in identity:
            computed["files"] = text_sha256("".join(identity["files"]))[:_HASH_SHOWN]
        model = self.content["model"]
        # Of files that were written before these were recorded it is not known whether they are the same.
        hashes = {name: model.get(f"{name}_sha256") for name in ("config", "tokenizer")}
        shown = {name: value[:_HASH_SHOWN] for name, value in hashes.items() if value}
        return computed | self.content["settings"] | shown

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages and pairs that it has scores of."""
        return tuple(sorted(self.content["scores"]))

    @property
    def experiment(self) -> str:
        """What files must share to be runs of one row: all but the seed."""
        shared = {"settings": self.settings, "languages": self.languages}
        return json.dumps([self.data, self.model, self.content["metric"], shared], sort_keys=True)

    @property
    def outcome(self) -> str:
        """What copies share: seed and scores."""
        return json.dumps([self.content["seed"], self.content["scores"]], sort_keys=True)


def find_results(paths: Sequence[str]) -> list[ResultFile]:
    """Read result files, and those in folders at any depth.

    There, JSON files of other programs (no `schema` in them, as the Trainer's) are passed over.

    Raises:
        UsageError: If a path does not exist, a named file is no result, or there is none.
    """
    contents: dict[Path, Mapping[str, Any]] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UsageError(f"{path} does not exist; give result files, or folders that hold some.")
        inside = sorted(path.rglob(f"*{RESULT_SUFFIX}")) if path.is_dir() else [path]
        for file in inside:
            content = _read(file, named=not path.is_dir())
            if content is None:
                logger.info("%s is no result of ours: passed over.", file)
            else:
                contents[file] = content
    if not contents:
        raise UsageError(f"no result file (*{RESULT_SUFFIX}) in {', '.join(paths)}.")
    return [ResultFile(number, path, content) for number, (path, content) in enumerate(contents.items(), 1)]


def _read(path: Path, *, named: bool) -> Mapping[str, Any] | None:
    """A result; None for a file of another program, unless it was named."""
    content = read_json(path)
    if not named and not (isinstance(content, dict) and "schema" in content):
        return None
    return read_result(path)


def group_runs(files: Sequence[ResultFile]) -> list[list[ResultFile]]:
    """Files of each experiment, copies among them; each outcome by itself where two are of one seed."""
    experiments: dict[str, list[ResultFile]] = {}
    for file in files:
        experiments.setdefault(file.experiment, []).append(file)
    groups: dict[tuple[str, str], list[ResultFile]] = {}
    for experiment, group in experiments.items():
        runs = distinct_runs(group)
        are_seeds = len({run.content["seed"] for run in runs}) == len(runs)
        for file in group:
            groups.setdefault((experiment, "" if are_seeds else file.outcome), []).append(file)
    return list(groups.values())


def distinct_runs(files: Sequence[ResultFile]) -> list[ResultFile]:
    """Leave out copies: the first file of each outcome."""
    return list({file.outcome: file for file in reversed(files)}.values())[::-1]


def name_files(files: Sequence[ResultFile]) -> str:
    """`files 1, 3`."""
    return f"file{'s' if len(files) > 1 else ''} {', '.join(str(file.number) for file in files)}"


def label_rows(files: Sequence[ResultFile]) -> list[str]:
    """Name of each row, by one of its files: the model, and what tells it from other rows."""
    names = [_short_name(file.content["model"]) for file in files]
    labels = []
    for file, name in zip(files, names, strict=True):
        alike = [other for other, its_name in zip(files, names, strict=True) if its_name == name]
        parts = _differing_settings(file, alike)
        model = file.content["model"]
        if len({other.model for other in alike}) > 1:
            parts.append(f"weights {str(model['sha256'] or model['revision'])[:_HASH_SHOWN]}")
        if len({other.languages for other in alike}) > 1:
            parts.append(f"{len(file.languages)} languages")
        if len({other.data for other in files}) > 1:
            parts.append(f"data {file.data[:_HASH_SHOWN]}")
        if [other.experiment for other in files].count(file.experiment) > 1:
            parts.append(f"file {file.number}")
        labels.append(f"{name} ({', '.join(parts)})" if parts else name)
    return labels


def _short_name(model: Mapping[str, Any]) -> str:
    """Of a folder its last part, a name on the Hub as it is; only a folder's weights are hashed."""
    return str((model["sha256"] and Path(model["name_or_path"]).name) or model["name_or_path"])


def _differing_settings(file: ResultFile, alike: Sequence[ResultFile]) -> list[str]:
    """Settings whose value is not the same in all, and a margin, without which published numbers are."""
    settings = [other.settings for other in alike]
    names = dict.fromkeys(name for one in settings for name in one)
    values = {name: {json.dumps(one.get(name), sort_keys=True) for one in settings} for name in names}
    differing = [name for name in names if len(values[name]) > 1]
    own = file.settings
    if own.get("margin") not in (None, "none") and "margin" not in differing:
        differing.append("margin")
    return [f"{name.replace('_', ' ')} {own[name]}" for name in differing if own.get(name) is not None]
