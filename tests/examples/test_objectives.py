"""Objectives from outside the package: trained beside MLM and TLM, cut, resumed, in two processes, loaded."""

import functools
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.aligners import partners_by_loop
from safetensors.torch import load_file
from tiny_run import launch
from transformers import AutoModel, AutoModelForPreTraining

OBJECTIVES = Path(__file__).parents[2] / "examples" / "objectives"
FILES = {"ranking": OBJECTIVES / "translation_ranking.py", "dwa": OBJECTIVES / "word_alignment.py"}
STEPS = ("--max_steps", "5", "--save_steps", "1", "--logging_steps", "1")
# Where a gradient is nothing but rounding, its sign would decide Adam's step.
OPTIMISER = ("--adam_epsilon", "1e-3")


def run(folder: Path, name: str, *flags: str, processes: int = 1) -> list[int]:
    objectives = ("--objectives", f"mlm,tlm,{name}", "--register", str(FILES[name]))
    return launch([str(folder), *STEPS, *OPTIMISER, *objectives, *flags], processes=processes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint-5" / "model.safetensors")


def logs(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "checkpoint-5" / "trainer_state.json").read_text())["log_history"]


def difference(folder: Path, other: Path) -> float:
    """The largest one of any weight."""
    one, two = weights(folder), weights(other)
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of an objective that is not cut: four examples of each stream a step."""

    @functools.cache
    def of(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        assert run(folder, name, "--per_device_train_batch_size", "4") == [0]
        return folder

    return of


@pytest.mark.parametrize("name", FILES)
def test_it_is_trained_and_logged_with_its_own_weight(whole: Any, tmp_path: Path, name: str) -> None:
    weighted = ("--per_device_train_batch_size", "4", f"--{name}_weight", "0.25")
    assert run(tmp_path, name, *weighted) == [0]
    assert difference(tmp_path, whole(name)) > 1e-4
    for folder, weight in ((whole(name), 1.0), (tmp_path, 0.25)):
        logged = logs(folder)[-1]
        assert f"information/{name}" in logged and not [key for key in logged if "xlco" in key]
        total = logged["loss/mlm"] + logged["loss/tlm"] + weight * logged[f"loss/{name}"]
        assert logged["loss"] == pytest.approx(total, rel=1e-4)


# The candidates of the ranking are those of a step on all ranks; accumulation cannot have them.
SAME = [
    ("dwa", "accumulated"),
    *((name, how) for name in FILES for how in ("cut", "two processes", "killed")),
]
HOW = {
    "accumulated": (1, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"),
    "killed": (1, "--per_device_train_batch_size", "4"),
    "cut": (1, "--per_device_train_batch_size", "4", "--tokens_per_device", "40"),
    "two processes": (2, "--per_device_train_batch_size", "2", "--tokens_per_device", "40"),
}


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in FILES for how in HOW if (name, how) != ("ranking", "accumulated")],
)
def test_however_a_step_is_made_it_is_the_same(whole: Any, tmp_path: Path, name: str, how: str) -> None:
    processes, *flags = HOW[how]
    if how == "killed":
        assert run(tmp_path, name, *flags, "--kill_after", "3") == [-9]
    assert run(tmp_path, name, *flags, processes=processes) == [0] * processes
    assert difference(tmp_path, whole(name)) <= (0 if how == "killed" else 1e-6)
    for cut, uncut in zip(logs(tmp_path), logs(whole(name)), strict=True):
        assert cut[f"loss/{name}"] == pytest.approx(uncut[f"loss/{name}"], rel=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_its_checkpoint_loads_where_nobody_knows_it(
    whole: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = whole(name) / "checkpoint-5"
    for auto in (AutoModel, AutoModelForPreTraining):
        model, info = auto.from_pretrained(checkpoint, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        state, saved = model.base_model.state_dict(), weights(whole(name))
        for key, value in state.items():
            assert torch.equal(value, saved.get(key, saved.get(f"roberta.{key}"))), key
    assert "UNEXPECTED" not in caplog.text and "MISSING" not in caplog.text


@pytest.mark.parametrize("seed", range(5))
def test_partners_are_those_of_the_slow_loop(seed: int, own_registers: None) -> None:
    partners_of = runpy.run_path(str(FILES["dwa"]))["partners_of"]
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (2,), generator=generator).tolist()
    hidden = torch.randn(sum(lengths) + 3, 6, generator=generator)
    found = partners_of(hidden, lengths[0] + 1).tolist()
    assert found == partners_by_loop(hidden.tolist(), lengths[0] + 1)
