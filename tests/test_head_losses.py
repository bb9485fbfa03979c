"""Heads under transformers' own Trainer: a step's gradient is that of the whole batch, however it is cut.

    torchrun --nproc_per_node 2 tests/test_head_losses.py FOLDER

trains every head for one step and writes its weights: what one rank of two does.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_model
from tiny_heads import CLASSES
from tiny_run import VOCAB, tiny_model
from torch import Tensor
from transformers import Trainer, TrainingArguments, set_seed

from modeling_infoxlm.objectives import IGNORE_INDEX

HEADS = {  # of each kind of loss
    "masked lm": ("ForMaskedLM", {}),
    "classes": ("ForSequenceClassification", {}),
    "several classes": ("ForSequenceClassification", {"problem_type": "multi_label_classification"}),
    "number": ("ForSequenceClassification", {"num_labels": 1}),
    "numbers": ("ForSequenceClassification", {"num_labels": 2, "problem_type": "regression"}),
    "tags": ("ForTokenClassification", {"num_labels": 4}),
    "span": ("ForQuestionAnswering", {}),
    "choice": ("ForMultipleChoice", {}),
}
ROWS, LENGTH = 12, 6
NO_LABEL = (0, 5, 6, 7, 9)  # so that micro-batches have unequal numbers of labels, and one of two rows none


def make_head(name: str) -> Any:
    """A head with weights so large that its outputs differ from row to row."""
    head, overrides = HEADS[name]
    config = tiny_model(initializer_range=0.2, **overrides).config
    set_seed(5)
    return CLASSES[head][0](config)


def head_rows(name: str) -> list[dict[str, Tensor]]:
    """A small training set of the head."""
    draw = torch.Generator().manual_seed(4)

    def numbers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, (ROWS, *shape), generator=draw)

    labels: dict[str, Any] = {
        "masked lm": numbers(VOCAB, LENGTH),
        "classes": numbers(2),
        "several classes": numbers(2, 2).float(),
        "number": torch.randn(ROWS, generator=draw),
        "numbers": torch.randn(ROWS, 2, generator=draw),
        "tags": numbers(4, LENGTH),
        "choice": numbers(3),
    }
    columns = {"input_ids": numbers(VOCAB - 4, *([3] if name == "choice" else []), LENGTH) + 3}
    if name == "span":
        columns |= {"start_positions": numbers(LENGTH), "end_positions": numbers(LENGTH)}
    else:
        columns["labels"] = labels[name]
        if not columns["labels"].is_floating_point():
            columns["labels"][list(NO_LABEL)] = IGNORE_INDEX
    return [{key: values[row] for key, values in columns.items()} for row in range(ROWS)]


class InOrder(Trainer):
    """Takes the rows as they come, so that it is known which are in a micro-batch."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train(name: str, folder: Path, *, rows: int = ROWS, batch: int, accumulated: int, **options: Any) -> Any:
    """One step of plain gradient descent on all rows, whose weights tell the gradient; and the loss."""
    model = make_head(name)
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        max_steps=1,
        logging_steps=1,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    trainer = InOrder(model, args, train_dataset=head_rows(name)[:rows])
    trainer.train()
    return model, trainer.state.log_history[0]["loss"]


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("name", HEADS)
def test_accumulation_changes_neither_loss_nor_gradient(tmp_path: Path, name: str) -> None:
    """A shorter last micro-batch counts by its items.

    Not so for spans: the Trainer counts `labels`, and they have none; `run_mlqa.py` counts for itself.
    """
    if name == "classes":  # the output can be a tuple, as `return_dict=False` and TorchScript have it
        head, row = make_head(name).eval(), {key: value[None] for key, value in head_rows(name)[1].items()}
        shared, logits = head(**row, num_items_in_batch=torch.tensor(4), return_dict=False)
        torch.testing.assert_close(shared, head(**row).loss / 4)
        assert logits.shape == (1, 2)
    rows = ROWS if name == "span" else ROWS - 1
    whole, loss = train(name, tmp_path, rows=rows, batch=rows, accumulated=1)
    assert largest_difference(make_head(name).state_dict(), whole.state_dict()) > 1e-2  # something was learnt
    cut, cut_loss = train(name, tmp_path, rows=rows, batch=2, accumulated=6)
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    assert largest_difference(whole.state_dict(), cut.state_dict()) < 1e-6


def test_two_processes_equal_one(tmp_path: Path) -> None:
    launcher = "torch.distributed.run --standalone --nproc_per_node=2".split()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, __file__, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in HEADS:
        whole, _ = train(name, tmp_path, batch=ROWS, accumulated=1)
        two = load_file(tmp_path / f"{name}.safetensors")
        assert largest_difference(two, whole.state_dict()) < 1e-6, name


if __name__ == "__main__":
    for name in HEADS:
        model, _ = train(name, Path(sys.argv[1]), batch=2, accumulated=3)
        if os.environ["RANK"] == "0":
            save_model(model, Path(sys.argv[1]) / f"{name}.safetensors")
    torch.distributed.barrier()
    # gloo now and then aborts while it is torn down, see tiny_run.py.
    os._exit(0)
