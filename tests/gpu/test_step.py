"""A whole training step on a CUDA device: the host runs ahead, nothing in it waits for the device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_model
from tiny_trainer import trainer_maker
from transformers import TrainerCallback

from modeling_infoxlm.runs.process import StopOnSignal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch finds none"),
]

STEPS = 6


class NoWaiting(TrainerCallback):
    """Makes waiting for the device an error during the last step but one.

    From the end of the step before it on: fetching the batch and counting its items belong to a step. By then
    kernels are compiled and the optimiser has its state; the last step is followed by a log entry.
    """

    def __init__(self) -> None:
        self.guarded = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == STEPS - 2:
            torch.cuda.set_sync_debug_mode("error")
        if state.global_step == STEPS - 1:
            torch.cuda.set_sync_debug_mode("default")
            self.guarded += 1


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_step_never_waits_for_the_device(tmp_path: Path, pooling: str) -> None:
    guard = NoWaiting()
    trainer = trainer_maker(tmp_path)(
        model=tiny_model(hidden_size=128, intermediate_size=256, xlco_pooling=pooling),
        callbacks=[StopOnSignal(), guard],
        **{"use_cpu": False, "bf16": True, "max_steps": STEPS, "tokens_per_device": 64},
        **{"logging_steps": 100, "save_strategy": "no"},
    )
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert guard.guarded == 1
