"""A run that is killed and started again must be, bit for bit, the run that was never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_infoxlm.training.state_files import load_state

TINY_RUN = Path(__file__).parents[1] / "tiny_run.py"
# Dropout draws numbers, and a batch is cut into several micro-batches: all of it must go on where it stopped.
STEPS = ("--max_steps", "40", "--dropout", "0.1", "--tokens_per_device", "100")
CLOCK = ("tokens_per_second", "mfu", "train_runtime", "train_samples_per_second", "train_steps_per_second")


def run(folder: Path, *flags: str) -> int:
    command = [sys.executable, str(TINY_RUN), str(folder), "--per_device_train_batch_size", "4", *flags]
    environment = {**os.environ, "PYTHONPATH": str(TINY_RUN.parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, timeout=300).returncode


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
    assert run(folder, *STEPS) == 0
    return state(folder, 40)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_and_resumed_equals_straight(
    straight: dict[str, object], tmp_path: Path, workers: str
) -> None:
    # Killed at step 27: what steps 20..26 did must leave no
    # trace. Steps are logged in threes: an entry spans the save.
    assert run(tmp_path, *STEPS, "--kill_after", "27") == -9
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-20"]
    assert run(tmp_path, *STEPS, "--dataloader_num_workers", workers) == 0
    assert differing(state(tmp_path, 40), straight) == []


def test_the_comparison_sees_a_difference(straight: dict[str, object], tmp_path: Path) -> None:
    assert run(tmp_path, *STEPS, "--momentum", "0.91") == 0
    found = differing(state(tmp_path, 40), straight)
    assert "queue.keys" in found and "momentum.projection.weight" in found


def test_kill_while_saving_leaves_no_checkpoint(tmp_path: Path) -> None:
    """What a kill during a save leaves is under .saving/; the next run starts from the last whole one."""
    assert run(tmp_path, "--max_steps", "40", "--kill_after", "27") == -9
    torn = tmp_path / ".saving" / "checkpoint-40"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"torn")
    assert run(tmp_path, "--max_steps", "40") == 0
    assert not (tmp_path / ".saving").exists()
    assert load_file(tmp_path / "checkpoint-40" / "model.safetensors")
