"""What it costs in accuracy to keep AdamW's moments in bf16: the same run twice, losses side by side.

    python -m benchmarks.optimizer_states [--output FILE]

A small model learns 100 sentence pairs by heart, so that there is something to learn in few steps.
"""

import argparse
import statistics
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import make_parser, run_benchmark
from benchmarks.step import OBJECTIVES, run_ours
from benchmarks.workload import Workload

SIZES = {"vocab_size": 2000, "queue_size": 512, "batch_size": 16, "max_length": 64, "num_pairs": 100}
SMALL = Workload(geometry="demo", num_layers=2, warmup=0, **SIZES)  # type: ignore[arg-type]
LAST = 20  # steps whose mean loss is compared


def run(workload: Workload, moments_dtype: str) -> dict[str, Any]:
    """Losses of a run: of every step, and the mean of the last ones."""
    flags = (f"moments_dtype={moments_dtype}", "learning_rate=1e-3")
    ours = run_ours(replace(workload, flags=flags)).ours
    return {
        "seed": workload.seed,
        "moments_dtype": moments_dtype,
        "median_s": ours.samples.median,
        "first": ours.losses[0],
        "last": {name: statistics.fmean(step[name] for step in ours.losses[-LAST:]) for name in OBJECTIVES},
        "losses": ours.losses,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run each type of moments with each seed."""
    workloads = [replace(SMALL, steps=options.steps, seed=seed) for seed in range(options.seeds)]
    runs = [run(workload, dtype) for workload in workloads for dtype in ("float32", "bfloat16")]
    return {"last_steps": LAST, "runs": runs}


def show(console: Console, result: dict[str, Any]) -> None:
    """A row for each run."""
    title = f"mean losses of the last {LAST} steps, in nats"
    table = Table("seed", "moments", *OBJECTIVES, "ms a step", title=title, title_justify="left")
    for one in result["runs"]:
        losses = [f"{one['last'][name]:.4f}" for name in OBJECTIVES]
        table.add_row(str(one["seed"]), one["moments_dtype"], *losses, f"{1e3 * one['median_s']:.0f}")
    console.print(table)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each, to see the spread")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_benchmark(parse_arguments(), measure, show)
