"""The entry point, in this process: from text to a checkpoint, again, and every input it must refuse."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_text import TINY_DATA, TINY_MODEL, TINY_RUN, sentence_pairs, write_pairs
from transformers import AutoModel, AutoTokenizer

import run_pretraining
from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.evaluation.retrieval.heldout import HeldoutRetrieval
from modeling_infoxlm.runs.process import StopOnSignal
from modeling_infoxlm.training import plan_checks
from modeling_infoxlm.training.trainer import InfoXLMTrainer

SCRIPT = Path(run_pretraining.__file__)
PAIRS = sentence_pairs(40)


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a process are for programs; and the peak need not be measured each time."""
    monkeypatch.setattr("modeling_infoxlm.commands.pretrain.configure_process", lambda **options: None)
    monkeypatch.setattr("modeling_infoxlm.commands.pretrain.matmul_peak", lambda device, dtype: 1e12)


def flags(folder: Path, text: Path | None, *own: str) -> list[str]:
    """A command; of a flag given twice the last one counts."""
    files = [] if text is None else ["--bitext_files", str(text)]
    shape = [*TINY_MODEL, *TINY_DATA, *TINY_RUN]
    return [
        *files,
        "--output_dir",
        str(folder),
        "--mono_from_bitext",
        "true",
        "--max_steps",
        "6",
        *shape,
        *own,
    ]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "text" / "en-xx.tsv", PAIRS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line on standard error of a command that ends with 2 for its input (or, a failure, with 1)."""

    def run(argv: list[str], *, code: int = 2) -> str:
        capsys.readouterr()
        try:
            found = run_pretraining.main(argv)
        except SystemExit as exit_:
            found = exit_.code
        error = capsys.readouterr().err
        assert found == code, error
        assert "Traceback" not in error
        lines = [line for line in error.splitlines() if "error: " in line]
        assert len(lines) == 1 and error.splitlines()[-1] == lines[0], error
        return lines[0].partition("error: ")[2]

    return run


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


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


def retrieval_of_training_pairs(folder: Path, model: InfoXLMForPreTraining) -> float:
    corpus = Corpus.open(folder / "data")
    return HeldoutRetrieval(replace(corpus, heldout=corpus.bitext), layer=2)(model)["retrieval/mean"]


def test_a_few_pairs_are_learnt_by_heart(fitted: Path) -> None:
    model = InfoXLMForPreTraining.from_pretrained(fitted)
    torch.manual_seed(1)
    untrained = InfoXLMForPreTraining(model.config)
    assert retrieval_of_training_pairs(fitted, untrained) < 0.2
    assert retrieval_of_training_pairs(fitted, model) > 0.6
    first, last = [entry for entry in state(fitted)["log_history"] if "loss" in entry]
    for name in ("loss/mlm", "loss/tlm", "loss/xlco"):
        assert last[name] < first[name]


def state(folder: Path) -> dict[str, list[dict[str, float]]]:
    content: dict[str, list[dict[str, float]]] = json.loads((folder / "trainer_state.json").read_text())
    return content


@pytest.mark.parametrize("place", [".", "checkpoint-100"])
def test_the_result_and_every_checkpoint_load_as_they_are(fitted: Path, place: str) -> None:
    model, report = AutoModel.from_pretrained(fitted / place, output_loading_info=True)
    assert type(model).__name__ == "InfoXLMModel" and not report["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(fitted / place)
    inputs = tokenizer([source for source, _ in PAIRS[:3]], padding=True, return_tensors="pt")
    assert model.sentence_vectors(**inputs, layer=2, pooling="mean").shape == (3, 32)
    assert tokenizer.unk_token_id not in inputs["input_ids"]
    assert "training_args.bin" not in [path.name for path in (fitted / place).iterdir()]


def test_the_run_says_what_it_was(fitted: Path) -> None:
    record = json.loads((fitted / "run.json").read_text())
    assert record["command"][:1] == ["--bitext_files"] and record["identity"]["learning_rate"] == 2e-3
    assert record["corpus"]["bitext"]["en-xx"]["num_examples"] == 40
    assert len(record["corpus"]["sources"][0]["files"][0]["sha256"]) == 64
    assert set(record["streams"]) == {"mlm", "tlm", "xlco"}
    weights = load_file(fitted / "model.safetensors")
    assert record["num_parameters"] == sum(value.numel() for value in weights.values())
    results = json.loads((fitted / "all_results.json").read_text())
    assert results["train_loss"] > 1 and results["train_runtime"] > 0.1


def test_heldout_pairs_are_evaluated_from_the_start_to_the_end(
    text: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    evaluate = InfoXLMTrainer.evaluate
    monkeypatch.setattr(
        InfoXLMTrainer,
        "evaluate",
        lambda self, **options: (steps.append(self.state.global_step), evaluate(self, **options))[1],
    )
    heldout = "--heldout_fraction 0.4 --eval_strategy steps --eval_steps 3 --eval_max_pairs 10".split()
    assert run_pretraining.main(flags(out, text, *heldout)) == 0
    assert steps == [0, 3, 6]  # the end only once
    evaluated = [entry for entry in state(out)["log_history"] if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [3, 6]
    assert json.loads((out / "eval_results.json").read_text())["eval_loss"] == evaluated[-1]["eval_loss"]
    results = json.loads((out / "all_results.json").read_text())
    for name in ("eval_loss/mlm", "eval_loss/tlm", "eval_loss/xlco", "eval_retrieval/en-xx", "train_loss"):
        assert name in results
    start = state(out)["log_history"][0]
    assert (start["step"], start["eval_loss/mlm"]) == (0, results["start_loss/mlm"])
    # The layer and pooling of the contrast, of which the model gives sentence vectors.
    vectors = json.loads((out / "run.json").read_text())["heldout_vectors"]
    config = InfoXLMConfig.from_pretrained(out)
    assert vectors == {"layer": config.xlco_layer, "pooling": config.xlco_pooling}
    retrieval = f"{100 * results['start_retrieval/mean']:.1f} -> {100 * results['eval_retrieval/mean']:.1f} %"
    shown = f"vectors of layer {config.xlco_layer} by {config.xlco_pooling} pooling: retrieval {retrieval}"
    assert shown in capsys.readouterr().out


def test_start_and_end_are_of_the_same_heldout_examples_however_the_batch_is_cut(
    text: Path, out: Path
) -> None:
    """A resumed run may have another number of processes, or room for other batches, than at its start."""
    argv = flags(out, text, "--heldout_fraction", "0.4", "--max_steps", "1", "--xlco_pooling", "mean")
    starts = []
    for cut in ("8 1 8", "2 4 2", "4 2 6"):
        size, accumulated, evaluated = cut.split()
        argv += ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", accumulated]
        argv += ["--per_device_eval_batch_size", evaluated, "--overwrite_output_dir", "true"]
        assert run_pretraining.main(argv) == 0
        starts.append(state(out)["log_history"][0])
    assert "eval_xlco/in_batch_accuracy" in starts[0] and "eval_loss/tlm" in starts[0]
    assert all(start == pytest.approx(starts[0], abs=1e-5) for start in starts[1:])


def test_minus_one_is_the_last_layer_of_contrast_and_evaluation(text: Path, out: Path) -> None:
    flags_of_last = "--xlco_layer -1 --eval_layer -1 --heldout_fraction 0.4 --max_steps 1".split()
    assert run_pretraining.main(flags(out, text, *flags_of_last)) == 0
    assert InfoXLMConfig.from_pretrained(out).xlco_layer == 2
    assert json.loads((out / "run.json").read_text())["heldout_vectors"]["layer"] == 2


def test_a_recipe_first_and_flags_over_it(text: Path, out: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"bitext_files: [{text}]\nmax_steps: 50\nobjectives: tlm\n")
    assert run_pretraining.main([str(recipe), *flags(out, None, "--max_steps", "2")]) == 0
    record = json.loads((out / "run.json").read_text())["identity"]
    assert (record["objectives"], record["max_steps"]) == ("tlm", 2)
    assert checkpoints(out) == ["checkpoint-2"]


# ---------------------------------------------------------------------------- the same again


class StopInStep3(StopOnSignal):
    """As if somebody typed Ctrl-C, or Slurm sent SIGTERM, while step 3 runs."""

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)


def test_an_interrupted_run_goes_on_to_the_same_end(
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
    results = [json.loads((folder / "train_results.json").read_text()) for folder in (out, straight)]
    assert results[0]["train_loss"] == results[1]["train_loss"]
    for name in ("total_flos", "num_input_tokens_seen"):
        assert state(out)[name] == state(straight)[name]
    resumed, expected = (load_file(folder / "model.safetensors") for folder in (out, straight))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_finished_run_is_left_guarded_and_overwritten_when_asked(
    text: Path, out: Path, refusal: Callable[..., str]
) -> None:
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


def test_sigterm_saves_and_the_same_command_completes(text: Path, out: Path) -> None:
    argv = flags(out, text, "--max_steps", "60", "--save_steps", "20", "--stop_on_collapse", "0")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *argv],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoint-20").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130, error
    (last,) = [line for line in error.splitlines() if line.startswith("interrupted:")]
    saved = last.split()[1]
    assert saved in checkpoints(out) and 20 < int(saved.removeprefix("checkpoint-")) < 60
    assert run_pretraining.main(argv) == 0
    assert state(out)["global_step"] == 60
    logged = [entry["step"] for entry in state(out)["log_history"] if "loss" in entry]
    assert logged == sorted(set(logged)) and logged[-1] == 60


# ---------------------------------------------------------------------------- bad input


# What the text is, and how the line begins that refuses it; TEXT stands for its file.
BAD_TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "TEXT is empty."),
    "no UTF-8": (
        b"a house\tein haus\ncaf\xe9\tkaffee\n",
        "TEXT, line 2: invalid UTF-8, byte 0xe9 at position 3",
    ),
    "nothing usable": (b"Haus\t\n\thouse\n", "no usable line in "),
    "no translation": (b"the same\tthe same\n" * 9, "TEXT: both sides are the same in 9 of 9 pairs of en-xx"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_text_that_cannot_be_used(text: Path, out: Path, name: str, refusal: Callable[..., str]) -> None:
    content, message = BAD_TEXTS[name]
    text.write_bytes(content)
    assert refusal(flags(out, text)).startswith(message.replace("TEXT", str(text)))


def test_text_that_is_not_there_or_no_pair(out: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    source, target = tmp_path / "news.en", tmp_path / "news.xx"
    source.write_text("a\nb\n")
    target.write_text("a\n")
    (tmp_path / "en-xx.tsv.lz4").write_text("x")
    for spec, message in (
        (f"{source},{target}", f"bitext en-xx has 2 source lines ({source}) but 1 target lines ({target});"),
        (f"en-xx={source},{source}", f"both sides of en-xx are the same file {source};"),
        (f"{tmp_path}/en-xx.tsv.lz4", f"{tmp_path}/en-xx.tsv.lz4: unknown compression .lz4; expected one of"),
        (f"{tmp_path}/en-xx.tsv", f"{tmp_path}/en-xx.tsv: no such file or folder."),
    ):
        assert refusal(flags(out, None, "--bitext_files", spec)).startswith(message)
    assert refusal(flags(out, None)).startswith("a model from scratch needs a tokenizer: give --tokenizer_na")


def test_the_way_out_that_a_message_names_is_open_in_the_same_folder(
    text: Path, out: Path, refusal: Callable[..., str]
) -> None:
    text.write_bytes(text.read_bytes() + b"caf\xe9\tkaffee\n")
    assert "--on_bad_line skip" in refusal(flags(out, text))
    assert run_pretraining.main(flags(out, text, "--on_bad_line", "skip")) == 0
    manifest = json.loads((out / "data/manifest.json").read_text())
    assert manifest["bitext"]["en-xx"]["dropped"] == {"bad_line": 1}


def test_flags_that_cannot_be_touch_no_folder(text: Path, out: Path, refusal: Callable[..., str]) -> None:
    recipe = text.parent / "recipe.yaml"
    recipe.write_text("xlco_temprature: 0.1\n")
    for own, message in (
        ("--queue_size 0", "queue_size must be at least 1, found 0."),
        ("--max_steps 0", "max_steps must be at least 1, found 0."),
        (
            f"--config {recipe}",
            f"recipe {recipe}: unknown key xlco_temprature; did you mean xlco_temperature?",
        ),
        (
            "--mono_from_bitext false",
            "objective mlm needs monolingual text, but there is none; give --mono_f",
        ),
        (
            "--eval_strategy steps --eval_steps 3",
            "eval_strategy is steps but heldout_fraction is 0, so no pai",
        ),
    ):
        assert refusal(flags(out, text, *own.split())).startswith(message)
        assert not out.exists()
    message = refusal(flags(out, None, "--mono_files", f"en={text}", "--mono_from_bitext", "false"))
    assert message.startswith("objective tlm needs translated text, but there is none; give --bitext_files")
    assert not out.exists()


def test_a_folder_of_something_else(text: Path, out: Path, refusal: Callable[..., str]) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    assert f"{out} is not empty and holds no run.json" in refusal(flags(out, text))
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_corpus_that_changed_within_a_run(
    text: Path, out: Path, tmp_path: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was given or made by the run: the rest of it would be trained on other text."""
    prepared = tmp_path / "prepared"
    argv = flags(out, text, "--prepared_data", str(prepared))
    with monkeypatch.context() as patch:
        patch.setattr("modeling_infoxlm.commands.pretrain.StopOnSignal", StopInStep3)
        assert run_pretraining.main(argv) == 130
    shutil.move(prepared, tmp_path / "kept")
    content = text.read_bytes()
    write_pairs(text, PAIRS[:-1])
    for _ in range(2):  # the record still tells what the run was trained on
        message = refusal(argv)
        assert message.startswith(f"{out} was trained on another corpus than {prepared} is now: source en-xx")
    shutil.rmtree(prepared)
    text.write_bytes(content)
    assert run_pretraining.main(argv) == 0


def test_evaluation_without_heldout_pairs(text: Path, out: Path, refusal: Callable[..., str]) -> None:
    assert run_pretraining.main(flags(out, text, "--max_steps", "1")) == 0
    prepared = ["--prepared_data", str(out / "data"), "--tokenizer_name", str(out / "tokenizer")]
    prepared += "--mono_from_bitext false --eval_strategy steps --eval_steps 3".split()
    message = refusal(flags(out.with_name("b"), None, *prepared))
    assert message.startswith(f"eval_strategy is steps but {out / 'data'} holds out no pair; prepare it with")


def test_full_disk(
    text: Path, out: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from modeling_infoxlm.data import prepare

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepare._PairWriter, "extend", full)
        message = refusal(flags(out, text), code=1)
    assert message.startswith(f"{out / 'data'} cannot be written: its disk is full")
    assert not list(out.rglob("*.partial")) and not list((out / "data" / "bitext").rglob("*.tokens"))
    assert run_pretraining.main(flags(out, text)) == 0


def test_a_wrong_flag_is_mended_in_the_same_folder(
    text: Path, out: Path, refusal: Callable[..., str]
) -> None:
    """It is refused before hours of preparation, and nothing was trained that would have to be protected."""
    heldout = "--heldout_fraction 0.4 --eval_strategy steps --eval_steps 5"
    for wrong, message in (
        ("--xlco_layer 3", "xlco_layer is 3 but the model has 2 layers; give a layer from 1 to 2, or -1"),
        ("--max_position_embeddings 34", "sequences of up to 64 tokens, the model positions for 32"),
        (f"{heldout} --eval_layer 3", "eval_layer is 3 but the model has 2 layers"),
    ):
        assert message in refusal(flags(out, text, *wrong.split()))
        assert not (out / "data").exists() and not checkpoints(out)
    assert run_pretraining.main(flags(out, text)) == 0


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
    text: Path, fitted: Path, tmp_path: Path, refusal: Callable[..., str], wrong: list[str], message: str,
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
    text = fitted.parent / "text" / "en-xx.tsv"
    shutil.copytree(fitted, out)
    record = json.loads((out / "run.json").read_text())
    record["identity"]["max_steps"] = 2  # as if it had been a short one
    (out / "run.json").write_text(json.dumps(record))
    port = str(free_port())
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    halves = (
        "--per_device_train_batch_size 8 --max_steps 2 --save_strategy no --overwrite_output_dir true".split()
    )
    command = [sys.executable, str(SCRIPT), *flags(out, text, *FIT, *halves)]
    processes = [
        subprocess.Popen(
            command,
            env={**common, "RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
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
    assert json.loads((out / "run.json").read_text())["finished"]
    assert f"{out / 'data'} is already prepared" in ends[1][1]  # it waited until the other one was done
    assert not checkpoints(out)  # they were the finished run's
    assert not [path for path in out.rglob("*") if path.suffix in (".partial", ".claim")]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
