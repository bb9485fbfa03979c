"""What makes two pre-training runs the same one."""

from pathlib import Path
from typing import Any

import pytest

from modeling_infoxlm import InfoXLMConfig
from modeling_infoxlm.training.arguments import (
    ContrastArguments,
    DataArguments,
    ModelArguments,
    PretrainingArguments,
)
from modeling_infoxlm.training.plan_checks import pretraining_identity


def identity(
    tmp_path: Path,
    *,
    token: str | None = None,
    contrast: dict[str, Any] | None = None,
    config: InfoXLMConfig | None = None,
    **training: Any,
) -> dict[str, Any]:
    model = ModelArguments(token=token, cache_dir=str(tmp_path))
    args = PretrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **training)
    return pretraining_identity(
        model, DataArguments(), ContrastArguments(**(contrast or {})), args, config=config
    )


def test_what_changes_the_result_is_part_of_the_run_and_nothing_else(tmp_path: Path) -> None:
    plain = identity(tmp_path)
    # A checkpoint's optimiser could not go on with other moments; the end is measured as the start was.
    changes = {"seed": 7, "learning_rate": 1.0, "xlco_weight": 2.0, "max_steps": 3, "eval_layer": 1}
    changes |= {"moments_dtype": "bfloat16", "weight_decay_on_all": True}
    for name, value in {**changes, "eval_pooling": "mean", "eval_max_pairs": 7}.items():
        assert identity(tmp_path, **{name: value}) != plain, name
    assert identity(tmp_path / "elsewhere", token="hf_abcdefghijkl", dataloader_num_workers=3) == plain
    assert identity(tmp_path, logging_steps=1, save_steps=7, eval_strategy="steps", eval_steps=5) == plain
    whole = identity(tmp_path, per_device_train_batch_size=8)
    halves = identity(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert halves == whole and whole["total_train_batch_size"] == 8
    assert identity(tmp_path, per_device_train_batch_size=4) != whole


@pytest.mark.parametrize(
    ("contrast", "checkpoint", "same"),
    [
        ({}, {}, True),
        ({"xlco_in_batch_negatives": True}, {}, False),
        ({"xlco_symmetric": True}, {}, False),
        ({"xlco_enqueue": "microbatch"}, {}, False),
        ({}, {"xlco_in_batch_negatives": True}, False),  # what is unset is the checkpoint's
        ({"xlco_in_batch_negatives": False}, {"xlco_in_batch_negatives": True}, True),
    ],
)
def test_pairs_that_are_contrasted_with_each_other_stay_together(
    tmp_path: Path, contrast: dict[str, Any], checkpoint: dict[str, Any], same: bool
) -> None:
    """With in-batch negatives 4 pairs twice are another loss than 8 pairs once."""
    one, two = (
        identity(
            tmp_path,
            contrast=contrast,
            config=InfoXLMConfig(**checkpoint),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        for size in (8, 4)
    )
    assert (one == two) is same
