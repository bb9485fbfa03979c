"""Pre-training, in this process: from text to a checkpoint, again, and beside another run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_pretraining import PAIRS, Refusal, StopInStep3, checkpoints, flags
from tiny_run import free_port
from tiny_text import write_pairs
from transformers import AutoModel, AutoTokenizer

import run_pretraining
from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.evaluation.retrieval.heldout import HeldoutRetrieval
from modeling_infoxlm.training import plan_checks
from modeling_infoxlm.training.trainer import InfoXLMTrainer

SCRIPT = Path(run_pretraining.__file__)


# ---------------------------------------------------------------------------- from text to a checkpoint

FIT = (
    "--max_steps 100 --learning_rate 2e-3 --per_device_train_batch_size 16 "
    "--concatenate_pairs none --xlco_masking false --save_steps 100 --logging_steps 50"
).split()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run long enough to learn its 40 pairs by heart."""
    folder = tmp_path_factory.mktemp("fitted")
    text = write_pairs(folder / "text" / "en-xx.tsv", PAIRS)
    assert run_pretraining.main(flags(folder / "out", text, *FIT)) == 0
    return folder / "out"


def test_a_few_pairs_are_learnt_by_heart_and_the_run_says_what_it_was(fitted: Path) -> None:
    corpus = Corpus.open(fitted / "data")
    retrieval = HeldoutRetrieval(replace(corpus, heldout=corpus.bitext), layer=2)
    model = InfoXLMForPreTraining.from_pretrained(fitted)
    torch.manual_seed(1)
    assert retrieval(InfoXLMForPreTraining(model.config))["retrieval/mean"] < 0.2
    assert retrieval(model)["retrieval/mean"] > 0.6
    first, last = [entry for entry in state(fitted)["log_history"] if "loss" in entry]
    for name in ("loss/mlm", "loss/tlm", "loss/xlco"):
        assert last[name] < first[name]
    record = content_of(fitted / "run.json")
    assert record["command"][:1] == ["--bitext_files"] and record["identity"]["learning_rate"] == 2e-3
    assert record["corpus"]["bitext"]["en-xx"]["num_examples"] == 40
    assert len(record["corpus"]["sources"][0]["files"][0]["sha256"]) == 64
    assert set(record["streams"]) == {"mlm", "tlm", "xlco"}
    weights = load_file(fitted / "model.safetensors")
    assert record["num_parameters"] == sum(value.numel() for value in weights.values())
    results = content_of(fitted / "all_results.json")
    assert results["train_loss"] > 1 and results["train_runtime"] > 0.1


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def state(folder: Path) -> dict[str, Any]:
    return content_of(folder / "trainer_state.json")


@pytest.mark.parametrize("place", [".", "checkpoint-100"])
def test_the_result_and_every_checkpoint_load_as_they_are(fitted: Path, place: str) -> None:
    model, report = AutoModel.from_pretrained(fitted / place, output_loading_info=True)
    assert type(model).__name__ == "InfoXLMModel" and not report["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(fitted / place)
    inputs = tokenizer([source for source, _ in PAIRS[:3]], padding=True, return_tensors="pt")
    assert model.sentence_vectors(**inputs, layer=2, pooling="mean").shape == (3, 32)
    assert tokenizer.unk_token_id not in inputs["input_ids"]
    assert "training_args.bin" not in [path.name for path in (fitted / place).iterdir()]


def test_heldout_pairs_are_evaluated_from_the_start_to_the_end(
    text: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a recipe, over which flags go."""
    steps = []
    evaluate = InfoXLMTrainer.evaluate
    monkeypatch.setattr(
        InfoXLMTrainer,
        "evaluate",
        lambda self, **options: (steps.append(self.state.global_step), evaluate(self, **options))[1],
    )
    recipe = text.parent / "recipe.yaml"
    recipe.write_text(f"bitext_files: [{text}]\nmax_steps: 50\nheldout_fraction: 0.4\neval_max_pairs: 10\n")
    own = "--eval_strategy steps --eval_steps 3".split()
    assert run_pretraining.main([str(recipe), *flags(out, None, *own)]) == 0
    assert steps == [0, 3, 6]  # the end only once
    evaluated = [entry for entry in state(out)["log_history"] if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [3, 6]
    assert content_of(out / "eval_results.json")["eval_loss"] == evaluated[-1]["eval_loss"]
    results = content_of(out / "all_results.json")
    for name in ("eval_loss/mlm", "eval_loss/tlm", "eval_loss/xlco", "eval_retrieval/en-xx", "train_loss"):
        assert name in results
    start = state(out)["log_history"][0]
    assert (start["step"], start["eval_loss/mlm"]) == (0, results["start_loss/mlm"])
    # The layer and pooling of the contrast, of which the model gives sentence vectors.
    vectors, config = content_of(out / "run.json")["heldout_vectors"], InfoXLMConfig.from_pretrained(out)
    assert vectors == {"layer": config.xlco_layer, "pooling": config.xlco_pooling}
    retrieval = f"{100 * results['start_retrieval/mean']:.1f} -> {100 * results['eval_retrieval/mean']:.1f} %"
    shown = f"vectors of layer {config.xlco_layer} by {config.xlco_pooling} pooling: retrieval {retrieval}"
    assert shown in capsys.readouterr().out


def test_start_and_end_are_of_the_same_heldout_pairs_however_the_batch_is_cut(text: Path, out: Path) -> None:
    """A resumed run may have another number of processes, or room for other batches, than at its start."""
    own = "--heldout_fraction 0.4 --max_steps 1 --xlco_pooling mean --xlco_layer -1 --eval_layer -1"
    argv = flags(out, text, *own.split())
    starts = []
    for cut in ("8 1 8", "2 4 2", "4 2 6"):
        size, accumulated, evaluated = cut.split()
        argv += ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", accumulated]
        argv += ["--per_device_eval_batch_size", evaluated, "--overwrite_output_dir", "true"]
        assert run_pretraining.main(argv) == 0
        starts.append(state(out)["log_history"][0])
    assert "eval_xlco/in_batch_accuracy" in starts[0] and "eval_loss/tlm" in starts[0]
    assert all(start == pytest.approx(starts[0], abs=1e-5) for start in starts[1:])
    # -1 is the last layer, of contrast and evaluation.
    vectors = content_of(out / "run.json")["heldout_vectors"]
    assert vectors["layer"] == InfoXLMConfig.from_pretrained(out).xlco_layer == 2


# ---------------------------------------------------------------------------- the same again


def test_a_run_that_sigterm_ended_goes_on_to_the_same_end(
    text: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = flags(out, text, "--hidden_dropout_prob", "0.1")
    with monkeypatch.context() as patch:
        patch.setattr("modeling_infoxlm.commands.pretrain.StopOnSignal", StopInStep3)
        assert run_pretraining.main(argv) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "interrupted: checkpoint-3 is saved; run the same command again to go on."
    )
    assert checkpoints(out) == ["checkpoint-3"] and not (out / "model.safetensors").exists()
    steps: list[int] = []
    step = InfoXLMTrainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(
            InfoXLMTrainer,
            "training_step",
            lambda self, *args, **kwargs: steps.append(self.state.global_step) or step(self, *args, **kwargs),
        )
        assert run_pretraining.main(argv) == 0
    assert steps == [3, 4, 5]
    straight = tmp_path / "straight"
    assert run_pretraining.main(flags(straight, text, "--hidden_dropout_prob", "0.1")) == 0
    results = [content_of(folder / "train_results.json") for folder in (out, straight)]
    assert results[0]["train_loss"] == results[1]["train_loss"]
    found, expected = state(out), state(straight)
    for name in ("total_flos", "num_input_tokens_seen"):
        assert found[name] == expected[name]
    logged = [[entry["step"] for entry in one["log_history"]] for one in (found, expected)]
    assert logged[0] == logged[1] and logged[0][-1] == 6
    weights = [load_file(folder / "model.safetensors") for folder in (out, straight)]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_finished_run_is_guarded_until_overwritten(text: Path, out: Path, refusal: Refusal) -> None:
    assert run_pretraining.main(flags(out, text)) == 0
    assert checkpoints(out) == ["checkpoint-4", "checkpoint-6"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # The same again, and with what changes no result.
    assert run_pretraining.main(flags(out, text)) == 0
    assert run_pretraining.main(flags(out, text, "--logging_steps", "1", "--save_steps", "2")) == 0
    message = refusal(flags(out, text, "--learning_rate", "1e-3", "--seed", "2"))
    assert f"{out} holds a different run: learning_rate was 0.005, is now 0.001 (and 1 more: seed)" in message
    content = text.read_bytes()
    write_pairs(text, PAIRS[:-1])
    message = refusal(flags(out, text))
    assert message.startswith(f"{out / 'data'} was prepared differently:") and str(text) in message
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    text.write_bytes(content)
    assert run_pretraining.main(flags(out, text, "--max_steps", "3", "--overwrite_output_dir", "true")) == 0
    assert checkpoints(out) == ["checkpoint-3"]


# ---------------------------------------------------------------------------- a run in the folder


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--tokenizer_name", "./nowhere"], "nowhere"),
        (["--eval_layer", "3"], "eval_layer is 3 but the model has 2 layers"),
        (["--recompute_layers", "3"], "recompute_layers is 3 but the model has 2 layers"),
        (["--momentum_state", "nowhere"], "nowhere/momentum_state.safetensors is missing"),
        (["--report_to", "wandb"], "report_to names wandb, which is not installed: pip install wandb."),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "lr_scheduler_type"),
        (["--optim", "lion_8bit"], "optim"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_is_overwritten_and_text_is_prepared(
    text: Path, fitted: Path, tmp_path: Path, refusal: Refusal, wrong: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(plan_checks, "get_available_reporting_integrations", lambda: ["tensorboard"])
    before = sorted(path for path in fitted.rglob("*"))
    named = ["--tokenizer_name", str(fitted / "tokenizer"), "--heldout_fraction", "0.4"]
    argv = flags(fitted, text, "--overwrite_output_dir", "true", *named, *wrong)
    assert message in refusal(argv)
    assert sorted(path for path in fitted.rglob("*")) == before


def test_one_process_of_the_job_prepares_and_overwrites_on_a_shared_disk(fitted: Path, out: Path) -> None:
    """Two machines, so two processes with LOCAL_RANK 0, and a finished run in the folder that they share."""
    shutil.copytree(fitted, out)
    record = content_of(out / "run.json")
    record["identity"]["max_steps"] = 2  # as if it had been a short one
    (out / "run.json").write_text(json.dumps(record))
    halves = "--per_device_train_batch_size 8 --max_steps 2 --save_strategy no --overwrite_output_dir true"
    argv = flags(out, fitted.parent / "text" / "en-xx.tsv", *FIT, *halves.split())
    job = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    job |= {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *argv],
            env={**os.environ, **job, "RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        ends = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ends[0][1][-2000:] + ends[1][1][-2000:]
    assert content_of(out / "run.json")["finished"]
    assert f"{out / 'data'} is already prepared" in ends[1][1]  # it waited until the other one was done
    assert not checkpoints(out)  # they were the finished run's
    assert not [path for path in out.rglob("*") if path.suffix in (".partial", ".claim")]
