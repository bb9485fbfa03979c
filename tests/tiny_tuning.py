"""Models with a head and rows for them, for the tests of fine-tuning."""

from pathlib import Path
from typing import Any

import numpy as np
from tiny_run import VOCAB
from transformers import AutoModelForSequenceClassification

from modeling_infoxlm.evaluation.finetuning.arguments import FineTuningArguments, HeadModelArguments
from modeling_infoxlm.evaluation.finetuning.heads import HeadModel, load_head_model


def load_head(
    folder: Path, *, seed: int = 1, auto_class: Any = AutoModelForSequenceClassification
) -> HeadModel:
    """A model with a new head; its class labels are three."""
    labels = {"num_labels": 3} if auto_class is AutoModelForSequenceClassification else {}
    return load_head_model(
        HeadModelArguments(model_name_or_path=str(folder)), auto_class, seed=seed, **labels
    )


def random_rows(count: int = 60) -> list[dict[str, Any]]:
    """Rows of 3 to 31 tokens with one of three labels."""
    draw = np.random.default_rng(0)
    return [
        {"input_ids": [0, *draw.integers(4, VOCAB - 1, draw.integers(1, 30)).tolist(), 2], "labels": i % 3}
        for i in range(count)
    ]


def arguments(folder: Path, **options: Any) -> FineTuningArguments:
    """Training arguments for this machine."""
    return FineTuningArguments(output_dir=str(folder), use_cpu=True, report_to="none", **options)
