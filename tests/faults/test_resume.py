"""A run that is killed and started again must be, bit for bit, the run that was never stopped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import launch

from modeling_infoxlm.training.state_files import load_state

# Dropout draws numbers, and a batch is cut into several micro-batches: all of it must go on where it stopped.
STEPS = "--max_steps 40 --dropout 0.1 --tokens_per_device 100 --per_device_train_batch_size 4".split()
CLOCK = ("tokens_per_second", "mfu", "train_runtime", "train_samples_per_second", "train_steps_per_second")


def run(folder: Path, *flags: str) -> int:
    (code,) = launch([str(folder), *STEPS, *flags], processes=1)
    return code


def flatten(value: object, name: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {key: leaf for k, v in value.items() for key, leaf in flatten(v, f"{name}/{k}").items()}
    if isinstance(value, list | tuple):
        return flatten(dict(enumerate(value)), name)
    return {name: value}


def state(folder: Path, step: int) -> dict[str, object]:
    """Everything a checkpoint holds: weights, momentum encoder, queue, cursor, optimiser, schedule, logs."""
    checkpoint = folder / f"checkpoint-{step}"
    logs = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {
        **load_file(checkpoint / "model.safetensors"),
        **load_file(checkpoint / "momentum_state.safetensors"),
        **flatten(load_state(checkpoint / "optimizer.safetensors"), "optimizer"),
        **flatten(load_state(checkpoint / "scheduler.safetensors"), "scheduler"),
        **flatten([{k: v for k, v in log.items() if k not in CLOCK} for log in logs], "logs"),
    }


def differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    assert one.keys() == other.keys()

    def equal(a: object, b: object) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return [name for name in one if not equal(one[name], other[name])]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("straight")
    assert run(folder) == 0
    return state(folder, 40)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_resumed_equals_straight(straight: dict[str, object], tmp_path: Path, workers: str) -> None:
    # Killed at step 27: what steps 20..26 did must leave no trace. Steps are logged in threes: an entry spans
    # the save. What a kill during a save leaves is under .saving/.
    assert run(tmp_path, "--kill_after", "27") == -9
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-20"]
    torn = tmp_path / ".saving" / "checkpoint-40"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"torn")
    assert run(tmp_path, "--dataloader_num_workers", workers) == 0
    assert not (tmp_path / ".saving").exists()
    assert differing(state(tmp_path, 40), straight) == []


def test_the_comparison_sees_a_difference(straight: dict[str, object], tmp_path: Path) -> None:
    assert run(tmp_path, "--momentum", "0.91") == 0
    found = differing(state(tmp_path, 40), straight)
    assert "queue.keys" in found and "momentum.projection.weight" in found
