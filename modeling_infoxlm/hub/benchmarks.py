"""Public benchmarks, as `benchmarks.yaml` has them: languages, published numbers, what the Hub calls them.

Which results are of a whole test set is told by its content, the hashes of its files or its dataset on the
Hub and a commit of it, and never by a name that a file or folder may have.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

_CONTENT = yaml.safe_load(Path(__file__).with_name("benchmarks.yaml").read_text(encoding="utf-8"))
_DIGITS = 12  # of a hash in it

LANGUAGES: dict[str, tuple[str, ...]] = {
    name: tuple(text.split()) for name, text in _CONTENT["languages"].items()
}
SCORING_RULES: dict[str, Literal["mlqa", "squad"]] = _CONTENT["scoring_rules"]


@dataclass(frozen=True)
class Benchmark:
    """A public test set; `benchmarks.yaml` says what its fields are."""

    title: str
    repo_id: str
    config: str
    task_type: str
    metric: str | None
    split: str = "test"
    sizes: Mapping[str, int] | int | None = None
    files: Mapping[str, str] = field(default_factory=dict)


BENCHMARKS = {name: Benchmark(**fields) for name, fields in _CONTENT["test_sets"].items()}


@dataclass(frozen=True)
class Published:
    """Published scores of one model, in percent."""

    task: str  # as in result files
    dataset: str  # a word of the name of its dataset
    metric: str  # as in result files
    model: str  # as its authors call it
    source: str  # where the numbers were read
    values: Mapping[str, float]  # of each language; empty where only means were found
    means: Mapping[tuple[str, ...], float]  # over a whole set of languages, by that set, as printed
    split: str  # test or dev
    training: str  # `english` (zero-shot), `translations` (translate-train-all), `none` (not fine-tuned)


def _published() -> Iterator[Published]:
    about = ("model", "source", "dataset", "split", "training")
    for task, rows in _CONTENT["published"].items():
        sets = [languages for name, languages in LANGUAGES.items() if name.startswith(task)]
        for row in rows:
            source, dataset = _CONTENT["sources"][row["source"]], row.get("dataset", task)
            split, training = row.get("split", "test"), row.get("training", "english")
            for metric in (name for name in row if name not in about):
                tables = [row[metric]] if isinstance(row[metric], str) else row[metric]
                numbers = _read_scores(dict(zip(sets, tables, strict=False)))
                yield Published(task, dataset, metric, row["model"], source, *numbers, split, training)


def _read_scores(
    tables: Mapping[tuple[str, ...], str],
) -> tuple[dict[str, float], dict[tuple[str, ...], float]]:
    """Scores by language, and means by set of languages, of `score score ... | mean` for each set."""
    values: dict[str, float] = {}
    means: dict[tuple[str, ...], float] = {}
    for languages, table in tables.items():
        scores, _, mean = table.partition("|")
        named = zip(languages, scores.split(), strict=True) if scores else ()
        values |= {language: float(score) for language, score in named if score != "-"}
        means |= {languages: float(mean)} if mean else {}
    return values, means


PUBLISHED = tuple(_published())


def published_rows(task: str, dataset: str, metric: str) -> list[Published]:
    """Published rows of a task, a dataset whose name occurs in this text, in any case, and a metric."""
    rows = [row for row in PUBLISHED if (row.task, row.metric) == (task, metric)]
    return [row for row in rows if row.dataset in dataset.lower()]


def whole_test_sets(result: Mapping[str, Any]) -> list[str]:
    """Languages of a result file that were measured on all of a public test set."""
    benchmark = BENCHMARKS.get(result["task"])
    if benchmark is None:
        return []
    return [language for language in sorted(result["scores"]) if _is_whole(language, result, benchmark)]


def comparable_sets(result: Mapping[str, Any]) -> dict[str, Benchmark]:
    """Those of them whose headline is the very number that the Hub's dataset is measured by."""
    task = result["task"]
    if task not in BENCHMARKS or result["metric"] != BENCHMARKS[task].metric:
        return {}
    # Results that do not say it were scored by MLQA's rules.
    if task in SCORING_RULES and result["settings"].get("scoring_rules", "mlqa") != SCORING_RULES[task]:
        return {}
    return dict.fromkeys(whole_test_sets(result), BENCHMARKS[task])


def _is_whole(language: str, result: Mapping[str, Any], benchmark: Benchmark) -> bool:
    if "-" in language:  # question and context in different languages
        return False
    dataset = result["dataset"]
    is_on_hub = dataset["revision"] is not None and dataset.get("repo_id") == benchmark.repo_id
    known = set(benchmark.files.get(language, "").split())
    found = {digest[:_DIGITS] for digest in dataset["files"].values()}
    if not is_on_hub and not (known and known <= found):
        return False
    sizes, count = benchmark.sizes, result["scores"][language][result["metric"]]["count"]
    size = sizes.get(language) if isinstance(sizes, Mapping) else sizes
    return size in (None, count)
