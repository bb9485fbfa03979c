"""The entry point, in this process: learn, answer, go on after a stop, and what it must refuse."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import mlqa_rules
from safetensors.torch import load_file
from tiny_nli import word_tokenizer, write_encoders
from tiny_qa import article, marked_articles, question, write_sets, write_squad
from tiny_run import VOCAB
from transformers import AutoModelForQuestionAnswering

import run_mlqa
from modeling_infoxlm.evaluation import finetuning
from modeling_infoxlm.evaluation.finetuning import FineTuner
from modeling_infoxlm.runs.process import StopOnSignal
from modeling_infoxlm.runs.provenance import read_result

FLAGS = (
    "--max_seq_length 16 --doc_stride 4 --max_query_length 4 --max_answer_length 2 --use_cpu true "
    "--disable_tqdm true --seed 1 --per_device_train_batch_size 8 --learning_rate 5e-3 --num_train_epochs 4 "
    "--save_steps 12 --logging_steps 12"
).split()


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a process are for programs."""
    monkeypatch.setattr("modeling_infoxlm.commands.mlqa.configure_process", lambda: None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mlqa")
    write_encoders(root, dropout=0.1)
    write_sets(root / "data")
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def command(shared: Path, out: Path, *own: str, model: str = "infoxlm") -> list[str]:
    """A command; of a flag given twice the last one counts."""
    data = shared / "data"
    places = ["--model_name_or_path", str(shared / model), "--train_file", str(data / "train-v1.1.json")]
    tests = ["--test_files", str(data / "mlqa"), "--cache_dir", str(shared / "cache")]
    return [*places, *tests, "--output_dir", str(out), *FLAGS, *own]


@pytest.fixture(scope="module")
def fitted(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything in it."""
    folder = tmp_path_factory.mktemp("fitted")
    sets = [str(shared / "data" / name) for name in ("mlqa", "xquad")]
    argv = command(
        shared, folder, "--test_files", *sets, "--all_pairs", "true", "--save_n_best", "true", model="plain"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_infoxlm.commands.mlqa.configure_process", lambda: None)
        assert run_mlqa.main(argv) == 0
    return folder


def gold_of(path: Path) -> dict[str, list[str]]:
    content = json.loads(path.read_text("utf-8"))
    rows = [row for item in content["data"] for part in item["paragraphs"] for row in part["qas"]]
    return {row["id"]: [answer["text"] for answer in row["answers"]] for row in rows}


# ---------------------------------------------------------------------------- from files to scores


@pytest.mark.parametrize(
    ("task", "gold", "written", "key"),
    [
        ("mlqa", "mlqa/dev-context-en-question-en.json", "dev-en.json", "en"),
        ("mlqa", "mlqa/dev-context-de-question-de.json", "dev-context-de-question-en.json", "de-en"),
        ("xquad", "xquad/xquad.de.json", "test-de.json", "de"),
    ],
)
def test_scores_are_those_of_the_written_predictions(
    fitted: Path, shared: Path, task: str, gold: str, written: str, key: str
) -> None:
    predictions = json.loads((fitted / "predictions" / task / written).read_text("utf-8"))
    found = read_result(fitted / f"{task}_results.json")["scores"][key]
    expected = mlqa_rules.evaluate(gold_of(shared / "data" / gold), predictions, key[:2])
    assert (found["f1"]["value"], found["exact_match"]["value"]) == pytest.approx(expected)


def test_it_learned_to_answer(fitted: Path) -> None:
    result = read_result(fitted / "mlqa_results.json")
    assert result["scores"]["en"]["exact_match"]["value"] > 70  # one word of six is chance
    assert set(result["scores"]) == {"en", "de", "de-en", "en-de"}
    assert set(result["details"]["g_xlt"]["f1"]["de"]) == {"de", "en"}
    training = result["details"]["training"]
    assert training["steps"] == 48 and training["windows"] >= 96
    assert training["mismatched_answers"] == 0
    assert (result["task"], result["metric"], result["seed"]) == ("mlqa", "f1", 1)
    assert result["settings"]["doc_stride"] == 4 and result["command"][0] == "run_mlqa.py"
    assert result["identity"]["lr_scheduler_type"] == "linear"


def test_n_best_lists_begin_with_the_prediction(fitted: Path) -> None:
    for path in (fitted / "predictions" / "mlqa").iterdir():
        predictions = json.loads(path.read_text("utf-8"))
        lists = json.loads((fitted / "nbest_predictions" / "mlqa" / path.name).read_text("utf-8"))
        assert {key: found[0]["text"] for key, found in lists.items()} == predictions
        assert max(map(len, lists.values())) > 5
        for found in lists.values():
            scores = [entry["score"] for entry in found]
            assert scores == sorted(scores, reverse=True)
            assert sum(entry["probability"] for entry in found) == pytest.approx(1)


def test_the_model_folder_loads_as_it_is(fitted: Path) -> None:
    model, loading = AutoModelForQuestionAnswering.from_pretrained(fitted, output_loading_info=True)
    assert not loading["missing_keys"] and model.config.model_type == "xlm-roberta"


@pytest.mark.parametrize("kind", ["infoxlm", "plain", "bert", "st"])
def test_every_kind_of_encoder_learns(shared: Path, out: Path, kind: str) -> None:
    assert run_mlqa.main(command(shared, out, model=kind)) == 0
    assert read_result(out / "mlqa_results.json")["scores"]["en"]["f1"]["value"] > 50


def test_a_trained_model_answers_as_it_is(
    shared: Path, fitted: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(shared, out, "--model_name_or_path", str(fitted), "--do_train", "false")
    assert run_mlqa.main(argv) == 0
    found, expected = (read_result(folder / "mlqa_results.json") for folder in (out, fitted))
    assert found["scores"] == {name: expected["scores"][name] for name in ("de", "en")}
    assert found["seed"] is None and found["details"]["training"] is None
    assert sorted(path.name for path in out.iterdir()) == ["mlqa_results.json", "predictions", "run.json"]
    printed = capsys.readouterr().out
    assert f"{found['summary']['gap']:.1f}" in printed


def test_training_alone(shared: Path, out: Path) -> None:
    argv = command(shared, out, "--do_predict", "false", "--max_steps", "2")
    assert run_mlqa.main(argv) == 0
    assert (out / "model.safetensors").is_file() and not (out / "predictions").exists()


def test_questions_without_answer_are_learned(shared: Path, out: Path, tmp_path: Path) -> None:
    articles = marked_articles("en", 96)
    for entry in articles[::2]:
        (part,) = entry["paragraphs"]
        part["context"] = part["context"].replace(part["qas"][0]["answers"][0]["text"], "w4")
        part["qas"][0].update(answers=[], is_impossible=True)
    train = write_squad(tmp_path / "train.en.json", articles)
    test = write_squad(tmp_path / "test.en.json", articles)
    own = ["--train_file", str(train), "--test_files", str(test), "--version_2_with_negative", "true"]
    assert run_mlqa.main(command(shared, out, *own)) == 0
    result = read_result(out / "qa_results.json")
    assert 30 < result["details"]["sets"]["en"]["answered"] < 66
    assert result["scores"]["en"]["exact_match"]["value"] > 70
    assert result["details"]["training"]["windows_with_answer"] < result["details"]["training"]["windows"]


def test_mismatched_answers_are_skipped_and_counted(shared: Path, out: Path, tmp_path: Path) -> None:
    wrong = article("w4 w5 w6", question("wrong", "w7", "w5", 4))
    train = write_squad(tmp_path / "train.json", [*marked_articles("en", 8), wrong])
    test = write_squad(tmp_path / "xquad.en.json", [*marked_articles("en", 8), wrong])
    own = ["--train_file", str(train), "--test_files", str(test), "--on_mismatched_answers", "skip"]
    assert run_mlqa.main(command(shared, out, *own, "--max_steps", "2")) == 0
    result = read_result(out / "xquad_results.json")
    assert result["details"]["training"]["mismatched_answers"] == 1
    assert result["details"]["training"]["questions"] == {str(train): 8}
    assert result["details"]["sets"]["en"]["mismatched_answers"] == 1
    assert result["scores"]["en"]["f1"]["count"] == 9


# ---------------------------------------------------------------------------- the same again


class StopInStep(StopOnSignal):
    """As if Slurm sent SIGTERM while step 20 runs, in the second epoch of 12."""

    def on_step_begin(self, args: object, state: Any, control: object, **kwargs: object) -> None:
        if state.global_step == 19:
            signal.raise_signal(signal.SIGTERM)


def test_a_stopped_run_goes_on_to_the_same_end(
    shared: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = command(shared, out)
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "StopOnSignal", StopInStep)
        assert run_mlqa.main(argv) == 130
    assert not (out / "mlqa_results.json").exists() and not (out / "predictions").exists()
    assert run_mlqa.main(argv) == 0
    straight = tmp_path / "straight"
    assert run_mlqa.main(command(shared, straight)) == 0
    resumed, expected = (load_file(folder / "model.safetensors") for folder in (out, straight))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    found, wanted = (read_result(folder / "mlqa_results.json") for folder in (out, straight))
    assert found["scores"] == wanted["scores"]


def test_a_run_killed_while_it_answers_only_answers(
    shared: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = command(shared, out, "--max_steps", "8")
    with monkeypatch.context() as patch:
        patch.setattr("modeling_infoxlm.commands.mlqa.MLQARun.answer", lambda self: 1 / 0)
        assert run_mlqa.main(argv) == 1
    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "training_step", lambda *args, **kwargs: pytest.fail("trained again"))
        assert run_mlqa.main(argv) == 0
    assert read_result(out / "mlqa_results.json")["details"]["training"]["steps"] == 8


def test_a_finished_run_says_so_and_another_is_refused(
    shared: Path, fitted: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(shared, out, "--model_name_or_path", str(fitted), "--do_train", "false")
    assert run_mlqa.main(argv) == 0
    assert run_mlqa.main(argv) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert run_mlqa.main([*argv, "--overwrite_output_dir", "true", "--max_predict_samples", "3"]) == 0
    assert len(json.loads((out / "predictions/mlqa/dev-de.json").read_text())) == 3


# ---------------------------------------------------------------------------- bad input


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], out: Path) -> Callable[..., str]:
    """The one line on standard error of a command that ends with 2 and leaves nothing."""

    def run(argv: list[str]) -> str:
        capsys.readouterr()
        try:
            found = run_mlqa.main(argv)
        except SystemExit as exit_:
            found = exit_.code
        error = capsys.readouterr().err
        assert found == 2, error
        assert not out.exists()
        lines = [line for line in error.splitlines() if "error: " in line]
        assert len(lines) == 1 and error.splitlines()[-1] == lines[0], error
        return lines[0].partition("error: ")[2]

    return run


def test_answers_that_do_not_stand_at_their_start(
    shared: Path, out: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    path = write_squad(tmp_path / "xquad.de.json", [article("w4 w5 w6", question("c", "w7", "w5", 4))])
    message = refusal(command(shared, out, "--test_files", str(path)))
    assert message.startswith(
        f"{path}: 1 of 1 questions have an answer that does not stand at its answer_start"
    )


def test_a_tokenizer_that_does_not_fit(
    shared: Path, out: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    word_tokenizer(VOCAB + 5).save_pretrained(tmp_path / "words")
    message = refusal(command(shared, out, "--tokenizer_name", str(tmp_path / "words")))
    assert message.startswith("the tokenizer has 65 tokens, the model's table 60;")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--max_seq_length", "513"], "takes at most 512 tokens; give --max_seq_length 512"),
        (["--max_seq_length", "11"], "max_seq_length is 11, but a question of 4 tokens"),
        (["--do_train", "false"], "has no trained head"),
        (["--model_name_or_path", "no/such/folder"], "no/such/folder cannot be loaded"),
        (["--test_files", "nothing.de.json"], "nothing.de.json is no file, and no folder or glob"),
        (["--n_best_size", "0"], "n_best_size must be at least 1, found 0"),
        (["--null_score_diff_threshold", "1"], "needs --version_2_with_negative true"),
        (["--eval_steps", "5"], "eval_steps 5.0 is not supported: there is no selection on a dev set"),
        (["--doc_strid", "3"], "unknown flag --doc_strid; did you mean --doc_stride?"),
    ],
)
def test_what_cannot_be_done(
    shared: Path, out: Path, refusal: Callable[..., str], own: list[str], message: str
) -> None:
    assert message in refusal(command(shared, out, *own))
