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


def load_data(*, do_train: bool = True, do_predict: bool = True, **given: Any) -> MLQAData:
    plain = {
        name: list(map(str, value)) if isinstance(value, list) else value for name, value in given.items()
    }
    args: Any = SimpleNamespace(do_train=do_train, do_predict=do_predict)
    return mlqa_data.load_data(MLQAArguments(**plain), args, HeadModelArguments())


def test_what_is_missing_or_twice_or_not_done_is_refused(folder: Path, tmp_path: Path) -> None:
    train, both = [folder / "train-v1.1.json"], [folder / "mlqa", folder / "xquad"]
    french = write_squad(tmp_path / "xquad.fr.json", [article("w4", question("a", "w7", "w4", 0))])
    mixed = {"test_files": [folder / "mlqa", french], "task_name": "own", "do_train": False}
    for given, message in (
        ({"test_files": [folder / "mlqa"]}, "nothing to learn from: give --train_file"),
        ({"train_file": train}, "nothing to answer: give --test_files"),
        (
            {"train_file": train, "test_files": both, "task_name": "own"},
            r"dev-context-de-question-de.json and .*xquad.de.json are both de; score them in two runs",
        ),
        (mixed, "own would hold mlqa and xquad, which are scored by different rules"),
    ):
        with pytest.raises(UsageError, match=message):
            load_data(**given)
    data = load_data(**mixed, scoring_rules="squad")
    assert [part.name for part in data.test["own"]] == ["de", "en", "fr"] and len(data.files) == 3
    assert data.outputs[:1] == ("own_results.json",)
    for name, value in (("eval_strategy", "steps"), ("label_smoothing_factor", 0.1)):
        with pytest.raises(ValueError, match=f"{name} must be .* for question answering, found {value}"):
            MLQATrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})


def test_questions_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    twice = article("w4 w5", question("a", "w7", "w5", 3), question("a", "w8", "w5", 3))
    path = write_squad(tmp_path / "xquad.de.json", [twice])
    with pytest.raises(UsageError, match="two questions with the id 'a'"):
        load_data(test_files=[path], do_train=False)
    # To learn from they may be: TyDiQA's English questions share their ids.
    assert len(load_data(train_file=[path], do_predict=False).training_questions) == 2


def test_samples_are_drawn_from_all_articles(tmp_path: Path) -> None:
    """SQuAD's files go article by article: the first 120 questions of XQuAD are of five."""
    long = article("w4 w5", *[question(f"a{number}", "w7", "w5", 3) for number in range(40)])
    others = [article("w4 w5", question(f"b{number}", "w7", "w5", 3)) for number in range(10)]
    path = write_squad(tmp_path / "xquad.de.json", [{**long, "title": "long"}, *others])
    data = load_data(test_files=[path], train_file=[path], max_predict_samples=10, max_train_samples=10)
    for (part,) in (data.test["xquad"], data.train):
        ids = [item.id for item in part.questions]
        assert sum(key.startswith("a") for key in ids) == 8 and ids != [f"a{number}" for number in range(10)]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("XQuAD.de.json", {}, "squad"),
        ("tydiqa.sw.dev.json", {}, "squad"),
        ("dev-context-de-question-de.json", {}, "mlqa"),
        ("mine.de.json", {}, "mlqa"),
        ("mine.de.json", {"task_name": "xquad"}, "squad"),
        ("xquad.de.json", {"task_name": "own"}, "squad"),
        ("xquad.de.json", {"scoring_rules": "mlqa"}, "mlqa"),
    ],
)
def test_each_benchmark_is_scored_as_its_literature_does(
    tmp_path: Path, name: str, given: dict[str, Any], expected: str
) -> None:
    path = write_squad(tmp_path / name, [article("der Hund", question("a", "w7", "Hund", 4))])
    data = load_data(test_files=[path], do_train=False, **given)
    ((task, (part,)),) = data.test.items()
    found = AnsweredSet.of(part, [[Candidate("der Hund", 0, 1.0)]], data.rules[task])
    result = run_of(data, do_train=False).score(task, [found], None)
    assert result.settings["scoring_rules"] == data.rules[task] == expected
    (scores,) = result.scores.values()
    assert scores["f1"].value == pytest.approx(100 if expected == "mlqa" else 200 / 3)


def test_blank_gold_answers_are_counted_and_a_set_of_them_alone_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sets whose answers are not public have blank ones: a model that does not answer would be right."""

    def with_golds(name: str, *golds: str) -> list[Path]:
        questions = [question(f"q{i}", "w7", gold, 0) for i, gold in enumerate(golds)]
        return [write_squad(tmp_path / name, [article("w4 .", item) for item in questions])]

    path = with_golds("xquad.de.json", "", "w4", " ")
    data = load_data(test_files=path, train_file=path, on_mismatched_answers="skip")
    assert [item.id for item in data.training_questions] == ["q1"] and data.train[0].num_blank == 2
    assert data.test["xquad"][0].num_blank == 2
    assert "the gold answers of 2 of 3 questions are blank" in caplog.text
    assert "left out 2 questions whose answers are blank" in caplog.text
    blank = {"xquad.fr.json": ["", " "], "xquad.ru.json": ["the"], "mlqa.zh.zh.json": ["。"]}
    for name, golds in blank.items():
        path = with_golds(name, *golds)
        message = f"{name}: the gold answers of all {len(golds)} questions are blank"
        with pytest.raises(UsageError, match=message):
            load_data(test_files=path, on_mismatched_answers="skip", do_train=False)
    with pytest.raises(UsageError, match="no question is left: the answers of 2 are blank"):
        load_data(train_file=[tmp_path / "xquad.fr.json"], do_predict=False)
    unanswered = article("w4 w5", {"id": "d", "question": "w7", "answers": []})
    path = [write_squad(tmp_path / "xquad.el.json", [unanswered])]
    with pytest.raises(UsageError, match="the gold answers of all 1 questions are blank or missing"):
        load_data(test_files=path, version_2_with_negative=True, do_train=False)


# ------------------------------------------------------------------------------------------------- results


def answered(context: str, question_language: str, golds: list[str], texts: list[str]) -> AnsweredSet:
    questions = [
        Question(f"q{number}", "?", f"{gold} and more", (Answer(gold, 0),))
        for number, gold in enumerate(golds)
    ]
    part = QuestionSet("mlqa", "dev", context, question_language, "x.json", questions)
    return AnsweredSet.of(part, [[Candidate(text, 0, 1.0)] for text in texts])


def test_questions_about_one_article_hang_together() -> None:
    """Resampled one by one, 20 questions that one article decides would look like 20 measurements."""
    alone = answered("de", "de", ["Hund"] * 20 + ["Haus"] * 20, ["Hund"] * 20 + [""] * 20)

    def width(articles: list[str]) -> float:
        named = zip(alone.part.questions, articles, strict=True)
        part = replace(alone.part, questions=[replace(item, article=name) for item, name in named])
        estimate = replace(alone, part=part).estimates()["f1"]
        return estimate.high - estimate.low

    own, shared = [str(i) for i in range(40)], [str(i // 10) for i in range(40)]
    assert width(shared) > 1.5 * width(own)
    # One title for all tells nothing: then it is the paragraphs, here two.
    assert width(["t"] * 40) > width(own)


def run_of(data: MLQAData, **given: bool) -> MLQARun:
    """A run with a model of which only the record is looked at."""
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_train_epochs": 3}
    rates = {"learning_rate": 1e-3, "warmup_steps": 0.1, "weight_decay": 0.0}
    args: Any = SimpleNamespace(bf16=False, max_steps=-1, seed=4, **sizes, **rates, **given)
    record = ModelRecord("model", None, "0" * 64, "infoxlm", 5)
    head: Any = SimpleNamespace(record=record, tokenizer=word_tokenizer(), check=lambda **options: None)
    return MLQARun(head, data, task=MLQAArguments(), args=args, cache_dir=None)


def test_scores_are_by_the_rules_in_the_language_of_the_context_with_means_gap_and_matrix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_text("{}")
    rows = {
        "en": ("en", "en", ["the cat", "dog"], ["Cat!", ""]),
        "de": ("de", "de", ["der Hund da", "Haus"], ["Hund", "das Haus"]),
        "zh": ("zh", "zh", ["北京大学"], ["北京"]),
        "de-en": ("de", "en", ["der Hund", "Haus"], ["ein Hund", "Maus"]),
    }
    sets = [answered(*row) for row in rows.values()]
    result = run_of(MLQAData([], {}, {"mlqa": "mlqa"}), do_train=True).score("mlqa", sets, {"steps": 3})
    for name, (context, _, golds, texts) in rows.items():
        gold = {f"q{i}": [text] for i, text in enumerate(golds)}
        expected = mlqa_rules.evaluate(gold, {f"q{i}": text for i, text in enumerate(texts)}, context)
        scores = result.scores[name]
        assert (scores["f1"].value, scores["exact_match"].value) == pytest.approx(expected)
    english = result.scores["en"]["f1"]
    assert english.count == 2 and english.low <= 50 <= english.high
    german, chinese = 100 * (2 / 3 + 1) / 2, 100 * 2 / 3
    f1 = {"mean": (50 + german + chinese) / 3, "gap": 50 - (german + chinese) / 2, "across": 50}
    exact = {"mean": (50 + 50 + 0) / 3, "gap": 50 - (50 + 0) / 2, "across": 50}
    assert result.summary == pytest.approx(f1 | {f"exact_match_{name}": exact[name] for name in exact})
    matrix = result.details["g_xlt"]["f1"]
    assert matrix["de"] == pytest.approx({"de": german, "en": 50})
    assert set(matrix) == {"en", "de", "zh"}
    counts = {"questions": 2, "answered": 1, "mismatched_answers": 0, "blank_answers": 0}
    assert result.details["sets"]["en"] == {"location": "x.json", **counts}
    assert (result.metric, result.unit, result.seed) == ("f1", "percent", 4)
    assert result.settings["batch_size"] == 16 and result.details["training"] == {"steps": 3}
