"""The page of results, generated from the files of the benchmarks: every number in it was measured."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Results = Mapping[str, Mapping[str, Any]]

_STEP, _ALONE = "benchmarks.step --steps 3", "benchmarks.step --batch_size 8 --steps 2"
_DEFAULT = f"{_ALONE} --default_allocator"  # both sides of a step take 22 GiB, and more with each step
_OURS = f"{_DEFAULT} --only ours"
_TEXTS = "benchmarks.evaluate --parts encoding --repeats 1"
_KEPT, _FREED = "Peak memory at B = 8, memory kept:", "Peak memory at B = 8, default allocator:"
# Name of the result file: its title on the page, and the module with its flags.
SHORT_SET = {
    "step_fp32": ("The joint step, fp32 for both", _STEP),
    "step_bf16": ("The joint step, ours in bf16, N1 in fp32", f"{_STEP} --dtype bfloat16"),
    "step_bf16_both": (
        "The joint step, bf16 for both",
        f"{_STEP} --dtype bfloat16 --baseline_dtype bfloat16",
    ),
    "step_fp32_defaults": (
        "As a user meets them: ours as the recipes run it, N1 with torch's defaults, fp32",
        "benchmarks.step --baseline_defaults --steps 3",
    ),
    "step_bf16_defaults": (
        "As a user meets them: ours in bf16, N1 with torch's defaults",
        "benchmarks.step --baseline_defaults --steps 3 --dtype bfloat16",
    ),
    "memory_baseline": (f"{_KEPT} N1", f"{_ALONE} --only baseline"),
    "memory_fp32": (f"{_KEPT} ours, fp32", f"{_ALONE} --only ours"),
    "memory_bf16": (f"{_KEPT} ours, bf16", f"{_ALONE} --only ours --dtype bfloat16"),
    "memory_baseline_default": (f"{_FREED} N1", f"{_DEFAULT} --only baseline"),
    "memory_fp32_default": (f"{_FREED} ours, fp32", _OURS),
    "memory_bf16_default": (f"{_FREED} ours, bf16", f"{_OURS} --dtype bfloat16"),
    "memory_sequential_default": (
        f"{_FREED} ours, fp32, sequential",
        f"{_OURS} --flag objective_backward=sequential",
    ),
    "memory_recompute_default": (
        *(
            f"{_FREED} ours, fp32, layers 1-9 recomputed",
            f"{_DEFAULT} --only ours --flag recompute_layers=1-9",
        ),
    ),
    "attention": ("Attention on the CPU", "benchmarks.attention"),
    "scale": ("How the cost of a step grows", "benchmarks.scale"),
    "data": ("Data path", "benchmarks.data"),
    "evaluate": ("Encoding and retrieval", "benchmarks.evaluate"),
    "optimizer_states": ("Optimiser states", "benchmarks.optimizer_states"),
}
# Run only when named: they take ten minutes and more.
LONG_SET = {
    "evaluate_5000": ("Encoding 5,000 sentences", f"{_TEXTS} --sentences 5000 --dtypes float32"),
    "evaluate_20000": ("Encoding 20,000 sentences", f"{_TEXTS} --sentences 20000 --dtypes bfloat16"),
}


@dataclass(frozen=True)
class Goal:
    """A number that was aimed at.

    Attributes:
        name: What is measured.
        source: Result file that it stands in.
        value: Takes it from the results, by key or otherwise; None where they are of something else.
        least: Must be reached; at most this where `smaller` is set.
        aim: Hoped for.
        form: Format of the numbers.
        smaller: Smaller is better.
    """

    name: str
    source: str
    value: str | Callable[[Results], float | None]
    least: float
    aim: float
    form: str = "{:.2f}x"
    smaller: bool = False

    def row(self, results: Results) -> str:
        """A line of the table."""
        wanted = f"{self.form.format(self.least)} | {self.form.format(self.aim)}"
        value = self._measured(results) if self.source in results else None
        if value is None:
            return f"| {self.name} | {wanted} | not measured | |"
        holds = value <= self.least if self.smaller else value >= self.least
        return f"| {self.name} | {wanted} | {self.form.format(value)} | {'yes' if holds else 'NO'} |"

    def _measured(self, results: Results) -> float | None:
        return float(results[self.source][self.value]) if isinstance(self.value, str) else self.value(results)


def _prepare(results: Results) -> float | None:
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

    return Goal(f"peak memory, {text} vs N1", name, ratio, 0.65, 0.5, smaller=True)


def _encoding(source: str, count: str, dtype: str, name: str) -> Goal:
    """Ratio to sentence-transformers with the model cut to the layer: the same vectors."""

    def ratio(results: Results) -> float:
        (found,) = (one for one in results[source]["encoding"] if one["dtype"] == dtype)
        return float(found["ratios"]["st cut to the layer"])

    text = f"encode {count} sentences at layer 7, {name} vs sentence-transformers"
    return Goal(text, source, ratio, 1.5, 2.5)


def _collating(results: Results) -> float:
    return float(results["data"]["collate_and_mask_tokens_per_second"] / 1e6)


GOALS = (
    Goal("step, fp32 vs N1 fp32", "step_fp32", "ratio", 2.8, 3.3),
    Goal("step, bf16 vs N1 fp32", "step_bf16", "ratio", 4.5, 5.5),
    Goal("step, bf16 vs N1 bf16", "step_bf16_both", "ratio", 2.5, 3.0),
    Goal("as a user meets them, fp32", "step_fp32_defaults", "ratio", 7, 10),
    Goal("as a user meets them, bf16", "step_bf16_defaults", "ratio", 11, 16),
    Goal("MFU of a full step, fp32", "step_fp32", "mfu", 0.78, 0.85, "{:.0%}"),
    Goal("MFU of a full step, bf16", "step_bf16", "mfu", 0.64, 0.75, "{:.0%}"),
    Goal("clip + AdamW + EMA", "step_fp32", "update_s", 0.30, 0.15, "{:.2f} s", smaller=True),
    _memory("memory_fp32", "memory kept as the recipes do, fp32"),
    _memory("memory_bf16", "memory kept as the recipes do, bf16"),
    _memory("memory_fp32_default", "default allocator for both, fp32"),
    _memory("memory_bf16_default", "default allocator for both, bf16"),
    Goal("collate + mask, one core, M tokens/s", "data", _collating, 50, 150, "{:.0f}"),
    Goal("`prepare`, XLM-R vocabulary, one core, M tokens/s", "data", _prepare, 1.5, 3, "{:.2f}"),
    _encoding("evaluate_5000", "5,000", "float32", "fp32"),
    _encoding("evaluate_20000", "20,000", "bfloat16", "bf16"),
    _encoding("evaluate", "500", "bfloat16", "bf16"),
)
HEAD = """# Speed

Generated by `make bench` from the files in [speed/](speed); do not edit. N1 is the same step in
plain transformers (`benchmarks/baselines.py`). What is compared was run in turn in one process.
Samples are shown with the tables; those far above the median are listed as disturbed in the files.

| | at least | aim | measured | holds |
|---|---|---|---|---|
"""


def write_report(results: Path, report: Path) -> None:
    """Write the page.

    Args:
        results: Folder of result files; those that are missing are said to be.
        report: The page, Markdown.
    """
    files = sorted(results.glob("*.json"))
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    goals = "".join(f"{goal.row(found)}\n" for goal in GOALS)
    titles = {name: title for name, (title, _) in (SHORT_SET | LONG_SET).items()}
    sections = [_section(titles[name], found[name]) for name in titles if name in found]
    report.write_text(HEAD + goals + "".join(sections), encoding="utf-8")


def _section(title: str, result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    place = f"{machine['cpu']}, {machine['cores']} cores" + (f", {machine['gpu']}" if machine["gpu"] else "")
    versions = f"Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}"
    printed = result["printed"].rstrip()
    return f"\n## {title}\n\n`{result['command']}`\n\n{place}; {versions}.\n\n```text\n{printed}\n```\n"
