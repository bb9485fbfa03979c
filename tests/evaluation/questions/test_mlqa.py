"""Results of question answering: what is read, scored, summed up and written."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from reference import mlqa_rules
from tiny_nli import word_tokenizer
from tiny_qa import article, question, write_sets, write_squad

from modeling_infoxlm.evaluation.finetuning.arguments import HeadModelArguments
from modeling_infoxlm.evaluation.questions import mlqa_data
from modeling_infoxlm.evaluation.questions.mlqa import AnsweredSet, MLQARun
from modeling_infoxlm.evaluation.questions.mlqa_data import MLQAArguments, MLQAData, MLQATrainingArguments
from modeling_infoxlm.evaluation.questions.qa_spans import Candidate
from modeling_infoxlm.evaluation.questions.question_sets import Answer, Question, QuestionSet
from modeling_infoxlm.evaluation.results import ModelRecord
from modeling_infoxlm.runs.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("qa"))


def arguments(**given: Any) -> MLQAArguments:
    plain = {
        name: list(map(str, value)) if isinstance(value, list) else value for name, value in given.items()
    }
    return MLQAArguments(**plain)


def load_data(task: MLQAArguments, args: Any) -> Any:
    return mlqa_data.load_data(task, args, HeadModelArguments())


def training(**given: Any) -> Any:
    return SimpleNamespace(**{"do_train": True, "do_predict": True, **given})


def answered(context: str, question_language: str, golds: list[str], texts: list[str]) -> AnsweredSet:
    questions = [
        Question(f"q{number}", "?", f"{gold} and more", (Answer(gold, 0),))
        for number, gold in enumerate(golds)
    ]
    part = QuestionSet("mlqa", "dev", context, question_language, "x.json", questions)
    return AnsweredSet.of(part, [[Candidate(text, 0, 1.0)] for text in texts])


# ------------------------------------------------------------------------------------------------ the data


def test_each_benchmark_is_a_task(folder: Path) -> None:
    tests = [folder / "mlqa", folder / "xquad"]
    data = load_data(arguments(train_file=[folder / "train-v1.1.json"], test_files=tests), training())
    assert len(data.training_questions) == 96
    found = {task: [part.name for part in parts] for task, parts in data.test.items()}
    assert found == {"mlqa": ["de", "en"], "xquad": ["de", "en"]}
    assert len(data.files) == 5 and all(len(digest) == 64 for digest in data.files.values())
    assert data.outputs[:2] == ("mlqa_results.json", "xquad_results.json")


def test_what_is_missing_or_twice_or_not_done_is_refused(folder: Path, tmp_path: Path) -> None:
    train = [folder / "train-v1.1.json"]
    both = r"dev-context-de-question-de.json and .*xquad.de.json are both de; score them in two runs"
    for given, message in (
        ({"test_files": [folder / "mlqa"]}, "nothing to learn from: give --train_file"),
        ({"train_file": train}, "nothing to answer: give --test_files"),
        ({"train_file": train, "test_files": [folder / "mlqa", folder / "xquad"], "task_name": "own"}, both),
    ):
        with pytest.raises(UsageError, match=message):
            load_data(arguments(**given), training())
    for name, value in (("eval_strategy", "steps"), ("label_smoothing_factor", 0.1)):
        with pytest.raises(ValueError, match=f"{name} must be .* for question answering, found {value}"):
            MLQATrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})


def test_questions_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    twice = article("w4 w5", question("a", "w7", "w5", 3), question("a", "w8", "w5", 3))
    path = write_squad(tmp_path / "xquad.de.json", [twice])
    with pytest.raises(UsageError, match="two questions with the id 'a'"):
        load_data(arguments(test_files=[path]), training(do_train=False))
    # To learn from they may be: TyDiQA's English questions share their ids.
    assert len(load_data(arguments(train_file=[path]), training(do_predict=False)).training_questions) == 2


def test_samples_are_drawn_from_all_articles(tmp_path: Path) -> None:
    """SQuAD's files go article by article: the first 120 questions of XQuAD are of five."""
    long = article("w4 w5", *[question(f"a{number}", "w7", "w5", 3) for number in range(40)])
    others = [article("w4 w5", question(f"b{number}", "w7", "w5", 3)) for number in range(10)]
    path = write_squad(tmp_path / "xquad.de.json", [{**long, "title": "long"}, *others])
    task = arguments(test_files=[path], train_file=[path], max_predict_samples=10, max_train_samples=10)
    data = load_data(task, training())
    for (part,) in (data.test["xquad"], data.train):
        ids = [item.id for item in part.questions]
        assert sum(key.startswith("a") for key in ids) == 8 and ids != [f"a{number}" for number in range(10)]


MLQA_GERMAN = "dev-context-de-question-de.json"


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("xquad.de.json", {}, "squad"),
        ("XQuAD.de.json", {}, "squad"),
        ("tydiqa.sw.dev.json", {}, "squad"),
        (MLQA_GERMAN, {}, "mlqa"),
        ("mine.de.json", {}, "mlqa"),
        ("mine.de.json", {"task_name": "xquad"}, "squad"),
        ("xquad.de.json", {"task_name": "own"}, "squad"),
        ("xquad.de.json", {"scoring_rules": "mlqa"}, "mlqa"),
        (MLQA_GERMAN, {"scoring_rules": "squad"}, "squad"),
    ],
)
def test_each_benchmark_is_scored_as_its_literature_does(
    tmp_path: Path, name: str, given: dict[str, Any], expected: str
) -> None:
    path = write_squad(tmp_path / name, [article("der Hund", question("a", "w7", "Hund", 4))])
    data = load_data(arguments(test_files=[path], **given), training(do_train=False))
    ((task, (part,)),) = data.test.items()
    found = AnsweredSet.of(part, [[Candidate("der Hund", 0, 1.0)]], data.rules[task])
    result = run_of(data, do_train=False).score(task, [found], None)
    assert result.settings["scoring_rules"] == data.rules[task] == expected
    (scores,) = result.scores.values()
    assert scores["f1"].value == pytest.approx(100 if expected == "mlqa" else 200 / 3)


def test_benchmarks_of_different_rules_are_no_one_task(folder: Path, tmp_path: Path) -> None:
    french = write_squad(tmp_path / "xquad.fr.json", [article("w4", question("a", "w7", "w4", 0))])
    task = arguments(test_files=[folder / "mlqa", french], task_name="own")
    with pytest.raises(
        UsageError, match="own would hold mlqa and xquad, which are scored by different rules"
    ):
        load_data(task, training(do_train=False))
    task.scoring_rules = "squad"
    assert len(load_data(task, training(do_train=False)).test["own"]) == 3


def with_golds(path: Path, *golds: str) -> Path:
    return write_squad(
        path, [article("w4 .", question(f"q{i}", "w7", gold, 0)) for i, gold in enumerate(golds)]
    )


def test_blank_gold_answers_are_counted_and_a_set_of_them_alone_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sets whose answers are not public have blank ones: a model that does not answer would be right."""
    path = with_golds(tmp_path / "xquad.de.json", "", "w4", " ")
    task = arguments(test_files=[path], train_file=[path], on_mismatched_answers="skip")
    data = load_data(task, training())
    assert [item.id for item in data.training_questions] == ["q1"] and data.train[0].num_blank == 2
    assert data.test["xquad"][0].num_blank == 2
    assert "the gold answers of 2 of 3 questions are blank" in caplog.text
    assert "left out 2 questions whose answers are blank" in caplog.text
    blank = {"xquad.fr.json": ["", " "], "xquad.ru.json": ["the"], "mlqa.zh.zh.json": ["。"]}
    for name, golds in blank.items():
        path = with_golds(tmp_path / name, *golds)
        task = arguments(test_files=[path], on_mismatched_answers="skip")
        message = f"{name}: the gold answers of all {len(golds)} questions are blank"
        with pytest.raises(UsageError, match=message):
            load_data(task, training(do_train=False))
    with pytest.raises(UsageError, match="no question is left: the answers of 2 are blank"):
        load_data(arguments(train_file=[tmp_path / "xquad.fr.json"]), training(do_predict=False))
    unanswered = article("w4 w5", {"id": "d", "question": "w7", "answers": []})
    path = write_squad(tmp_path / "xquad.el.json", [unanswered])
    with pytest.raises(UsageError, match="the gold answers of all 1 questions are blank or missing"):
        task = arguments(test_files=[path], version_2_with_negative=True)
        load_data(task, training(do_train=False))


def test_questions_about_one_article_hang_together() -> None:
    """Resampled one by one, 20 questions that one article decides would look like 20 measurements."""
    golds, texts = ["Hund"] * 20 + ["Haus"] * 20, ["Hund"] * 20 + [""] * 20
    alone = answered("de", "de", golds, texts)

    def width(articles: list[str]) -> float:
        questions = [
            replace(item, article=name) for item, name in zip(alone.part.questions, articles, strict=True)
        ]
        estimate = replace(alone, part=replace(alone.part, questions=questions)).estimates()["f1"]
        return estimate.high - estimate.low

    own, shared = [str(i) for i in range(40)], [str(i // 10) for i in range(40)]
    assert width(shared) > 1.5 * width(own)
    # One title for all tells nothing: then it is the paragraphs, here two.
    assert width(["t"] * 40) > width(own)


# ------------------------------------------------------------------------------------------------- results


def run_of(data: MLQAData, **given: Any) -> MLQARun:
    """A run with a model of which only the record is looked at."""
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_train_epochs": 3}
    rates = {"learning_rate": 1e-3, "warmup_steps": 0.1, "weight_decay": 0.0}
    args = training(bf16=False, max_steps=-1, seed=4, **sizes, **rates, **given)
    record = ModelRecord("model", None, "0" * 64, "infoxlm", 5)
    head: Any = SimpleNamespace(record=record, tokenizer=word_tokenizer(), check=lambda **options: None)
    return MLQARun(head, data, task=MLQAArguments(), args=args, cache_dir=None)


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_text("{}")
    sets = [
        answered("en", "en", ["the cat", "dog"], ["Cat!", ""]),
        answered("de", "de", ["der Hund da", "Haus"], ["Hund", "das Haus"]),
        answered("zh", "zh", ["北京大学"], ["北京"]),
        answered("de", "en", ["der Hund", "Haus"], ["ein Hund", "Maus"]),
    ]
    return run_of(MLQAData([], {}, {"mlqa": "mlqa"})).score("mlqa", sets, {"steps": 3})


def test_scores_are_those_of_the_rules_in_the_language_of_the_context(result: Any) -> None:
    found = {name: (item["f1"].value, item["exact_match"].value) for name, item in result.scores.items()}
    expected = {
        "en": ({"a": ["the cat"], "b": ["dog"]}, {"a": "Cat!"}),
        "de": ({"a": ["der Hund da"], "b": ["Haus"]}, {"a": "Hund", "b": "das Haus"}),
        "zh": ({"a": ["北京大学"]}, {"a": "北京"}),
        "de-en": ({"a": ["der Hund"], "b": ["Haus"]}, {"a": "ein Hund", "b": "Maus"}),
    }
    for name, (gold, predictions) in expected.items():
        assert found[name] == pytest.approx(mlqa_rules.evaluate(gold, predictions, name[:2]))
    assert found["de"] == pytest.approx((100 * (2 / 3 + 1) / 2, 50))
    assert result.scores["en"]["f1"].count == 2
    assert result.scores["en"]["f1"].low <= 50 <= result.scores["en"]["f1"].high


def test_means_gap_and_matrix(result: Any) -> None:
    german, chinese = 100 * (2 / 3 + 1) / 2, 100 * 2 / 3
    f1 = {"mean": (50 + german + chinese) / 3, "gap": 50 - (german + chinese) / 2, "across": 50}
    exact = {"mean": (50 + 50 + 0) / 3, "gap": 50 - (50 + 0) / 2, "across": 50}
    expected = f1 | {f"exact_match_{name}": value for name, value in exact.items()}
    assert result.summary == pytest.approx(expected)
    matrix = result.details["g_xlt"]["f1"]
    assert matrix["de"] == pytest.approx({"de": german, "en": 50})
    assert set(matrix) == {"en", "de", "zh"}
    counts = {"questions": 2, "answered": 1, "mismatched_answers": 0, "blank_answers": 0}
    assert result.details["sets"]["en"] == {"location": "x.json", **counts}
    assert (result.metric, result.unit, result.seed) == ("f1", "percent", 4)
    assert result.settings["batch_size"] == 16 and result.details["training"] == {"steps": 3}
