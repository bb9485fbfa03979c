"""Metrics of the `evaluate` library: used offline, against scikit-learn and slow loops."""

import os
import socket
from pathlib import Path

import evaluate
import numpy as np
import pytest

from modeling_infoxlm.evaluation.metrics import AlignmentErrorRate, BitextRetrieval, MLQAScore, XNLIAccuracy
from modeling_infoxlm.evaluation.questions.mlqa_scoring import exact_match_score, f1_score


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's cache, and an empty working directory that must stay empty."""
    folder, work = tmp_path / "cache", tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", folder)
    monkeypatch.chdir(work)
    return folder


def test_accuracy_is_that_of_scikit_learn() -> None:
    accuracy_score = pytest.importorskip("sklearn.metrics").accuracy_score
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 3, 500)
    found = np.where(rng.random(500) < 0.6, gold, rng.integers(0, 3, 500))
    languages = rng.choice(["de", "en", "sw"], 500)
    result = XNLIAccuracy().compute(predictions=found, references=gold, languages=languages.tolist())
    each = {
        name: accuracy_score(gold[languages == name], found[languages == name]) for name in ("de", "en", "sw")
    }
    assert len(set(each.values())) == 3
    assert result == pytest.approx(
        {
            "accuracy": accuracy_score(gold, found),
            **{f"accuracy_{name}": value for name, value in each.items()},
            "mean": sum(each.values()) / 3,
            "gap": each["en"] - (each["de"] + each["sw"]) / 2,
        }
    )
    assert XNLIAccuracy().compute(predictions=found, references=gold) == {"accuracy": result["accuracy"]}


def test_labels_outside_the_three_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected labels in 0\.\.2, found \[0, 1, 3\]"):
        XNLIAccuracy().compute(predictions=[0, 3], references=[0, 1])
    with pytest.raises(ValueError, match="expected labels in 0..2, found none"):
        XNLIAccuracy().compute(predictions=[], references=[])
    with pytest.raises(ValueError, match="one language for each of 2 examples, found 1"):
        XNLIAccuracy().compute(predictions=[0, 1], references=[0, 1], languages=["en"])


def test_answers_are_scored_by_the_rules_of_their_language() -> None:
    rows = [
        ("der Hund", ["Hund"], "de"),  # "der" is an article in German only
        ("der Hund", ["Hund"], "en"),
        ("人民", ["人民日报", "中国"], "zh"),
        ("", ["Hanoi"], "vi"),
        ("An apple", ["the apple", "pear"], "en"),
    ]
    predictions, references, languages = (list(column) for column in zip(*rows, strict=True))
    result = MLQAScore().compute(predictions=predictions, references=references, languages=languages)
    f1 = [f1_score(*row) for row in rows]
    exact = [exact_match_score(*row) for row in rows]
    assert f1 == pytest.approx([1, 2 / 3, 2 / 3, 0, 1]) and exact == [1, 0, 0, 0, 1]
    assert result == pytest.approx(
        {
            "f1": sum(f1) / 5,
            "exact_match": 2 / 5,
            "f1_de": 1.0,
            "exact_match_de": 1.0,
            "f1_en": (2 / 3 + 1) / 2,
            "exact_match_en": 0.5,
            "f1_vi": 0.0,
            "exact_match_vi": 0.0,
            "f1_zh": 2 / 3,
            "exact_match_zh": 0.0,
        }
    )
    with pytest.raises(ValueError, match="at least one answer"):
        MLQAScore().compute(predictions=[], references=[], languages=[])


def test_answers_can_be_scored_by_squads_rules_and_blank_ones_are_not() -> None:
    rows = {"predictions": ["der Hund"], "languages": ["de"]}
    found = MLQAScore().compute(**rows, references=[["Hund"]], rules="squad")
    assert found["f1"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="all 1 gold answers are blank"):
        MLQAScore().compute(**rows, references=[["", " "]])


def test_retrieval_is_that_of_a_slow_search_in_both_directions() -> None:
    rng = np.random.default_rng(4)
    source = rng.normal(size=(40, 5)) * rng.random((40, 1)) * 9
    target = source + rng.normal(size=(40, 5))
    result = BitextRetrieval().compute(predictions=source.tolist(), references=target.tolist())
    expected = []
    for queries, candidates in ((source, target), (target, source)):
        hits = 0
        for i, query in enumerate(queries):
            cosines = [query @ other / np.linalg.norm(query) / np.linalg.norm(other) for other in candidates]
            hits += int(np.argmax(cosines)) == i
        expected.append(hits / 40)
    assert expected[0] != expected[1]
    assert result == pytest.approx(
        {"source_to_target": expected[0], "target_to_source": expected[1], "mean": sum(expected) / 2}
    )
    with pytest.raises(ValueError, match=r"vectors of one size, found sizes \[2, 3\]"):
        BitextRetrieval().compute(predictions=[[1.0, 2.0]], references=[[1.0, 2.0, 3.0]])


def test_alignment_by_the_definition() -> None:
    rng = np.random.default_rng(3)
    cells = [[i, j] for i in range(5) for j in range(5)]
    drawn = [[[cell for cell in cells if rng.random() < 0.3] for _ in range(3)] for _ in range(30)]
    predictions, sure, possible = (list(column) for column in zip(*drawn, strict=True))
    result = AlignmentErrorRate().compute(predictions=predictions, sure=sure, possible=possible)
    found = in_sure = in_possible = gold = 0
    for links, must, may in drawn:
        found, gold = found + len(links), gold + len(must)
        in_sure += sum(link in must for link in links)
        in_possible += sum(link in must or link in may for link in links)
    precision, recall = in_possible / found, in_sure / gold
    assert result == pytest.approx(
        {
            "aer": 1 - (in_sure + in_possible) / (found + gold),
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
        }
    )


def test_alignment_of_sentences_without_links() -> None:
    empty = AlignmentErrorRate().compute(predictions=[[], []], sure=[[[0, 0]], []], possible=[[], [[0, 1]]])
    assert empty == {"aer": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    with pytest.raises(ValueError, match="at least one sure link"):
        AlignmentErrorRate().compute(predictions=[[[0, 0]]], sure=[[]], possible=[[[0, 0]]])


METRICS = [
    (XNLIAccuracy, {"predictions": [0, 1, 2, 2], "references": [0, 1, 1, 2]}),
    (
        MLQAScore,
        {
            "predictions": ["a", "b c", "c", "d"],
            "references": [["a"], ["b"], ["x"], ["d", "e"]],
            "languages": ["de", "en", "de", "zh"],
        },
    ),
    (
        BitextRetrieval,
        {
            "predictions": [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.9]],
            "references": [[1.0, 0.1], [0.5, 1.0], [1.0, 1.0], [0.0, 1.0]],
        },
    ),
    (
        AlignmentErrorRate,
        {
            "predictions": [[[0, 0]], [[1, 1], [0, 1]], [], [[2, 0]]],
            "sure": [[[0, 0]], [[1, 1]], [[0, 0]], []],
            "possible": [[], [[0, 1]], [], [[2, 1]]],
        },
    ),
]


@pytest.mark.parametrize("metric, inputs", METRICS, ids=lambda value: getattr(value, "__name__", ""))
def test_batches_give_the_same_leave_nothing_and_ask_no_network(
    metric: type, inputs: dict[str, list], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    whole = metric().compute(**inputs)
    assert any(0 < value < 1 for value in whole.values())
    parts = metric()
    for start in (0, 1):
        parts.add_batch(**{name: column[start * 3 : 3 + start] for name, column in inputs.items()})
    assert parts.compute() == pytest.approx(whole)
    # What was added is forgotten: a second computation sees its own examples alone.
    assert parts.compute(**inputs) == pytest.approx(whole)
    assert os.listdir() == []
    assert [path for path in cache.rglob("*") if path.suffix == ".arrow"] == []
    assert metric(keep_in_memory=True).compute(**inputs) == pytest.approx(whole)


def test_metrics_combine() -> None:
    inputs = {**METRICS[0][1], "languages": ["de", "en", "de", "zh"]}
    exact = evaluate.combine([XNLIAccuracy(), XNLIAccuracy()]).compute(**inputs)
    assert exact["xnli_accuracy_0_accuracy"] == exact["xnli_accuracy_1_accuracy"] == 0.75
    links = METRICS[3][1]
    combined = evaluate.combine({"first": AlignmentErrorRate(), "second": AlignmentErrorRate()})
    combined.add_batch(**links)
    assert combined.compute()["first_aer"] == AlignmentErrorRate().compute(**links)["aer"]
