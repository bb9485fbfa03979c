"""XNLI and MLQA, in this process: fine-tune, test, go on after a stop, and what must be refused."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import mlqa_rules
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from tiny_nli import LABELS, nli_rows, word_tokenizer, write_encoders, write_nli, write_xnli
from tiny_pretraining import Refusal
from tiny_programs import MLQA, XNLI, Program, command, result_of
from tiny_qa import article, marked_articles, question, write_sets, write_squad
from transformers import AutoModelForSequenceClassification

import run_mlqa
import run_xnli
from modeling_infoxlm.evaluation.finetuning import trainer
from modeling_infoxlm.evaluation.finetuning.trainer import FineTuner
from modeling_infoxlm.runs.process import StopOnSignal
from modeling_infoxlm.runs.provenance import read_result

LANGUAGES = ("en", "de", "fr")


BOTH = pytest.mark.parametrize("program", [XNLI, MLQA], ids=["xnli", "mlqa"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    write_encoders(root, dropout=0.1)
    write_xnli(root / "xnli")
    write_sets(root / "qa")
    return root


@pytest.fixture(scope="module")
def fitted(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each program with everything in it."""
    folders = {}
    for program in (XNLI, MLQA):
        folders[program.name] = tmp_path_factory.mktemp(program.name)
        extras = program.extras.format(data=shared).split()
        assert program.main(command(program, shared, folders[program.name], *extras, model="plain")) == 0
    return folders


# ---------------------------------------------------------------------------- from files to scores


def test_accuracy_is_scikit_learns_from_the_written_predictions(fitted: dict[str, Path]) -> None:
    result = result_of(fitted["xnli"], XNLI)
    for language in LANGUAGES:
        path = fitted["xnli"] / "predictions" / f"test-{language}.tsv"
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
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


def test_answers_are_scored_and_head_their_n_best_lists(fitted: dict[str, Path], shared: Path) -> None:
    for task, gold, written, key in (
        ("mlqa", "mlqa/dev-context-en-question-en.json", "dev-en.json", "en"),
        ("mlqa", "mlqa/dev-context-de-question-de.json", "dev-context-de-question-en.json", "de-en"),
        ("xquad", "xquad/xquad.de.json", "test-de.json", "de"),
    ):
        predictions = json.loads((fitted["mlqa"] / "predictions" / task / written).read_text("utf-8"))
        content = json.loads((shared / "qa" / gold).read_text("utf-8"))
        rows = [row for item in content["data"] for part in item["paragraphs"] for row in part["qas"]]
        golds = {row["id"]: [answer["text"] for answer in row["answers"]] for row in rows}
        found = read_result(fitted["mlqa"] / f"{task}_results.json")["scores"][key]
        expected = mlqa_rules.evaluate(golds, predictions, key[:2])
        assert (found["f1"]["value"], found["exact_match"]["value"]) == pytest.approx(expected)
        lists = json.loads((fitted["mlqa"] / "nbest_predictions" / task / written).read_text("utf-8"))
        assert {name: best[0]["text"] for name, best in lists.items()} == predictions
        assert max(map(len, lists.values())) > 5
        for best in lists.values():
            scores = [entry["score"] for entry in best]
            assert scores == sorted(scores, reverse=True)
            assert sum(entry["probability"] for entry in best) == pytest.approx(1)


def test_results_say_how_they_came_to_be_and_models_are_safe(fitted: dict[str, Path], shared: Path) -> None:
    for program in (XNLI, MLQA):
        folder = fitted[program.name]
        model, loading = program.auto_class.from_pretrained(folder, output_loading_info=True)
        assert not loading["missing_keys"] and model.config.model_type == "xlm-roberta"
        assert program is MLQA or list(model.config.id2label.values()) == list(LABELS)
        assert not list(folder.rglob("training_args.bin")) and (folder / "training_args.json").is_file()
        assert (folder / "tokenizer.json").is_file()
        result = result_of(folder, program)
        run = json.loads((folder / "run.json").read_text())["identity"]
        assert result["identity"]["files"] == sorted(run["files"].values())
        for name in ("seed", "lr_scheduler_type", "optim", "label_smoothing_factor", "batch_size"):
            assert result["identity"][name] == run[name]
        assert not {"model", "data_dir", "train_file"} & set(result["identity"])
        found = tuple(result[name] for name in ("task", "metric", "unit", "seed"))
        assert found == (program.name, program.metric, "percent", 1)
        assert result["model"]["name_or_path"] == str(shared / "plain")
        assert len(result["model"]["sha256"]) == 64
        assert result["settings"]["learning_rate"] == 5e-3
        assert result["command"][0] == f"run_{program.name}.py"
    result = result_of(fitted["xnli"], XNLI)
    assert set(result["dataset"]["files"]) == {f"test-{language}.tsv" for language in LANGUAGES}
    details = result["details"]
    assert details["training_rows"] == {"en": 96} and details["training"]["steps"] == 36
    assert not details["selected_on_test"]
    mixed = details["mixed_languages"]
    assert mixed["languages"] == list(LANGUAGES) and len(mixed["matrix"]) == len(mixed["matrix"][0]) == 3
    assert result["summary"]["within"] == mixed["within"]["value"] and mixed["across"]["count"] == 9
    result = result_of(fitted["mlqa"], MLQA)
    assert result["scores"]["en"]["exact_match"]["value"] > 70  # one word of six is chance
    assert set(result["scores"]) == {"en", "de", "de-en", "en-de"}
    assert set(result["details"]["g_xlt"]["f1"]["de"]) == {"de", "en"}
    training = result["details"]["training"]
    assert training["steps"] == 48 and training["windows"] >= 96 and training["mismatched_answers"] == 0


def test_the_best_step_on_dev_is_taken(fitted: dict[str, Path]) -> None:
    training = result_of(fitted["xnli"], XNLI)["details"]["training"]
    assert [entry["step"] for entry in training["history"]] == [6, 12, 18, 24, 30, 36]
    for entry in training["history"]:
        by_language = [entry[f"accuracy/{language}"] for language in LANGUAGES]
        assert entry["accuracy"] == pytest.approx(sum(by_language) / 3)
    best = max(training["history"], key=lambda entry: entry["accuracy"])
    assert training["selected_step"] == best["step"]
    chosen = load_file(fitted["xnli"] / f"checkpoint-{best['step']}" / "model.safetensors")
    final = load_file(fitted["xnli"] / "model.safetensors")
    assert all(torch.equal(chosen[name], final[name]) for name in final)


@pytest.mark.parametrize(
    ("program", "kind"), [(XNLI, "bert"), (XNLI, "st"), (MLQA, "bert")], ids=lambda one: str(one)[:12]
)
def test_every_kind_of_encoder_is_fine_tuned(shared: Path, out: Path, program: Program, kind: str) -> None:
    assert program.main(command(program, shared, out, model=kind)) == 0
    assert result_of(out, program)["scores"]["en"][program.metric]["value"] > 50


def test_english_alone_can_choose_or_nobody(shared: Path, out: Path, tmp_path: Path) -> None:
    assert run_xnli.main(command(XNLI, shared, out, "--select_on", "english", "--max_steps", "6")) == 0
    (entry,) = result_of(out, XNLI)["details"]["training"]["history"]
    assert set(entry) == {"step", "accuracy", "accuracy/en"}

    out = tmp_path / "last"
    own = "--eval_strategy no --max_steps 7 --test_split dev --languages de".split()
    assert run_xnli.main(command(XNLI, shared, out, *own)) == 0
    result = result_of(out, XNLI)
    training = result["details"]["training"]
    assert (training["selected_step"], training["history"]) == (7, [])
    assert not result["details"]["selected_on_test"] and result["dataset"]["name"] == "xnli-dev"
    assert [path.name for path in (out / "predictions").iterdir()] == ["dev-de.tsv"]


@BOTH
def test_a_fine_tuned_model_is_tested_as_it_is(
    shared: Path, fitted: dict[str, Path], out: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(fitted[program.name])
    argv = command(program, shared, out, "--model_name_or_path", folder, "--do_train", "false")
    assert program.main(argv) == 0
    found, expected = (result_of(folder, program) for folder in (out, fitted[program.name]))
    assert found["scores"] == {name: expected["scores"][name] for name in found["scores"]}
    assert {"en", "de"} <= set(found["scores"])
    assert found["seed"] is None and found["details"]["training"] is None
    assert "learning_rate" not in found["settings"] and "g_xlt" not in found["details"]
    written = [f"{program.name}_results.json", "predictions", "run.json"]
    assert sorted(path.name for path in out.iterdir()) == sorted(written)
    printed = capsys.readouterr().out
    assert f"{found['summary']['gap']:.1f}" in printed and "mean" in printed
    assert all(f"{scores[program.metric]['value']:.1f}" in printed for scores in found["scores"].values())
    # Once more it says so; anew it takes the place of what was there.
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert program.main([*argv, "--logging_steps", "3"]) == 0
    assert "this run is finished; --overwrite_output_dir true starts it anew" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert program.main([*argv, "--overwrite_output_dir", "true", "--max_predict_samples", "3"]) == 0
    assert result_of(out, program)["scores"]["de"][program.metric]["count"] == 3


@BOTH
def test_training_alone(
    shared: Path, out: Path, program: Program, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    """Every epoch has all rows in other batches; what was trained is guarded."""
    sums: list[int] = []
    step = FineTuner.training_step
    monkeypatch.setattr(
        FineTuner,
        "training_step",
        lambda self, model, inputs, *args: (
            sums.append(int((inputs["input_ids"] * inputs["attention_mask"]).sum()))
            or step(self, model, inputs, *args)
        ),
    )
    own = "--num_train_epochs 2 --eval_strategy no --do_predict false".split()
    assert program.main(command(program, shared, out, *own)) == 0
    first, second = sums[: len(sums) // 2], sums[len(sums) // 2 :]
    assert len(second) >= 12 and sum(first) == sum(second) and sorted(first) != sorted(second)
    assert (out / "model.safetensors").is_file()
    assert not (out / "predictions").exists() and not list(out.glob("*_results.json"))
    argv = command(program, shared, out, *own, "--learning_rate", "1e-3")
    assert "different run: learning_rate was 0.005, is now 0.001." in refusal(argv, main=program.main)


def test_questions_without_answer_are_learned(shared: Path, out: Path, tmp_path: Path) -> None:
    articles = marked_articles("en", 96)
    for entry in articles[::2]:
        (part,) = entry["paragraphs"]
        part["context"] = part["context"].replace(part["qas"][0]["answers"][0]["text"], "w4")
        part["qas"][0].update(answers=[], is_impossible=True)
    train = write_squad(tmp_path / "train.en.json", articles)
    test = write_squad(tmp_path / "test.en.json", articles)
    own = ["--train_file", str(train), "--test_files", str(test), "--version_2_with_negative", "true"]
    assert run_mlqa.main(command(MLQA, shared, out, *own)) == 0
    result = read_result(out / "qa_results.json")
    assert 30 < result["details"]["sets"]["en"]["answered"] < 66
    assert result["scores"]["en"]["exact_match"]["value"] > 70
    assert result["details"]["training"]["windows_with_answer"] < result["details"]["training"]["windows"]


def test_mismatched_answers_are_skipped_and_counted(shared: Path, out: Path, tmp_path: Path) -> None:
    wrong = article("w4 w5 w6", question("wrong", "w7", "w5", 4))
    train = write_squad(tmp_path / "train.json", [*marked_articles("en", 8), wrong])
    test = write_squad(tmp_path / "xquad.en.json", [*marked_articles("en", 8), wrong])
    own = ["--train_file", str(train), "--test_files", str(test), "--on_mismatched_answers", "skip"]
    assert run_mlqa.main(command(MLQA, shared, out, *own, "--max_steps", "2")) == 0
    result = read_result(out / "xquad_results.json")
    assert result["details"]["training"]["mismatched_answers"] == 1
    assert result["details"]["training"]["questions"] == {str(train): 8}
    assert result["details"]["sets"]["en"]["mismatched_answers"] == 1
    assert result["scores"]["en"]["f1"]["count"] == 9


# ---------------------------------------------------------------------------- the same again


@pytest.mark.parametrize(
    ("program", "own"),
    [(XNLI, []), (XNLI, ["--gradient_accumulation_steps", "2", "--num_train_epochs", "5"]), (MLQA, [])],
    ids=["xnli", "accumulated", "mlqa"],
)
def test_a_stopped_run_goes_on_to_the_same_end(
    shared: Path, out: Path, tmp_path: Path, program: Program, own: list[str],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class StopInStep(StopOnSignal):
        """As if somebody typed Ctrl-C, or Slurm sent SIGTERM, while a step runs."""

        def on_step_begin(self, args: object, state: Any, control: object, **kwargs: object) -> None:
            if state.global_step == program.stop_at - 1:
                signal.raise_signal(signal.SIGTERM)

    argv = command(program, shared, out, *own)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "StopOnSignal", StopInStep)
        assert program.main(argv) == 130
    last_line = capsys.readouterr().err.splitlines()[-1]
    stopped = f"checkpoint-{program.stop_at} is saved; run the same command again to go on."
    assert last_line == f"interrupted: {stopped}"
    assert not {path.name for path in out.iterdir()} & {"predictions", "model.safetensors"}
    assert not list(out.glob("*_results.json"))
    steps: list[int] = []
    step = FineTuner.training_step
    with monkeypatch.context() as patch:
        patch.setattr(
            FineTuner,
            "training_step",
            lambda self, *args, **kwargs: steps.append(self.state.global_step) or step(self, *args, **kwargs),
        )
        assert program.main(argv) == 0
    assert steps[0] == program.stop_at
    straight = tmp_path / "straight"
    assert program.main(command(program, shared, straight, *own)) == 0
    resumed, expected = (load_file(folder / "model.safetensors") for folder in (out, straight))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    found, wanted = (result_of(folder, program) for folder in (out, straight))
    assert found["scores"] == wanted["scores"] and wanted["scores"]["en"][program.metric]["value"] > 50
    assert found["details"]["training"] == wanted["details"]["training"]


@BOTH
def test_a_run_killed_while_it_predicts_only_predicts(
    shared: Path, out: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = command(program, shared, out, "--max_steps", "8")
    with monkeypatch.context() as patch:
        patch.setattr(program.testing, lambda self, *args: 1 / 0)
        assert program.main(argv) == 1
    weights = load_file(out / "model.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "training_step", lambda *args, **kwargs: pytest.fail("trained again"))
        assert program.main(argv) == 0
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert result_of(out, program)["details"]["training"]["steps"] == 8


# ---------------------------------------------------------------------------- bad input


@pytest.fixture
def refused(refusal: Refusal, shared: Path, out: Path) -> Refusal:
    """The one line of a command that ends with 2 and leaves nothing."""

    def run(program: Program, *own: str) -> str:
        message = refusal(command(program, shared, out, *own), main=program.main)
        assert not out.exists()
        return message

    return run


def test_bad_data(tmp_path: Path, refused: Refusal) -> None:
    data = write_xnli(tmp_path / "data")
    write_nli(data / "test-fr.tsv", [*nli_rows("fr", 5), ("w24", "w25", "unrelated")])
    message = refused(XNLI, "--data_dir", str(data))
    path = data / "test-fr.tsv"
    assert message.startswith(f"{path}, line 6: label 'unrelated' is none of entailment, neutral")
    path = write_squad(tmp_path / "xquad.de.json", [article("w4 w5 w6", question("c", "w7", "w5", 4))])
    message = refused(MLQA, "--test_files", str(path))
    assert message.startswith(f"{path}: 1 of 1 questions have an answer that does not stand")


@pytest.mark.parametrize(
    ("program", "own", "message"),
    [
        (MLQA, "--max_seq_length 513", "takes at most 512 tokens; give --max_seq_length 512"),
        (XNLI, "--do_train false", "has no trained head"),
        (XNLI, "--model_name_or_path no/such/folder", "no/such/folder cannot be loaded"),
        (XNLI, "--mixed_max_samples 0", "mixed_max_samples must be at least 1, found 0"),
        (XNLI, "--dataset_name facebook/xnli", "give either --dataset_name or files"),
        (XNLI, "--metric_for_best_model accuracy/sw", "give one of accuracy, accuracy/en, accuracy/de, acc"),
        (XNLI, "--dataset_revision main", "dataset_revision is of --dataset_name, which is not given"),
        (MLQA, "--max_seq_length 11", "max_seq_length is 11, but a question of 4 tokens"),
        (MLQA, "--n_best_size 0", "n_best_size must be at least 1, found 0"),
        (MLQA, "--null_score_diff_threshold 1", "needs --version_2_with_negative true"),
        (MLQA, "--eval_steps 5", "eval_steps 5.0 is not supported: there is no selection on a dev set"),
    ],
)
def test_what_cannot_be_done(refused: Refusal, program: Program, own: str, message: str) -> None:
    assert message in refused(program, *own.split())


def test_a_model_of_other_labels(fitted: dict[str, Path], tmp_path: Path, refused: Refusal) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(fitted["xnli"])
    model.config.id2label = {0: "no", 1: "yes", 2: "maybe"}
    model.save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    message = refused(XNLI, "--model_name_or_path", str(tmp_path / "model"), "--do_train", "false")
    assert message.startswith("the model's labels are no, yes, maybe, expected entailment, neutral, contrad")
