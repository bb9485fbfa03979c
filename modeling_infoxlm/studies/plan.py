"""A study file: which runs, by which flags, measured how; as steps, each of which is one command.

A step has a folder of its own, `output_dir/ARM/seed-N/STEP`, beside it what it was called with
(`STEP.json`, a recipe) and what it printed (`STEP.log`); `study.json` of the cell says what is done.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from modeling_infoxlm.runs.config_file import read_recipe
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import Each, check_shape, text_sha256
from modeling_infoxlm.training.arguments import PrepareArguments

CELL_FILE, TRAINING = "study.json", "run"
_SHAPE = {
    "output_dir": str,
    "results_dir?": str,
    "seeds?": [(str, int)],
    "starts?": Each((Each(object), None)),
    "pretrain?": Each(object),
    "arms": Each((Each(object), None), least=1),
    "evaluations?": Each(Each(object)),
}
_MEASURES = ("tatoeba", "xnli", "mlqa", "information", "align-words")
# Commands that refuse to write over what they left when they were cut; the others go on by themselves.
_NEVER_RESUMED = ("tatoeba", "align-words")
_SEED = "{seed}"
# Folders and files of a step, what evaluations call their arm's, and keys that YAML reads as no text.
_TAKEN = (TRAINING, "study", "model", "seed", True, False, None)

Flags = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One command of a study."""

    arm: str
    seed: int
    name: str  # `run` for the training, or that of an evaluation
    command: str  # of `infoxlm`
    flags: Flags  # all, `output_dir` among them
    folder: Path  # of the cell: of this arm with this seed
    number: int  # of the arm, in the order of the file; of a start -1

    @property
    def title(self) -> str:
        """What is shown of it."""
        return f"{self.arm}, seed {self.seed}: {self.name}"


@dataclass(frozen=True)
class Study:
    """What a study file says."""

    output_dir: Path
    results_dir: Path | None  # where result files are copied to; None for nowhere
    seeds: tuple[int, ...]
    starts: dict[str, Flags]  # models that arms begin with, trained once each, by name
    pretrain: Flags  # of every arm
    arms: dict[str, Flags | None]  # further flags of each; None: what the arms start from, not trained
    evaluations: dict[str, Flags]  # `command` among the flags

    @classmethod
    def read(cls, path: Path) -> "Study":
        """Read a study file (YAML or JSON).

        Raises:
            UsageError: If it cannot be read, or lacks or misnames something.
        """
        content = read_recipe(path)
        keys = [key.removesuffix("?") for key in _SHAPE]
        unknown = sorted(map(str, content.keys() - set(keys)))
        if unknown:
            raise UsageError(f"{path}: unknown key {unknown[0]}; expected {', '.join(keys)}.")
        check_shape(content, _SHAPE, path)
        named = {
            name: {
                one: None if flags is None else dict(flags) for one, flags in content.get(name, {}).items()
            }
            for name in ("starts", "arms", "evaluations")
        }
        names = [*named["starts"], *named["arms"], *named["evaluations"]]
        bad = [name for name in names if not re.fullmatch(r"\w[\w.+-]*", str(name)) or name in _TAKEN]
        if bad or len(set(names)) < len(names):
            taken, found = ", ".join(map(str, _TAKEN)), bad[0] if bad else max(names, key=names.count)
            raise UsageError(
                f"{path}: names of starts, arms and evaluations become folders: letters, digits and _ . + -, "
                f"each once, and none of {taken}; found {found!r}."
            )
        for name, flags in named["evaluations"].items():
            if flags is None or flags.get("command") not in _MEASURES:
                commands = ", ".join(_MEASURES)
                raise UsageError(f"{path}: evaluation {name} names its command, one of {commands}.")
        seeds = [str(seed) for seed in content.get("seeds", [1])]
        if not seeds or not all(map(str.isdecimal, seeds)) or len(set(map(int, seeds))) < len(seeds):
            raise UsageError(
                f"{path}: seeds are whole numbers, each once; found {', '.join(seeds) or 'none'}."
            )
        results = content.get("results_dir")
        return cls(
            output_dir=Path(content["output_dir"]),
            results_dir=Path(results) if results else None,
            seeds=tuple(map(int, seeds)),
            starts={name: flags or {} for name, flags in named["starts"].items()},
            pretrain=content.get("pretrain", {}),
            arms=named["arms"],
            evaluations={name: flags or {} for name, flags in named["evaluations"].items()},
        )

    def steps(self) -> list[Step]:
        """All commands in their order: starts, then seed by seed every arm with its evaluations."""
        starts: list[Step] = []
        models: dict[str, str] = {}
        for name, flags in self.starts.items():
            starts.append(self._training(name, self.seeds[0], flags, models))
            models[name] = str(starts[-1].folder / TRAINING)
        cells = [(arm, seed, flags) for seed in self.seeds for arm, flags in self.arms.items()]
        return [*starts, *(step for cell in cells for step in self._cell(*cell, models))]

    def _cell(self, arm: str, seed: int, flags: Flags | None, models: Mapping[str, str]) -> Iterator[Step]:
        folder = self.output_dir / arm / f"seed-{seed}"
        training = self._training(arm, seed, flags or {}, models)
        if flags is not None:
            yield training
        model = str(folder / TRAINING) if flags is not None else training.flags.get("model_name_or_path")
        if model is None and self.evaluations:
            raise UsageError(f"arm {arm} is null, and pretrain names no model_name_or_path that it could be.")
        for name, given in self.evaluations.items():
            if flags is None and seed != self.seeds[0] and _SEED not in json.dumps(given):
                continue  # it would only be measured again
            places = {**models, "seed": str(seed), "model": str(model)}
            filled = _filled({key: value for key, value in given.items() if key != "command"}, places)
            filled = {"model_name_or_path": model, **filled, "output_dir": str(folder / name)}
            if given["command"] in _NEVER_RESUMED:
                filled["overwrite_output_dir"] = True
            yield Step(arm, seed, name, given["command"], filled, folder, training.number)

    def _training(self, arm: str, seed: int, flags: Flags, models: Mapping[str, str]) -> Step:
        folder = self.output_dir / arm / f"seed-{seed}"
        shared = self.pretrain
        if arm in self.starts:  # what names a start there is for the arms
            shared = {key: value for key, value in shared.items() if not _names(value, self.starts)}
        own = {**shared, **flags}
        recipe = own.pop("config", None)
        own = _filled({**(read_recipe(Path(recipe)) if recipe else {}), **own}, models)
        own = {**own, "seed": own.get("seed", seed) if arm in self.starts else seed}
        # Arms that read the same text in the same way share it.
        own.setdefault("prepared_data", str(self.output_dir / f"corpus-{_text_of(own)}"))
        number = -1 if arm in self.starts else list(self.arms).index(arm)
        own["output_dir"] = str(folder / TRAINING)
        return Step(arm, seed, TRAINING, "pretrain", own, folder, number)


def _names(value: Any, models: Iterable[str]) -> bool:
    return any(f"{{{name}}}" in json.dumps(value, ensure_ascii=False) for name in models)


def _filled(flags: Flags, places: Mapping[str, str]) -> Flags:
    """Flags whose `{NAME}` are replaced; others stay as they are, globs and `x.{en,de}` among them."""
    text = json.dumps(flags, ensure_ascii=False)
    for name, value in places.items():
        text = text.replace(f"{{{name}}}", json.dumps(value)[1:-1])
    if left := re.search(r"\{\w[\w.+-]*\}", text):
        raise UsageError(f"{left[0]} names nothing here; known are {', '.join(places) or 'none'}.")
    return dict(json.loads(text))


def _text_of(flags: Flags) -> str:
    """Eight digits that stand for all that shapes a prepared corpus."""
    names = {one.name for one in fields(PrepareArguments)} | {"tokenizer_name"}
    if "tokenizer_name" not in flags:
        names |= {"model_name_or_path"}
    shaping = {name: value for name, value in flags.items() if name in names}
    return text_sha256(json.dumps(shaping, sort_keys=True))[:8]
