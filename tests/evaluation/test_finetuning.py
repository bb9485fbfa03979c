"""What XNLI and MLQA share: head models of any architecture, cached rows, like-length batches, resumption."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tiny_nli import word_tokenizer, write_encoders
from tiny_run import VOCAB
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    TrainerState,
)

from modeling_infoxlm.evaluation.encoders import EncoderArguments, tokenizer_hash
from modeling_infoxlm.evaluation.finetuning import (
    FineTuner,
    FineTuningArguments,
    HeadModel,
    HeadModelArguments,
    LengthBuckets,
    Selection,
    cached_rows,
    collate,
    draw,
    fine_tune,
    finish_run,
    forward_batches,
    load_head_model,
    open_fine_tuning,
)
from modeling_infoxlm.evaluation.finetuning import fine_tuning_identity as identity_of
from modeling_infoxlm.evaluation.results import ModelRecord
from modeling_infoxlm.runs.errors import UsageError

KINDS = ("infoxlm", "plain", "bert", "st")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_encoders(tmp_path_factory.mktemp("encoders"), dropout=0.2)


def load(folder: Path, *, seed: int = 1, auto_class: Any = AutoModelForSequenceClassification) -> HeadModel:
    labels = {"num_labels": 3} if auto_class is AutoModelForSequenceClassification else {}
    return load_head_model(
        HeadModelArguments(model_name_or_path=str(folder)), auto_class, seed=seed, **labels
    )


def random_rows(count: int = 60) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [
        {"input_ids": [0, *draw.integers(4, VOCAB - 1, draw.integers(1, 30)).tolist(), 2], "labels": i % 3}
        for i in range(count)
    ]


@pytest.fixture
def rows(tmp_path: Path) -> Dataset:
    return cached_rows(lambda: iter(random_rows()), key=["rows"], cache_dir=str(tmp_path / "cache"))


# ---------------------------------------------------------------------------- models


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "auto_class, head",
    [(AutoModelForSequenceClassification, "classifier"), (AutoModelForQuestionAnswering, "qa_")],
)
def test_every_encoder_takes_a_new_head_of_the_seed(
    folders: dict[str, Path], kind: str, auto_class: Any, head: str
) -> None:
    loaded = load(folders[kind], auto_class=auto_class)
    assert loaded.new_weights and all(name.startswith(head) for name in loaded.new_weights)
    path = folders[kind] / "0_Transformer" if kind == "st" else folders[kind]
    encoder = AutoModel.from_pretrained(path).state_dict()
    weights = loaded.model.state_dict()
    prefix = loaded.model.base_model_prefix
    shared = [name for name in encoder if f"{prefix}.{name}" in weights]
    assert len(shared) > 20
    assert all(torch.equal(encoder[name], weights[f"{prefix}.{name}"]) for name in shared)
    again = load(folders[kind], auto_class=auto_class).model.state_dict()
    other = load(folders[kind], seed=2, auto_class=auto_class).model.state_dict()
    weight = next(name for name in loaded.new_weights if name.endswith("weight"))
    assert torch.equal(weights[weight], again[weight]) and not torch.equal(weights[weight], other[weight])


def test_dropout_and_type_are_the_checkpoints(folders: dict[str, Path]) -> None:
    config = load(folders["plain"]).model.config
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.2
    assert config.model_type == "xlm-roberta" and config.num_labels == 3
    assert load(folders["infoxlm"]).model.config.model_type == "infoxlm"


def test_a_checkpoint_without_its_encoder_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Else the result would be that of a random encoder."""
    model = AutoModel.from_pretrained(folders["bert"])
    model.save_pretrained(tmp_path)
    word_tokenizer(token_types=True).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if "layer.1." in name]:
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UsageError, match=r"lacks 16 weights of the encoder, such as bert\.encoder\.layer\.1\."
    ):
        load(tmp_path)


def test_what_cannot_be_loaded_is_a_usage_error(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model: give --model_name_or_path"):
        load_head_model(HeadModelArguments(), AutoModelForSequenceClassification, seed=1)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load(tmp_path / "nothing")
    word_tokenizer(VOCAB + 5).save_pretrained(tmp_path / "words")
    arguments = HeadModelArguments(
        model_name_or_path=str(folders["bert"]), tokenizer_name=str(tmp_path / "words")
    )
    with pytest.raises(UsageError, match="tokenizer has 65 tokens, the model's table 60"):
        load_head_model(arguments, AutoModelForSequenceClassification, seed=1)


def test_a_head_of_another_size_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    two = load_head_model(
        HeadModelArguments(model_name_or_path=str(folders["bert"])),
        AutoModelForSequenceClassification,
        seed=1,
        num_labels=2,
    )
    two.model.save_pretrained(tmp_path)
    two.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load(tmp_path)


def test_lengths_and_heads_are_checked(folders: dict[str, Path], tmp_path: Path) -> None:
    head = load(folders["bert"])
    head.check_length(40)
    with pytest.raises(UsageError, match=r"max_seq_length is 41, but .*bert takes at most 40 tokens"):
        head.check_length(41)
    with pytest.raises(UsageError, match=r"has no trained head \(classifier\.bias is missing\)"):
        head.check_trained()
    head.model.save_pretrained(tmp_path)
    head.tokenizer.save_pretrained(tmp_path)
    load(tmp_path).check_trained()


# ---------------------------------------------------------------------------- rows


def test_rows_are_made_once_for_each_key(tmp_path: Path) -> None:
    made = []

    def encode() -> Iterator[dict[str, Any]]:
        made.append(1)
        yield from ({"input_ids": [0] * n, "labels": n} for n in (3, 1))

    options = {"cache_dir": str(tmp_path)}
    first = cached_rows(encode, key=["a", 1], **options)
    assert first[:] == {"input_ids": [[0, 0, 0], [0]], "labels": [3, 1], "length": [3, 1]}
    assert cached_rows(encode, key=["a", 1], **options)[:] == first[:]
    assert len(made) == 1
    for key in (["a", 2], ["a1"], ["", "a1"]):
        cached_rows(encode, key=key, **options)
    assert len(made) == 4


def test_tokenizers_of_other_rows_have_other_hashes() -> None:
    untyped = word_tokenizer(token_types=True)
    untyped.model_input_names = ["input_ids"]
    tokenizers = [word_tokenizer(), word_tokenizer(50), word_tokenizer(token_types=True), untyped]
    assert len({tokenizer_hash(tokenizer) for tokenizer in tokenizers}) == 4
    assert tokenizer_hash(word_tokenizer()) == tokenizer_hash(tokenizers[0])


def test_rows_are_padded_to_the_longest() -> None:
    rows = [
        {"input_ids": [0, 5, 2], "labels": 2, "length": 3},
        {"input_ids": [0, 2], "labels": 0, "length": 2},
    ]
    batch = collate(rows, word_tokenizer(), ("labels",))
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[0, 5, 2], [0, 2, 1]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[2], [0]],
    }
    left = word_tokenizer()
    left.padding_side, left.model_input_names = "left", ["input_ids"]  # answers are counted from the left
    again = collate(rows, left, ("labels",))
    assert {name: value.tolist() for name, value in again.items()} == {
        name: value.tolist() for name, value in batch.items()
    }
    typed = [{"input_ids": [0, 2], "token_type_ids": [0, 1]}, {"input_ids": [0], "token_type_ids": [1]}]
    assert collate(typed, word_tokenizer(token_types=True))["token_type_ids"].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_the_output_it_has_alone(
    folders: dict[str, Path], rows: Dataset, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = load(folders[kind])
    monkeypatch.setattr("modeling_infoxlm.evaluation.batching.CPU_TOKENS_PER_BATCH", 128)
    head.model.train()
    found = torch.full((len(rows), 3), torch.nan)
    sizes: list[int] = []

    def take(members: np.ndarray, output: Any) -> None:
        assert not head.model.training and not output.logits.requires_grad
        found[members] = output.logits
        sizes.append(len(members))

    forward_batches(head.model, rows, head.tokenizer, take)
    assert head.model.training and torch.is_grad_enabled()
    assert sum(sizes) == 60 and 3 <= min(sizes) < max(sizes)
    head.model.eval()
    with torch.no_grad():
        expected = torch.cat(
            [head.model(input_ids=torch.tensor([ids])).logits for ids in rows["input_ids"][:]]
        )
    torch.testing.assert_close(found, expected)


def test_logits_that_are_not_finite_are_refused(folders: dict[str, Path], rows: Dataset) -> None:
    head = load(folders["bert"])
    damaged = rows["input_ids"][5][1]
    head.model.get_input_embeddings().weight.data[damaged] = float("nan")
    with pytest.raises(UsageError, match=r"not finite, first for row \d+; its weights"):
        forward_batches(head.model, rows, head.tokenizer, lambda *_: None)


@pytest.mark.parametrize("count", [1, 7, 50, 99, 100, 101, None])
def test_rows_are_drawn_from_each_group_by_its_share(count: int | None) -> None:
    groups = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    drawn = draw(groups, count)
    assert drawn == sorted(set(drawn)) and len(drawn) == min(100, count or 100)
    assert drawn == draw([group.upper() for group in groups[:60]] + ["0"] * 30 + ["1"] * 10, count)
    for group in "abc":
        share = len(drawn) * groups.count(group) / 100
        assert abs(sum(groups[row] == group for row in drawn) - share) < 1
    everywhere = np.mean([draw([""] * 1000, 50)])  # not the first ones, nor the last
    assert 400 < everywhere < 600


# ---------------------------------------------------------------------------- batches


def test_an_epoch_has_each_row_once_and_like_lengths_together() -> None:
    lengths = np.random.default_rng(1).integers(5, 200, 5003)
    batches = list(LengthBuckets(lengths, 32, seed=4))
    assert len(batches) == len(LengthBuckets(lengths, 32, seed=4)) == 157
    assert sorted(np.concatenate(batches).tolist()) == list(range(5003))
    assert sorted(map(len, batches))[:2] == [11, 32] and max(map(len, batches)) == 32
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.05 * lengths.sum()  # 1.95 times for batches drawn at random
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2  # neither short ones first nor last


@pytest.mark.parametrize("count", [96, 100, 103])
def test_the_rows_of_a_step_are_the_same_however_it_is_cut(count: int) -> None:
    lengths = np.random.default_rng(1).integers(5, 50, count)
    whole = list(LengthBuckets(lengths, 8, seed=4))
    cut = list(LengthBuckets(lengths, 2, accumulated=4, seed=4))
    assert len(cut) == len(LengthBuckets(lengths, 2, accumulated=4, seed=4))
    steps = [sum(cut[start : start + 4], []) for start in range(0, len(cut), 4)]  # as the Trainer takes them
    assert steps == whole and len(whole[0]) == 8


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(1).integers(5, 50, 400)

    def order(seed: int, epoch: int) -> list[list[int]]:
        buckets = LengthBuckets(lengths, 8, seed=seed)
        buckets.set_epoch(epoch)
        torch.rand(3), np.random.random()
        return list(buckets)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)
    # The batches of two epochs are not merely the same ones in another order.
    assert {tuple(batch) for batch in order(1, 2)} != {tuple(batch) for batch in order(1, 3)}


@pytest.mark.parametrize("kind", ["infoxlm", "plain", "bert"])
@pytest.mark.parametrize(
    "auto_class, label_names, smoothing",
    [
        (AutoModelForSequenceClassification, ("labels",), 0.0),
        (AutoModelForSequenceClassification, ("labels",), 0.1),
        (AutoModelForQuestionAnswering, ("start_positions", "end_positions"), 0.0),
    ],
)
def test_accumulation_changes_neither_loss_nor_gradient(
    tmp_path: Path, kind: str, auto_class: Any, label_names: tuple[str, ...], smoothing: float
) -> None:
    """Also where the last micro-batch is shorter, and with heads that ignore how many labels a step has."""
    folder = write_encoders(tmp_path / "encoders")[kind]
    spans = [{"start_positions": 1, "end_positions": 2 * (i % 2)} for i in range(11)]
    rows = [{**row, **span} for row, span in zip(random_rows(11), spans, strict=True)]
    dataset = cached_rows(lambda: iter(rows), key=["spans"], cache_dir=str(tmp_path / "cache"))

    def train(batch: int, accumulated: int) -> tuple[dict[str, torch.Tensor], float]:
        head = load(folder, auto_class=auto_class)
        for part in head.model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        args = arguments(
            tmp_path / "out",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            label_smoothing_factor=smoothing,
            max_steps=1,
            logging_steps=1,
            optim="sgd",
            learning_rate=1.0,
            warmup_steps=0,
            max_grad_norm=1e9,
            eval_strategy="no",
            report_to="none",
        )
        trainer = FineTuner(head, args, rows=dataset, label_names=label_names, selection=None)
        trainer.train()
        return trainer.model.state_dict(), trainer.state.log_history[0]["loss"]

    (whole, loss), (cut, cut_loss) = train(11, 1), train(4, 3)
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    assert max((whole[name] - cut[name]).abs().max().item() for name in whole) < 1e-6


@pytest.mark.parametrize("saving", [{}, {"save_steps": 4}, {"save_strategy": "no"}])
def test_the_step_that_is_taken_does_not_depend_on_what_is_saved(
    folders: dict[str, Path], rows: Dataset, tmp_path: Path, saving: dict[str, Any]
) -> None:
    head = load(folders["infoxlm"])
    args = arguments(
        tmp_path / "out",
        max_steps=4,
        eval_steps=1,
        metric_for_best_model="accuracy",
        report_to="none",
        **saving,
    )
    weights, scores = [], iter([1.0, 3.0, 2.0, 0.0])

    def score(model: Any, rows: Dataset) -> dict[str, float]:
        weights.append(model.classifier.out_proj.weight.detach().clone())
        return {"accuracy": next(scores)}

    selection = Selection(rows, score)
    record = fine_tune(head, args, rows=rows, label_names=("labels",), selection=selection, checkpoint=None)
    assert record.selected_step == 2 and len(weights) == 4
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

    monkeypatch.setattr(FineTuner, "_save_rng_state", full_disk)
    args = arguments(tmp_path / "out", max_steps=1, eval_strategy="no", report_to="none")
    trainer = FineTuner(load(folders["infoxlm"]), args, rows=rows, label_names=("labels",), selection=None)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert list((tmp_path / "out").glob("checkpoint-*")) == []


def test_an_adapter_is_tuned_with_its_head_and_found_again(
    folders: dict[str, Path], rows: Dataset, tmp_path: Path
) -> None:
    """LoRA on a classification of sentence pairs, as XNLI is; the second call finds the training complete."""
    peft = pytest.importorskip("peft")

    def tuned(checkpoint: Path | None) -> dict[str, torch.Tensor]:
        head = load(folders["infoxlm"])
        model = peft.get_peft_model(head.model, peft.LoraConfig(task_type="SEQ_CLS", r=2))
        args = arguments(
            tmp_path / "out",
            eval_strategy="no",
            save_steps=2,
            max_steps=2,
            report_to="none",
        )
        fine_tune(
            replace(head, model=model),
            args,
            rows=rows,
            label_names=["labels"],
            selection=None,
            checkpoint=None if checkpoint is None else str(checkpoint),
        )
        return model.state_dict()

    trained, start = tuned(None), load(folders["infoxlm"]).model.state_dict()
    for name, value in trained.items():
        own = name.removeprefix("base_model.model.").replace("base_layer.", "")
        assert own not in start or torch.equal(value, start[own]), name
    head = "base_model.model.classifier.modules_to_save.default.dense.weight"
    assert not torch.equal(trained[head], start["classifier.dense.weight"])
    again = tuned(tmp_path / "out" / "checkpoint-2")
    assert all(torch.equal(value, again[name]) for name, value in trained.items())
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 100_000


# ---------------------------------------------------------------------------- the run


def arguments(folder: Path, **options: Any) -> FineTuningArguments:
    return FineTuningArguments(output_dir=str(folder), use_cpu=True, **options)


def test_a_run_is_opened_finished_and_found(tmp_path: Path) -> None:
    args = arguments(tmp_path / "out", weight_decay=0.5)
    model = ModelRecord("org/base", None, None, "xlm-roberta", 3)
    task = EncoderArguments(tokenizer_name="own")
    given = {"argv": ["--rate", "1"], "outputs": ()}
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


def test_several_devices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FineTuningArguments, "n_gpu", 2)
    with pytest.raises(UsageError, match="fine-tuning runs on one device, found 2"):
        open_fine_tuning(
            ModelRecord("x", None, None, "x", 3), EncoderArguments(), arguments(tmp_path / "out"), {}, argv=[]
        )
    assert not (tmp_path / "out").exists()


def test_a_head_for_other_labels_is_told_of(tmp_path: Path) -> None:
    """Its configuration is in order: the task asks for three labels."""
    config = AutoConfig.from_pretrained(write_encoders(tmp_path)["plain"], num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "plain")
    with pytest.raises(
        UsageError, match="or the task needs: .* where the head is for other labels, give the"
    ):
        load(tmp_path / "plain")


def test_the_identity_changes_with_what_is_computed(folders: dict[str, Path], tmp_path: Path) -> None:
    record, task = load(folders["bert"]).record, HeadModelArguments()

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
    first = load(folder).record
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert replace(load(copy).record, name_or_path=first.name_or_path) == first
    word_tokenizer(50).save_pretrained(copy)
    other_words = load(copy).record
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.3}))
    other_dropout = load(folder).record
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
    for refused in (
        {"save_strategy": "epoch"},
        {"per_device_eval_batch_size": 3},
        {"dataloader_drop_last": True},
        {"do_eval": True},
        {"resume_from_checkpoint": "x"},
        {"save_only_model": True},
        {"fp16": True},
    ):
        with pytest.raises(ValueError, match=next(iter(refused))):  # each would be accepted and do nothing
            arguments(tmp_path, **refused)
    with pytest.raises(ValueError, match="save_total_limit must be at least 2, found 1"):
        arguments(tmp_path, save_total_limit=1)
