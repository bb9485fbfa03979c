"""Head models of any architecture, and rows that each have the output that they have alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tiny_nli import word_tokenizer
from tiny_tuning import load_head, random_rows
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)

from modeling_infoxlm.evaluation.finetuning.heads import forward_batches
from modeling_infoxlm.evaluation.finetuning.rows import cached_rows
from modeling_infoxlm.runs.errors import UsageError

KINDS = ("infoxlm", "plain", "bert", "st")


@pytest.fixture
def rows(tmp_path: Path) -> Dataset:
    return cached_rows(lambda: iter(random_rows()), key=["rows"], cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "auto_class, head",
    [(AutoModelForSequenceClassification, "classifier"), (AutoModelForQuestionAnswering, "qa_")],
)
def test_every_encoder_takes_a_new_head_of_the_seed(
    folders: dict[str, Path], kind: str, auto_class: Any, head: str
) -> None:
    loaded = load_head(folders[kind], auto_class=auto_class)
    assert loaded.new_weights and all(name.startswith(head) for name in loaded.new_weights)
    encoder = AutoModel.from_pretrained(
        folders[kind] / ("0_Transformer" if kind == "st" else "")
    ).state_dict()
    weights, prefix = loaded.model.state_dict(), loaded.model.base_model_prefix
    shared = [name for name in encoder if f"{prefix}.{name}" in weights]
    assert len(shared) > 20
    assert all(torch.equal(encoder[name], weights[f"{prefix}.{name}"]) for name in shared)
    again = load_head(folders[kind], auto_class=auto_class).model.state_dict()
    other = load_head(folders[kind], seed=2, auto_class=auto_class).model.state_dict()
    weight = next(name for name in loaded.new_weights if name.endswith("weight"))
    assert torch.equal(weights[weight], again[weight]) and not torch.equal(weights[weight], other[weight])


def test_a_checkpoint_without_its_encoder_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Else the result would be that of a random encoder."""
    AutoModel.from_pretrained(folders["bert"]).save_pretrained(tmp_path)
    word_tokenizer(token_types=True).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layer.1." not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = r"lacks 16 weights of the encoder, such as bert\.encoder\.layer\.1\."
    with pytest.raises(UsageError, match=message):
        load_head(tmp_path)


def test_a_head_of_other_labels_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its configuration is in order: the task asks for three labels."""
    config = AutoConfig.from_pretrained(folders["plain"], num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="or the task needs: .* where the head is for other labels, give"):
        load_head(tmp_path)


def test_lengths_and_heads_are_checked(folders: dict[str, Path], rows: Dataset, tmp_path: Path) -> None:
    config = load_head(folders["plain"]).model.config
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.2  # the checkpoint's
    assert config.model_type == "xlm-roberta" and config.num_labels == 3
    head = load_head(folders["bert"])
    head.check(max_seq_length=40, trained=False)
    with pytest.raises(UsageError, match=r"max_seq_length is 41, but .*bert takes at most 40 tokens"):
        head.check(max_seq_length=41, trained=False)
    with pytest.raises(UsageError, match=r"has no trained head \(classifier\.bias is missing\)"):
        head.check(max_seq_length=40, trained=True)
    head.model.save_pretrained(tmp_path)
    head.tokenizer.save_pretrained(tmp_path)
    load_head(tmp_path).check(max_seq_length=40, trained=True)
    head.model.get_input_embeddings().weight.data[rows["input_ids"][5][1]] = float("nan")
    with pytest.raises(UsageError, match=r"not finite, first for row \d+; its weights"):
        forward_batches(head, rows, lambda *_: None)


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_the_output_it_has_alone(
    folders: dict[str, Path], rows: Dataset, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = load_head(folders[kind])
    monkeypatch.setattr("modeling_infoxlm.evaluation.batching.CPU_TOKENS_PER_BATCH", 128)
    head.model.train()
    found = torch.full((len(rows), 3), torch.nan)
    sizes: list[int] = []

    def take(members: np.ndarray, output: Any) -> None:
        assert not head.model.training and not output.logits.requires_grad
        found[members] = output.logits
        sizes.append(len(members))

    forward_batches(head, rows, take)
    assert head.model.training and torch.is_grad_enabled()
    assert sum(sizes) == 60 and 3 <= min(sizes) < max(sizes)
    head.model.eval()
    with torch.no_grad():
        alone = [head.model(input_ids=torch.tensor([ids])).logits for ids in rows["input_ids"][:]]
    expected = torch.cat(alone)
    torch.testing.assert_close(found, expected)
