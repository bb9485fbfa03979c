"""Two processes, or two accumulated micro-batches, must train as one process with the whole batch does."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import launch

TINY_RUN = Path(__file__).parents[1] / "tiny_run.py"
# Step 5 is logged in no entry: of it each rank has its own share of `train_loss`.
STEPS = ("--max_steps", "5", "--save_steps", "1", "--save_total_limit", "1", "--logging_steps", "4")
TOLERANCE = 1e-6
CUT = {"micro_batches", "micro_batch_tokens"}  # log entries that say how batches are cut
CLOCK = {"tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


def run(folder: Path, *flags: str, processes: int = 1) -> dict[str, torch.Tensor]:
    """Train and return model, momentum encoder, queue and what was logged."""
    assert launch([str(folder), *STEPS, *flags], processes=processes) == [0] * processes
    return state(folder)


def state(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = folder / "checkpoint-5"
    state = {
        **load_file(checkpoint / "model.safetensors"),
        **load_file(checkpoint / "momentum_state.safetensors"),
    }
    state = {name: value for name, value in state.items() if not name.startswith(("meter.", "lengths."))}
    trained = json.loads((folder / "trainer_state.json").read_text())
    for entry in trained["log_history"]:
        for name in entry.keys() - CUT - CLOCK:
            state[f"log.{entry['step']}.{name}"] = torch.tensor(entry[name], dtype=torch.float64)
    for name in ("num_input_tokens_seen", "total_flos"):
        state[f"log.{name}"] = torch.tensor(trained[name], dtype=torch.float64)
    return state


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of any number; of what is logged in proportion, since it is of every size."""
    assert one.keys() == other.keys()
    errors = {name: (one[name].double() - other[name].double()).abs().max().item() for name in one}
    return max(
        error / max(1.0, one[name].abs().item()) if name.startswith("log.") else error
        for name, error in errors.items()
    )


# Adam divides by the square root of the second moment: where a gradient is nothing but rounding its sign
# decides the step. An epsilon above that noise leaves the comparison to the gradients themselves.
OPTIMISER = ("--adam_epsilon", "1e-3")
OneProcess = Callable[[str], dict[str, torch.Tensor]]
CASES = {
    "default": (),
    "released": ("--loss_normalization", "per_item", "--queue_prefill", "true"),
    "xlco alone": ("--objectives", "xlco"),
    "mlm and tlm": ("--objectives", "mlm,tlm"),
    # The batch's own candidates are those of all ranks; accumulation cannot have them.
    "in batch": ("--xlco_in_batch_negatives", "true", "--xlco_symmetric", "true"),
}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> OneProcess:
    """What one process with the whole batch trains in each case."""

    @functools.cache
    def state(case: str) -> dict[str, torch.Tensor]:
        flags = (*OPTIMISER, *CASES[case])
        return run(tmp_path_factory.mktemp("one"), "--per_device_train_batch_size", "8", *flags)

    return state


# How each rank cuts its batch; one of them cuts more often than the other.
BUDGET = ("--tokens_per_device", "40")
SEQUENTIAL = ("--objective_backward", "sequential", "--tokens_per_device", "30")


@pytest.mark.parametrize(
    "case, items, cut",
    [
        *((case, 4, ()) for case in CASES),
        *(("default", 2, cut) for cut in (BUDGET, SEQUENTIAL)),
        ("in batch", 4, BUDGET),
    ],
)
def test_two_processes_however_they_cut_their_batches_equal_one_that_does_not(
    tmp_path: Path, case: str, items: int, cut: tuple[str, ...], one_process: OneProcess
) -> None:
    batch = ("--per_device_train_batch_size", str(items), "--gradient_accumulation_steps", str(4 // items))
    two = run(tmp_path, *batch, *cut, *OPTIMISER, *CASES[case], processes=2)
    assert largest_difference(two, one_process(case)) < TOLERANCE


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, one_process: OneProcess) -> None:
    """Killed within a log entry, and again: weights, queue, logs and results are as of the unbroken run."""
    for processes, killed_after in ((2, 2), (1, 3), (4, 4)):
        batch = ("--per_device_train_batch_size", str(8 // processes))
        flags = (*batch, *OPTIMISER, "--kill_after", str(killed_after))
        assert launch([str(tmp_path), *STEPS, *flags], processes=processes) == [-9] * processes
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{killed_after}"]
    two = run(tmp_path, "--per_device_train_batch_size", "4", *OPTIMISER, processes=2)
    assert largest_difference(two, one_process("default")) < TOLERANCE


def test_a_real_launcher_starts_what_the_other_tests_start(tmp_path: Path, one_process: OneProcess) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(TINY_RUN.parents[1]), "OMP_NUM_THREADS": "1"}
    flags = ("--per_device_train_batch_size", "4", *OPTIMISER)
    command = [*launcher, str(TINY_RUN), str(tmp_path), *STEPS, *flags]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert largest_difference(state(tmp_path), one_process("default")) < TOLERANCE


def test_training_changes_the_model(tmp_path: Path, one_process: OneProcess) -> None:
    """Guard: the comparisons above would hold for a trainer that does nothing."""
    short = run(tmp_path / "short", "--per_device_train_batch_size", "8", *OPTIMISER, "--learning_rate", "0")
    trained = one_process("default")
    assert largest_difference(short, trained) > 1e-3
    assert trained["queue.num_filled"] == 24
