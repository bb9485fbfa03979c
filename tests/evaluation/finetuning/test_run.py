"""What a run of fine-tuning is, what its folder holds, and which flags are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_nli import word_tokenizer, write_encoders
from tiny_tuning import arguments, load_head

from modeling_infoxlm.evaluation.encoders import EncoderArguments
from modeling_infoxlm.evaluation.finetuning.arguments import FineTuningArguments, HeadModelArguments
from modeling_infoxlm.evaluation.finetuning.run import fine_tuning_identity as identity_of
from modeling_infoxlm.evaluation.finetuning.run import finish_run, open_fine_tuning
from modeling_infoxlm.evaluation.results import ModelRecord
from modeling_infoxlm.runs.errors import UsageError


def test_a_run_is_opened_finished_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path / "out", weight_decay=0.5)
    model = ModelRecord("org/base", None, None, "xlm-roberta", 3)
    task = EncoderArguments(tokenizer_name="own")
    given = {"argv": ["--rate", "1"], "outputs": ()}
    with monkeypatch.context() as patch:
        patch.setattr(FineTuningArguments, "n_gpu", 2)
        with pytest.raises(UsageError, match="fine-tuning runs on one device, found 2"):
            open_fine_tuning(model, task, args, {}, argv=[])
    assert not (tmp_path / "out").exists()
    run = open_fine_tuning(model, task, args, {"a.tsv": "0123"}, **given)
    assert not run.finished and run.checkpoint is None
    finish_run(replace(run, checkpoint="x/checkpoint-7"), args, task)
    assert open_fine_tuning(model, task, args, {"a.tsv": "0123"}, **given).finished
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["identity"]["files"] == {"a.tsv": "0123"} and record["identity"]["weight_decay"] == 0.5
    assert (record["base_model"], record["resumed_at_step"]) == ("org/base", 7)
    assert {"weight_decay", "tokenizer_name"} <= set(record["non_default"])
    again = arguments(tmp_path / "out", weight_decay=0.5, overwrite_output_dir=True)
    assert not open_fine_tuning(model, task, again, {"a.tsv": "0123"}, **given).finished
    (tmp_path / "out" / "checkpoint-7").mkdir()
    with pytest.raises(UsageError, match="holds a different run: files was"):
        open_fine_tuning(model, task, args, {"a.tsv": "4567"}, **given)


def test_the_identity_changes_with_what_is_computed(tmp_path: Path) -> None:
    record, task = load_head(write_encoders(tmp_path)["bert"]).record, HeadModelArguments()

    def identity(files: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
        return identity_of(record, task, arguments(tmp_path, **options), files or {})

    same = [{"logging_steps": 7}, {"save_total_limit": 5}, {"overwrite_output_dir": True}]
    assert all(identity(**options) == identity() for options in same)
    other = [{"learning_rate": 1.0}, {"seed": 3}, {"per_device_train_batch_size": 4}, {"eval_steps": 7}]
    other += [{"metric_for_best_model": "accuracy/en"}, {"neftune_noise_alpha": 5.0}]
    assert all(identity(**options) != identity() for options in other)
    assert identity({"train-en.tsv": "ab"}) != identity()
    assert identity(gradient_accumulation_steps=2)["batch_size"] == 64


def test_another_tokenizer_or_configuration_is_another_run(tmp_path: Path) -> None:
    """With the same weights, whose hash alone once told models apart: the first result was taken for both."""
    folder = write_encoders(tmp_path)["infoxlm"]
    first = load_head(folder).record
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert replace(load_head(copy).record, name_or_path=first.name_or_path) == first
    word_tokenizer(50).save_pretrained(copy)
    other_words = load_head(copy).record
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.3}))
    other_dropout = load_head(folder).record
    assert {record.sha256 for record in (other_words, other_dropout)} == {first.sha256}
    assert other_words.tokenizer_sha256 != first.tokenizer_sha256
    assert other_dropout.config_sha256 != first.config_sha256
    assert replace(other_dropout, config_sha256=first.config_sha256) == first
    args, task = arguments(tmp_path / "out"), HeadModelArguments()
    assert identity_of(other_dropout, task, args, {}) != identity_of(first, task, args, {})


def test_arguments_settle_what_follows(tmp_path: Path) -> None:
    assert arguments(tmp_path, eval_steps=0.25).save_steps == 0.25
    assert not arguments(tmp_path, eval_strategy="no").load_best_model_at_end
    assert not arguments(tmp_path, do_train=False).load_best_model_at_end
    epochs = arguments(tmp_path, eval_strategy="epoch")
    assert epochs.load_best_model_at_end and epochs.save_strategy == "epoch"
    assert FineTuningArguments(output_dir=str(tmp_path), bf16=True).bf16  # on a CPU too
    refused = {"save_strategy": "epoch", "per_device_eval_batch_size": 3, "dataloader_drop_last": True}
    refused |= {"do_eval": True, "resume_from_checkpoint": "x", "save_only_model": True, "fp16": True}
    for name, value in refused.items():
        with pytest.raises(ValueError, match=name):  # each would be accepted and do nothing
            arguments(tmp_path, **{name: value})
    with pytest.raises(ValueError, match="save_total_limit must be at least 2, found 1"):
        arguments(tmp_path, save_total_limit=1)
