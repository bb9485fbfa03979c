"""Models with a task's head: loaded from any checkpoint of an encoder, checked, and run over many rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from modeling_infoxlm.evaluation.batching import check_finite, progress_bar, run_batches
from modeling_infoxlm.evaluation.encoders import check_tokenizer, describe_model, transformer_folder
from modeling_infoxlm.evaluation.encoding import longest_sequence
from modeling_infoxlm.evaluation.finetuning.arguments import HeadModelArguments
from modeling_infoxlm.evaluation.finetuning.rows import LENGTH, collate
from modeling_infoxlm.evaluation.results import ModelRecord
from modeling_infoxlm.hub.loading import check_encoder, load, load_whole_model
from modeling_infoxlm.runs.errors import UsageError


@dataclass(frozen=True)
class HeadModel:
    """A model with a task's head, and its tokenizer.

    Attributes:
        model: In fp32, on the CPU; the head is new unless the checkpoint has one.
        tokenizer: Fits the model's vocabulary.
        record: The checkpoint that it was loaded from.
        new_weights: Names of the parameters that the checkpoint does not have.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    record: ModelRecord
    new_weights: tuple[str, ...]

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence, special tokens included."""
        return longest_sequence(self.model.config, self.tokenizer)

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.model.to(device)  # type: ignore[arg-type]  # the library's own annotation is wrong

    def check_length(self, max_seq_length: int) -> None:
        """Refuse a length that the model has no positions for.

        Raises:
            UsageError: With both numbers.
        """
        if max_seq_length > self.max_length:
            raise UsageError(
                f"max_seq_length is {max_seq_length}, but {self.record.name_or_path} takes at most "
                f"{self.max_length} tokens; give --max_seq_length {self.max_length} or less."
            )

    def check_trained(self) -> None:
        """Refuse a model whose head was never trained.

        Raises:
            UsageError: If the checkpoint has no head.
        """
        if self.new_weights:
            raise UsageError(
                f"{self.record.name_or_path} has no trained head ({self.new_weights[0]} is missing); "
                "fine-tune it first: --do_train true."
            )


def load_head_model(
    arguments: HeadModelArguments, auto_class: Any, *, seed: int, **overrides: Any
) -> HeadModel:
    """Load a model with a task's head from any checkpoint of its encoder, with or without a head.

    Dropout and everything else is as the checkpoint's configuration says, apart from `overrides`.

    Args:
        arguments: Which one.
        auto_class: Such as `AutoModelForSequenceClassification`.
        seed: Of the head, where the checkpoint has none.
        overrides: Fields of the configuration, such as `num_labels`.

    Raises:
        UsageError: If none is named, it cannot be loaded, lacks weights of the encoder, or the tokenizer does
            not fit the model.
    """
    if arguments.model_name_or_path is None:
        raise UsageError("no model: give --model_name_or_path, a Hub name or a folder.")
    name = transformer_folder(arguments.model_name_or_path)
    options = arguments.hub_options()
    set_seed(seed)
    config = load(AutoConfig.from_pretrained, name, part="config", **overrides, **options)
    tokenizer: PreTrainedTokenizerBase = load(
        AutoTokenizer.from_pretrained, arguments.tokenizer_name or name, part="tokenizer", **options
    )
    check_tokenizer(tokenizer, config)
    model, loading = load_whole_model(auto_class, name, config=config, dtype=torch.float32, **options)
    missing = tuple(sorted(loading["missing_keys"]))
    check_encoder(arguments.model_name_or_path, model, missing)
    record = describe_model(arguments, model, tokenizer, model_type=config.model_type)
    return HeadModel(model, tokenizer, record, missing)


def forward_batches(
    model: PreTrainedModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    take: Callable[[np.ndarray, Any], None],
    *,
    bf16: bool = False,
    description: str = "predicting",
) -> None:
    """Run the model over all rows in eval mode, those of like length together, the longest first.

    Args:
        model: Any, on its device.
        rows: From `cached_rows`.
        tokenizer: Pads.
        take: Called with the numbers of the rows of a batch, (B,), and the model's output for them.
        bf16: Run products in bf16.
        description: Of the progress bar, which shows after two seconds.

    Raises:
        UsageError: If logits are not finite.
    """

    def run(members: np.ndarray) -> None:
        batch = collate(rows.__getitems__(members.tolist()), tokenizer)
        output = model(**{name: part.to(model.device) for name, part in batch.items()})
        logits = [output.logits] if "logits" in output else [output.start_logits, output.end_logits]
        for part in logits:
            check_finite(part, model, lambda number: f"row {number + 1:,}", members)
        take(members, output)

    with progress_bar(len(rows), description, " rows") as bar:
        run_batches(model, np.asarray(rows[LENGTH][:]), run, bf16=bf16, bar=bar)
