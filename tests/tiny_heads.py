"""Checkpoints of every class, with known inputs, for the tests of what is released."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_encoder import word_tokenizer
from tiny_run import tiny_model
from transformers import set_seed

import modeling_infoxlm
from modeling_infoxlm import InfoXLMPreTrainedModel

# Our class, its auto class, and that of its plain release.
CLASSES: dict[str, tuple[type[InfoXLMPreTrainedModel], str, str]] = {
    name: (getattr(modeling_infoxlm, f"InfoXLM{name}"), *[f"AutoModel{name.removeprefix('Model')}"] * 2)
    for name in (
        "Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification",
        "ForQuestionAnswering", "ForMultipleChoice",
    )
}  # fmt: skip
CLASSES["ForPreTraining"] = (
    modeling_infoxlm.InfoXLMForPreTraining,
    "AutoModelForPreTraining",
    "AutoModelForMaskedLM",
)
_INPUT_IDS = torch.tensor([[0, 7, 23, 41, 2], [0, 55, 9, 2, 1]])
INPUTS = {"input_ids": _INPUT_IDS, "attention_mask": (_INPUT_IDS != 1).long()}
LABELS = ("entailment", "neutral", "contradiction")


def trained_model(name: str, **overrides: object) -> InfoXLMPreTrainedModel:
    """A model of one class, with weights so large that its outputs differ from sentence to sentence."""
    config = tiny_model(initializer_range=0.2, **overrides).config
    if name == "ForSequenceClassification":
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {label: number for number, label in enumerate(LABELS)}
    set_seed(5)
    return CLASSES[name][0](config).eval()


def save_checkpoint(
    folder: Path,
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    with_tokenizer: bool = True,
    **overrides: object,
) -> Path:
    """Write a checkpoint as training does."""
    trained_model(name, **overrides).to(dtype).save_pretrained(folder)
    if with_tokenizer:
        word_tokenizer().save_pretrained(folder)
    return folder


def tampered(file: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
    """Change one tensor of a weight file, or take it out."""
    weights = load_file(file)
    value = weights.pop(name)
    if change is not None:
        weights[name] = change(value)
    save_file(weights, file, metadata={"format": "pt"})
