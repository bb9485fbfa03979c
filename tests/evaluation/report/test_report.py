"""The command: figures, files, and input that it must refuse."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from broken_json import NO_JSON_OF_OURS, with_one_fault
from tiny_results import accuracy, content, sections_of, write

from modeling_infoxlm.evaluation.report.report import draw_figures, report_command
from modeling_infoxlm.evaluation.report.result_files import find_results
from modeling_infoxlm.evaluation.report.sections import build_sections
from modeling_infoxlm.evaluation.report.writing import to_csv, to_markdown
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.process import run_main


def test_figures_show_the_numbers_of_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = {"languages": ["en", "de"], "matrix": [[80.0, 60.0], [62.0, 70.0]]}
    result = content(accuracy(en=80.0, de=70.0, fr=60.0), details={"mixed_languages": mixed})
    sections = sections_of(tmp_path, result)
    figures = {name.removeprefix("xnli-"): figure for name, (_, figure) in draw_figures(sections).items()}
    assert list(figures) == ["languages.png", "radar.png", "matrix-1.png"]
    heat_map = figures["languages.png"].axes[0]
    assert heat_map.images[0].get_array()[0].tolist() == [80.0, 60.0, 70.0]  # en, fr, de: the paper's order
    labels = [text.get_text() for text in heat_map.get_yticklabels()]
    assert labels[0] == "my_model" and "InfoXLM base, published" in labels
    assert not any("XLM-Align" in label for label in labels)  # of which only a mean is known
    assert [text.get_text() for text in heat_map.texts[:3]] == ["80.0", "60.0", "70.0"]
    assert figures["languages.png"].get_suptitle() == "accuracy, percent: from 60.0 (fr) to 89.7 (en)"
    radar = figures["radar.png"].axes[0]
    assert radar.lines[0].get_ydata().tolist() == [80.0, 60.0, 70.0, 80.0]
    assert 50 <= radar.get_ylim()[0] < 60 and 89.7 <= radar.get_ylim()[1] <= 100
    matrix = figures["matrix-1.png"]
    assert matrix.get_suptitle() == "my_model\nsame language 75.0, different languages 61.0"
    assert matrix.axes[0].images[0].get_array().tolist() == mixed["matrix"]
    monkeypatch.setitem(sys.modules, "modeling_infoxlm.plots", None)
    with pytest.raises(UsageError, match=r"pip install 'modeling-infoxlm\[plots\]', or --formats md,tex,csv"):
        draw_figures(sections)


def test_rows_with_holes_are_in_the_heat_map_and_not_in_the_radar(tmp_path: Path) -> None:
    scores = {language: {"f1": 60.0} for language in "en es de ar hi vi zh".split()}
    figures = draw_figures(
        sections_of(tmp_path / "qa", content(scores, task="mlqa", dataset={"name": "mlqa"}))
    )
    heat_map, radar = (figures[f"mlqa-{name}.png"][1] for name in ("languages", "radar"))
    name = "XLM-R large, published"  # without hi
    assert name in [text.get_text() for text in heat_map.axes[0].get_yticklabels()]
    drawn = [line.get_label() for line in radar.axes[0].lines]
    assert name not in drawn and "XLM-R base, published" in drawn
    two = draw_figures(sections_of(tmp_path / "two", content(accuracy(en=80.0, de=70.0))))
    assert list(two) == ["xnli-languages.png"]


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
    figures = {"xnli-languages.png", "xnli-radar.png"}
    assert {path.name for path in out.iterdir()} == {"report.md", "report.tex", "report.csv"} | figures
    assert "![xnli-radar.png](xnli-radar.png)" in (out / "report.md").read_text(encoding="utf-8")
    assert "2 files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "no result: infoxlm report PATH..."),
        ("missing", "missing does not exist"),
        ("{dir}", "no result file"),
        ("{dir}/all_results.json", "is no result file: expected schema"),
        ("{dir}_cut", "is no JSON file"),
        ("{dir} --formats md,pdf", "formats must be some of md, tex, csv, png, found 'md,pdf'"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, argv: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    write(folder, "all", {"eval_loss": 1.0})
    (folder / "x.txt").write_text("hello")
    write(tmp_path / "in_cut", "x", {}).write_text("{")
    given = argv.format(dir=folder).split()
    assert run_main(report_command, [*given, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


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
    for text in NO_JSON_OF_OURS:
        path.write_bytes(text)
        with pytest.raises(UsageError, match="a_results.json is no "):
            find_results([str(path)])
