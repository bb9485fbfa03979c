"""Which runs share a row, what is averaged, and what stands beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_results import accuracy, content, sections_of

from modeling_infoxlm.evaluation.report.sections import Section
from modeling_infoxlm.evaluation.report.writing import to_csv, to_latex, to_markdown
from modeling_infoxlm.hub.benchmarks import LANGUAGES


def rows(section: Section) -> list[tuple[str, int]]:
    """Label of each of our rows, and its runs."""
    return [(model, runs) for model, runs, _ in section.table(section.metric).index if runs]


def number(section: Section, column: str, metric: str = "accuracy") -> pd.Series:
    """The line of a number of our first row."""
    numbers = section.numbers
    return numbers[(numbers.metric == metric) & (numbers.column == column)].iloc[0]


# ---------------------------------------------------------------------------- rows


def test_seeds_share_a_row_and_nothing_else_does(tmp_path: Path) -> None:
    scores = accuracy(en=80.0, de=70.0)
    results = [
        content(scores),
        content(scores),  # a copy counts once
        content(accuracy(en=82.0, de=70.0), seed=2),
        content(accuracy(en=84.0, de=70.0), seed=3),
        content(scores, settings={"learning_rate": 2e-5}),
        content(scores, model={"name_or_path": "out/b", "sha256": "b" * 64}),
    ]
    (section,) = sections_of(tmp_path, *results)
    assert rows(section) == [
        ("my_model (learning rate 1e-05)", 3), ("my_model (learning rate 2e-05)", 1), ("b", 1),
    ]  # fmt: skip
    english = number(section, "en")
    assert (english.value, english.spread, english.runs) == (82.0, 2.0, 3)
    assert np.isnan(english.low)
    assert number(section, "gap").value == pytest.approx(12)
    assert english.source == "files 1, 2, 3, 4"
    assert any("1 of the files are copies" in note for note in section.notes)


@pytest.mark.parametrize(
    ("place", "name", "first", "second"),
    [
        ("dataset.sha256", "data", "d" * 64, "e" * 64),
        ("dataset.revision", "data", "c0", "c1"),
        ("dataset.revision", None, None, None),
        ("model.sha256", "weights", "a" * 64, "b" * 64),
        ("model.revision", "weights", "e1", "f1"),
        ("model.sha256", "weights", None, None),
        ("model.tokenizer_sha256", "tokenizer", "a" * 64, "b" * 64),
        ("model.config_sha256", "config", "a" * 64, "b" * 64),
        ("settings.method", "method", "ot", "argmax"),
    ],
)
def test_what_is_not_known_to_be_the_same_is_not_averaged(
    tmp_path: Path, place: str, name: str | None, first: str | None, second: str | None
) -> None:
    """Where a commit tells what it is, there is no hash."""
    part, key = place.split(".")
    plain = {"sha256": None, "files": {}} if key == "revision" else {}
    one = content(accuracy(en=80.0), **{part: plain | {key: first}})
    other = content(accuracy(en=90.0), seed=2, **{part: plain | {key: second}})
    (section,) = sections_of(tmp_path, one, other)
    labels, runs = zip(*rows(section), strict=True)
    assert runs == (1, 1)
    found = [label.partition(" (")[2] for label in labels]
    assert name is None or found == [f"{name} {str(value)[:10]})" for value in (first, second)]
    assert section.table("accuracy").loc[:, "en"].tolist()[:2] == [80.0, 90.0]
    assert part != "dataset" or "2 different sets of data" in section.notes[0]


def test_settings_that_are_none_are_not_named_and_the_same_seed_is_no_other_run(tmp_path: Path) -> None:
    none = content(accuracy(en=80.0), settings={"method": "argmax", "sinkhorn_iter": None})
    (section,) = sections_of(
        tmp_path / "none", none, content(accuracy(en=80.0), settings={"sinkhorn_iter": 2})
    )
    assert [label for label, _ in rows(section)] == ["my_model (method argmax)", "my_model (sinkhorn iter 2)"]
    (section,) = sections_of(tmp_path / "seed", content(accuracy(en=80.0)), content(accuracy(en=90.0)))
    assert rows(section) == [("my_model (file 1)", 1), ("my_model (file 2)", 1)]
    assert "the seed included" in section.notes[0]


def test_runs_that_differ_in_more_than_the_seed_are_rows_of_their_own(tmp_path: Path) -> None:
    """In languages, or whatever their identity says: not only what stands in the settings of the result."""
    other_languages = content(accuracy(en=80.0, de=70.0), seed=2)
    (section,) = sections_of(tmp_path / "languages", content(accuracy(en=80.0)), other_languages)
    assert rows(section) == [("my_model (1 languages)", 1), ("my_model (2 languages)", 1)]
    assert any("compare rows with the same languages" in note for note in section.notes)
    identity = {"seed": 1, "lr_scheduler_type": "linear", "files": ["1", "2"], "label_smoothing_factor": 0.0}
    changes = [{}, {"lr_scheduler_type": "cosine"}, {"files": ["1", "3"]}, {"label_smoothing_factor": 0.1}]
    results = [
        content(accuracy(en=80.0 + seed), seed=seed, identity=identity | change | {"seed": seed})
        for change in changes
        for seed in (1, 2)
    ]
    (section,) = sections_of(tmp_path / "identity", *results)
    labels, runs = zip(*rows(section), strict=True)
    assert runs == (2, 2, 2, 2) and len(set(labels)) == 4
    assert "lr scheduler type cosine" in labels[1]


def test_tasks_and_datasets_have_sections_of_their_own(tmp_path: Path) -> None:
    scores = {"de-en": {"xlco": 3.14159}, "en-de": {"xlco": -0.004}}
    retrieval = {"task": "tatoeba", "seed": None, "settings": {"margin": "ratio", "margin_neighbours": 4}}
    results = [
        content(accuracy(en=80.0)),
        content(accuracy(en=70.0), dataset={"name": "xnli-dev"}),
        content(scores, task="information", unit="nats"),
        content(accuracy(de=80.0), **retrieval),
    ]
    sections = sections_of(tmp_path, *results)
    titles = ["information: xnli", "tatoeba: xnli", "xnli", "xnli-dev"]
    assert [section.title for section in sections] == titles
    assert "| 3.14 | 0.00 |" in to_markdown(sections[:1], [], {})  # a loss of nothing has no sign
    assert "margin ratio" in rows(sections[1])[0][0]  # published numbers, which stand below, have none


def test_columns(tmp_path: Path) -> None:
    """Languages in the paper's order, means behind them; what a table has already is no other number."""
    (section,) = sections_of(tmp_path / "order", content(accuracy(zh=1, af=2, ur=3, en=4, bn=5)))
    assert section.columns("accuracy") == ["en", "zh", "ur", "af", "bn", "mean", "gap"]
    (section,) = sections_of(tmp_path / "one", content(accuracy(en=80.0), summary={"mean": 80.0}))
    assert section.columns("accuracy") == ["en"] and section.metrics == ["accuracy"]
    scores = {pair: {"tlm": 2.0, "mlm": 1.0, "tlm_minus_mlm": 1.0} for pair in ("en-de", "en-fr")}
    summary = {"tlm": 2.0, "mlm": 1.0, "tlm_minus_mlm": 1.0, "mean_14_tlm": 3.0, "ceiling": 6.9}
    result = content(scores, task="information", unit="nats", summary=summary)
    (section,) = sections_of(tmp_path / "summary", result)
    assert section.columns("summary") == ["ceiling"]


# ---------------------------------------------------------------------------- matrices


def test_mixed_nli_is_a_matrix(tmp_path: Path) -> None:
    def run(seed: int) -> dict[str, Any]:
        mixed = {"languages": ["de", "en"], "matrix": [[70.0, 60.0 + seed], [62.0, 80.0]]}
        summary = {"mean": 75.0, "within": 75.0, "across": 60.0 + seed}
        details = {"mixed_languages": mixed}
        return content(accuracy(en=80.0, de=70.0), seed=seed, summary=summary, details=details)

    (section,) = sections_of(tmp_path, run(1), run(3))
    (matrix,) = section.matrices
    values = matrix.values
    assert (list(values.index), list(values.columns)) == (["en", "de"], ["en", "de"])
    assert (values.index.name, values.columns.name) == ("premise", "hypothesis")
    assert values.to_numpy().tolist() == [[80.0, 62.0], [62.0, 70.0]]
    text = to_markdown([section], [], {})
    assert "### my\\_model: accuracy, percent, by language of premise and hypothesis" in text
    assert "| premise \\\\ hypothesis | en | de |\n| --- | ---: | ---: |\n| en | 80.0 | 62.0 |" in text
    assert "| my\\_model | 2 | 75.0 ± 0.0 | 62.0 ± 1.4 | files 1, 2 |" in text
    assert "xnli,xnli,percent,accuracy-premise-hypothesis,my_model,de-en,62.0,,,,,2" in to_csv([section])
    assert "premise \\textbackslash{} hypothesis & en & de" in to_latex([section])


def test_questions_in_other_languages_are_a_matrix_and_no_columns(tmp_path: Path) -> None:
    scores = {
        name: {"f1": value, "exact_match": value - 10}
        for name, value in {"en": 80.0, "de": 60.0, "de-en": 50.0}.items()
    }
    grid = {"en": {"en": 80.0}, "de": {"de": 60.0, "en": 50.0}}
    result = content(
        scores, task="mlqa", dataset={"name": "mlqa"}, details={"g_xlt": {"f1": grid, "exact_match": {}}},
        summary={"mean": 70.0, "across": 50.0, "exact_match_mean": 60.0, "exact_match_across": 40.0},
    )  # fmt: skip
    (section,) = sections_of(tmp_path, result)
    assert section.columns("f1") == ["en", "de", "mean", "gap"]
    assert section.columns("summary") == ["across", "exact_match_across"]
    assert number(section, "mean", "f1").value == 70.0
    (matrix,) = section.matrices
    assert (matrix.values.index.name, matrix.values.columns.name) == ("context", "question")
    assert np.array_equal(matrix.values, [[80.0, np.nan], [50.0, 60.0]], equal_nan=True)
    assert "| en | 80.0 | - |" in to_markdown([section], [], {})


# ---------------------------------------------------------------------------- published rows


XNLI_TEST = dict(zip("en fr es de el bg ru tr ar vi th zh hi sw ur".split(), range(60, 75), strict=True))


def published(section: Section, metric: str) -> dict[str, dict[str, float]]:
    table = section.table(metric)
    return {
        model: {column: round(value, 2) for column, value in numbers.dropna().items()}
        for (model, runs, _), numbers in table.iterrows()
        if not runs
    }


def test_published_rows_stand_beside_ours_in_our_columns(tmp_path: Path) -> None:
    (section,) = sections_of(tmp_path / "all", content(accuracy(**XNLI_TEST)))
    rows = published(section, "accuracy")
    assert rows["InfoXLM base"]["en"] == 86.4 and rows["InfoXLM base"]["mean"] == 76.5
    assert rows["InfoXLM base"]["gap"] == 10.64
    assert rows["XLM-Align base"] == {"mean": 76.2}
    assert not any("translate" in label for label in rows)
    (source,) = {source for model, _, source in section.table("accuracy").index if model == "InfoXLM base"}
    text = to_markdown([section], [], {})
    assert "| InfoXLM base | published | 86.4 | 80.3 | 80.9 | 79.3 | 77.8 |" in text
    assert source.replace("_", "\\_") in text
    assert not any("split" in note for note in section.notes)
    # Means over fewer languages are computed anew.
    (section,) = sections_of(tmp_path / "three", content(accuracy(en=80.0, fr=70.0, de=60.0)))
    rows = published(section, "accuracy")
    assert rows["InfoXLM base"] == {"en": 86.4, "fr": 80.3, "de": 79.3, "mean": 82.0, "gap": 6.6}
    assert "XLM-Align base" not in rows  # of which only the mean of 15 is known
    # Rows that were trained on translations stand beside their like.
    ours = content(accuracy(**XNLI_TEST), settings={"translate_train": True})
    (section,) = sections_of(tmp_path / "one", ours)
    assert published(section, "accuracy")["XLM-R base"]["en"] == 85.4
    (both,) = sections_of(tmp_path / "two", ours, content(accuracy(**XNLI_TEST), seed=2))
    rows = published(both, "accuracy")
    assert rows["XLM-R base"]["en"] == 85.8 and rows["XLM-R base, translate-train"]["en"] == 85.4


def test_means_of_the_papers_languages_stand_beside_more(tmp_path: Path) -> None:
    xtreme, fourteen = LANGUAGES["tatoeba_xtreme"], LANGUAGES["tatoeba"]
    scores = {
        one: {"accuracy": 50.0, "source_to_target": 80.0 if one in fourteen else 30.0} for one in xtreme
    }
    result = content(scores, task="tatoeba", dataset={"name": "tatoeba"}, seed=None)
    (section,) = sections_of(tmp_path, result)
    assert section.columns("source_to_target")[-2:] == ["mean", "mean of 14"]
    assert number(section, "mean of 14", "source_to_target").value == pytest.approx(80)
    assert number(section, "mean", "source_to_target").value == pytest.approx((14 * 80 + 22 * 30) / 36)
    rows = published(section, "source_to_target")
    assert rows["XLM-R base"] == {"mean": 55.3, "mean of 14": 59.4}
    assert rows["InfoXLM base"]["mean of 14"] == 77.8 and "mean" not in rows["InfoXLM base"]
    assert published(section, "accuracy") == {}


@pytest.mark.parametrize(
    ("part", "changes", "note"),
    [
        ("settings", {"max_predict_samples": 120}, "File 1: scores, or those of mixed languages, are"),
        ("details", {"mixed_languages": {"languages": ["en"], "matrix": [[80.0]]}}, "File 1: scores, or"),
        ("details", {"selected_on_test": True}, "Some checkpoints were selected on the very data"),
        ("dataset", {"name": "xnli-dev"}, "Not the same split"),
        ("dataset", {"files": {"dev-context-en-question-en.json": "f" * 64}}, "Not the same split"),
        ("task", "xquad", "File 1: scored by MLQA's rules, the literature by SQuAD's; do not compare."),
    ],
)
def test_what_was_measured_otherwise_before_is_said(
    tmp_path: Path, part: str, changes: Any, note: str
) -> None:
    (old,) = sections_of(tmp_path / "old", content(accuracy(en=80.0), **{part: changes}))
    assert any(found.startswith(note) for found in old.notes)
    settings = {"samples": "drawn", "mixed_max_samples": 100, "scoring_rules": "squad"}
    settings |= changes if part == "settings" else {}
    new = content(accuracy(en=80.0), **{part: changes, "settings": settings})
    (fresh,) = sections_of(tmp_path / "new", new)
    assert not any(found.startswith("File") for found in fresh.notes)
