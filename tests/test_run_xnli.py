"""The entry point, in this process: fine-tune, select, test, go on after a stop, and what it must refuse."""

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from tiny_nli import LABELS, nli_rows, word_tokenizer, write_encoders, write_nli, write_xnli
from tiny_run import VOCAB
from transformers import AutoModelForSequenceClassification

import run_xnli
from modeling_infoxlm.evaluation import finetuning
from modeling_infoxlm.evaluation.finetuning import FineTuner
from modeling_infoxlm.runs.process import StopOnSignal
from modeling_infoxlm.runs.provenance import read_result

MIXED = ("--mixed_languages", "true", "--mixed_max_samples", "9")
KINDS = ("infoxlm", "plain", "bert", "st")
LANGUAGES = ("en", "de", "fr")
FLAGS = (
    "--languages en de fr --max_seq_length 40 --use_cpu true --disable_tqdm true --seed 1 "
    "--per_device_train_batch_size 8 --learning_rate 5e-3 --num_train_epochs 3 "
    "--eval_steps 6 --logging_steps 6"
).split()


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a process are for programs."""
    monkeypatch.setattr("modeling_infoxlm.commands.xnli.configure_process", lambda: None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("xnli")
    write_encoders(root, dropout=0.1)
    write_xnli(root / "data")
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def command(
    shared: Path, out: Path, *own: str, model: str = "infoxlm", data: Path | None = None
) -> list[str]:
    """A command; of a flag given twice the last one counts."""
    places = ["--model_name_or_path", str(shared / model), "--data_dir", str(data or shared / "data")]
    cache = ["--cache_dir", str(shared / "cache")]
    return [*places, *cache, "--output_dir", str(out), *FLAGS, *own]


@pytest.fixture(scope="module")
def fitted(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything in it."""
    folder = tmp_path_factory.mktemp("fitted")
    argv = command(shared, folder, *MIXED, model="plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_infoxlm.commands.xnli.configure_process", lambda: None)
        assert run_xnli.main(argv) == 0
    return folder


def predictions(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / "predictions" / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


# ---------------------------------------------------------------------------- from files to scores


def test_accuracy_is_scikit_learns_from_the_written_predictions(fitted: Path, shared: Path) -> None:
    result = read_result(fitted / "xnli_results.json")
    for language in LANGUAGES:
        rows = predictions(fitted, f"test-{language}.tsv")
        given = [tuple(row[name] for name in ("premise", "hypothesis", "gold")) for row in rows]
        assert given == nli_rows(language, 40, seed=3)
        accuracy = 100 * accuracy_score([row["gold"] for row in rows], [row["predicted"] for row in rows])
        found = result["scores"][language]["accuracy"]
        assert found["value"] == pytest.approx(accuracy) and found["count"] == 40
        for row in rows:
            assert row["predicted"] == max(LABELS, key=lambda name: float(row[name]))  # noqa: B023
            assert sum(float(row[name]) for name in LABELS) == pytest.approx(1, abs=1e-5)
    values = {language: result["scores"][language]["accuracy"]["value"] for language in LANGUAGES}
    assert result["summary"]["mean"] == pytest.approx(sum(values.values()) / 3)
    assert result["summary"]["gap"] == pytest.approx(values["en"] - (values["de"] + values["fr"]) / 2)
    assert values["en"] > 50  # learnt, where 33 is chance


def test_the_result_says_how_it_came_to_be(fitted: Path, shared: Path) -> None:
    result = read_result(fitted / "xnli_results.json")
    run = json.loads((fitted / "run.json").read_text())["identity"]
    assert result["identity"]["files"] == sorted(run["files"].values())
    for name in ("seed", "lr_scheduler_type", "optim", "label_smoothing_factor", "batch_size", "select_on"):
        assert result["identity"][name] == run[name]
    assert not {"model", "data_dir", "train_file"} & set(result["identity"])
    assert (result["task"], result["metric"], result["unit"], result["seed"]) == (
        "xnli",
        "accuracy",
        "percent",
        1,
    )
    assert result["model"]["name_or_path"] == str(shared / "plain") and len(result["model"]["sha256"]) == 64
    assert set(result["dataset"]["files"]) == {f"test-{language}.tsv" for language in LANGUAGES}
    assert result["settings"]["learning_rate"] == 5e-3 and result["settings"]["select_on"] == "all"
    assert result["command"][0] == "run_xnli.py"
    details = result["details"]
    assert details["training_rows"] == {"en": 96} and details["training"]["steps"] == 36
    assert not details["selected_on_test"]
    mixed = details["mixed_languages"]
    assert mixed["languages"] == list(LANGUAGES) and len(mixed["matrix"]) == len(mixed["matrix"][0]) == 3
    assert result["summary"]["within"] == mixed["within"]["value"] and mixed["across"]["count"] == 9


def test_the_best_step_on_dev_is_taken(fitted: Path) -> None:
    training = read_result(fitted / "xnli_results.json")["details"]["training"]
    assert [entry["step"] for entry in training["history"]] == [6, 12, 18, 24, 30, 36]
    for entry in training["history"]:
        by_language = [entry[f"accuracy/{language}"] for language in LANGUAGES]
        assert entry["accuracy"] == pytest.approx(sum(by_language) / 3)
    best = max(training["history"], key=lambda entry: entry["accuracy"])
    assert training["selected_step"] == best["step"]
    chosen = load_file(fitted / f"checkpoint-{best['step']}" / "model.safetensors")
    final = load_file(fitted / "model.safetensors")
    assert all(torch.equal(chosen[name], final[name]) for name in final)


def test_the_model_folder_is_safe_and_loads_as_it_is(fitted: Path) -> None:
    model, loading = AutoModelForSequenceClassification.from_pretrained(fitted, output_loading_info=True)
    assert not loading["missing_keys"] and model.config.model_type == "xlm-roberta"
    assert list(model.config.id2label.values()) == list(LABELS)
    assert not list(fitted.rglob("training_args.bin")) and (fitted / "training_args.json").is_file()
    assert (fitted / "tokenizer.json").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_is_fine_tuned(shared: Path, out: Path, kind: str) -> None:
    assert run_xnli.main(command(shared, out, model=kind)) == 0
    result = read_result(out / "xnli_results.json")
    assert result["scores"]["en"]["accuracy"]["value"] > 50  # 33 is chance


def test_english_alone_can_choose(shared: Path, out: Path) -> None:
    assert run_xnli.main(command(shared, out, "--select_on", "english", "--max_steps", "6")) == 0
    (entry,) = read_result(out / "xnli_results.json")["details"]["training"]["history"]
    assert set(entry) == {"step", "accuracy", "accuracy/en"}


def test_without_a_choice_the_last_step_is_taken(shared: Path, out: Path) -> None:
    own = "--eval_strategy no --max_steps 7 --test_split dev --languages de".split()
    assert run_xnli.main(command(shared, out, *own)) == 0
    result = read_result(out / "xnli_results.json")
    training = result["details"]["training"]
    assert (training["selected_step"], training["history"]) == (7, [])
    assert not result["details"]["selected_on_test"] and result["dataset"]["name"] == "xnli-dev"
    assert [path.name for path in (out / "predictions").iterdir()] == ["dev-de.tsv"]


def test_a_fine_tuned_model_is_tested_as_it_is(shared: Path, fitted: Path, out: Path) -> None:
    argv = command(shared, out, "--model_name_or_path", str(fitted), "--do_train", "false")
    assert run_xnli.main(argv) == 0
    found, expected = (read_result(folder / "xnli_results.json") for folder in (out, fitted))
    assert found["scores"] == expected["scores"]
    assert found["seed"] is None and found["details"]["training"] is None
    assert "learning_rate" not in found["settings"]
    assert sorted(path.name for path in out.iterdir()) == ["predictions", "run.json", "xnli_results.json"]


def test_the_table_is_printed(
    shared: Path, fitted: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(shared, out, "--model_name_or_path", str(fitted), "--do_train", "false")
    assert run_xnli.main(argv) == 0
    printed = capsys.readouterr().out
    result = read_result(out / "xnli_results.json")
    assert f"{result['summary']['gap']:.1f}" in printed and "mean" in printed
    assert all(f"{result['scores'][language]['accuracy']['value']:.1f}" in printed for language in LANGUAGES)


# ---------------------------------------------------------------------------- the same again


class StopInStep(StopOnSignal):
    """As if somebody typed Ctrl-C, or Slurm sent SIGTERM, while step 15 runs: in the second epoch of 12."""

    def on_step_begin(self, args: object, state: Any, control: object, **kwargs: object) -> None:
        if state.global_step == 14:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("own", [[], ["--gradient_accumulation_steps", "2", "--num_train_epochs", "5"]])
def test_a_stopped_run_goes_on_to_the_same_end(
    shared: Path, out: Path, tmp_path: Path, own: list[str],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    argv = command(shared, out, *own)
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "StopOnSignal", StopInStep)
        assert run_xnli.main(argv) == 130
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line == "interrupted: checkpoint-15 is saved; run the same command again to go on."
    assert not (out / "xnli_results.json").exists() and not (out / "model.safetensors").exists()
    steps: list[int] = []
    step = FineTuner.training_step
    with monkeypatch.context() as patch:
        patch.setattr(
            FineTuner,
            "training_step",
            lambda self, *args, **kwargs: steps.append(self.state.global_step) or step(self, *args, **kwargs),
        )
        assert run_xnli.main(argv) == 0
    assert steps[0] == 15
    straight = tmp_path / "straight"
    assert run_xnli.main(command(shared, straight, *own)) == 0
    resumed, expected = (load_file(folder / "model.safetensors") for folder in (out, straight))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    results = [read_result(folder / "xnli_results.json") for folder in (out, straight)]
    assert results[0]["scores"] == results[1]["scores"]
    assert results[0]["details"]["training"]["history"] == results[1]["details"]["training"]["history"]


def test_every_epoch_has_all_rows_in_other_batches(
    shared: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[int] = []
    step = FineTuner.training_step
    monkeypatch.setattr(
        FineTuner,
        "training_step",
        lambda self, model, inputs, *args: (
            sums.append(int(inputs["input_ids"].sum() - inputs["attention_mask"].logical_not().sum()))
            or step(self, model, inputs, *args)
        ),
    )
    own = "--num_train_epochs 2 --eval_strategy no --do_predict false".split()
    assert run_xnli.main(command(shared, out, *own)) == 0
    first, second = sums[:12], sums[12:]
    assert len(second) == 12 and sum(first) == sum(second)
    assert sorted(first) != sorted(second)
    assert not (out / "xnli_results.json").exists() and (out / "model.safetensors").is_file()


def test_a_run_killed_while_it_predicts_only_predicts(
    shared: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = command(shared, out, "--max_steps", "8")
    with monkeypatch.context() as patch:
        patch.setattr("modeling_infoxlm.commands.xnli.XNLIRun.predict", lambda self: 1 / 0)
        assert run_xnli.main(argv) == 1
    weights = load_file(out / "model.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "training_step", lambda *args, **kwargs: pytest.fail("trained again"))
        assert run_xnli.main(argv) == 0
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert read_result(out / "xnli_results.json")["details"]["training"]["steps"] == 8


def test_a_finished_run_says_so_and_another_is_refused(
    shared: Path, fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(shared, fitted, *MIXED, model="plain")
    before = {path: path.read_bytes() for path in fitted.rglob("*") if path.is_file()}
    assert run_xnli.main([*argv, "--logging_steps", "3"]) == 0
    assert "this run is finished; --overwrite_output_dir true starts it anew" in capsys.readouterr().out
    assert run_xnli.main([*argv, "--learning_rate", "1e-3"]) == 2
    assert "holds a different run: learning_rate was 0.005, is now 0.001." in capsys.readouterr().err
    assert {path: path.read_bytes() for path in fitted.rglob("*") if path.is_file()} == before


# ---------------------------------------------------------------------------- bad input


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], out: Path) -> Callable[..., str]:
    """The one line on standard error of a command that ends with 2 and leaves nothing."""

    def run(argv: list[str]) -> str:
        capsys.readouterr()
        try:
            found = run_xnli.main(argv)
        except SystemExit as exit_:
            found = exit_.code
        error = capsys.readouterr().err
        assert found == 2, error
        assert not out.exists()
        lines = [line for line in error.splitlines() if "error: " in line]
        assert len(lines) == 1 and error.splitlines()[-1] == lines[0], error
        return lines[0].partition("error: ")[2]

    return run


def test_a_language_without_its_file(shared: Path, out: Path, refusal: Callable[..., str]) -> None:
    message = refusal(command(shared, out, "--languages", "en", "sw", "de"))
    assert message.startswith(
        f"{shared / 'data'} has no dev file, such as dev-xx.tsv, for sw; name the languages"
    )


def test_a_label_outside_the_three(
    shared: Path, out: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    data = write_xnli(tmp_path / "data")
    write_nli(data / "test-fr.tsv", [*nli_rows("fr", 5), ("w24", "w25", "unrelated")])
    message = refusal(command(shared, out, data=data))
    assert message.startswith(
        f"{data / 'test-fr.tsv'}, line 6: label 'unrelated' is none of entailment, neutral"
    )


def test_a_tokenizer_that_does_not_fit(
    shared: Path, out: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    word_tokenizer(VOCAB + 5).save_pretrained(tmp_path / "words")
    message = refusal(command(shared, out, "--tokenizer_name", str(tmp_path / "words")))
    assert message.startswith("the tokenizer has 65 tokens, the model's table 60;")


@pytest.mark.parametrize(
    "own, message",
    [
        (["--max_seq_length", "513"], "takes at most 512 tokens; give --max_seq_length 512"),
        (["--do_train", "false"], "has no trained head"),
        (["--model_name_or_path", "no/such/folder"], "no/such/folder cannot be loaded"),
        (["--train_file", "nothing.tsv"], "--train_file: no file matches nothing.tsv"),
        (["--dataset_name", "facebook/xnli"], "give either --dataset_name or files"),
        (["--metric_for_best_model", "accuracy/sw"], "give one of accuracy, accuracy/en, accuracy/de, acc"),
        (["--dataset_revision", "main"], "dataset_revision is of --dataset_name, which is not given"),
        (["--test_spilt", "dev"], "unknown flag --test_spilt; did you mean --test_split?"),
    ],
)
def test_what_cannot_be_done(
    shared: Path, out: Path, refusal: Callable[..., str], own: list[str], message: str
) -> None:
    assert message in refusal(command(shared, out, *own))


def test_a_model_of_other_labels(shared: Path, fitted: Path, out: Path, refusal: Callable[..., str]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(fitted)
    model.config.id2label = {0: "no", 1: "yes", 2: "maybe"}
    folder = out.parent / "model"
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    message = refusal(command(shared, out, "--model_name_or_path", str(folder), "--do_train", "false"))
    assert message.startswith(
        "the model's labels are no, yes, maybe, expected entailment, neutral, contradic"
    )
