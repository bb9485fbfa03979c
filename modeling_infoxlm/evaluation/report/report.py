r"""One report from many result files: `infoxlm report`.

    infoxlm report out/xnli-* out/tatoeba --output_dir docs/results

For each task and dataset a table with a column for each language and a row for each model, its settings and
its data; runs whose identity differs in nothing but the seed share a row, as mean and standard deviation.
Published numbers stand below, each with its source. Files measured on different data are never averaged.
Scores where the parts of an input are in two languages stand in a matrix of their own. A list says which
files, model, data and command each number came from.

`report.md`, `report.tex` (needs the package booktabs), `report.csv` (one line for each number, not rounded),
and figures.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_infoxlm.evaluation.report.result_files import find_results
from modeling_infoxlm.evaluation.report.sections import Section, build_sections, is_mean
from modeling_infoxlm.evaluation.report.writing import metric_title, to_csv, to_latex, to_markdown
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import writing
from modeling_infoxlm.runs.flags import flag

FORMATS = ("md", "tex", "csv", "png")
_MAX_RADAR_ROWS = 7  # colours that can be told apart
_MIN_RADAR_LANGUAGES = 3


@dataclass
class ReportArguments:
    """Which results are reported, where and how."""

    _argument_group_name = "report"
    paths: list[str] = flag([], "Result files, or folders that are searched for them.")
    output_dir: str = flag("report", "Folder that is written.")
    formats: str = flag(",".join(FORMATS), f"What is written, comma between: {', '.join(FORMATS)}.")

    def chosen_formats(self) -> list[str]:
        """The formats as a list; a `UsageError` if one is unknown."""
        chosen = [name.strip() for name in self.formats.split(",") if name.strip()]
        unknown = [name for name in chosen if name not in FORMATS]
        if unknown or not chosen:
            raise UsageError(f"formats must be some of {', '.join(FORMATS)}, found {self.formats!r}.")
        return chosen


def report_command(argv: list[str]) -> None:
    """Merge result files into tables and figures: `infoxlm report PATH... --output_dir OUT`."""
    flags = next((i for i, argument in enumerate(argv) if argument.startswith("-")), len(argv))
    paths = ["--paths", *argv[:flags]] if flags else []
    (arguments,) = parse_args_with_config(
        (ReportArguments,), [*paths, *argv[flags:]], program="infoxlm report", about=__doc__
    )
    formats = arguments.chosen_formats()
    if not arguments.paths:
        raise UsageError("no result: infoxlm report PATH... --output_dir OUT.")
    files = find_results(arguments.paths)
    sections = build_sections(files)
    figures = draw_figures(sections) if "png" in formats else {}
    names: dict[str, list[str]] = {}
    for name, (title, _) in figures.items():
        names.setdefault(title, []).append(name)
    texts = {"md": to_markdown(sections, files, names), "tex": to_latex(sections), "csv": to_csv(sections)}
    written = {f"report.{name}": texts[name] for name in formats if name in texts}
    with writing(arguments.output_dir):
        _write(Path(arguments.output_dir), written, figures)
    print(f"{arguments.output_dir}: {len(files)} files, {', '.join([*written, *figures])}")


def _write(folder: Path, texts: Mapping[str, str], figures: Mapping[str, tuple[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if figures:
        from modeling_infoxlm.plots import save_figure

        for name, (_, figure) in figures.items():
            save_figure(figure, folder / name)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def draw_figures(sections: Sequence[Section]) -> dict[str, tuple[str, Any]]:
    """Heat maps and radar charts: the title of the section and the figure, by the name of the file."""
    try:
        import modeling_infoxlm.plots as plots
    except ImportError as error:
        advice = "pip install 'modeling-infoxlm[plots]', or --formats md,tex,csv"
        raise UsageError(f"figures need {error.name}: {advice}.") from error
    return {
        f"{_slug(section.title)}-{name}.png": (section.title, figure)
        for section in sections
        for name, figure in (*_score_figures(section, plots), *_matrix_figures(section, plots))
    }


def _score_figures(section: Section, plots: Any) -> Iterator[tuple[str, Any]]:
    """A heat map of all rows, and a radar chart of the first rows that have every language."""
    languages = [column for column in section.columns(section.metric) if not is_mean(column)]
    table = section.table(section.metric)[languages].dropna(how="all")
    table.index = [f"{model}{'' if runs else ', published'}" for model, runs, _ in table.index]
    label = metric_title(section, section.metric)
    scores = {name: list(row) for name, row in table.iterrows()}
    yield "languages", plots.language_heat_map_figure(scores, columns=languages, label=label)
    whole = {name: scores[name] for name in table.dropna().index[:_MAX_RADAR_ROWS]}
    if whole and len(languages) >= _MIN_RADAR_LANGUAGES:
        yield "radar", plots.radar_figure(whole, languages=languages, label=label)


def _matrix_figures(section: Section, plots: Any) -> Iterator[tuple[str, Any]]:
    for number, matrix in enumerate(section.matrices, 1):
        values = matrix.values
        figure = plots.matrix_figure(
            values.to_numpy(),
            rows=list(values.index),
            columns=list(values.columns),
            parts=(values.index.name, values.columns.name),
            name=matrix.label,
            label=metric_title(section, section.metric),
        )
        yield f"matrix-{number}", figure


def _slug(text: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in text.lower()).strip("-")
