"""A study file as commands."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from modeling_infoxlm.cli import COMMANDS
from modeling_infoxlm.runs import config_file
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.studies.plan import Step, Study

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "output_dir": "out",
    "seeds": [3, 5],
    "starts": {"first": {"objectives": "mlm"}, "second": {"model_name_or_path": "{first}", "max_steps": 7}},
    "pretrain": {"model_name_or_path": "{second}", "bitext_files": ["a.{en,de}"], "tokenizer_name": "tok"},
    "arms": {"none": None, "plain": {}, "short": {"max_steps": 9}},
    "evaluations": {
        "retrieval": {"command": "tatoeba", "data_dir": "t"},
        "nli": {"command": "xnli", "seed": "{seed}", "model_name_or_path": "{model}"},
    },
}


def study_of(folder: Path, **changes: Any) -> Study:
    path = folder / "study.json"
    path.write_text(json.dumps(SMALL | changes))
    return Study.read(path)


def test_starts_come_first_and_each_arm_is_measured_when_it_is_trained(tmp_path: Path) -> None:
    steps = study_of(tmp_path).steps()
    names = [(step.arm, step.seed, step.name) for step in steps]
    trained = [
        (arm, seed, name)
        for seed in (3, 5)
        for arm in ("plain", "short")
        for name in ("run", "retrieval", "nli")
    ]
    assert names[:2] == [("first", 3, "run"), ("second", 3, "run")]
    # What is not trained is measured once, but where the seed is the measure's own.
    assert [name for name in names[2:] if name[0] == "none"] == [
        *(("none", 3, "retrieval"), ("none", 3, "nli"), ("none", 5, "nli")),
    ]
    assert [name for name in names[2:] if name[0] != "none"] == trained


def test_flags_come_from_recipe_study_and_arm_and_name_models_by_their_folders(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"max_steps": 1, "learning_rate": "2e-4"}')
    pretrain = SMALL["pretrain"] | {"config": str(tmp_path / "recipe.json")}
    steps = {(step.arm, step.seed, step.name): step for step in study_of(tmp_path, pretrain=pretrain).steps()}

    def flags(*name: Any) -> dict[str, Any]:
        return steps[name].flags

    assert "model_name_or_path" not in flags("first", 3, "run")
    assert flags("second", 3, "run")["model_name_or_path"] == "out/first/seed-3/run"
    short = flags("short", 5, "run")
    assert (short["max_steps"], short["learning_rate"], short["seed"]) == (9, "2e-4", 5)
    assert short["model_name_or_path"] == "out/second/seed-3/run"
    assert short["bitext_files"] == ["a.{en,de}"]
    assert short["output_dir"] == "out/short/seed-5/run"
    assert flags("short", 5, "nli")["model_name_or_path"] == short["output_dir"]
    assert flags("short", 5, "nli")["seed"] == "5"
    assert flags("none", 5, "nli")["model_name_or_path"] == "out/second/seed-3/run"
    assert flags("none", 3, "retrieval")["overwrite_output_dir"] is True


def test_a_start_may_have_any_letters(tmp_path: Path) -> None:
    steps = study_of(tmp_path, starts={"début": {}}, pretrain={"model_name_or_path": "{début}"}).steps()
    assert "model_name_or_path" not in steps[0].flags
    assert steps[1].flags["model_name_or_path"] == "out/début/seed-3/run"


def test_arms_share_a_prepared_corpus_where_they_read_alike(tmp_path: Path) -> None:
    arms = {"plain": {}, "short": {"max_steps": 9}, "mono": {"mono_from_bitext": True}}
    steps: list[Step] = study_of(tmp_path, arms=arms, evaluations={}).steps()
    folders = {step.arm: step.flags["prepared_data"] for step in steps}
    assert folders["plain"] == folders["short"] == folders["first"] != folders["mono"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arm": {}}, "unknown key arm"),
        ({"arms": {}}, "arms is empty"),
        ({"arms": ["plain"]}, "arms: expected an object"),
        ({"arms": {"plain": "mlm"}}, "arms.plain: expected an object or null"),
        ({"output_dir": 5}, "output_dir: expected a text"),
        ({"seeds": 3}, "seeds: expected a list"),
        ({"seeds": ["one"]}, "seeds are whole numbers, each once; found one"),
        ({"seeds": [1, "1"]}, "each once; found 1, 1"),
        ({"seeds": [1, "01"]}, "each once; found 1, 01"),
        ({"seeds": []}, "found none"),
        ({"pretrain": {"model_name_or_path": "{secnd}"}}, r"\{secnd\} names nothing here; known are none"),
        ({"starts": {"first": {"config_name": "{second}"}, "second": {}}}, r"\{second\} names nothing here"),
        (
            {"evaluations": {"x": {"command": "xnli", "data_dir": "{modle}/x"}}},
            r"\{modle\} names.*seed, model",
        ),
        ({"pretrain": {}}, "arm none is null, and pretrain names no model"),
        ({"pretrain": {"config": "no.yaml"}}, "recipe no.yaml cannot be read"),
        ({"evaluations": {"x": {"command": "tatoebe"}}}, "one of tatoeba, xnli"),
        ({"arms": {"a/b": {}}}, "become folders.*a/b"),
        ({"arms": {"run": {}}}, "found 'run'"),
        ({"arms": {"first": {}}}, "found 'first'"),
        ({"arms": {"..": {}}}, r"become folders.*'\.\.'"),
        ({"arms": {".lock": {}}}, r"become folders.*'\.lock'"),
        ({"evaluations": {"study": {"command": "tatoeba"}}}, "found 'study'"),
        ({"starts": {"model": {}}}, "found 'model'"),
        ({"evaluations": {"x": {"data_dir": "t"}}}, "evaluation x names its command"),
    ],
)
def test_files_that_mean_nothing_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        study_of(tmp_path, **changes).steps()


def test_names_that_yaml_takes_for_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("output_dir: out\narms: {true: {}, false: {}}")
    with pytest.raises(UsageError, match="found True"):
        Study.read(tmp_path / "study.yaml")


class Parsed(Exception):
    """The flags were accepted."""


@pytest.mark.parametrize(
    "name", ["docs/studies.md", *(f"studies/{path.name}" for path in (ROOT / "studies").glob("*.yaml"))]
)
def test_commands_take_the_flags_of_our_study_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / name).read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "study.yaml").write_text("".join(blocks) or text)
    original = config_file._RecipeParser.parse_args_into_dataclasses

    def parse_only(*args: Any, **options: Any) -> None:
        original(*args, **options)
        raise Parsed

    monkeypatch.setattr(config_file._RecipeParser, "parse_args_into_dataclasses", parse_only)
    monkeypatch.chdir(ROOT)
    for step in Study.read(tmp_path / "study.yaml").steps():
        (tmp_path / "step.json").write_text(json.dumps(step.flags))
        module, function = COMMANDS[step.command].split(":")
        run = getattr(importlib.import_module(f"modeling_infoxlm.{module}"), function)
        with pytest.raises(Parsed):
            run(["--config", str(tmp_path / "step.json")])
