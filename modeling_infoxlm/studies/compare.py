"""What differs in the settings of runs, and in what they came to, as tables and curves."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from modeling_infoxlm.evaluation.report.result_files import ResultFile
from modeling_infoxlm.evaluation.report.sections import build_sections
from modeling_infoxlm.evaluation.report.writing import (
    Table,
    latex_table,
    markdown_sections,
    markdown_table,
    to_csv,
    to_latex,
)
from modeling_infoxlm.runs.errors import import_extra
from modeling_infoxlm.runs.files import write_text
from modeling_infoxlm.studies.runs import PretrainingRun, read_runs, result_files

_RESAMPLES = 2000
_PERCENT = ("retrieval", "accuracy")  # measures of held-out pairs that are shares
_MIXED_QA = "g_xlt"  # details of results whose scores have pairs of languages among them


def compare(paths: Sequence[Path], output_dir: Path) -> str:
    """Compare runs and write `compare.md`, `.tex`, `.csv` and `.png`; returns a line that says so.

    Raises:
        UsageError: If there is no run.
    """
    runs, name = read_runs(paths), "compare"
    files = result_files(runs)
    sections = build_sections(files) if files else []
    tables = [*_settings_tables(runs), *_heldout_tables(runs), *_difference_tables(runs)]
    figure = _curves(runs)
    arms = list(dict.fromkeys(run.arm for run in runs))
    lines = ["# Comparison", "", f"{len(arms)} arms, {len(runs)} runs. Made by `infoxlm compare`.", ""]
    lines += [f"![curves]({name}.png)", ""] if figure else []
    for table in tables:
        notes = [line for note in table.notes for line in (note, "")]
        lines += [f"## {table.title[:1].upper()}{table.title[1:]}", "", *markdown_table(table), *notes]
    lines += markdown_sections(sections, files, {})
    write_text(output_dir / f"{name}.md", "\n".join(lines))
    latex = [
        to_latex(sections).replace("report", name, 1),
        *(latex_table(one, "Comparison") for one in tables),
    ]
    write_text(output_dir / f"{name}.tex", "\n\n".join(latex) + "\n")
    if sections:
        write_text(output_dir / f"{name}.csv", to_csv(sections))
    if figure:
        plots = import_extra("modeling_infoxlm.plots", extra="plots", purpose="curves")
        plots.save_figure(figure, output_dir / f"{name}.png")
    return f"{output_dir / name}.md: {len(arms)} arms, {len(runs)} runs, {len(files)} result files"


def _by_arm(runs: Sequence[PretrainingRun]) -> dict[str, list[PretrainingRun]]:
    arms: dict[str, list[PretrainingRun]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def _settings_tables(runs: Sequence[PretrainingRun]) -> Iterator[Table]:
    """The settings that are not the same in all arms."""
    arms = {arm: group[0].settings for arm, group in _by_arm(runs).items()}
    trained = [settings for settings in arms.values() if settings]
    names = dict.fromkeys(name for settings in trained for name in settings)
    shown = {name: {arm: _shown(one, name) for arm, one in arms.items()} for name in names}
    differing = [name for name in names if len({shown[name][arm] for arm, one in arms.items() if one}) > 1]
    if differing:
        rows = [[name, *shown[name].values()] for name in differing]
        yield Table("settings that differ", ["setting", *arms], [rows])


def _shown(settings: Mapping[str, Any], name: str) -> str:
    if not settings:
        return "not trained"
    value = settings.get(name)
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def _heldout_tables(runs: Sequence[PretrainingRun]) -> Iterator[Table]:
    """Measures of held-out pairs, at the start and at the end."""
    names = dict.fromkeys(name for run in runs for name in run.heldout if _is_mean_measure(name))
    if not names:
        return
    rows = []
    for arm, group in _by_arm(runs).items():
        cells = [_mean(name, [run.heldout.get(name) for run in group]) for name in names]
        tokens = _merged([run.tokens / 1e6 for run in group if run.tokens], 2)
        rows.append([arm, str(len(group)), tokens, *cells])
    headings = [name.removeprefix("eval_").replace("start_", "start ") for name in names]
    note = "Losses in nats; retrieval and accuracy in percent. Several runs: mean ± standard deviation."
    yield Table("held-out pairs", ["arm", "runs", "M tokens", *headings], [rows], [note])


def _is_mean_measure(name: str) -> bool:
    kind = name.removeprefix("eval_").removeprefix("start_")
    return name.startswith(("eval_", "start_")) and (kind == "retrieval/mean" or kind.startswith("loss/"))


def _mean(name: str, values: Sequence[float | None]) -> str:
    factor, digits = (100, 1) if any(word in name for word in _PERCENT) else (1, 3)
    return _merged([factor * value for value in values if value is not None], digits)


def _merged(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


# ----------------------------------------------------------------------------------- differences between arms


def _difference_tables(runs: Sequence[PretrainingRun]) -> Iterator[Table]:
    """Each arm against the first, language by language: mean difference and 95 % interval by bootstrap."""
    arms = _by_arm(runs)
    base, *others = arms
    rows = []
    for path in dict.fromkeys(path for run in runs for path in run.results):
        measured, base_scores = _scores(arms[base], path)
        for arm in others:
            its, scores = _scores(arms[arm], path)
            common = [language for language in base_scores if language in scores]
            if len(common) > 1 and its == measured:
                value, low, high = paired_difference(
                    scores[common].to_numpy(), base_scores[common].to_numpy()
                )
                shown = [f"{number:+.2f}" for number in (value, low, high)]
                rows.append([arm, path.removesuffix("_results.json"), measured[0], str(len(common)), *shown])
    if rows:
        note = "Mean over languages and seeds; intervals by resampling both, the same in both arms."
        headings = ["arm", "result", "metric", "languages", "difference", "low", "high"]
        yield Table(f"differences to {base}", headings, [rows], [note])


def _scores(group: Sequence[PretrainingRun], path: str) -> tuple[tuple[str, str], pd.DataFrame]:
    """Headline metric of a result and on which data; and its value for each run and language."""
    found = [run.results[path] for run in group if path in run.results]
    metric, data = (found[0]["metric"], ResultFile(0, Path(path), found[0]).data) if found else ("", "")
    rows = [
        {
            language: by_metric[metric]["value"]
            for language, by_metric in content["scores"].items()
            if metric in by_metric and not (_MIXED_QA in content["details"] and "-" in language)
        }
        for content in found
    ]
    return (metric, data), pd.DataFrame(rows).dropna(axis="columns")


def paired_difference(scores: np.ndarray, base: np.ndarray, *, seed: int = 0) -> tuple[float, float, float]:
    """Mean of `scores` less that of `base`, (runs, languages) each, with its 95 % interval by bootstrap.

    A resample draws languages, the same of both, and runs: the same of both where there are equally many,
    since runs of one seed have met the same examples.
    """
    rng = np.random.default_rng(seed)
    count = scores.shape[1]
    differences = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        languages = rng.integers(count, size=count)
        first = rng.integers(len(scores), size=len(scores))
        second = first if len(base) == len(scores) else rng.integers(len(base), size=len(base))
        differences[number] = scores[first][:, languages].mean() - base[second][:, languages].mean()
    low, high = np.percentile(differences, (2.5, 97.5))
    return float(scores.mean() - base.mean()), float(low), float(high)


# ----------------------------------------------------------------------------------------------------- curves

_PANELS = {
    "eval_retrieval/mean": "held-out retrieval, %",
    "loss/mlm": "MLM loss, nats",
    "loss/tlm": "TLM loss, nats",
    "loss/xlco": "XlCo loss, nats",
}


def _curves(runs: Sequence[PretrainingRun]) -> Any:
    """A panel for each measure that changes while training, or from layer to layer; None where none is."""
    over_tokens, over_layers = _panels(runs, _over_tokens), _panels(runs, _over_layers)
    if not over_tokens and not over_layers:
        return None
    plots = import_extra("modeling_infoxlm.plots", extra="plots", purpose="curves")
    panels = {(title, "million tokens"): lines for title, lines in over_tokens.items()}
    panels |= {(title, plots.LAYER_LABEL): lines for title, lines in over_layers.items()}
    return plots.curves_figure(panels, arms=list(_by_arm(runs)))


def _panels(
    runs: Sequence[PretrainingRun], points_of: Callable[[PretrainingRun], Iterable[tuple[str, np.ndarray]]]
) -> dict[str, dict[str, list[np.ndarray]]]:
    """Points of all runs by what they show and by arm."""
    panels: dict[str, dict[str, list[np.ndarray]]] = {}
    for run in runs:
        for title, points in points_of(run):
            panels.setdefault(title, {}).setdefault(run.arm, []).append(points)
    return panels


def _over_tokens(run: PretrainingRun) -> Iterator[tuple[str, np.ndarray]]:
    for name, label in _PANELS.items():
        points = [(entry["step"], entry[name]) for entry in run.history if name in entry]
        if len(points) > 1:
            factor = 100 if name.startswith("eval_retrieval") else 1
            last = max(entry["step"] for entry in run.history)
            # Steps are of nearly equally many tokens each.
            yield label, np.array(points) * (run.tokens / last / 1e6, factor)


def _over_layers(run: PretrainingRun) -> Iterator[tuple[str, np.ndarray]]:
    """Means over languages, of results that measured every layer."""
    for path, content in run.results.items():
        layers = content["details"].get("layers", {})
        values = [_values_of_layers(by_layer) for by_layer in layers.values()]
        if values:
            name = f"{Path(path).parent}: {content['metric']}, {content['unit']}"
            yield name, np.array(list(enumerate(np.mean(values, axis=0))))


def _values_of_layers(by_layer: Mapping[str, Any]) -> list[float]:
    """Of retrieval, lists by direction; of information, estimates by layer."""
    if all(isinstance(values, list) for values in by_layer.values()):
        return list(np.mean(list(by_layer.values()), axis=0))
    return [by_layer[layer]["value"] for layer in sorted(by_layer, key=int)]
