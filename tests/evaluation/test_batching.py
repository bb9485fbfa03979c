"""Batches of like length: each row once, within the limit, in eval mode."""

import numpy as np
import pytest
import torch
from tiny_run import tiny_model

from modeling_infoxlm import InfoXLMModel
from modeling_infoxlm.evaluation import batching
from modeling_infoxlm.evaluation.batching import batches_by_length, progress_bar, run_batches

LENGTHS = np.random.default_rng(0).integers(1, 30, 57)


@pytest.fixture
def half_training() -> InfoXLMModel:
    """In training mode with dropout, apart from its frozen first layer."""
    model = tiny_model(hidden_dropout_prob=0.5).roberta.train()
    model.encoder.layer[0].eval()
    return model


@pytest.mark.parametrize("most", [1, 10, 64])
def test_batches_hold_every_row_once_and_are_as_full_as_the_limit_lets_them(most: int) -> None:
    batches = list(batches_by_length(LENGTHS, most))
    assert sorted(i for batch in batches for i in batch) == list(range(57))
    ordered = [int(LENGTHS[i]) for batch in batches for i in batch]
    assert ordered == sorted(ordered, reverse=True), "the longest come first"
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        padded = len(batch) * LENGTHS[batch].max()
        assert len(batch) == 1 or padded <= most
        assert not len(following) or padded + LENGTHS[batch].max() > most, "room for the next row"


def test_the_model_evaluates_meanwhile_and_each_mode_is_restored(
    half_training: InfoXLMModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the flag the autocast of the caller holds; without a size the batch is that of the device."""
    modes = [module.training for module in half_training.modules()]
    monkeypatch.setattr(batching, "CPU_TOKENS_PER_BATCH", 6)
    sizes: list[int] = []

    def check(members: np.ndarray) -> None:
        assert not any(module.training for module in half_training.modules())
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        sizes.append(len(members))

    run_batches(half_training, np.full(4, 3), check, bf16=True)
    with torch.autocast("cpu", torch.bfloat16):
        run_batches(half_training, np.full(4, 3), check)
    assert sizes == [2, 2, 2, 2]
    with pytest.raises(ZeroDivisionError):
        run_batches(half_training, LENGTHS, lambda members: 1 // 0)
    assert [module.training for module in half_training.modules()] == modes and torch.is_grad_enabled()


def test_progress_is_shown_for_long_jobs_only(
    half_training: InfoXLMModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(*, wanted: bool) -> str:
        with progress_bar(57, "working", " rows", show=wanted) as bar:
            run_batches(half_training, LENGTHS, lambda members: None, bar=bar)
        return capsys.readouterr().err

    assert show(wanted=True) == ""
    monkeypatch.setattr(batching, "PROGRESS_DELAY", 0)
    assert show(wanted=False) == ""
    assert "57/57" in show(wanted=True)
