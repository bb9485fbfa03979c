"""A whole training step on a CUDA device: the host runs ahead, nothing in it waits for the device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_corpus, tiny_model
from transformers import TrainerCallback

from modeling_infoxlm.data.batches import JointDataset
from modeling_infoxlm.data.streams import StreamSettings
from modeling_infoxlm.runs.process import StopOnSignal
from modeling_infoxlm.training.arguments import ContrastArguments, PretrainingArguments
from modeling_infoxlm.training.trainer import InfoXLMTrainer

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
    args = PretrainingArguments(
        output_dir=str(tmp_path / "out"),
        bf16=True,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        tokens_per_device=64,
        warmup_steps=0,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    settings = StreamSettings(mlm_examples=2, tlm_examples=2, xlco_examples=2, seed=5)
    guard = NoWaiting()
    trainer = InfoXLMTrainer(
        tiny_model(hidden_size=128, intermediate_size=256, xlco_pooling=pooling),
        args,
        contrast=ContrastArguments(queue_size=24, momentum=0.9),
        train_dataset=JointDataset(tiny_corpus(tmp_path), settings, STEPS * args.train_batch_size),
        callbacks=[StopOnSignal(), guard],
    )
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert guard.guarded == 1
