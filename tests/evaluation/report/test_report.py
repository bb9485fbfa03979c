"""The report: which runs share a row, what stands where, and that every number can be traced."""

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from broken_json import NO_JSON_OF_OURS, with_one_fault

from modeling_infoxlm.evaluation.report.report import draw_figures, report_command
from modeling_infoxlm.evaluation.report.result_files import find_results
from modeling_infoxlm.evaluation.report.sections import Section, build_sections
from modeling_infoxlm.evaluation.report.writing import to_csv, to_latex, to_markdown
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.process import run_main
from modeling_infoxlm.runs.provenance import RESULT_SCHEMA

Scores = Mapping[str, Mapping[str, float]]


def content(scores: Scores, **changes: Any) -> dict[str, Any]:
    """A result file of a made-up model; each score has an interval of +-1 and 100 items."""
    table = {
        language: {
            metric: {"value": value, "low": value - 1, "high": value + 1, "count": 100}
            for metric, value in by_metric.items()
        }
        for language, by_metric in scores.items()
    }
    first_metric = next(iter(next(iter(scores.values()))))
    result: dict[str, Any] = {
        "schema": RESULT_SCHEMA,
        "task": "xnli",
        "metric": first_metric,
        "unit": "percent",
        "dataset": {"name": "xnli", "files": {"test-en.tsv": "f" * 64}, "revision": None, "sha256": "d" * 64},
        "model": {
            "name_or_path": "out/my_model", "revision": None, "sha256": "a" * 64,
            "model_type": "xlm-roberta", "num_parameters": 5,
        },
        "settings": {"learning_rate": 1e-5},
        "seed": 1,
        "scores": table,
        "summary": {},
        "details": {},
        "command": ["run_xnli.py", "--seed", "1"],
        "commit": "c0ffee",
    }  # fmt: skip
    for name, value in changes.items():
        result[name] = {**result.get(name, {}), **value} if isinstance(value, dict) else value
    return result


def write(folder: Path, name: str, result: object) -> Path:
    path = folder / f"{name}_results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result), encoding="utf-8")
    return path


def sections_of(folder: Path, *results: Mapping[str, Any]) -> list[Section]:
    for number, result in enumerate(results):
        write(folder, f"{number}", result)
    return build_sections(find_results([str(folder)]))


def accuracy(**values: float) -> dict[str, dict[str, float]]:
    return {language: {"accuracy": value} for language, value in values.items()}


def rows(section: Section) -> list[tuple[str, int]]:
    """Label of each of our rows, and its runs."""
    return [(model, runs) for model, runs, _ in section.table(section.metric).index if runs]


def number(section: Section, column: str, metric: str = "accuracy") -> pd.Series:
    """The line of a number of our first row."""
    numbers = section.numbers
    return numbers[(numbers.metric == metric) & (numbers.column == column)].iloc[0]


# ---------------------------------------------------------------------------- golden files


def small_report(folder: Path) -> tuple[list[Section], list[Any]]:
    """Two seeds of one model, one of another on two of its languages, with a metric more."""
    model = {"name_or_path": "group/other", "revision": "r1", "sha256": None}
    dataset = {"name": "probe & co", "sha256": "d" * 64}
    shared = {"task": "probe", "dataset": dataset}
    write(folder, "a/seed1", content(accuracy(fr=70.0, en=80.0, xx=50.04), **shared))
    write(folder, "a/seed2", content(accuracy(fr=72.0, en=81.0, xx=50.04), seed=2, **shared))
    other = {"en": {"accuracy": 90.0, "f1": 60.0}, "fr": {"accuracy": 60.0, "f1": 50.0}}
    summary = {"mean": 75.0, "gap": 30.0, "across": 41.25}
    write(folder, "b", content(other, model=model, summary=summary, seed=None, **shared))
    files = find_results([str(folder)])
    return build_sections(files), files


def test_markdown(tmp_path: Path) -> None:
    sections, files = small_report(tmp_path)
    text = to_markdown(sections, files, {"probe & co": ["probe---co-languages.png"]})
    a, d = "a" * 64, "d" * 64
    assert (
        text.replace(f"{tmp_path}/", "")
        == f"""# Results

Made by `infoxlm report` from the files listed at the end.

## probe & co

### accuracy, percent

| model | runs | en | fr | xx | mean | gap | source |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |
| my\\_model | 2 | 80.5 ± 0.7 | 71.0 ± 1.4 | 50.0 ± 0.0 | 67.2 ± 0.7 | 20.0 ± 0.0 | files 1, 2 |
| group/other | 1 | 90.0 | 60.0 | - | 75.0 | 30.0 | file 3 |

### f1, percent

| model | runs | en | fr | mean | gap | source |
| --- | ---: | ---: | ---: | ---: | ---: | --- |
| group/other | 1 | 60.0 | 50.0 | 55.0 | 10.0 | file 3 |

### other numbers, percent

| model | runs | across | source |
| --- | ---: | ---: | --- |
| group/other | 1 | 41.2 | file 3 |

- Means are over the languages of their own row; compare rows with the same languages.
- Several runs: mean ± standard deviation over the seeds.

![probe---co-languages.png](probe---co-languages.png)

## Files

1. `a/seed1_results.json`: probe, seed 1; model `out/my_model` (sha256 {a}); data probe & co (sha256 {d}); \
commit c0ffee; command `run_xnli.py --seed 1`
2. `a/seed2_results.json`: probe, seed 2; model `out/my_model` (sha256 {a}); data probe & co (sha256 {d}); \
commit c0ffee; command `run_xnli.py --seed 1`
3. `b_results.json`: probe; model `group/other` (revision r1); data probe & co (sha256 {d}); \
commit c0ffee; command `run_xnli.py --seed 1`
"""
    )


def test_latex(tmp_path: Path) -> None:
    sections, _ = small_report(tmp_path)
    head, first, second, _, _ = to_latex(sections).split("\n\n")
    ours = (
        r"my\_model & 2 & 80.5 $\pm$ 0.7 & 71.0 $\pm$ 1.4 & 50.0 $\pm$ 0.0 & 67.2 $\pm$ 0.7 & 20.0 $\pm$ 0.0 "
        r"& files 1, 2 \\"
    )
    assert head == r"% Made by infoxlm report; needs \usepackage{booktabs}."
    expected = r"""\begin{table}
\centering\small\setlength{\tabcolsep}{3pt}
CAPTION
\begin{tabular}{lrrrrrrl}
\toprule
model & runs & en & fr & xx & mean & gap & source \\
\midrule
OURS
group/other & 1 & 90.0 & 60.0 & - & 75.0 & 30.0 & file 3 \\
\bottomrule
\end{tabular}
\end{table}"""
    caption = (
        r"\caption{probe \& co, accuracy, percent. Means are over the languages of their own row; compare "
        r"rows with the same languages. Several runs: mean $\pm$ standard deviation over the seeds.}"
    )
    assert first == expected.replace("OURS", ours).replace("CAPTION", caption)
    assert r"\caption{probe \& co, f1, percent." in second


def test_csv(tmp_path: Path) -> None:
    sections, _ = small_report(tmp_path)
    lines = to_csv(sections).splitlines()
    assert lines[0] == "task,dataset,unit,metric,model,column,value,spread,low,high,count,runs,source"
    spread = 2**0.5
    assert f'probe,probe & co,percent,accuracy,my_model,fr,71.0,{spread},,,100,2,"files 1, 2"' in lines
    assert "probe,probe & co,percent,accuracy,group/other,en,90.0,,89.0,91.0,100,1,file 3" in lines
    assert "probe,probe & co,percent,summary,group/other,across,41.25,,,,,1,file 3" in lines
    assert len(lines) == 1 + 5 + 4 + 4 + 1


def test_latex_escapes_every_special_character(tmp_path: Path) -> None:
    name = "a&b%c$d#e_f{g}h~i^j\\k"
    text = to_latex(sections_of(tmp_path, content(accuracy(en=1.0), model={"name_or_path": name})))
    assert r"a\&b\%c\$d\#e\_f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k & 1" in text


def test_markdown_escapes_what_would_break_a_table(tmp_path: Path) -> None:
    (section,) = sections_of(tmp_path, content(accuracy(en=1.0), model={"name_or_path": "a|b*c_d<e"}))
    assert "| a\\|b\\*c\\_d&lt;e | 1 |" in to_markdown([section], [], {})


# ---------------------------------------------------------------------------- rows


def test_seeds_share_a_row_and_nothing_else_does(tmp_path: Path) -> None:
    scores = accuracy(en=80.0, de=70.0)
    results = [
        content(scores),
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
    assert english.source == "files 1, 2, 3"


def on_hub(revision: str | None) -> dict[str, Any]:
    return {"sha256": None, "revision": revision, "files": {}}


@pytest.mark.parametrize(
    ("first", "second", "labels"),
    [
        ({}, {"dataset": {"sha256": "e" * 64}}, ["data dddddddddd", "data eeeeeeeeee"]),
        ({"dataset": on_hub("c0")}, {"dataset": on_hub("c1")}, ["data c0", "data c1"]),
        (
            {"dataset": on_hub(None)},
            {"dataset": on_hub(None)},
            ["data unknown, o, file 1", "data unknown, o, file 2"],
        ),
        (
            {},
            {"model": {"sha256": "b" * 64, "name_or_path": "elsewhere/my_model"}},
            ["weights aaaaaaaaaa", "weights bbbbbbbbbb"],
        ),
        (
            {"model": {"sha256": None, "revision": "e" * 40}},
            {"model": {"sha256": None, "revision": "f" * 40}},
            ["weights eeeeeeeeee", "weights ffffffffff"],
        ),
        ({"model": {"sha256": None}}, {"model": {"sha256": None}}, ["weights None", "weights None"]),
        (
            {"model": {"tokenizer_sha256": "a" * 64}},
            {"model": {"tokenizer_sha256": "b" * 64}},
            ["tokenizer aaaaaaaaaa", "tokenizer bbbbbbbbbb"],
        ),
        (
            {"model": {"config_sha256": "a" * 64}},
            {"model": {"config_sha256": "b" * 64}},
            ["config aaaaaaaaaa", "config bbbbbbbbbb"],
        ),
        ({}, {"seed": 1}, ["file 1", "file 2"]),  # the same seed, but other scores
        (
            {"settings": {"method": "ot", "sinkhorn_iter": 2}},
            {"settings": {"method": "argmax", "sinkhorn_iter": None}},
            ["method ot, sinkhorn iter 2", "method argmax"],
        ),
    ],
)
def test_what_is_not_known_to_be_the_same_is_not_averaged(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], labels: list[str]
) -> None:
    results = (content(accuracy(en=80.0), **first), content(accuracy(en=90.0), **{"seed": 2} | second))
    (section,) = sections_of(tmp_path, *results)
    found = [(label.partition(" (")[2].removesuffix(")"), runs) for label, runs in rows(section)]
    assert [runs for _, runs in found] == [1, 1]
    if "unknown" not in labels[0]:
        assert [label for label, _ in found] == labels
    assert section.table("accuracy").loc[:, "en"].tolist()[:2] == [80.0, 90.0]
    said = {"dataset": "2 different sets of data", "seed": "the seed included"}
    assert all(said[name] in section.notes[0] for name in second if name in said)


def test_runs_over_other_languages_are_rows_of_their_own(tmp_path: Path) -> None:
    (section,) = sections_of(
        tmp_path, content(accuracy(en=80.0)), content(accuracy(en=80.0, de=70.0), seed=2)
    )
    assert rows(section) == [("my_model (1 languages)", 1), ("my_model (2 languages)", 1)]
    assert any("compare rows with the same languages" in note for note in section.notes)


def test_copies_count_once_and_are_said(tmp_path: Path) -> None:
    result = content(accuracy(en=80.0))
    (section,) = sections_of(tmp_path, result, result, content(accuracy(en=82.0), seed=2))
    assert rows(section) == [("my_model", 2)]
    assert number(section, "en").value == 81.0 and number(section, "en").source == "files 1, 2, 3"
    assert "1 of the files are copies" in section.notes[0]


def test_runs_that_differ_in_more_than_the_seed_are_other_experiments(tmp_path: Path) -> None:
    """Whatever their identity says: not only what stands in the settings of the result."""
    identity = {"seed": 1, "lr_scheduler_type": "linear", "files": ["1", "2"], "label_smoothing_factor": 0.0}
    changes = [{}, {"lr_scheduler_type": "cosine"}, {"files": ["1", "3"]}, {"label_smoothing_factor": 0.1}]
    results = [
        content(accuracy(en=80.0 + seed), seed=seed, identity=identity | change | {"seed": seed})
        for change in changes
        for seed in (1, 2)
    ]
    (section,) = sections_of(tmp_path, *results)
    labels, runs = zip(*rows(section), strict=True)
    assert runs == (2, 2, 2, 2) and len(set(labels)) == 4
    assert "lr scheduler type cosine" in labels[1]


def test_a_margin_is_always_named(tmp_path: Path) -> None:
    """Published numbers, which stand below, are without one."""
    retrieval = {"task": "tatoeba", "seed": None, "settings": {"margin": "ratio", "margin_neighbours": 4}}
    (section,) = sections_of(tmp_path, content(accuracy(de=80.0), **retrieval))
    assert "margin ratio" in rows(section)[0][0]


def test_tasks_and_datasets_have_sections_of_their_own(tmp_path: Path) -> None:
    scores = {"de-en": {"xlco": 3.14159}, "en-de": {"xlco": -0.004}}
    results = [
        content(accuracy(en=80.0)),
        content(accuracy(en=70.0), dataset={"name": "xnli-dev"}),
        content(scores, task="information", unit="nats"),
    ]
    sections = sections_of(tmp_path, *results)
    assert [section.title for section in sections] == ["information: xnli", "xnli", "xnli-dev"]
    assert "| 3.14 | 0.00 |" in to_markdown(sections[:1], [], {})  # a loss of nothing has no sign


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
    runs = [
        content(
            accuracy(en=80.0, de=70.0),
            seed=seed,
            summary={"mean": 75.0, "within": 75.0, "across": 60.0 + seed},
            details={
                "mixed_languages": {"languages": ["de", "en"], "matrix": [[70.0, 60.0 + seed], [62.0, 80.0]]}
            },
        )
        for seed in (1, 3)
    ]
    (section,) = sections_of(tmp_path, *runs)
    (matrix,) = section.matrices
    values = matrix.values
    assert (list(values.index), list(values.columns)) == (["en", "de"], ["en", "de"])
    assert (values.index.name, values.columns.name) == ("premise", "hypothesis")
    assert values.to_numpy().tolist() == [[80.0, 62.0], [62.0, 70.0]]
    text = to_markdown([section], [], {})
    assert "### my\\_model: accuracy, percent, by language of premise and hypothesis" in text
    assert "| premise \\\\ hypothesis | en | de |\n| --- | ---: | ---: |\n| en | 80.0 | 62.0 |" in text
    assert "| model | runs | within | across | source |" in text
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
    (section,) = sections_of(tmp_path, content(accuracy(**XNLI_TEST)))
    rows = published(section, "accuracy")
    assert rows["InfoXLM base"]["en"] == 86.4 and rows["InfoXLM base"]["mean"] == 76.5
    assert rows["InfoXLM base"]["gap"] == 10.64
    assert rows["XLM-Align base"] == {"mean": 76.2}
    assert rows["mDeBERTa-v3 base, dev set"]["ur"] == 72.4
    assert not any("translate" in label for label in rows)
    (source,) = {source for model, _, source in section.table("accuracy").index if model == "InfoXLM base"}
    text = to_markdown([section], [], {})
    assert "| InfoXLM base | published | 86.4 | 80.3 | 80.9 | 79.3 | 77.8 |" in text
    assert source.replace("_", "\\_") in text
    assert not any("split" in note for note in section.notes)


def test_means_over_fewer_languages_are_computed_anew(tmp_path: Path) -> None:
    (section,) = sections_of(tmp_path, content(accuracy(en=80.0, fr=70.0, de=60.0)))
    rows = published(section, "accuracy")
    assert rows["InfoXLM base"] == {"en": 86.4, "fr": 80.3, "de": 79.3, "mean": 82.0, "gap": 6.6}
    assert "XLM-Align base" not in rows  # of which only the mean of 15 is known


def test_rows_trained_on_translations_stand_beside_their_like(tmp_path: Path) -> None:
    ours = content(accuracy(**XNLI_TEST), settings={"translate_train": True})
    (section,) = sections_of(tmp_path / "one", ours)
    assert published(section, "accuracy")["XLM-R base"]["en"] == 85.4
    (both,) = sections_of(tmp_path / "two", ours, content(accuracy(**XNLI_TEST), seed=2))
    rows = published(both, "accuracy")
    assert rows["XLM-R base"]["en"] == 85.8 and rows["XLM-R base, translate-train"]["en"] == 85.4


def test_a_dev_set_is_said_to_be_another_split(tmp_path: Path) -> None:
    (section,) = sections_of(tmp_path / "name", content(accuracy(en=80.0), dataset={"name": "xnli-dev"}))
    assert any("Not the same split" in note for note in section.notes)
    files = {"files": {"dev-context-en-question-en.json": "f" * 64}, "name": "mlqa"}
    (section,) = sections_of(tmp_path / "files", content({"en": {"f1": 80.0}}, task="mlqa", dataset=files))
    assert any("Not the same split" in note for note in section.notes)


def test_other_data_has_no_published_rows(tmp_path: Path) -> None:
    (section,) = sections_of(tmp_path, content({"en": {"f1": 80.0}}, task="mlqa", dataset={"name": "xquad"}))
    assert published(section, "f1") == {} and section.notes == ()


def test_means_of_the_papers_languages_stand_beside_more(tmp_path: Path) -> None:
    xtreme = (
        "af ar bg bn de el es et eu fa fi fr he hi hu id it ja jv ka kk ko ml mr nl pt ru sw ta te th tl tr "
        "ur vi zh"
    ).split()
    fourteen = set("ar bg de el es fr hi ru sw th tr ur vi zh".split())
    scores = {
        one: {
            "accuracy": 50.0,
            "source_to_target": 80.0 if one in fourteen else 30.0,
            "target_to_source": 20.0,
        }
        for one in xtreme
    }
    result = content(scores, task="tatoeba", dataset={"name": "tatoeba"}, seed=None)
    (section,) = sections_of(tmp_path, result)
    assert section.columns("source_to_target")[-2:] == ["mean", "mean of 14"]
    assert number(section, "mean of 14", "source_to_target").value == pytest.approx(80)
    assert number(section, "mean", "source_to_target").value == pytest.approx((14 * 80 + 22 * 30) / 36)
    rows = published(section, "source_to_target")
    assert rows["XLM-R base"] == {"mean": 55.3, "mean of 14": 59.4}
    assert rows["InfoXLM base"]["mean of 14"] == 77.8 and "mean" not in rows["InfoXLM base"]
    assert published(section, "target_to_source")["InfoXLM base"]["ar"] == 68.6
    assert published(section, "accuracy") == {}


# ---------------------------------------------------------------------------- figures


def test_figures_show_the_numbers_of_the_tables(tmp_path: Path) -> None:
    result = content(
        accuracy(en=80.0, de=70.0, fr=60.0),
        details={"mixed_languages": {"languages": ["en", "de"], "matrix": [[80.0, 60.0], [62.0, 70.0]]}},
    )
    sections = sections_of(tmp_path, result)
    figures = draw_figures(sections)
    assert list(figures) == ["xnli-languages.png", "xnli-radar.png", "xnli-matrix-1.png"]
    heat_map = figures["xnli-languages.png"][1].axes[0]
    assert heat_map.images[0].get_array()[0].tolist() == [80.0, 60.0, 70.0]  # en, fr, de: the paper's order
    labels = [text.get_text() for text in heat_map.get_yticklabels()]
    assert labels[0] == "my_model" and "InfoXLM base, published" in labels
    assert not any("XLM-Align" in label for label in labels)  # of which only a mean is known
    assert [text.get_text() for text in heat_map.texts[:3]] == ["80.0", "60.0", "70.0"]
    assert figures["xnli-languages.png"][1].get_suptitle() == "accuracy, percent: from 60.0 (fr) to 89.7 (en)"
    assert figures["xnli-radar.png"][1].axes[0].lines[0].get_ydata().tolist() == [80.0, 60.0, 70.0, 80.0]
    low, high = figures["xnli-radar.png"][1].axes[0].get_ylim()
    assert 50 <= low < 60 and 89.7 <= high <= 100
    title = "my_model\nsame language 75.0, different languages 61.0"
    assert figures["xnli-matrix-1.png"][1].get_suptitle() == title
    assert figures["xnli-matrix-1.png"][1].axes[0].images[0].get_array().tolist() == [
        [80.0, 60.0],
        [62.0, 70.0],
    ]


def test_rows_with_holes_are_in_the_heat_map_and_not_in_the_radar(tmp_path: Path) -> None:
    scores = {language: {"f1": 60.0} for language in "en es de ar hi vi zh".split()}
    figures = draw_figures(sections_of(tmp_path, content(scores, task="mlqa", dataset={"name": "mlqa"})))
    heat_map, radar = (figures[f"mlqa-{name}.png"][1] for name in ("languages", "radar"))
    name = "XLM-R large, published"  # without hi
    assert name in [text.get_text() for text in heat_map.axes[0].get_yticklabels()]
    drawn = [line.get_label() for line in radar.axes[0].lines]
    assert name not in drawn and "XLM-R base, published" in drawn


def test_two_languages_have_no_radar(tmp_path: Path) -> None:
    figures = draw_figures(sections_of(tmp_path, content(accuracy(en=80.0, de=70.0))))
    assert list(figures) == ["xnli-languages.png"]


# ---------------------------------------------------------------------------- command


def test_command_writes_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = content(accuracy(en=80.0, de=70.0, fr=60.0))
    named = write(tmp_path / "one", "xnli", result)
    write(tmp_path / "deep" / "er", "xnli", content(accuracy(en=82.0, de=72.0, fr=62.0), seed=2))
    write(tmp_path / "deep", "all", {"eval_loss": 1.0})  # the Trainer's
    out = tmp_path / "out"
    argv = [str(named), str(tmp_path / "deep"), "--output_dir", str(out)]
    assert run_main(report_command, [*argv, "--formats", "md,csv"]) == 0
    assert {path.name for path in out.iterdir()} == {"report.md", "report.csv"}
    rows = csv.DictReader(io.StringIO((out / "report.csv").read_text(encoding="utf-8")))
    (english,) = (row for row in rows if row["column"] == "en" and row["model"] == "my_model")
    assert (english["value"], english["runs"], english["source"]) == ("81.0", "2", "files 1, 2")

    assert run_main(report_command, argv) == 0
    assert {path.name for path in out.iterdir()} == {
        "report.md", "report.tex", "report.csv", "xnli-languages.png", "xnli-radar.png",
    }  # fmt: skip
    assert "![xnli-radar.png](xnli-radar.png)" in (out / "report.md").read_text(encoding="utf-8")
    assert "2 files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x_results.json", '{"schema": "infoxlm-result-0"}', "is no result file: expected schema"),
        ("x_results.json", "{", "is no JSON file"),
        ("all_results.json", '{"eval_loss": 1}', "no result file"),
        ("x.txt", "hello", "no result file"),
    ],
)
def test_folder_without_a_result(
    tmp_path: Path, name: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(text)
    argv = [str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    assert run_main(report_command, argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no result: infoxlm report PATH..."),
        (["missing"], "missing does not exist"),
        (["{dir}/all_results.json"], "is no result file: expected schema"),
        (["{dir}", "--formats", "md,pdf"], "formats must be some of md, tex, csv, png, found 'md,pdf'"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "all", {"eval_loss": 1.0})
    argv = [text.format(dir=tmp_path) for text in argv]
    assert run_main(report_command, [*argv, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_matplotlib_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    sections = sections_of(tmp_path, content(accuracy(en=80.0)))
    monkeypatch.setitem(sys.modules, "modeling_infoxlm.plots", None)
    with pytest.raises(UsageError, match=r"pip install 'modeling-infoxlm\[plots\]', or --formats md,tex,csv"):
        draw_figures(sections)


# ---------------------------------------------------------------------------- broken files


def test_a_broken_result_is_told_of_with_file_and_key(tmp_path: Path) -> None:
    """Whatever is wrong with a result: a report, or one line that names the file and what is wrong in it."""
    details = {"mixed_languages": {"languages": ["en", "fr"], "matrix": [[80.0, 60.0], [61.0, 70.0]]}}
    whole = content(accuracy(en=80.0, fr=70.0), details=details, summary={"within": 75.0})
    path = tmp_path / "a_results.json"
    refused = set()
    for place, broken in with_one_fault(whole):
        path.write_text(json.dumps(broken))
        try:
            files = find_results([str(path)])
            sections = build_sections(files)
            to_markdown(sections, files, {})
            to_csv(sections)
        except UsageError as error:
            assert str(path) in str(error) and place.split(".")[0] in str(error), place
            refused.add(place)
    needed = {"task", "metric", "unit", "dataset.name", "model.sha256", "scores", "scores.en.accuracy.value"}
    assert needed | {"details.mixed_languages.matrix.0", "command", "summary.within"} <= refused


@pytest.mark.parametrize("text", NO_JSON_OF_OURS, ids=range(len(NO_JSON_OF_OURS)))
def test_what_is_no_result_at_all_is_told_of_with_its_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a_results.json"
    path.write_bytes(text)
    with pytest.raises(UsageError, match="a_results.json is no "):
        find_results([str(path)])


def test_names_in_a_file_stay_text_in_the_report(tmp_path: Path) -> None:
    name = "a`b\n\n# Heading\n[x](https://x.org)<script>|"
    result = content(
        accuracy(en=80.0),
        dataset={"name": name},
        model={"name_or_path": name, "sha256": None, "revision": name},
        command=[name],
    )
    files = find_results([str(write(tmp_path, "0", result))])
    lines = to_markdown(build_sections(files), files, {}).splitlines()
    assert not [line for line in lines if line.startswith("# Heading")]
    outside = [re.sub(r"`[^`]*`", "", line.replace("\\`", "")) for line in lines]
    assert not [line for line in outside if "<script" in line or "[x](" in line.replace("\\[x\\]", "")]


@pytest.mark.parametrize(
    "changes, note",
    [
        (
            {"settings": {"max_predict_samples": 120}},
            "File 1: scores, or those of mixed languages, are of the f",
        ),
        (
            {"details": {"mixed_languages": {"languages": ["en"], "matrix": [[80.0]]}}},
            "File 1: scores, or those",
        ),
        ({"details": {"selected_on_test": True}}, "Some checkpoints were selected on the very data"),
        ({"task": "xquad"}, "File 1: scored by MLQA's rules, the literature by SQuAD's; do not compare."),
    ],
)
def test_what_was_measured_otherwise_before_is_said(
    tmp_path: Path, changes: dict[str, Any], note: str
) -> None:
    (old,) = sections_of(tmp_path / "old", content(accuracy(en=80.0), **changes))
    assert any(found.startswith(note) for found in old.notes)
    new = {"samples": "drawn", "mixed_max_samples": 100, "scoring_rules": "squad"}
    settings = {**changes.get("settings", {}), **new}
    (fresh,) = sections_of(tmp_path / "new", content(accuracy(en=80.0), **{**changes, "settings": settings}))
    assert not any(found.startswith("File") for found in fresh.notes)
