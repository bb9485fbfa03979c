"""Metrics of the `evaluate` library: used offline, against scikit-learn and slow loops."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.retrieval import accuracies

from modeling_infoxlm.evaluation.metrics import AlignmentErrorRate, BitextRetrieval, MLQAScore, XNLIAccuracy

Compute = Callable[..., dict[str, float]]


@pytest.fixture
def compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compute:
    """Computes at once, in batches and in memory, all the same; leaves nothing and asks no network."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    def run(metric: Any, **inputs: list) -> dict[str, float]:
        whole = metric().compute(**inputs)
        assert any(0 < value < 1 for value in whole.values())
        parts = metric()
        for rows in (slice(0, 3), slice(3, None)):
            parts.add_batch(**{name: column[rows] for name, column in inputs.items()})
        assert parts.compute() == pytest.approx(whole)
        # What was added is forgotten: a second computation sees its own examples alone.
        assert parts.compute(**inputs) == pytest.approx(whole)
        assert not [*work.iterdir(), *cache.rglob("*.arrow")]
        assert metric(keep_in_memory=True).compute(**inputs) == pytest.approx(whole)
        return whole

    cache, work = tmp_path / "cache", tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", cache)
    monkeypatch.chdir(work)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return run


def test_accuracy_is_that_of_scikit_learn(compute: Compute) -> None:
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
    expected = {f"accuracy_{name}": value for name, value in each.items()}
    expected |= {"mean": sum(each.values()) / 3, "gap": each["en"] - (each["de"] + each["sw"]) / 2}
    assert result == pytest.approx(expected | {"accuracy": accuracy_score(gold, found)})
    assert compute(XNLIAccuracy, predictions=found, references=gold) == {"accuracy": result["accuracy"]}


def test_answers_are_scored_by_the_rules_of_their_language(compute: Compute) -> None:
    rows = [
        ("der Hund", ["Hund"], "de"),  # "der" is an article in German only
        ("der Hund", ["Hund"], "en"),
        ("人民", ["人民日报", "中国"], "zh"),
        ("", ["Hanoi"], "vi"),
        ("An apple", ["the apple", "pear"], "en"),
    ]
    predictions, references, languages = (list(column) for column in zip(*rows, strict=True))
    result = compute(MLQAScore, predictions=predictions, references=references, languages=languages)
    f1 = {"de": [1], "en": [2 / 3, 1], "vi": [0], "zh": [2 / 3]}
    exact = {"de": [1], "en": [0, 1], "vi": [0], "zh": [0]}
    expected = {"f1": sum(map(sum, f1.values())) / 5, "exact_match": 2 / 5}
    for name, scores in (("f1", f1), ("exact_match", exact)):
        expected |= {f"{name}_{language}": np.mean(values) for language, values in scores.items()}
    assert result == pytest.approx(expected)
    squad = MLQAScore().compute(
        predictions=["der Hund"], references=[["Hund"]], languages=["de"], rules="squad"
    )
    assert squad["f1"] == pytest.approx(2 / 3)


def test_retrieval_is_that_of_a_slow_search_in_both_directions(compute: Compute) -> None:
    rng = np.random.default_rng(4)
    source = rng.normal(size=(40, 5)) * rng.random((40, 1)) * 9
    target = source + rng.normal(size=(40, 5))
    result = compute(BitextRetrieval, predictions=source.tolist(), references=target.tolist())
    forth, back = accuracies(source, target)
    assert forth != back
    assert result == pytest.approx(
        {"source_to_target": forth, "target_to_source": back, "mean": (forth + back) / 2}
    )


@pytest.mark.usefixtures("compute")
@pytest.mark.parametrize(
    ("metric", "inputs", "message"),
    [
        (XNLIAccuracy, ([0, 3], [0, 1]), r"expected labels in 0\.\.2, found \[0, 1, 3\]"),
        (XNLIAccuracy, ([], []), "expected labels in 0..2, found none"),
        (XNLIAccuracy, ([0, 1], [0, 1], ["en"]), "one language for each of 2 examples, found 1"),
        (MLQAScore, ([], [], []), "at least one answer"),
        (MLQAScore, (["der Hund"], [["", " "]], ["de"]), "all 1 gold answers are blank"),
        (BitextRetrieval, ([[1.0, 2.0]], [[1.0, 2.0, 3.0]]), r"vectors of one size, found sizes \[2, 3\]"),
        (AlignmentErrorRate, ([[[0, 0]]], [[]], [[[0, 0]]]), "at least one sure link"),
    ],
)
def test_what_cannot_be_scored_is_refused(metric: Any, inputs: tuple[Any, ...], message: str) -> None:
    names = ("predictions", "references", "languages")
    if metric is AlignmentErrorRate:
        names = ("predictions", "sure", "possible")
    with pytest.raises(ValueError, match=message):
        metric().compute(**dict(zip(names, inputs, strict=False)))


def test_alignment_by_the_definition(compute: Compute) -> None:
    rng = np.random.default_rng(3)
    cells = [[i, j] for i in range(5) for j in range(5)]
    drawn = [[[cell for cell in cells if rng.random() < 0.3] for _ in range(3)] for _ in range(30)]
    predictions, sure, possible = (list(column) for column in zip(*drawn, strict=True))
    result = compute(AlignmentErrorRate, predictions=predictions, sure=sure, possible=possible)
    found, gold = sum(map(len, predictions)), sum(map(len, sure))
    in_sure = sum(link in must for links, must, _ in drawn for link in links)
    in_possible = sum(link in must or link in may for links, must, may in drawn for link in links)
    precision, recall = in_possible / found, in_sure / gold
    f1 = 2 * precision * recall / (precision + recall)
    aer = 1 - (in_sure + in_possible) / (found + gold)
    assert result == pytest.approx({"aer": aer, "precision": precision, "recall": recall, "f1": f1})
    empty = AlignmentErrorRate().compute(predictions=[[], []], sure=[[[0, 0]], []], possible=[[], [[0, 1]]])
    assert empty == {"aer": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
