"""The page of results, generated from the files of the benchmarks: every number in it was measured."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Results = Mapping[str, Mapping[str, Any]]

TITLES = {
    "step_fp32": "The joint step, fp32 for both",
    "step_bf16": "The joint step, ours in bf16, N1 in fp32",
    "step_bf16_both": "The joint step, bf16 for both",
    "step_fp32_defaults": "As a user meets them: ours as the recipes run it, N1 with torch's defaults, fp32",
    "step_bf16_defaults": "As a user meets them: ours in bf16, N1 with torch's defaults",
    "memory_baseline": "Peak memory at B = 8, memory kept: N1",
    "memory_fp32": "Peak memory at B = 8, memory kept: ours, fp32",
    "memory_bf16": "Peak memory at B = 8, memory kept: ours, bf16",
    "memory_baseline_default": "Peak memory at B = 8, default allocator: N1",
    "memory_fp32_default": "Peak memory at B = 8, default allocator: ours, fp32",
    "memory_bf16_default": "Peak memory at B = 8, default allocator: ours, bf16",
    "memory_sequential_default": "Peak memory at B = 8, default allocator: ours, fp32, sequential",
    "memory_recompute_default": "Peak memory at B = 8, default allocator: ours, fp32, layers 1-9 recomputed",
    "attention": "Attention on the CPU",
    "scale": "How the cost of a step grows",
    "data": "Data path",
    "evaluate": "Encoding and retrieval",
    "evaluate_5000": "Encoding 5,000 sentences",
    "evaluate_20000": "Encoding 20,000 sentences",
    "optimizer_states": "Optimiser states",
}


@dataclass(frozen=True)
class Goal:
    """A number that was aimed at.

    Attributes:
        name: What is measured.
        source: Result file that it stands in.
        value: Takes it from the results; None where they are of something else.
        least: Must be reached; at most this where `smaller` is set.
        aim: Hoped for.
        form: Format of the numbers.
        smaller: Smaller is better.
    """

    name: str
    source: str
    value: Callable[[Results], float | None]
    least: float
    aim: float
    form: str = "{:.2f}x"
    smaller: bool = False

    def row(self, results: Results) -> str:
        """A line of the table."""
        wanted = f"{self.form.format(self.least)} | {self.form.format(self.aim)}"
        value = self.value(results) if self.source in results else None
        if value is None:
            return f"| {self.name} | {wanted} | not measured | |"
        holds = value <= self.least if self.smaller else value >= self.least
        return f"| {self.name} | {wanted} | {self.form.format(value)} | {'yes' if holds else 'NO'} |"


def _of(name: str, key: str) -> Callable[[Results], float]:
    return lambda results: float(results[name][key])


def _prepare_with_xlmr(results: Results) -> float | None:
    """Only with XLM-R's own vocabulary, which has to be there: with a small one `prepare` is faster."""
    data = results["data"]
    if data["tokenizer"].startswith("trained"):
        return None
    rate = data["prepare_tokens_per_second"]
    return float((rate["sentencepiece"] if isinstance(rate, dict) else rate) / 1e6)


def _memory(name: str, text: str) -> Goal:
    """Peak memory of ours against that of N1 under the same allocator."""
    baseline = "memory_baseline_default" if name.endswith("_default") else "memory_baseline"

    def ratio(results: Results) -> float:
        return float(results[name]["peak_memory_gib"] / results[baseline]["peak_memory_gib"])

    return Goal(text, name, ratio, 0.65, 0.5, smaller=True)


def _encoding(name: str, dtype: str) -> Callable[[Results], float]:
    """Ratio to sentence-transformers with the model cut to the layer: the same vectors."""

    def ratio(results: Results) -> float:
        (found,) = (one for one in results[name]["encoding"] if one["dtype"] == dtype)
        return float(found["ratios"]["st cut to the layer"])

    return ratio


GOALS = (
    Goal("step, fp32 vs N1 fp32", "step_fp32", _of("step_fp32", "ratio"), 2.8, 3.3),
    Goal("step, bf16 vs N1 fp32", "step_bf16", _of("step_bf16", "ratio"), 4.5, 5.5),
    Goal("step, bf16 vs N1 bf16", "step_bf16_both", _of("step_bf16_both", "ratio"), 2.5, 3.0),
    Goal("as a user meets them, fp32", "step_fp32_defaults", _of("step_fp32_defaults", "ratio"), 7, 10),
    Goal("as a user meets them, bf16", "step_bf16_defaults", _of("step_bf16_defaults", "ratio"), 11, 16),
    Goal("MFU of a full step, fp32", "step_fp32", _of("step_fp32", "mfu"), 0.78, 0.85, "{:.0%}"),
    Goal("MFU of a full step, bf16", "step_bf16", _of("step_bf16", "mfu"), 0.64, 0.75, "{:.0%}"),
    Goal(
        "clip + AdamW + EMA", "step_fp32", _of("step_fp32", "update_s"), 0.30, 0.15, "{:.2f} s", smaller=True
    ),
    _memory("memory_fp32", "peak memory, memory kept as the recipes do, fp32 vs N1"),
    _memory("memory_bf16", "peak memory, memory kept as the recipes do, bf16 vs N1"),
    _memory("memory_fp32_default", "peak memory, default allocator for both, fp32 vs N1"),
    _memory("memory_bf16_default", "peak memory, default allocator for both, bf16 vs N1"),
    Goal(
        "collate + mask, one core, M tokens/s",
        "data",
        lambda results: results["data"]["collate_and_mask_tokens_per_second"] / 1e6,
        50,
        150,
        "{:.0f}",
    ),
    Goal(
        "`prepare`, XLM-R vocabulary, one core, M tokens/s",
        "data",
        _prepare_with_xlmr,
        1.5,
        3,
        "{:.2f}",
    ),
    Goal(
        "encode 5,000 sentences at layer 7, fp32 vs sentence-transformers",
        "evaluate_5000",
        _encoding("evaluate_5000", "float32"),
        1.5,
        2.5,
    ),
    Goal(
        "encode 20,000 sentences at layer 7, bf16 vs sentence-transformers",
        "evaluate_20000",
        _encoding("evaluate_20000", "bfloat16"),
        1.5,
        2.5,
    ),
    Goal(
        "encode 500 sentences at layer 7, bf16 vs sentence-transformers",
        "evaluate",
        _encoding("evaluate", "bfloat16"),
        1.5,
        2.5,
    ),
)


def write_report(results: Path, report: Path) -> None:
    """Write the page.

    Args:
        results: Folder of result files; those that are missing are said to be.
        report: The page, Markdown.
    """
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))
    }
    lines = [
        "# Speed",
        "",
        "Generated by `make bench` from the files in [speed/](speed); do not edit. N1 is the same step in",
        "plain transformers (`benchmarks/baselines.py`). What is compared was run in turn in one process.",
        "Samples are shown with the tables; those far above the median are listed as disturbed in the files.",
        "",
        "| | at least | aim | measured | holds |",
        "|---|---|---|---|---|",
        *(goal.row(found) for goal in GOALS),
    ]
    for name, title in TITLES.items():
        if name in found:
            lines += ["", f"## {title}", "", *_section(found[name])]
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _section(result: Mapping[str, Any]) -> list[str]:
    machine = result["machine"]
    place = f"{machine['cpu']}, {machine['cores']} cores" + (f", {machine['gpu']}" if machine["gpu"] else "")
    versions = f"Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}"
    return [
        f"`{result['command']}`",
        "",
        f"{place}; {versions}.",
        "",
        "```text",
        result["printed"].rstrip(),
        "```",
    ]
