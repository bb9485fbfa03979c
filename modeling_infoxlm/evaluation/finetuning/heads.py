"""Models with a task's head: loaded from any checkpoint of an encoder, checked, and run over many rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import set_seed

from modeling_infoxlm.evaluation.batching import check_finite, progress_bar, run_batches
from modeling_infoxlm.evaluation.encoders import Checkpoint, load_checkpoint
from modeling_infoxlm.evaluation.finetuning.arguments import HeadModelArguments
from modeling_infoxlm.evaluation.finetuning.rows import LENGTH, collate
from modeling_infoxlm.runs.errors import UsageError


class HeadModel(Checkpoint):
    """A model with a task's head, which is new unless the checkpoint has one; on the CPU at first."""

    def check(self, *, max_seq_length: int, trained: bool) -> None:
        """Refuse a length that the model has no positions for, or an untrained head if `trained` is asked."""
        if max_seq_length > self.max_length:
            raise UsageError(
                f"max_seq_length is {max_seq_length}, but {self.record.name_or_path} takes at most "
                f"{self.max_length} tokens; give --max_seq_length {self.max_length} or less."
            )
        if trained and self.new_weights:
            raise UsageError(
                f"{self.record.name_or_path} has no trained head ({self.new_weights[0]} is missing); "
                "fine-tune it first: --do_train true."
            )


def load_head_model(
    arguments: HeadModelArguments, auto_class: Any, *, seed: int, **overrides: Any
) -> HeadModel:
    """Load a model with a task's head from any checkpoint of its encoder, with or without a head.

    Dropout and everything else is as the checkpoint's configuration says, apart from `overrides`, such as
    `num_labels`. A head that the checkpoint does not have is drawn with `seed`.
    """
    set_seed(seed)
    return HeadModel(**vars(load_checkpoint(arguments, auto_class, **overrides)))


def forward_batches(
    head: HeadModel,
    rows: Dataset,
    take: Callable[[np.ndarray, Any], None],
    *,
    bf16: bool = False,
    description: str = "predicting",
) -> None:
    """Run a model over rows of `cached_rows` in eval mode, those of like length together, the longest first.

    `take` is called with the numbers of the rows of a batch, (B,), and the model's output. Logits that are
    not finite are a `UsageError`.
    """

    def run(members: np.ndarray) -> None:
        batch = collate(rows.__getitems__(members.tolist()), head.tokenizer)
        output = head.model(**{name: part.to(head.model.device) for name, part in batch.items()})
        logits = [output.logits] if "logits" in output else [output.start_logits, output.end_logits]
        for part in logits:
            check_finite(part, head.model, lambda number: f"row {number + 1:,}", members)
        take(members, output)

    with progress_bar(len(rows), description, " rows") as bar:
        run_batches(head.model, np.asarray(rows[LENGTH][:]), run, bf16=bf16, bar=bar)
