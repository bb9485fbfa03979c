"""Fine-tuning: accumulation, the step that is taken, adapters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_tuning import arguments, load_head, random_rows
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, TrainerState

from modeling_infoxlm.evaluation.finetuning.rows import cached_rows
from modeling_infoxlm.evaluation.finetuning.trainer import FineTuner


@pytest.fixture
def rows(tmp_path: Path) -> Dataset:
    return cached_rows(lambda: iter(random_rows()), key=["rows"], cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["infoxlm", "bert"])
@pytest.mark.parametrize(
    "auto_class, label_names, smoothing",
    [
        (AutoModelForSequenceClassification, ("labels",), 0.0),
        (AutoModelForSequenceClassification, ("labels",), 0.1),
        (AutoModelForQuestionAnswering, ("start_positions", "end_positions"), 0.0),
    ],
)
def test_accumulation_changes_neither_loss_nor_gradient(
    folders: dict[str, Path], tmp_path: Path, kind: str, auto_class: Any, label_names: tuple[str, ...],
    smoothing: float,
) -> None:  # fmt: skip
    """Also where the last micro-batch is shorter, and with heads that ignore how many labels a step has."""
    spans = [{"start_positions": 1, "end_positions": 2 * (i % 2)} for i in range(11)]
    rows = [{**row, **span} for row, span in zip(random_rows(11), spans, strict=True)]
    dataset = cached_rows(lambda: iter(rows), key=["spans"], cache_dir=str(tmp_path / "cache"))

    def train(batch: int, accumulated: int) -> tuple[dict[str, torch.Tensor], float]:
        head = load_head(folders[kind], auto_class=auto_class)
        for part in head.model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
        one_step = {"max_steps": 1, "logging_steps": 1, "warmup_steps": 0, "eval_strategy": "no"}
        plain = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 1e9}
        args = arguments(tmp_path / "out", label_smoothing_factor=smoothing, **sizes, **one_step, **plain)
        trainer = FineTuner(head, args, rows=dataset, label_names=label_names, score=None)
        trainer.train()
        return trainer.model.state_dict(), trainer.state.log_history[0]["loss"]

    (whole, loss), (cut, cut_loss) = train(11, 1), train(4, 3)
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    assert max((whole[name] - cut[name]).abs().max().item() for name in whole) < 1e-6


@pytest.mark.parametrize("saving", [{}, {"save_steps": 4}, {"save_strategy": "no"}])
def test_the_step_that_is_taken_does_not_depend_on_what_is_saved(
    folders: dict[str, Path], rows: Dataset, tmp_path: Path, saving: dict[str, Any]
) -> None:
    head = load_head(folders["infoxlm"])
    steps = {"max_steps": 4, "eval_steps": 1, **saving}
    args = arguments(tmp_path / "out", metric_for_best_model="accuracy", **steps)
    weights, scores = [], iter([1.0, 3.0, 2.0, 0.0])

    def score() -> dict[str, float]:
        weights.append(head.model.classifier.out_proj.weight.detach().clone())
        return {"accuracy": next(scores)}

    record = FineTuner(head, args, rows=rows, label_names=("labels",), score=score).fine_tune(None)
    assert record["selected_step"] == 2 and len(weights) == 4
    assert torch.equal(head.model.classifier.out_proj.weight, weights[1])
    kept = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert "checkpoint-2" in kept
    assert "save_strategy" not in saving or kept == ["checkpoint-1", "checkpoint-2"]  # the best so far
    for name in kept[1:]:
        state = TrainerState.load_from_json(str(tmp_path / "out" / name / "trainer_state.json"))
        assert state.best_model_checkpoint == str(tmp_path / "out/checkpoint-2")


def test_a_failure_while_saving_leaves_no_checkpoint(
    folders: dict[str, Path], rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(self: FineTuner, *args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FineTuner, "_save_training_state", full_disk)
    args = arguments(tmp_path / "out", max_steps=1, eval_strategy="no")
    trainer = FineTuner(load_head(folders["infoxlm"]), args, rows=rows, label_names=("labels",), score=None)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert list((tmp_path / "out").glob("checkpoint-*")) == []


def test_an_adapter_is_tuned_with_its_head_and_found_again(
    folders: dict[str, Path], rows: Dataset, tmp_path: Path
) -> None:
    """LoRA on a classification of sentence pairs, as XNLI is; the second call finds the training complete."""
    peft = pytest.importorskip("peft")

    def tuned(checkpoint: Path | None) -> dict[str, torch.Tensor]:
        head = load_head(folders["infoxlm"])
        model = peft.get_peft_model(head.model, peft.LoraConfig(task_type="SEQ_CLS", r=2))
        args = arguments(tmp_path / "out", eval_strategy="no", save_steps=2, max_steps=2)
        tuner = FineTuner(replace(head, model=model), args, rows=rows, label_names=["labels"], score=None)
        tuner.fine_tune(None if checkpoint is None else str(checkpoint))
        return model.state_dict()

    trained, start = tuned(None), load_head(folders["infoxlm"]).model.state_dict()
    for name, value in trained.items():
        own = name.removeprefix("base_model.model.").replace("base_layer.", "")
        assert own not in start or torch.equal(value, start[own]), name
    head = "base_model.model.classifier.modules_to_save.default.dense.weight"
    assert not torch.equal(trained[head], start["classifier.dense.weight"])
    again = tuned(tmp_path / "out" / "checkpoint-2")
    assert all(torch.equal(value, again[name]) for name, value in trained.items())
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 100_000
