"""Result files of made-up models, for the tests of the report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modeling_infoxlm.evaluation.report.result_files import find_results
from modeling_infoxlm.evaluation.report.sections import Section, build_sections
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
    """Write `<folder>/<name>_results.json`."""
    path = folder / f"{name}_results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result), encoding="utf-8")
    return path


def sections_of(folder: Path, *results: Mapping[str, Any]) -> list[Section]:
    """Sections of a report of these."""
    for number, result in enumerate(results):
        write(folder, f"{number}", result)
    return build_sections(find_results([str(folder)]))


def accuracy(**values: float) -> dict[str, dict[str, float]]:
    """Scores by language."""
    return {language: {"accuracy": value} for language, value in values.items()}
