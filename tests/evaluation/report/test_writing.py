"""Markdown, LaTeX and CSV of a small report, to the letter; names that would break them."""

import re
from pathlib import Path

from tiny_results import accuracy, content, sections_of, write

from modeling_infoxlm.evaluation.report.result_files import ResultFile, find_results
from modeling_infoxlm.evaluation.report.sections import Section, build_sections
from modeling_infoxlm.evaluation.report.writing import to_csv, to_latex, to_markdown


def small_report(folder: Path) -> tuple[list[Section], list[ResultFile]]:
    """Two seeds of one model, one of another on two of its languages, with a metric more."""
    shared = {"task": "probe", "dataset": {"name": "probe & co", "sha256": "d" * 64}}
    write(folder, "a/seed1", content(accuracy(fr=70.0, en=80.0, xx=50.04), **shared))
    write(folder, "a/seed2", content(accuracy(fr=72.0, en=81.0, xx=50.04), seed=2, **shared))
    other = {"en": {"accuracy": 90.0, "f1": 60.0}, "fr": {"accuracy": 60.0, "f1": 50.0}}
    model = {"name_or_path": "group/other", "revision": "r1", "sha256": None}
    summary = {"mean": 75.0, "gap": 30.0, "across": 41.25}
    write(folder, "b", content(other, model=model, summary=summary, seed=None, **shared))
    files = find_results([str(folder)])
    return build_sections(files), files


def test_a_small_report_to_the_letter(tmp_path: Path) -> None:
    sections, files = small_report(tmp_path)
    text = to_markdown(sections, files, {"probe & co": ["probe---co-languages.png"]})
    expected = Path(__file__).with_name("expected_report.md").read_text(encoding="utf-8")
    assert text.replace(f"{tmp_path}/", "") == expected.replace("{a}", "a" * 64).replace("{d}", "d" * 64)
    head, first, second, _, _ = to_latex(sections).split("\n\n")
    assert head == r"% Made by infoxlm report; needs \usepackage{booktabs}."
    assert f"{first}\n" == Path(__file__).with_name("expected_table.tex").read_text(encoding="utf-8")
    assert r"\caption{probe \& co, f1, percent." in second
    lines = to_csv(sections).splitlines()
    assert lines[0] == "task,dataset,unit,metric,model,column,value,spread,low,high,count,runs,source"
    assert f'probe,probe & co,percent,accuracy,my_model,fr,71.0,{2**0.5},,,100,2,"files 1, 2"' in lines
    assert "probe,probe & co,percent,accuracy,group/other,en,90.0,,89.0,91.0,100,1,file 3" in lines
    assert "probe,probe & co,percent,summary,group/other,across,41.25,,,,,1,file 3" in lines
    assert len(lines) == 1 + 5 + 4 + 4 + 1


def test_names_in_a_file_stay_text_in_the_report(tmp_path: Path) -> None:
    name = "a&b%c$d#e_f{g}h~i^j\\k"
    text = to_latex(sections_of(tmp_path / "tex", content(accuracy(en=1.0), model={"name_or_path": name})))
    assert r"a\&b\%c\$d\#e\_f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k & 1" in text
    name = "a`b\n\n# Heading\n[x](https://x.org)<script>|"
    model = {"name_or_path": name, "sha256": None, "revision": name}
    result = content(accuracy(en=80.0), dataset={"name": name}, model=model, command=[name])
    files = find_results([str(write(tmp_path, "0", result))])
    lines = to_markdown(build_sections(files), files, {}).splitlines()
    assert not [line for line in lines if line.startswith("# Heading")]
    assert any(line.startswith("| a\\`b # Heading \\[x\\](https://x.org)&lt;script>\\|") for line in lines)
    outside = [re.sub(r"`[^`]*`", "", line.replace("\\`", "")) for line in lines]
    assert not [line for line in outside if "<script" in line or "[x](" in line.replace("\\[x\\]", "")]
