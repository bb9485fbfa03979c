"""Two processes, or two accumulated micro-batches, must train as one process with the whole batch does."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TINY_RUN = Path(__file__).parents[1] / "tiny_run.py"
STEPS = ("--max_steps", "5", "--save_steps", "5")
TOLERANCE = 1e-6


def run(folder: Path, *flags: str, processes: int = 1) -> dict[str, torch.Tensor]:
    """Train and return model, momentum encoder and queue."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(TINY_RUN.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(TINY_RUN), str(folder), *STEPS, *flags]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    checkpoint = folder / "checkpoint-5"
    state = {
        **load_file(checkpoint / "model.safetensors"),
        **load_file(checkpoint / "momentum_state.safetensors"),
    }
    return {
        name: value for name, value in state.items() if not name.startswith(("meter.", "lengths.", "log."))
    }


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


# Adam divides by the square root of the second moment: where a gradient is nothing but rounding its sign
# decides the step. An epsilon above that noise leaves the comparison to the gradients themselves.
OPTIMISER = ("--adam_epsilon", "1e-3")
CASES = {
    "default": (),
    "released": ("--loss_normalization", "per_item", "--queue_prefill", "true"),
    "xlco alone": ("--objectives", "xlco"),
    "mlm and tlm": ("--objectives", "mlm,tlm"),
}


# The batch's own candidates are those of all ranks; accumulation cannot have them.
IN_BATCH = {"in batch": ("--xlco_in_batch_negatives", "true", "--xlco_symmetric", "true")}


# How each rank cuts its batch; one of them cuts more often than the other.
CUTS = {
    "budget": ("--tokens_per_device", "40"),
    "sequential with a budget": ("--objective_backward", "sequential", "--tokens_per_device", "30"),
}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, torch.Tensor]]:
    """What one process with the whole batch trains in each case."""

    @functools.cache
    def state(case: str) -> dict[str, torch.Tensor]:
        flags = (*OPTIMISER, *(CASES | IN_BATCH)[case])
        return run(tmp_path_factory.mktemp("one"), "--per_device_train_batch_size", "8", *flags)

    return state


@pytest.mark.parametrize("case", [*CASES, *IN_BATCH])
def test_two_processes_equal_one(
    tmp_path: Path, case: str, one_process: Callable[[str], dict[str, torch.Tensor]]
) -> None:
    flags = (*OPTIMISER, *(CASES | IN_BATCH)[case])
    two = run(tmp_path, "--per_device_train_batch_size", "4", *flags, processes=2)
    assert largest_difference(two, one_process(case)) < TOLERANCE


@pytest.mark.parametrize(
    "case, cut",
    [("default", "budget"), ("default", "sequential with a budget"), ("in batch", "budget")],
)
def test_two_processes_that_cut_their_batches_equal_one_that_does_not(
    tmp_path: Path, case: str, cut: str, one_process: Callable[[str], dict[str, torch.Tensor]]
) -> None:
    items = ("--per_device_train_batch_size", "4")
    if case == "default":
        items = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
    two = run(tmp_path, *items, *CUTS[cut], *OPTIMISER, *(CASES | IN_BATCH)[case], processes=2)
    assert largest_difference(two, one_process(case)) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_accumulation_equals_one_batch(
    tmp_path: Path, case: str, one_process: Callable[[str], dict[str, torch.Tensor]]
) -> None:
    halves = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2")
    two = run(tmp_path, *halves, *OPTIMISER, *CASES[case])
    assert largest_difference(two, one_process(case)) < TOLERANCE


def test_training_changes_the_model(
    tmp_path: Path, one_process: Callable[[str], dict[str, torch.Tensor]]
) -> None:
    """Guard: the comparisons above would hold for a trainer that does nothing."""
    short = run(tmp_path / "short", "--per_device_train_batch_size", "8", *OPTIMISER, "--learning_rate", "0")
    trained = one_process("default")
    assert largest_difference(short, trained) > 1e-3
    assert trained["queue.num_filled"] == 24
