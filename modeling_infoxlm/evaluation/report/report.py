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

import csv
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from modeling_infoxlm.evaluation.report.published import XNLI_LANGUAGES, Published, published_rows
from modeling_infoxlm.evaluation.results import RESULT_SUFFIX, summarise
from modeling_infoxlm.hub.benchmarks import whole_test_sets
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.json_files import read_json
from modeling_infoxlm.runs.process import UsageError
from modeling_infoxlm.runs.provenance import read_result, writing

logger = logging.getLogger(__name__)

FORMATS = ("md", "tex", "csv", "png")
MEAN, GAP = "mean", "gap"
_SOURCE = "source"
_SUMMARY = "summary"  # stands for a metric where the numbers are not by language
_MIXED_NLI, _MIXED_QA = "mixed_languages", "g_xlt"  # matrices in `details` of XNLI and of MLQA
_DEV_WORDS = ("dev", "validation")
_MISSING = "-"
_DIGITS = {"percent": 1, "nats": 2}
_NO_OTHER_EXPERIMENT = ("seed", "data_seed", "save_n_best")  # of what makes another run
_HASH_SHOWN = 10  # digits of a hash, enough to tell files apart
_MAX_RADAR_ROWS = 7  # colours that can be told apart
_MIN_RADAR_LANGUAGES = 3


# --------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Number:
    """A cell of a table.

    Attributes:
        value: Mean over the runs.
        spread: Standard deviation of the runs (n - 1); None for one run.
        low: Lower end of the 95 % interval; None for several runs and for means over languages.
        high: Upper end.
        count: Items measured; None for means over languages.
        runs: 0 for a published number.
    """

    value: float
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    runs: int = 1


@dataclass(frozen=True)
class Row:
    """A model, or a published one, in the tables of a section.

    Attributes:
        label: First cell.
        numbers: Metric, then column, then the number.
        source: Where the numbers are from: numbers of files, or a publication.
        runs: Seeds; 0 for a published row.
    """

    label: str
    numbers: Mapping[str, Mapping[str, Number]]
    source: str
    runs: int


@dataclass(frozen=True)
class Matrix:
    """Scores of pairs of languages, NaN where one was not measured.

    Attributes:
        label: Of the row that it belongs to.
        parts: Which part of the input rows stand for, and columns: premise and hypothesis, for example.
        rows: Languages of the first part.
        columns: Languages of the second part.
        values: Mean over the runs, (rows, columns).
        source: Numbers of files.
        runs: How many.
    """

    label: str
    parts: tuple[str, str]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    source: str
    runs: int


@dataclass(frozen=True)
class Section:
    """All rows of one task on one dataset.

    Attributes:
        task: As in the files.
        dataset: Its name.
        unit: percent or nats.
        metrics: The headline first; the last may stand for numbers that are not by language.
        rows: Ours.
        published: From literature.
        matrices: One for each of our rows that has one.
        notes: What a reader must know before comparing rows.
    """

    task: str
    dataset: str
    unit: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    published: tuple[Row, ...]
    matrices: tuple[Matrix, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """Task and dataset, once where the dataset's name says the task."""
        return self.dataset if self.task in self.dataset.lower() else f"{self.task}: {self.dataset}"

    def columns(self, metric: str) -> list[str]:
        """Columns of a metric's table: those that one of our rows has."""
        found = dict.fromkeys(column for row in self.rows for column in row.numbers.get(metric, {}))
        return list(found) if metric == _SUMMARY else sorted(found, key=_column_order)

    def table(self, metric: str) -> list[Row]:
        """Rows of a metric's table, ours first; of published ones those that have a number in it."""
        columns = set(self.columns(metric))
        shown = [row for row in self.published if columns & set(row.numbers.get(metric, {}))]
        return [*(row for row in self.rows if metric in row.numbers), *shown]


def _column_order(column: str) -> tuple[int, int, str]:
    """Languages in the paper's order, then others by name, then means and the gap."""
    if column == GAP:
        return 3, 0, column
    if column.startswith(MEAN):
        return 2, len(column), column
    paper = XNLI_LANGUAGES.index(column) if column in XNLI_LANGUAGES else len(XNLI_LANGUAGES)
    return (0, paper, "") if paper < len(XNLI_LANGUAGES) else (1, 0, column)


# -------------------------------------------------------------------------------------------- files and runs


@dataclass(frozen=True)
class ResultFile:
    """A result file and its number in the report's list.

    Attributes:
        number: From 1.
        path: As it was found.
        content: All of it.
    """

    number: int
    path: Path
    content: Mapping[str, Any] = field(repr=False)

    @property
    def data(self) -> str:
        """What it was measured on: hash of the files, or revision of the dataset on the Hub.

        What is not known is not the same as anything else.
        """
        dataset = self.content["dataset"]
        return str(dataset["sha256"] or dataset["revision"] or f"unknown, of file {self.number}")

    @property
    def model(self) -> str:
        """Which weights were measured: their hash, or name and revision."""
        model = self.content["model"]
        revision = model["revision"] or f"unknown, of file {self.number}"
        return str(model["sha256"] or f"{model['name_or_path']}@{revision}")

    @property
    def settings(self) -> dict[str, Any]:
        """All that shaped the numbers but data, model and seed: of the result, and of the run it ended."""
        identity = self.content.get("identity", {})
        computed = {name: value for name, value in identity.items() if name not in _NO_OTHER_EXPERIMENT}
        if "files" in identity:
            computed["files"] = hashlib.sha256("".join(identity["files"]).encode()).hexdigest()[:_HASH_SHOWN]
        model = self.content["model"]
        # Of files that were written before these were recorded it is not known whether they are the same.
        hashes = {name: model.get(f"{name}_sha256") for name in ("config", "tokenizer")}
        shown = {name: value[:_HASH_SHOWN] for name, value in hashes.items() if value}
        return computed | self.content["settings"] | shown

    @property
    def key(self) -> str:
        """What files must share to be runs of one row: all but the seed."""
        shared = {"settings": self.settings, "languages": sorted(self.content["scores"])}
        return json.dumps([self.data, self.model, self.content["metric"], shared], sort_keys=True)


def find_results(paths: Sequence[str]) -> list[ResultFile]:
    """Read result files, and those in folders at any depth.

    Args:
        paths: Files and folders. In a folder, JSON files of other programs (no `schema` in them, as the
            Trainer's `all_results.json`) are passed over.

    Raises:
        UsageError: If a path does not exist, a named file is no result, or there is none.
    """
    contents: dict[Path, Mapping[str, Any]] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UsageError(f"{path} does not exist; give result files, or folders that hold some.")
        inside = sorted(path.rglob(f"*{RESULT_SUFFIX}")) if path.is_dir() else [path]
        for file in inside:
            content = _read(file, named=not path.is_dir())
            if content is None:
                logger.info("%s is no result of ours: passed over.", file)
            else:
                contents[file] = content
    if not contents:
        raise UsageError(f"no result file (*{RESULT_SUFFIX}) in {', '.join(paths)}.")
    return [ResultFile(number, path, content) for number, (path, content) in enumerate(contents.items(), 1)]


def _read(path: Path, *, named: bool) -> Mapping[str, Any] | None:
    """A result; None for a file of another program, unless it was named."""
    try:
        content = read_json(path)
        if not named and not (isinstance(content, dict) and "schema" in content):
            return None
        return read_result(path)
    except ValueError as error:
        raise UsageError(str(error)) from error


# -------------------------------------------------------------------------------------------------- sections


def build_sections(files: Sequence[ResultFile]) -> list[Section]:
    """Group files by task and dataset, and their runs into rows."""

    def topic(file: ResultFile) -> tuple[str, str]:
        return file.content["task"], file.content["dataset"]["name"]

    return [
        _build_section(task, dataset, list(group))
        for (task, dataset), group in groupby(sorted(files, key=topic), key=topic)
    ]


def _build_section(task: str, dataset: str, files: Sequence[ResultFile]) -> Section:
    groups = _group_runs(files)
    runs = {key: _distinct_runs(group) for key, group in groups.items()}
    labels = _labels([group[0] for group in groups.values()])
    published = _published_of(task, files)
    subsets = _language_sets(published)
    rows = [
        Row(
            label=label,
            numbers=_merge([_run_numbers(run, subsets) for run in runs[key]]),
            source=_name_files(groups[key]),
            runs=len(runs[key]),
        )
        for key, label in zip(groups, labels, strict=True)
    ]
    matrices = (_merge_matrices(row, runs[key]) for key, row in zip(groups, rows, strict=True))
    first = files[0].content
    section = Section(
        task=task,
        dataset=dataset,
        unit=first["unit"],
        metrics=_metrics(first["metric"], rows),
        rows=tuple(rows),
        published=(),
        matrices=tuple(matrix for matrix in matrices if matrix is not None),
        notes=tuple(_notes(files, groups, runs)),
    )
    return _add_published(section, published, files)


def _group_runs(files: Sequence[ResultFile]) -> dict[str, list[ResultFile]]:
    """Files of one experiment by a key; each set of scores by itself where two are of one seed."""
    groups: dict[str, list[ResultFile]] = {}
    for file in files:
        groups.setdefault(file.key, []).append(file)
    parted: dict[str, list[ResultFile]] = {}
    for key, group in groups.items():
        runs = _distinct_runs(group)
        is_one = len({run.content["seed"] for run in runs}) == len(runs)
        for file in group:
            parted.setdefault(key if is_one else key + _scores_key(file), []).append(file)
    return parted


def _scores_key(file: ResultFile) -> str:
    return json.dumps([file.content["seed"], file.content["scores"]], sort_keys=True)


def _name_files(files: Sequence[ResultFile]) -> str:
    return f"file{'s' if len(files) > 1 else ''} {', '.join(str(file.number) for file in files)}"


def _metrics(headline: str, rows: Sequence[Row]) -> tuple[str, ...]:
    names = dict.fromkeys([headline, *(metric for row in rows for metric in row.numbers)])
    return tuple(sorted(names, key=lambda metric: metric == _SUMMARY))  # which goes last


def _distinct_runs(files: Sequence[ResultFile]) -> list[ResultFile]:
    """Leave out copies: the same seed and the same scores."""
    unique = {_scores_key(file): file for file in reversed(files)}
    return list(reversed(unique.values()))


def _labels(files: Sequence[ResultFile]) -> list[str]:
    """Name of each row: the model, and what tells it from other rows: settings, data, weights."""
    names = [_short_name(file.content["model"]) for file in files]
    labels = []
    for file, name in zip(files, names, strict=True):
        alike = [other for other, its_name in zip(files, names, strict=True) if its_name == name]
        parts = _differing_settings(file, alike)
        if len({other.model for other in alike}) > 1:
            parts.append(f"weights {_weights(file)}")
        if len({tuple(sorted(other.content["scores"])) for other in alike}) > 1:
            parts.append(f"{len(file.content['scores'])} languages")
        if len({other.data for other in files}) > 1:
            parts.append(f"data {file.data[:_HASH_SHOWN]}")
        if [other.key for other in files].count(file.key) > 1:
            parts.append(f"file {file.number}")
        labels.append(f"{name} ({', '.join(parts)})" if parts else name)
    return labels


def _weights(file: ResultFile) -> str:
    model = file.content["model"]
    return str(model["sha256"] or model["revision"])[:_HASH_SHOWN]


def _short_name(model: Mapping[str, Any]) -> str:
    """Of a folder its last part, a name on the Hub as it is; only a folder's weights are hashed."""
    return str((model["sha256"] and Path(model["name_or_path"]).name) or model["name_or_path"])


def _differing_settings(file: ResultFile, alike: Sequence[ResultFile]) -> list[str]:
    """Settings whose value is not the same in all, and a margin, without which published numbers are."""
    settings = [other.settings for other in alike]
    names = dict.fromkeys(name for one in settings for name in one)
    differing = [
        name for name in names if len({json.dumps(one.get(name), sort_keys=True) for one in settings}) > 1
    ]
    own = file.settings
    if own.get("margin") not in (None, "none") and "margin" not in differing:
        differing.append("margin")
    return [f"{_heading(name)} {own[name]}" for name in differing if own.get(name) is not None]


def _run_numbers(run: ResultFile, subsets: Iterable[tuple[str, ...]]) -> dict[str, dict[str, Number]]:
    """Numbers of one run by metric and column, means over languages among them."""
    scores, headline = run.content["scores"], run.content["metric"]
    table: dict[str, dict[str, Number]] = {headline: {}}
    for language, by_metric in scores.items():
        if _MIXED_QA in run.content["details"] and "-" in language:
            continue  # questions in another language than the context: these make the matrix
        for metric, estimate in by_metric.items():
            own = {name: estimate[name] for name in ("value", "low", "high", "count")}
            table.setdefault(metric, {})[language] = Number(**own)
    for numbers in table.values():
        numbers |= _means({language: number.value for language, number in numbers.items()}, subsets)
    rest = {
        name: Number(value) for name, value in run.content["summary"].items() if not _is_repeated(name, table)
    }
    return {**table, _SUMMARY: rest} if rest else table


def _is_repeated(name: str, metrics: Iterable[str]) -> bool:
    """Whether an entry of `summary` is a mean or gap that stands in a metric's own table."""
    for metric in sorted(metrics, key=len, reverse=True):  # one's name may be part of another's
        name = name.replace(metric, "")
    return not name or name.strip("_").startswith((MEAN, GAP))


def _means(values: Mapping[str, float], subsets: Iterable[tuple[str, ...]]) -> dict[str, Number]:
    """Mean and gap, and the mean over each complete set of languages that literature uses."""
    if len(values) < 2:
        return {}
    means = {name: Number(value) for name, value in summarise(values).items()}
    for languages in subsets:
        if set(languages) < set(values):
            own = [values[language] for language in languages]
            means[_mean_of(languages)] = Number(float(np.mean(own)))
    return means


def _mean_of(languages: Sequence[str]) -> str:
    return f"{MEAN} of {len(languages)}"


def _merge(runs: Sequence[Mapping[str, Mapping[str, Number]]]) -> dict[str, dict[str, Number]]:
    """Mean and spread over runs, number by number."""
    if len(runs) == 1:
        return {metric: dict(numbers) for metric, numbers in runs[0].items()}
    merged: dict[str, dict[str, Number]] = {}
    for metric in dict.fromkeys(metric for run in runs for metric in run):
        columns = dict.fromkeys(column for run in runs for column in run.get(metric, {}))
        merged[metric] = {
            column: _mean_and_spread([run[metric][column] for run in runs if column in run.get(metric, {})])
            for column in columns
        }
    return merged


def _mean_and_spread(numbers: Sequence[Number]) -> Number:
    values = [number.value for number in numbers]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Number(float(np.mean(values)), spread, count=numbers[0].count, runs=len(values))


def _merge_matrices(row: Row, runs: Sequence[ResultFile]) -> Matrix | None:
    """Mean over the runs of their matrices; None if one has none."""
    found = [_read_matrix(run.content) for run in runs]
    parts = found[0][0]
    if not all(scores for _, scores in found):
        return None
    first = sorted({one for _, scores in found for one in scores}, key=_column_order)
    second = sorted(
        {one for _, scores in found for inner in scores.values() for one in inner}, key=_column_order
    )
    values = [[[scores.get(a, {}).get(b, np.nan) for b in second] for a in first] for _, scores in found]
    mean = np.mean(np.array(values, dtype=np.float64), axis=0)
    return Matrix(row.label, parts, tuple(first), tuple(second), mean, row.source, row.runs)


def _read_matrix(content: Mapping[str, Any]) -> tuple[tuple[str, str], Mapping[str, Mapping[str, float]]]:
    """The two parts of an input, and the score by the language of the first and that of the second."""
    details = content["details"]
    if _MIXED_QA in details:
        return ("context", "question"), details[_MIXED_QA][content["metric"]]
    if _MIXED_NLI in details:
        mixed = details[_MIXED_NLI]
        languages = mixed["languages"]
        scores = {
            language: dict(zip(languages, row, strict=True))
            for language, row in zip(languages, mixed["matrix"], strict=True)
        }
        return ("premise", "hypothesis"), scores
    return ("", ""), {}


def _notes(
    files: Sequence[ResultFile],
    groups: Mapping[str, Sequence[ResultFile]],
    runs: Mapping[str, Sequence[ResultFile]],
) -> list[str]:
    notes = []
    data = {file.data for file in files}
    if len(data) > 1:
        notes.append(
            f"The files were measured on {len(data)} different sets of data of this name; "
            "their numbers stand in rows of their own and are not averaged."
        )
    if len({tuple(sorted(file.content["scores"])) for file in files}) > 1:
        notes.append("Means are over the languages of their own row; compare rows with the same languages.")
    copies = sum(len(groups[key]) - len(runs[key]) for key in groups)
    if copies:
        notes.append(f"{copies} of the files are copies of another (same seed and scores) and count once.")
    if len({group[0].key for group in runs.values()}) < len(runs):
        notes.append(
            "Some files tell of the same run, the seed included, but hold other scores: each has its own row."
        )
    if any(file.content["details"].get("selected_on_test") for file in files):
        notes.append("Some checkpoints were selected on the very data that is reported here.")
    first_rows = [str(file.number) for file in files if _is_of_first_rows(file.content)]
    if first_rows:
        notes.append(
            f"File {', '.join(first_rows)}: scores, or those of mixed languages, are of the first rows of "
            "each set, which are of one genre or of few articles; now rows are drawn from all of it."
        )
    by_mlqa = [
        str(file.number)
        for file in files
        if file.content["task"] in ("xquad", "tydiqa")
        and file.content["settings"].get("scoring_rules", "mlqa") == "mlqa"
    ]
    if by_mlqa:
        notes.append(
            f"File {', '.join(by_mlqa)}: scored by MLQA's rules, the literature by SQuAD's; do not compare."
        )
    if any(len(group) > 1 for group in runs.values()):
        notes.append("Several runs: mean ± standard deviation over the seeds.")
    return notes


def _is_of_first_rows(content: Mapping[str, Any]) -> bool:
    """Whether a result is of a part of the data that was not drawn: it would say so in its settings."""
    settings, details = content["settings"], content["details"]
    is_part = settings.get("max_predict_samples") or settings.get("max_eval_samples")
    is_old = _MIXED_NLI in details and "mixed_max_samples" not in settings
    return "samples" not in settings and bool(is_part or is_old)


# ------------------------------------------------------------------------------------------------- published


def _published_of(task: str, files: Sequence[ResultFile]) -> list[Published]:
    metrics = dict.fromkeys(
        metric for file in files for by_metric in file.content["scores"].values() for metric in by_metric
    )
    name = files[0].content["dataset"]["name"]
    return [row for metric in metrics for row in published_rows(task, name, metric)]


def _language_sets(published: Iterable[Published]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(languages for row in published for languages in row.means))


def _add_published(section: Section, published: Sequence[Published], files: Sequence[ResultFile]) -> Section:
    trained = {_training(file) for file in files}
    shown: dict[tuple[str, str], dict[str, dict[str, Number]]] = {}
    for row in published:
        if row.training not in ("none", *trained):
            continue
        columns = section.columns(row.metric)
        numbers = _published_numbers(row, columns)
        if numbers:
            shown.setdefault((_published_label(row, trained), row.source), {})[row.metric] = numbers
    rows = tuple(Row(label, numbers, source, 0) for (label, source), numbers in shown.items())
    notes = [*section.notes, *(_split_notes(published, files) if rows else [])]
    return replace(section, published=rows, notes=tuple(notes))


def _training(file: ResultFile) -> str:
    """What a model was fine-tuned on, in the words of published rows."""
    return "translations" if file.content["settings"].get("translate_train") else "english"


def _published_label(row: Published, trained: Iterable[str]) -> str:
    parts = [row.model]
    if row.training == "translations" and "english" in trained:
        parts.append("translate-train")
    if row.split != "test":
        parts.append(f"{row.split} set")
    return ", ".join(parts)


def _published_numbers(row: Published, columns: Sequence[str]) -> dict[str, Number]:
    """Numbers in our columns; a mean over fewer languages than the publication has is computed anew."""
    languages = [column for column in columns if column not in (MEAN, GAP) and not column.startswith(MEAN)]
    numbers = {
        language: Number(row.values[language], runs=0) for language in languages if language in row.values
    }
    if len(numbers) == len(languages) > 1:
        for name, value in summarise({name: number.value for name, number in numbers.items()}).items():
            numbers[name] = Number(value, runs=0)
    for whole, mean in row.means.items():
        column = MEAN if set(whole) == set(languages) else _mean_of(whole)
        if column in columns:
            numbers[column] = Number(mean, runs=0)
    return {column: numbers[column] for column in columns if column in numbers}


def _split_notes(published: Sequence[Published], files: Sequence[ResultFile]) -> list[str]:
    notes = [
        "Published rows were read where the last column says; their gaps, and means over other languages "
        "than were printed, are computed from them."
    ]
    unknown = [file for file in files if len(whole_test_sets(file.content)) < len(_in_one_language(file))]
    if unknown:
        notes.append(
            f"By its content the data of {_name_files(unknown)} is not known to be the whole public test set."
        )
    if any(_is_dev(file) for file in files) and any(row.split == "test" for row in published):
        notes.append(
            "Not the same split: ours is measured on a dev set, published rows without a mark on the test "
            "set."
        )
    return notes


def _in_one_language(file: ResultFile) -> list[str]:
    return [language for language in file.content["scores"] if "-" not in language]


def _is_dev(file: ResultFile) -> bool:
    """Whether a file's data is a dev set, told by the names of dataset and files."""
    dataset = file.content["dataset"]
    return any(mark in word.lower() for word in (dataset["name"], *dataset["files"]) for mark in _DEV_WORDS)


# --------------------------------------------------------------------------------------------------- writing


def _headings(section: Section, metric: str) -> list[str]:
    return ["model", "runs", *(_heading(column) for column in section.columns(metric)), _SOURCE]


def _heading(column: str) -> str:
    return column.replace("_", " ")


def _cells(section: Section, metric: str, row: Row) -> list[str]:
    numbers = row.numbers[metric]
    shown = [_format(numbers.get(column), section.unit) for column in section.columns(metric)]
    return [row.label, str(row.runs) if row.runs else "published", *shown, row.source]


def _format(number: Number | None, unit: str) -> str:
    if number is None:
        return _MISSING
    digits = _DIGITS[unit]
    value = _round(number.value, digits)
    return value if number.spread is None else f"{value} ± {_round(number.spread, digits)}"


def _round(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: never "-0.0"


def _matrix_table(matrix: Matrix, unit: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a matrix."""
    rows = [
        [language, *(_MISSING if np.isnan(value) else _round(value, _DIGITS[unit]) for value in values)]
        for language, values in zip(matrix.rows, matrix.values, strict=True)
    ]
    return [" \\ ".join(matrix.parts), *matrix.columns], rows


def _matrix_title(section: Section, matrix: Matrix) -> str:
    languages = f"by language of {matrix.parts[0]} and {matrix.parts[1]}"
    return f"{matrix.label}: {_metric_title(section, section.metrics[0])}, {languages}"


def _metric_title(section: Section, metric: str) -> str:
    name = "other numbers" if metric == _SUMMARY else _heading(metric)
    return f"{name}, {section.unit}"


def to_markdown(
    sections: Sequence[Section], files: Sequence[ResultFile], figures: Mapping[str, Sequence[str]]
) -> str:
    """The report as Markdown.

    Args:
        sections: All tables.
        files: What they were made of.
        figures: Names of figures by title of their section.
    """
    lines = ["# Results", "", "Made by `infoxlm report` from the files listed at the end.", ""]
    for section in sections:
        lines += [f"## {_markdown(section.title)}", ""]
        for metric in section.metrics:
            rows = [_cells(section, metric, row) for row in section.table(metric)]
            table = _markdown_table(_headings(section, metric), rows, num_texts=2)
            lines += [f"### {_markdown(_metric_title(section, metric))}", "", *table, ""]
        for matrix in section.matrices:
            table = _markdown_table(*_matrix_table(matrix, section.unit), num_texts=1)
            lines += [f"### {_markdown(_matrix_title(section, matrix))}", "", *table, ""]
        lines += [*(f"- {note}" for note in section.notes), ""] if section.notes else []
        lines += [line for name in figures.get(section.title, ()) for line in (f"![{name}]({name})", "")]
    return "\n".join([*lines, "## Files", "", *map(_describe_file, files), ""])


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, num_texts: int) -> list[str]:
    """Lines of a table; its first columns, and one named source, hold text."""
    sides = ["---" if i < num_texts or name == _SOURCE else "---:" for i, name in enumerate(headings)]
    return [f"| {' | '.join(map(_markdown, row))} |" for row in (headings, sides, *rows)]


def _markdown(text: str) -> str:
    """Text that stays text, on its line, whatever the names in a file are."""
    return re.sub(r"([\\`|*_\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")


def _code(text: object) -> str:
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"


def _describe_file(file: ResultFile) -> str:
    """A line of the list: everything that is needed to measure again."""
    content = file.content
    model, dataset = content["model"], content["dataset"]
    data = f"sha256 {dataset['sha256']}" if dataset["sha256"] else f"revision {dataset['revision']}"
    weights = f"sha256 {model['sha256']}" if model["sha256"] else f"revision {model['revision']}"
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
    tables = [
        table
        for section in sections
        for table in (
            *(_latex_scores(section, metric) for metric in section.metrics),
            *(_latex_matrix(section, matrix) for matrix in section.matrices),
        )
    ]
    return "\n\n".join(["% Made by infoxlm report; needs \\usepackage{booktabs}.", *tables, ""])


def _latex_scores(section: Section, metric: str) -> str:
    rows = section.table(metric)
    parts = [
        [_cells(section, metric, row) for row in rows if bool(row.runs) is ours] for ours in (True, False)
    ]
    caption = f"{section.title}, {_metric_title(section, metric)}. {' '.join(section.notes)}".strip()
    return _latex_table(_headings(section, metric), [part for part in parts if part], caption)


def _latex_matrix(section: Section, matrix: Matrix) -> str:
    headings, rows = _matrix_table(matrix, section.unit)
    return _latex_table(headings, [rows], f"{section.title}, {_matrix_title(section, matrix)}.")


def _latex_table(headings: Sequence[str], parts: Sequence[Sequence[Sequence[str]]], caption: str) -> str:
    """A table whose rows come in parts with a rule before each."""
    sides = "".join("l" if i == 0 or name == _SOURCE else "r" for i, name in enumerate(headings))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_latex(caption)}}}",
            rf"\begin{{tabular}}{{{sides}}}",
            r"\toprule",
            _latex_row(headings),
            *(line for part in parts for line in (r"\midrule", *map(_latex_row, part))),
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow("task dataset unit metric model column value spread low high count runs source".split())
    for section in sections:
        begin = (section.task, section.dataset, section.unit)
        for metric, label, column, number, source in (*_score_cells(section), *_matrix_cells(section)):
            writer.writerow([*begin, metric, label, column, *vars(number).values(), source])
    return text.getvalue()


_NamedNumber = tuple[str, str, str, Number, str]  # metric, label of the row, column, number, source


def _score_cells(section: Section) -> Iterator[_NamedNumber]:
    for metric in section.metrics:
        for row in section.table(metric):
            numbers = row.numbers[metric]
            for column in section.columns(metric):
                if column in numbers:
                    yield metric, row.label, column, numbers[column], row.source


def _matrix_cells(section: Section) -> Iterator[_NamedNumber]:
    for matrix in section.matrices:
        metric = "-".join([section.metrics[0], *matrix.parts])
        for (i, j), value in np.ndenumerate(matrix.values):
            if not np.isnan(value):
                column = f"{matrix.rows[i]}-{matrix.columns[j]}"
                yield metric, matrix.label, column, Number(value, runs=matrix.runs), matrix.source


# --------------------------------------------------------------------------------------------------- figures


def draw_figures(sections: Sequence[Section]) -> dict[str, tuple[str, Any]]:
    """Heat maps and radar charts.

    Returns:
        File name -> title of the section and the figure.

    Raises:
        UsageError: If matplotlib is not installed.
    """
    try:
        import modeling_infoxlm.plots as plots
    except ImportError as error:
        raise UsageError(
            f"figures need {error.name}: pip install 'modeling-infoxlm[plots]', or --formats md,tex,csv."
        ) from error
    return {
        f"{_slug(section.title)}-{name}.png": (section.title, figure)
        for section in sections
        for name, figure in (*_score_figures(section, plots), *_matrix_figures(section, plots))
    }


def _score_figures(section: Section, plots: Any) -> Iterator[tuple[str, Any]]:
    """A heat map of all rows, and a radar chart of the first rows that have every language."""
    metric = section.metrics[0]
    languages = [column for column in section.columns(metric) if not column.startswith((MEAN, GAP))]
    scores = {
        f"{row.label}{'' if row.runs else ', published'}": [_value(row, metric, one) for one in languages]
        for row in section.table(metric)
    }
    scores = {label: values for label, values in scores.items() if not np.isnan(values).all()}
    label = _metric_title(section, metric)
    yield "languages", plots.language_heat_map_figure(scores, columns=languages, label=label)
    whole = [(name, values) for name, values in scores.items() if not np.isnan(values).any()]
    if whole and len(languages) >= _MIN_RADAR_LANGUAGES:
        yield "radar", plots.radar_figure(dict(whole[:_MAX_RADAR_ROWS]), languages=languages, label=label)


def _matrix_figures(section: Section, plots: Any) -> Iterator[tuple[str, Any]]:
    for number, matrix in enumerate(section.matrices, 1):
        yield (
            f"matrix-{number}",
            plots.matrix_figure(
                matrix.values,
                rows=matrix.rows,
                columns=matrix.columns,
                parts=matrix.parts,
                name=matrix.label,
                label=_metric_title(section, section.metrics[0]),
            ),
        )


def _value(row: Row, metric: str, column: str) -> float:
    number = row.numbers[metric].get(column)
    return np.nan if number is None else number.value


def _slug(text: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in text.lower()).strip("-")


# --------------------------------------------------------------------------------------------------- command


@dataclass
class ReportArguments:
    """Which results are reported, where and how."""

    _argument_group_name = "report"

    paths: list[str] = field(
        default_factory=list, metadata={"help": "Result files, or folders that are searched for them."}
    )
    output_dir: str = field(default="report", metadata={"help": "Folder that is written."})
    formats: str = field(
        default=",".join(FORMATS), metadata={"help": f"What is written, comma between: {', '.join(FORMATS)}."}
    )

    def chosen_formats(self) -> list[str]:
        """The formats as a list.

        Raises:
            UsageError: If one is unknown.
        """
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
    texts: dict[str, Callable[[], str]] = {
        "md": lambda: to_markdown(sections, files, names),
        "tex": lambda: to_latex(sections),
        "csv": lambda: to_csv(sections),
    }
    written = {f"report.{name}": texts[name]() for name in formats if name in texts}
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
