"""Numbers of a report: a section for each task and dataset, runs averaged, published numbers beside them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from modeling_infoxlm.evaluation.report.result_files import (
    ResultFile,
    distinct_runs,
    group_runs,
    label_rows,
    name_files,
)
from modeling_infoxlm.evaluation.results import summarise
from modeling_infoxlm.hub.benchmarks import LANGUAGES, Published, published_rows, whole_test_sets

MEAN, GAP = "mean", "gap"
SUMMARY = "summary"  # stands for a metric where the numbers are not by language
NUMBERS = ["metric", "model", "column", "value", "spread", "low", "high", "count", "runs", "source"]

_KINDS = dict.fromkeys(("value", "spread", "low", "high"), "float64") | {"count": "Int64", "runs": "Int64"}
_MIXED_NLI, _MIXED_QA = "mixed_languages", "g_xlt"  # matrices in `details` of XNLI and of MLQA
_DEV_WORDS = ("dev", "validation")


@dataclass(frozen=True)
class Matrix:
    """Scores of pairs of languages."""

    label: str  # of the row that it belongs to
    # mean over the runs, NaN where a pair was not measured; index and columns are named after the part of the
    # input that they are the languages of, premise and hypothesis for example
    values: pd.DataFrame
    source: str  # numbers of files
    runs: int  # how many


@dataclass(frozen=True)
class Section:
    """All rows of one task on one dataset."""

    task: str  # as in the files
    dataset: str  # its name
    unit: str  # percent or nats
    metric: str  # the headline
    # a line for each number, with the columns `NUMBERS`: ours first, then published ones, whose `runs` is 0.
    # `spread` is the standard deviation of several runs (n - 1), `low` and `high` are the 95 % interval of
    # one run, `count` are items measured; each is NaN where there is none.
    numbers: pd.DataFrame
    matrices: tuple[Matrix, ...]  # one for each of our rows that has one
    notes: tuple[str, ...]  # what a reader must know before comparing rows

    @property
    def title(self) -> str:
        """Task and dataset, once where the dataset's name says the task."""
        return self.dataset if self.task in self.dataset.lower() else f"{self.task}: {self.dataset}"

    @property
    def metrics(self) -> list[str]:
        """Those that there are tables of, the headline first, numbers that are not by language last."""
        return sorted(dict.fromkeys(self.numbers.metric), key=SUMMARY.__eq__)

    def columns(self, metric: str) -> list[str]:
        """Columns of a metric's table: those that one of our rows has."""
        lines = self.numbers[(self.numbers.metric == metric) & (self.numbers.runs > 0)]
        found = list(dict.fromkeys(lines.column))
        return found if metric == SUMMARY else sorted(found, key=_column_order)

    def table(self, metric: str, values: str = "value") -> pd.DataFrame:
        """A metric's table of some column of `numbers`, ours first; NaN for no number."""
        lines = self.numbers[self.numbers.metric == metric]
        lines = lines.assign(runs=lines.groupby(["model", "source"]).runs.transform("max"))
        rows = ["model", "runs", "source"]
        table = lines.pivot(index=rows, columns="column", values=values)
        index = pd.MultiIndex.from_frame(lines[rows].drop_duplicates())
        return table.reindex(index=index, columns=self.columns(metric))


def lines_of(lines: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Lines of numbers with the columns `NUMBERS`, empty where they have none."""
    table = pd.DataFrame(lines if isinstance(lines, pd.DataFrame) else list(lines), columns=NUMBERS)
    return table.astype(_KINDS)


def is_mean(column: str) -> bool:
    """Whether a column is no language but a mean, or a difference of them."""
    return column.startswith((MEAN, GAP))


def _column_order(column: str) -> tuple[int, int, str]:
    """Languages in the paper's order, then others by name, then means and the gap."""
    if column == GAP:
        return 3, 0, column
    if column.startswith(MEAN):
        return 2, len(column), column
    paper = LANGUAGES["xnli"]
    return (0, paper.index(column), "") if column in paper else (1, 0, column)


def build_sections(files: Sequence[ResultFile]) -> list[Section]:
    """Group files by task and dataset, and their runs into rows."""

    def topic(file: ResultFile) -> tuple[str, str]:
        return file.content["task"], file.content["dataset"]["name"]

    ordered = sorted(files, key=topic)
    return [_build_section(*name, list(group)) for name, group in groupby(ordered, key=topic)]


def _build_section(task: str, dataset: str, files: Sequence[ResultFile]) -> Section:
    groups = group_runs(files)
    rows = list(zip(label_rows([group[0] for group in groups]), groups, strict=True))
    scores = [by_metric for file in files for by_metric in file.content["scores"].values()]
    metrics = dict.fromkeys(metric for by_metric in scores for metric in by_metric)
    published = [row for metric in metrics for row in published_rows(task, dataset, metric)]
    subsets = list(dict.fromkeys(languages for row in published for languages in row.means))
    ours = pd.concat([_merge_runs(label, group, subsets) for label, group in rows], ignore_index=True)
    theirs = _published_lines(published, ours, files)
    matrices = (_merge_matrices(label, group) for label, group in rows)
    first = files[0].content
    return Section(
        task,
        dataset,
        unit=first["unit"],
        metric=first["metric"],
        numbers=pd.concat([ours, theirs], ignore_index=True) if len(theirs) else ours,
        matrices=tuple(matrix for matrix in matrices if matrix is not None),
        notes=(*_notes(files, groups), *(_published_notes(published, files) if len(theirs) else ())),
    )


def _merge_runs(label: str, group: Sequence[ResultFile], subsets: Sequence[tuple[str, ...]]) -> pd.DataFrame:
    """Lines of a row: mean and spread over its runs, number by number."""
    runs = distinct_runs(group)
    lines = lines_of(line for run in runs for line in _run_lines(run, subsets))
    merged = lines.groupby(["metric", "column"], sort=False, as_index=False).agg(
        value=("value", "mean"),
        spread=("value", "std"),
        low=("low", "first"),
        high=("high", "first"),
        count=("count", "first"),
        runs=("value", "size"),
    )
    if len(runs) > 1:  # the interval would be that of one of them
        merged[["low", "high"]] = np.nan
    return lines_of(merged.assign(model=label, source=name_files(group)))


def _run_lines(run: ResultFile, subsets: Iterable[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """Numbers of one run, means over languages among them."""
    table: dict[str, dict[str, Any]] = {run.content["metric"]: {}}
    for language, by_metric in run.content["scores"].items():
        if _MIXED_QA in run.content["details"] and "-" in language:
            continue  # questions in another language than the context: these make the matrix
        for metric, estimate in by_metric.items():
            table.setdefault(metric, {})[language] = estimate
    for numbers in table.values():
        means = _means({language: estimate["value"] for language, estimate in numbers.items()}, subsets)
        numbers |= {name: {"value": value} for name, value in means.items()}
    for metric, numbers in table.items():
        for column in sorted(numbers, key=_column_order):
            yield {"metric": metric, "column": column, **numbers[column]}
    for name, value in run.content["summary"].items():
        if not _is_repeated(name, table):
            yield {"metric": SUMMARY, "column": name, "value": value}


def _is_repeated(name: str, metrics: Iterable[str]) -> bool:
    """Whether an entry of `summary` is a mean or gap that stands in a metric's own table."""
    for metric in sorted(metrics, key=len, reverse=True):  # one's name may be part of another's
        name = name.replace(metric, "")
    return not name or is_mean(name.strip("_"))


def _means(values: Mapping[str, float], subsets: Iterable[tuple[str, ...]]) -> dict[str, float]:
    """Mean and gap, and the mean over each complete set of languages that literature uses."""
    if len(values) < 2:
        return {}
    means = summarise(values)
    for languages in subsets:
        if set(languages) < set(values):
            means[_mean_of(languages)] = float(np.mean([values[language] for language in languages]))
    return means


def _mean_of(languages: Sequence[str]) -> str:
    return f"{MEAN} of {len(languages)}"


def _merge_matrices(label: str, group: Sequence[ResultFile]) -> Matrix | None:
    """Mean over the runs of their matrices; None if one has none."""
    runs = distinct_runs(group)
    found = [_read_matrix(run.content) for run in runs]
    if any(matrix.empty for matrix in found):
        return None
    mean = sum(found[1:], found[0]) / len(found)  # NaN where one has no number
    first, second = (sorted(side, key=_column_order) for side in (mean.index, mean.columns))
    mean = mean.loc[first, second].rename_axis(index=found[0].index.name, columns=found[0].columns.name)
    return Matrix(label, mean, name_files(group), len(runs))


def _read_matrix(content: Mapping[str, Any]) -> pd.DataFrame:
    """Score by the language of the first part of an input, and that of the second; empty if there is none."""
    details = content["details"]
    if _MIXED_QA in details:
        scores = pd.DataFrame.from_dict(details[_MIXED_QA][content["metric"]], orient="index", dtype=float)
        return scores.rename_axis(index="context", columns="question")
    if _MIXED_NLI in details:
        mixed = details[_MIXED_NLI]
        scores = pd.DataFrame(mixed["matrix"], index=mixed["languages"], columns=mixed["languages"])
        return scores.rename_axis(index="premise", columns="hypothesis")
    return pd.DataFrame()


def _published_lines(
    published: Sequence[Published], ours: pd.DataFrame, files: Sequence[ResultFile]
) -> pd.DataFrame:
    """Lines of the published rows whose models were trained as one of ours was, in the columns of ours."""
    # What a model was fine-tuned on, in the words of published rows.
    translated = (file.content["settings"].get("translate_train") for file in files)
    trained = {"translations" if one else "english" for one in translated}
    return lines_of(
        {
            "metric": row.metric,
            "model": _published_label(row, trained),
            "column": column,
            "value": value,
            "runs": 0,
            "source": row.source,
        }
        for row in published
        if row.training in ("none", *trained)
        for column, value in _published_numbers(row, set(ours[ours.metric == row.metric].column)).items()
    )


def _published_label(row: Published, trained: Iterable[str]) -> str:
    parts = [row.model]
    if row.training == "translations" and "english" in trained:
        parts.append("translate-train")
    if row.split != "test":
        parts.append(f"{row.split} set")
    return ", ".join(parts)


def _published_numbers(row: Published, columns: set[str]) -> dict[str, float]:
    """Numbers in our columns; a mean over fewer languages than the publication has is computed anew."""
    languages = sorted((column for column in columns if not is_mean(column)), key=_column_order)
    numbers = {language: row.values[language] for language in languages if language in row.values}
    if len(numbers) == len(languages) > 1:
        numbers |= summarise(numbers)
    for whole, mean in row.means.items():
        numbers[MEAN if set(whole) == set(languages) else _mean_of(whole)] = mean
    return {column: numbers[column] for column in sorted(columns & numbers.keys(), key=_column_order)}


def _notes(files: Sequence[ResultFile], groups: Sequence[Sequence[ResultFile]]) -> list[str]:
    data, languages = {file.data for file in files}, {file.languages for file in files}
    num_runs = [len(distinct_runs(group)) for group in groups]
    num_copies = len(files) - sum(num_runs)
    on_test = any(file.content["details"].get("selected_on_test") for file in files)
    first_rows = [file for file in files if _is_of_first_rows(file.content)]
    by_mlqa = [file for file in files if _is_by_other_rules(file.content)]
    notes = {
        f"The files were measured on {len(data)} different sets of data of this name; their numbers stand in "
        "rows of their own and are not averaged.": len(data) > 1,
        "Means are over the languages of their own row; compare rows with the same languages.": len(languages)
        > 1,
        f"{num_copies} of the files are copies of another (same seed and scores) and count once.": num_copies,
        "Some files tell of one run, the seed included, but hold other scores: each has its own row.": len(
            {group[0].experiment for group in groups}
        )
        < len(groups),
        "Some checkpoints were selected on the very data that is reported here.": on_test,
        f"{_numbered(first_rows)}: scores, or those of mixed languages, are of the first rows of each set, "
        "which are of one genre or of few articles; now rows are drawn from all of it.": first_rows,
        f"{_numbered(by_mlqa)}: scored by MLQA's rules, the literature by SQuAD's; do not compare.": by_mlqa,
        "Several runs: mean ± standard deviation over the seeds.": max(num_runs) > 1,
    }
    return [note for note, applies in notes.items() if applies]


def _is_by_other_rules(content: Mapping[str, Any]) -> bool:
    """Whether answers are scored by MLQA's rules where the literature takes SQuAD's."""
    rules = content["settings"].get("scoring_rules", "mlqa")
    return content["task"] in ("xquad", "tydiqa") and rules == "mlqa"


def _numbered(files: Sequence[ResultFile]) -> str:
    return name_files(files).capitalize()


def _is_of_first_rows(content: Mapping[str, Any]) -> bool:
    """Whether a result is of a part of the data that was not drawn: it would say so in its settings."""
    settings, details = content["settings"], content["details"]
    is_part = settings.get("max_predict_samples") or settings.get("max_eval_samples")
    is_old = _MIXED_NLI in details and "mixed_max_samples" not in settings
    return "samples" not in settings and bool(is_part or is_old)


def _published_notes(published: Sequence[Published], files: Sequence[ResultFile]) -> list[str]:
    notes = [
        "Published rows were read where the last column says; their gaps, and means over other languages "
        "than were printed, are computed from them."
    ]
    languages = {file.number: {one for one in file.languages if "-" not in one} for file in files}
    unknown = [file for file in files if languages[file.number] - {*whole_test_sets(file.content)}]
    if unknown:
        notes.append(
            f"By its content the data of {name_files(unknown)} is not known to be the whole public test set."
        )
    if any(_is_dev(file) for file in files) and any(row.split == "test" for row in published):
        notes.append(
            "Not the same split: ours is measured on a dev set, published rows without a mark on the test "
            "set."
        )
    return notes


def _is_dev(file: ResultFile) -> bool:
    """Whether a file's data is a dev set, told by the names of dataset and files."""
    dataset = file.content["dataset"]
    return any(mark in word.lower() for word in (dataset["name"], *dataset["files"]) for mark in _DEV_WORDS)
