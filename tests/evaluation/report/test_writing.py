"""Markdown, LaTeX and CSV of a small report, to the letter; names that would break them."""

import re
from pathlib import Path
from typing import Any

from tiny_results import accuracy, content, sections_of, write

from modeling_infoxlm.evaluation.report.result_files import find_results
from modeling_infoxlm.evaluation.report.sections import Section, build_sections
from modeling_infoxlm.evaluation.report.writing import to_csv, to_latex, to_markdown


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
    assert any(line.startswith("| a\\`b # Heading \\[x\\](https://x.org)&lt;script>\\|") for line in lines)
    outside = [re.sub(r"`[^`]*`", "", line.replace("\\`", "")) for line in lines]
    assert not [line for line in outside if "<script" in line or "[x](" in line.replace("\\[x\\]", "")]
