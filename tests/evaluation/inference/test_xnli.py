"""XNLI: pairs as the tokenizer has them, labels by their names, and scores against slow counts."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from tiny_nli import LABELS, nli_rows, word_tokenizer, write_xnli
from transformers import AutoModelForSequenceClassification

from modeling_infoxlm.evaluation.finetuning.arguments import HeadModelArguments
from modeling_infoxlm.evaluation.finetuning.heads import HeadModel, load_head_model
from modeling_infoxlm.evaluation.finetuning.rows import draw
from modeling_infoxlm.evaluation.inference.nli_files import COLUMNS
from modeling_infoxlm.evaluation.inference.xnli import (
    XNLIRun,
    label_columns,
    label_config,
    predict_probabilities,
    score_mixed,
    tokenise,
    write_predictions,
)
from modeling_infoxlm.evaluation.inference.xnli_data import XNLIArguments, XNLITrainingArguments, load_data
from modeling_infoxlm.runs.errors import UsageError


def as_rows(language: str, count: int) -> pd.DataFrame:
    rows = [(one, other, LABELS.index(label), "") for one, other, label in nli_rows(language, count)]
    return pd.DataFrame(rows, columns=COLUMNS)


def load(folder: Path) -> HeadModel:
    arguments = HeadModelArguments(model_name_or_path=str(folder))
    return load_head_model(arguments, AutoModelForSequenceClassification, seed=1, **label_config())


# ---------------------------------------------------------------------------- rows and probabilities


@pytest.mark.parametrize("token_types", [False, True])
def test_rows_are_the_tokenizers_own_pairs(tmp_path: Path, token_types: bool) -> None:
    rows = as_rows("en", 2_100)  # more than the tokenizer is given at a time
    tokenizer = word_tokenizer(token_types=token_types)
    made = tokenise(rows, tokenizer, max_length=10, cache_dir=str(tmp_path))
    assert len(made) == 2_100 and made["labels"][:] == rows.label.tolist()
    for number in (0, 999, 1_000, 2_099):
        expected = tokenizer(rows.premise[number], rows.hypothesis[number], truncation=True, max_length=10)
        assert made[number]["input_ids"] == expected["input_ids"]
        assert made[number].get("token_type_ids") == expected.get("token_type_ids")
    assert max(made["length"][:]) == 10
    long = pd.DataFrame([("w4 " * 90, "w5 w6", 0, "")], columns=COLUMNS)  # the hypothesis stays whole
    (ids,) = tokenise(long, word_tokenizer(), max_length=12, cache_dir=str(tmp_path))["input_ids"][:]
    assert ids == [0, 4, 4, 4, 4, 4, 4, 2, 2, 5, 6, 2]


def test_a_model_that_numbers_its_labels_otherwise_predicts_the_same(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    head = load(folders["bert"])
    rows = tokenise(as_rows("en", 20), head.tokenizer, max_length=40, cache_dir=str(tmp_path))
    expected = predict_probabilities(head, rows)
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)
    with torch.no_grad():
        for part in (head.model.classifier.weight, head.model.classifier.bias):
            part.copy_(part[[2, 0, 1]].clone())
    head.model.config.id2label = {0: "contradiction", 1: "entailment", 2: "neutral"}
    np.testing.assert_allclose(predict_probabilities(head, rows), expected, rtol=1e-5)
    named = [dict(enumerate(names)) for names in (("CONTRADICTION", "neutral", "Entailment"), "abc")]
    assert label_columns(SimpleNamespace(id2label=named[0])) == [2, 1, 0]
    with pytest.raises(UsageError, match="labels are a, b, c, expected entailment, neutral, contradiction"):
        label_columns(SimpleNamespace(id2label=named[1]))


# ---------------------------------------------------------------------------- mixed languages


def test_mixed_scores_equal_a_slow_count() -> None:
    correct = np.random.default_rng(3).random((3, 3, 50)) < 0.6
    scores = score_mixed(correct, ["en", "de", "fr"])
    within = [correct[i, i, n] for i in range(3) for n in range(50)]
    across = [correct[i, j, n] for i in range(3) for j in range(3) if i != j for n in range(50)]
    assert scores["within"].value == pytest.approx(100 * sum(within) / 150)
    assert scores["across"].value == pytest.approx(100 * sum(across) / 300)
    assert scores["within"].count == 50
    assert scores["within"].low < scores["within"].value < scores["within"].high
    assert scores["matrix"][0][2] == pytest.approx(100 * sum(correct[0, 2]) / 50)
    assert "across" not in score_mixed(correct[:1, :1], ["en"])


def make_run(folders: dict[str, Path], folder: Path, *, do_train: bool = True, **options: Any) -> XNLIRun:
    options |= {"max_seq_length": 40, "mixed_languages": True}
    task = XNLIArguments(data_dir=str(folder / "xnli"), languages=["en", "de", "fr"], **options)
    args = XNLITrainingArguments(output_dir=str(folder / "out"), use_cpu=True, do_train=do_train)
    data = load_data(task, args, HeadModelArguments())
    head = replace(load(folders["infoxlm"]), new_weights=())  # as if it were trained
    return XNLIRun(head, data, task=task, args=args, cache_dir=str(folder / "cache"))


def test_rows_are_drawn_alike_in_all_languages_and_of_each_genre(tmp_path: Path) -> None:
    """XNLI's test set is sorted by genre: its first 501 rows are conversations."""
    rows = [(f"p{i}", "h", LABELS[i % 3], "first" if i < 40 else f"genre{i // 5}") for i in range(100)]
    for language in ("en", "de"):
        named = [row if language == "de" else row[:3] for row in rows]  # one file that names them is enough
        (tmp_path / f"test-{language}.tsv").write_text("".join("\t".join(row) + "\n" for row in named))
    (tmp_path / "test-fr.tsv").write_text("".join(f"q{i}\th\tneutral\n" for i in range(30)))
    options = {"data_dir": str(tmp_path), "languages": ["en", "de", "fr"], "max_predict_samples": 20}
    test = read(XNLIArguments(**options), tmp_path, do_train=False).test
    assert test["en"].premise.equals(test["de"].premise) and len(test["fr"]) == 20
    assert Counter(test["de"].genre) == {"first": 8, **{f"genre{i}": 1 for i in range(8, 20)}}
    assert test["fr"].premise.tolist() != [f"q{i}" for i in range(20)]
    again = read(XNLIArguments(**options), tmp_path, do_train=False, seed=5).test
    assert again["de"].premise.equals(test["de"].premise)  # not of the run's seed
    numbers = [int(premise[1:]) for premise in test["en"].premise]
    assert numbers == sorted(set(numbers))


def test_mixed_rows_have_premise_and_hypothesis_of_their_languages_and_the_result_says_what_was_drawn(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with open(write_xnli(tmp_path / "xnli") / "test-de.tsv", "a") as file:
        file.write("\n\n")
    run = make_run(folders, tmp_path, mixed_max_samples=7, do_train=False)
    with torch.no_grad():  # as it is, it would give each pair the same label
        for weight in run.head.model.parameters():
            if weight.dim() == 2:
                weight.mul_(20)
    mixed = run.predict_mixed()
    assert mixed.shape == (3, 3, 7) and (mixed != mixed.transpose(1, 0, 2)).any()
    head, languages = run.head, list(run.data.test)
    drawn = draw([""] * 40, 7)
    assert drawn != list(range(7))
    for i, premise in enumerate(languages):
        for j, hypothesis in enumerate(languages):
            rows = run.data.test[premise].iloc[drawn], run.data.test[hypothesis].iloc[drawn]
            texts = rows[0].premise.tolist(), rows[1].hypothesis.tolist()
            batch = head.tokenizer(*texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                predicted = head.model.eval()(**batch).logits.argmax(dim=1)
            np.testing.assert_array_equal(mixed[i, j], predicted.numpy() == rows[0].label.to_numpy())
    predicted = pd.concat(run.data.test, names=["language", "row"])
    result = run.score(predicted.assign(predicted=predicted.label), mixed, None)
    assert result.details["left_out"] == {"test": {"de": {"blank lines": 2}}}
    assert result.settings["mixed_max_samples"] == 7
    assert result.settings["samples"] == "drawn by genre or article"
    assert result.details["mixed_languages"]["genres"] is None
    assert result.scores["de"]["accuracy"].value == 100


def test_rows_that_are_not_parallel_are_not_mixed(folders: dict[str, Path], tmp_path: Path) -> None:
    (write_xnli(tmp_path / "xnli") / "test-de.tsv").write_text("a\tb\tneutral\n")
    with pytest.raises(UsageError, match=r"labels of de \(1 rows\) are not those of en \(40 rows\)"):
        make_run(folders, tmp_path)


# ---------------------------------------------------------------------------- the data of a run


def read(task: XNLIArguments, tmp_path: Path, **options: Any) -> Any:
    args = XNLITrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, **options)
    return load_data(task, args, HeadModelArguments())


def test_each_run_reads_what_it_needs(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_dir": str(write_xnli(tmp_path)), "languages": ["en", "de"]}
    limits = {"max_train_samples": 5, "max_eval_samples": 4, "max_predict_samples": 3}
    data = read(XNLIArguments(**options, **limits), tmp_path)
    sizes = [{name: len(rows) for name, rows in part.items()} for part in (data.train, data.dev, data.test)]
    assert sizes == [{"en": 5}, {"en": 4, "de": 4}, {"en": 3, "de": 3}]
    assert set(data.record.files) == {"test-en.tsv", "test-de.tsv"} and data.record.name == "xnli"
    assert len(data.files) == 5 and not data.selected_on_test
    untrained = read(XNLIArguments(**options), tmp_path, do_train=False)
    assert not untrained.train and not untrained.dev and len(untrained.test) == 2
    assert not read(XNLIArguments(**options), tmp_path, do_predict=False).test
    task = XNLIArguments(**options, test_split="dev")
    data = read(task, tmp_path)
    assert data.selected_on_test and data.record.name == "xnli-dev"
    assert not read(task, tmp_path, eval_strategy="no").selected_on_test


def test_translations_are_trained_on_when_asked_for(tmp_path: Path) -> None:
    folder = write_xnli(tmp_path)
    files = {"train_file": [str(folder / "train-*")], "test_files": [str(folder / "test-*")]}
    options: dict[str, Any] = {**files, "validation_files": [str(folder / "dev-*")]}
    assert list(read(XNLIArguments(**options), tmp_path).train) == ["en"]
    missing = XNLIArguments(data_dir=str(folder), languages=["en", "de", "fr"], translate_train=True)
    with pytest.raises(UsageError, match="no train file.* for de, fr"):
        read(missing, tmp_path)
    (folder / "train-de.tsv").write_text("a\tb\t0\nc\td\t1\n")
    with pytest.raises(UsageError, match=r"--train_file names 2 languages \(de, en\); give one file, or"):
        read(XNLIArguments(**options), tmp_path)
    data = read(XNLIArguments(**options, translate_train=True), tmp_path)
    assert {name: len(rows) for name, rows in data.train.items()} == {"de": 2, "en": 96}
    assert list(data.test) == ["de", "en", "fr"]  # those of the files


def test_the_hub_gives_all_languages_of_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, language: str, **options: Any) -> Dataset:
        asked.append((language, options["split"], options["revision"], options["token"]))
        return Dataset.from_list([{"premise": "a", "hypothesis": "b", "label": 2}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(
        "modeling_infoxlm.evaluation.hub_data.hub_revision",
        lambda location, revision, token: f"of {revision} by {token}",
    )
    task = XNLIArguments(dataset_name="facebook/xnli", dataset_revision="v1", select_on="english")
    args = XNLITrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    data = load_data(task, args, HeadModelArguments(token="secret"))
    assert len(data.test) == 15 and data.test["sw"].label.tolist() == [2]
    commit = "of v1 by secret"  # what is recorded is what was loaded, not the name that it had
    assert asked[:2] == [("en", split, commit, "secret") for split in ("train", "validation")]
    assert [entry[1:] for entry in asked[2:]] == [("test", commit, "secret")] * 15
    assert data.record.revision == data.files["facebook/xnli"] == commit and not data.record.files
    assert (data.record.repo_id, data.record.name) == ("facebook/xnli", "xnli")
    other = replace(task, dataset_name="me/inference", test_split="dev")
    assert load_data(other, args, HeadModelArguments(token="secret")).record.name == "me/inference-dev"


# ---------------------------------------------------------------------------- prediction files


def test_predictions_are_lines_whatever_the_text_and_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    rows = pd.DataFrame([("a\tb", 'd\r\n"e', 0, ""), ("c", "f", 2, "")], columns=COLUMNS)
    table = pd.concat({"en": rows, "de": rows[1:]}, names=["language", "row"])
    probabilities = dict(zip(LABELS, ([0.7, 0.25, 0.0], [0.2, 0.5, 1.0], [0.1, 0.25, 0.0]), strict=True))
    (written := tmp_path / "predictions").mkdir()
    (written / "test-sw.tsv").write_text("of an earlier run")
    write_predictions(tmp_path, "test", table.assign(predicted=[0, 1, 1], **probabilities))
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]
    assert sorted(path.name for path in written.iterdir()) == ["test-de.tsv", "test-en.tsv"]
    assert (written / "test-en.tsv").read_text().splitlines() == [
        "premise\thypothesis\tgold\tpredicted\tentailment\tneutral\tcontradiction",
        'a b\td  "e\tentailment\tentailment\t0.700000\t0.200000\t0.100000',
        "c\tf\tcontradiction\tneutral\t0.250000\t0.500000\t0.250000",
    ]
