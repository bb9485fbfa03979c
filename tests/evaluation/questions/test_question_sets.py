"""Files in SQuAD's layout: what their names and contents tell, and what is refused."""

import functools
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_qa import article, question, write_squad

from modeling_infoxlm.evaluation.hub_data import HubData
from modeling_infoxlm.evaluation.questions.question_sets import (
    Answer,
    QuestionSet,
    cross_languages,
    read_question_sets,
    record_questions,
)
from modeling_infoxlm.runs.errors import UsageError

DATA = Path(os.environ.get("INFOXLM_DATA", "../shared/data"))
GOOD = [article("w4 w5 w6", question("a", "w7", "w5", 3)), article("w8 w9", question("b", "w7 w8", "w9", 3))]


def read(*specs: object, **options: Any) -> list[QuestionSet]:
    defaults = {"on_mismatched_answers": "fail", "hub": HubData(None, None)}
    return read_question_sets([str(spec) for spec in specs], **{**defaults, **options})


@pytest.mark.parametrize(
    ("name", "benchmark", "stem", "key"),
    [
        ("dev-context-de-question-en.json", "mlqa", "dev-context-de-question-en", "de-en"),
        ("test-context-zh-question-zh.json", "mlqa", "test-zh", "zh"),
        ("xquad.el.json", "xquad", "test-el", "el"),
        ("tydiqa.sw.dev.json", "tydiqa", "dev-sw", "sw"),
        ("tydiqa-goldp-v1.1-dev-telugu.json", "tydiqa", "dev-te", "te"),
        ("policy_qa-dev-en.json", "qa", "test-en", "en"),
    ],
)
def test_names_tell_benchmark_split_and_languages_unless_these_are_written_out(
    tmp_path: Path, name: str, benchmark: str, stem: str, key: str
) -> None:
    path = write_squad(tmp_path / name, GOOD)
    (part,) = read(path)
    assert (part.benchmark, part.file_stem, part.name) == (benchmark, stem, key)
    (part,) = read(f"fr-sw={path}")
    assert (part.context_language, part.question_language) == ("fr", "sw")
    path = write_squad(tmp_path / "train-v1.1.json", GOOD)
    with pytest.raises(UsageError, match=r"does not tell its language; write it in front, de="):
        read(path)
    assert read(path, unnamed="en")[0].name == "en"


def test_questions_are_read_in_order_with_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "x.de.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"data": GOOD}).encode()))
    (part,) = read(path)
    assert [(item.id, item.article) for item in part.questions] == [("a", "t"), ("b", "t")]
    last = part.questions[1]
    assert (last.text, last.context, last.answers) == ("w7 w8", "w8 w9", (Answer("w9", 3),))
    assert list(record_questions("xquad", [part]).files) == ["x.de.json.gz"]
    for name in ("xquad.de.json", "xquad.ar.json"):
        write_squad(tmp_path / "folder" / name, GOOD)
    (tmp_path / "folder" / "SOURCE.txt").write_text("from elsewhere")
    assert [part.name for part in read(tmp_path / "folder")] == ["ar", "de"]
    assert [part.name for part in read(tmp_path / "folder" / "xquad.d*.json")] == ["de"]


def broken(*place: Any, **texts: Any) -> str:
    """A good file without what lies at a place, or with another context."""
    content = json.loads(json.dumps({"data": GOOD}))
    content["data"][0]["paragraphs"][0].update(texts)
    if place:
        inner = functools.reduce(lambda part, key: part[key], place[:-1], content)
        del inner[place[-1]]
    return json.dumps(content)


PARAGRAPH = ("data", 0, "paragraphs", 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON file in UTF-8"),
        ('{"data": ' + "[" * 100_000, "nested too deeply"),
        ('{"data": ' + "9" * 5_000 + "}", "is no JSON file in UTF-8"),
        ("[]", "is not in SQuAD's layout: in the file"),
        ('{"data": []}', "has no question"),
        (broken("data"), "'data' is missing"),
        (broken(*PARAGRAPH, "qas", 0, "question"), "in question 'a', 'question' is missing"),
        (broken(*PARAGRAPH, "qas", 0, "answers", 0, "text"), "in question 'a', 'text' is missing"),
        (broken(context=None), "a text is of type NoneType"),
        (broken(context="\ud83d"), "surrogates"),
        (gzip.compress(b"{}")[:10], "cannot be read"),
        (None, "no file, and no folder or glob"),
    ],
)
def test_files_of_another_layout_are_refused_in_one_line(
    tmp_path: Path, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / ("xquad.de.json.gz" if isinstance(content, bytes) else "xquad.de.json")
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_answers_that_do_not_stand_at_their_start_are_counted_and_refused_or_skipped(tmp_path: Path) -> None:
    wrong = article("w4 w5 w6", question("c", "w7", "w5", 4))
    path = write_squad(tmp_path / "xquad.de.json", [*GOOD, wrong])
    with pytest.raises(UsageError, match=r"1 of 3 questions .* first 'c'; .*--on_mismatched_answers skip"):
        read(path)
    # In training it is left out, in evaluation its text still counts.
    for for_training, ids in ((True, ["a", "b"]), (False, ["a", "b", "c"])):
        (part,) = read(path, on_mismatched_answers="skip", for_training=for_training)
        assert [item.id for item in part.questions] == ids and part.num_mismatched == 1
    with pytest.raises(UsageError, match="no question is left"):
        read(write_squad(path, [wrong]), on_mismatched_answers="skip", for_training=True)
    unanswered = {"id": "d", "question": "w7", "answers": []}
    # What might be an answer and is none, as SQuAD 2.0 gives it.
    impossible = {**question("e", "w7", "w5", 3), "is_impossible": True}
    write_squad(path, [article("w4 w5", unanswered, impossible)])
    with pytest.raises(UsageError, match="2 of 2 questions have no answer; give --version_2_with_negative"):
        read(path)
    (part,) = read(path, with_negatives=True)
    assert [item.answers for item in part.questions] == [(), ()]


def test_languages_are_crossed_by_question_ids_and_given_pairs_are_kept(tmp_path: Path) -> None:
    german = [article("w14 w15", question("a", "w17", "w15", 4)), article("w8", question("z", "w7", "w8", 0))]
    paths = [
        write_squad(tmp_path / "dev-context-en-question-en.json", GOOD),
        write_squad(tmp_path / "dev-context-de-question-de.json", german),
        write_squad(tmp_path / "dev-context-de-question-en.json", german[1:]),
        write_squad(tmp_path / "xquad.de.json", GOOD),
    ]
    sets = read(*paths)
    crossed = cross_languages(sets)
    assert crossed[: len(sets)] == sets
    (made,) = crossed[len(sets) :]  # de-en is given, and MLQA is not mixed with XQuAD
    assert (made.benchmark, made.name, made.file_stem) == ("mlqa", "en-de", "dev-context-en-question-de")
    (item,) = made.questions  # "b" and "z" are not in both
    assert (item.id, item.text, item.context) == ("a", "w17", "w4 w5 w6")
    assert item.answers == (Answer("w5", 3),)


def test_rows_of_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"text": ["w5"], "answer_start": [3]}
    rows = [{"id": "a", "question": "w7", "context": "w4 w5", "answers": answers}]
    asked: list[Any] = []
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda *given, split, revision, **_: asked.append((*given, split, revision)) or rows,
    )
    commits = {None: "c1", "v2": "c2"}
    monkeypatch.setattr(
        "modeling_infoxlm.evaluation.hub_data.hub_revision", lambda _, revision, token: commits[revision]
    )
    part, french, older = read(
        "hub:google/xquad:xquad.de:validation", "fr=hub:google/xquad", "hub:google/xquad@v2:xquad.de:test"
    )
    assert asked == [
        ("google/xquad", "xquad.de", "validation", "c1"),
        ("google/xquad", None, "train", "c1"),
        ("google/xquad", "xquad.de", "test", "c2"),
    ]
    assert (part.benchmark, part.name, part.split) == ("xquad", "de", "validation")
    assert french.benchmark == "xquad"  # the dataset's name tells it
    assert part.questions[0].answers == (Answer("w5", 3),) and part.questions[0].article == "w4 w5"
    assert record_questions("xquad", [part]).revision == part.commit == "c1"
    both = record_questions("xquad", [part, older])
    assert both.revision is None and set(both.files.values()) == {"c1", "c2"}
    rows[0].pop("answers")
    with pytest.raises(UsageError, match="'answers' is missing; expected"):
        read("hub:google/xquad:xquad.de:validation")


@pytest.mark.skipif(not (DATA / "eval").is_dir(), reason=f"no real data in {DATA}; set INFOXLM_DATA")
def test_all_real_files_are_read() -> None:
    mlqa = read(DATA / "eval" / "mlqa_dev")
    assert {part.name for part in mlqa if "-" not in part.name} == {"ar", "de", "en", "es", "hi", "vi", "zh"}
    assert len(mlqa) == 13 and sum(len(part.questions) for part in mlqa) == 7231
    assert len(read(DATA / "eval" / "xquad")) == 12
    assert sum(part.num_mismatched for part in mlqa) == 0
