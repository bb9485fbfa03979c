"""A report's tables as Markdown, LaTeX and CSV."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from modeling_infoxlm.evaluation.report.result_files import ResultFile
from modeling_infoxlm.evaluation.report.sections import NUMBERS, SUMMARY, Matrix, Section, lines_of

_SOURCE = "source"
_MISSING = "-"
_DIGITS = {"percent": 1, "nats": 2}


@dataclass(frozen=True)
class Table:
    """Text of a table."""

    title: str  # what is in it
    # of the columns; the first column and one called source hold text, the others numbers
    headings: Sequence[str]
    parts: Sequence[Sequence[Sequence[str]]]  # rows, ours and published ones apart
    notes: Sequence[str] = ()  # for its caption

    def sides(self, left: str, right: str) -> list[str]:
        """Alignment of each column."""
        return [left if i == 0 or name == _SOURCE else right for i, name in enumerate(self.headings)]


def metric_title(section: Section, metric: str) -> str:
    """Name of a metric, and its unit."""
    return f"{'other numbers' if metric == SUMMARY else _words(metric)}, {section.unit}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _tables(section: Section) -> Iterator[Table]:
    for metric in section.metrics:
        yield _score_table(section, metric)
    for matrix in section.matrices:
        yield _matrix_table(section, matrix)


def _score_table(section: Section, metric: str) -> Table:
    columns = section.columns(metric)
    parts: tuple[list[list[str]], ...] = ([], [])
    values, spreads = section.table(metric), section.table(metric, "spread")
    for (model, runs, source), numbers in values.iterrows():
        spread = spreads.loc[(model, runs, source)]
        cells = [_number(numbers[column], spread[column], section.unit) for column in columns]
        parts[runs == 0].append([model, str(runs or "published"), *cells, source])
    headings = ["model", "runs", *map(_words, columns), _SOURCE]
    return Table(metric_title(section, metric), headings, [part for part in parts if part], section.notes)


def _matrix_table(section: Section, matrix: Matrix) -> Table:
    values = matrix.values
    first, second = values.index.name, values.columns.name
    rows = [
        [language, *(_number(value, float("nan"), section.unit) for value in numbers)]
        for language, numbers in values.iterrows()
    ]
    title = f"{matrix.label}: {metric_title(section, section.metric)}, by language of {first} and {second}"
    return Table(title, [f"{first} \\ {second}", *values.columns], [rows])


def _number(value: float, spread: float, unit: str) -> str:
    if pd.isna(value):
        return _MISSING
    shown = _round(value, _DIGITS[unit])
    return shown if pd.isna(spread) else f"{shown} ± {_round(spread, _DIGITS[unit])}"


def _round(value: float, digits: int) -> str:
    return f"{round(float(value), digits) + 0.0:.{digits}f}"  # + 0.0: never "-0.0"


def to_markdown(
    sections: Sequence[Section], files: Sequence[ResultFile], figures: Mapping[str, Sequence[str]]
) -> str:
    """The report as Markdown; `figures` has their names by the title of their section."""
    lines = ["# Results", "", "Made by `infoxlm report` from the files listed at the end.", ""]
    return "\n".join([*lines, *markdown_sections(sections, files, figures)])


def markdown_sections(
    sections: Sequence[Section], files: Sequence[ResultFile], figures: Mapping[str, Sequence[str]]
) -> list[str]:
    """The same as lines, without the heading."""
    lines = []
    for section in sections:
        lines += [f"## {_markdown(section.title)}", ""]
        for table in _tables(section):
            lines += [f"### {_markdown(table.title)}", "", *markdown_table(table)]
        lines += [*(f"- {note}" for note in section.notes), ""] if section.notes else []
        lines += [line for name in figures.get(section.title, ()) for line in (f"![{name}]({name})", "")]
    return [*lines, "## Files", "", *map(_describe_file, files), ""]


def markdown_table(table: Table) -> list[str]:
    """Lines of a table, and an empty one."""
    rows = [table.headings, table.sides("---", "---:"), *(row for part in table.parts for row in part)]
    return [*(f"| {' | '.join(map(_markdown, row))} |" for row in rows), ""]


def _markdown(text: str) -> str:
    """Text that stays text, on its line, whatever the names in a file are."""
    return re.sub(r"([\\`|*_\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")


def _code(text: object) -> str:
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"


def _describe_file(file: ResultFile) -> str:
    """A line of the list: everything that is needed to measure again."""
    content = file.content
    model, dataset = content["model"], content["dataset"]
    weights, data = (
        f"sha256 {one['sha256']}" if one["sha256"] else f"revision {one['revision']}"
        for one in (model, dataset)
    )
    seed = "" if content["seed"] is None else f", seed {content['seed']}"
    name, command = _markdown(dataset["name"]), _code(" ".join(content["command"]))
    return (
        f"{file.number}. {_code(file.path)}: {content['task']}{seed}; "
        f"model {_code(model['name_or_path'])} ({_markdown(weights)}); data {name} ({_markdown(data)}); "
        f"commit {content['commit']}; command {command}"
    )


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip


def to_latex(sections: Sequence[Section]) -> str:
    r"""The tables as LaTeX, for `\input`; needs `\usepackage{booktabs}`."""
    tables = [latex_table(table, section.title) for section in sections for table in _tables(section)]
    return "\n\n".join(["% Made by infoxlm report; needs \\usepackage{booktabs}.", *tables, ""])


def latex_table(table: Table, title: str) -> str:
    """A table whose rows come in parts with a rule before each."""
    caption = f"{title}, {table.title}. {' '.join(table.notes)}".strip()
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_latex(caption)}}}",
            rf"\begin{{tabular}}{{{''.join(table.sides('l', 'r'))}}}",
            r"\toprule",
            _latex_row(table.headings),
            *(line for part in table.parts for line in (r"\midrule", *map(_latex_row, part))),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def to_csv(sections: Sequence[Section]) -> str:
    """All numbers as CSV, one a line and not rounded, for other programs."""
    lines = [
        part.assign(task=section.task, dataset=section.dataset, unit=section.unit)
        for section in sections
        for part in (
            *(section.numbers[section.numbers.metric == metric] for metric in section.metrics),
            *(_matrix_lines(section, matrix) for matrix in section.matrices),
        )
    ]
    columns = ["task", "dataset", "unit", *NUMBERS]
    return pd.concat(lines)[columns].to_csv(index=False, lineterminator="\n")


def _matrix_lines(section: Section, matrix: Matrix) -> pd.DataFrame:
    first, second = matrix.values.index.name, matrix.values.columns.name
    return lines_of(
        {
            "metric": f"{section.metric}-{first}-{second}",
            "model": matrix.label,
            "column": f"{one}-{other}",
            "value": value,
            "runs": matrix.runs,
            "source": matrix.source,
        }
        for one, row in matrix.values.iterrows()
        for other, value in row.dropna().items()
    )
