"""What it costs in accuracy to keep AdamW's moments in bf16: the same run twice, losses side by side.

    python -m benchmarks.optimizer_states [--output FILE]

A small model learns 100 sentence pairs by heart, so that there is something to learn in few steps.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from transformers.utils import logging as transformers_logging

from benchmarks.measure import make_console, write_result
from benchmarks.step import OBJECTIVES, Workload, run_ours
from modeling_infoxlm.runs.process import configure_process

SMALL = Workload(
    geometry="demo",
    num_layers=2,
    vocab_size=2000,
    queue_size=512,
    batch_size=16,
    max_length=64,
    warmup=0,
    num_pairs=100,
)
LAST = 20  # steps whose mean loss is compared


def run(workload: Workload, moments_dtype: str) -> dict[str, Any]:
    """Losses of a run: of every step, and the mean of the last ones."""
    flags = (f"moments_dtype={moments_dtype}", "learning_rate=1e-3")
    with tempfile.TemporaryDirectory() as folder:
        turns = run_ours(replace(workload, flags=flags), Path(folder), "float32", None)
    losses = turns.ours.losses
    return {
        "moments_dtype": moments_dtype,
        "median_s": turns.ours.samples.median,
        "first": losses[0],
        "last": {name: statistics.fmean(step[name] for step in losses[-LAST:]) for name in OBJECTIVES},
        "losses": losses,
    }


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each, to see the spread")
    parser.add_argument("--output", type=Path, help="result file, JSON")
    return parser.parse_args(argv)


def main() -> None:
    """Run each, print and write."""
    options = parse_arguments()
    configure_process()
    transformers_logging.set_verbosity_error()
    runs = [
        {"seed": seed, **run(replace(SMALL, steps=options.steps, seed=seed), moments_dtype)}
        for seed in range(options.seeds)
        for moments_dtype in ("float32", "bfloat16")
    ]
    title = f"mean losses of the last {LAST} of {options.steps} steps, in nats"
    table = Table("seed", "moments", *OBJECTIVES, "ms a step", title=title, title_justify="left")
    for one in runs:
        losses = [f"{one['last'][name]:.4f}" for name in OBJECTIVES]
        table.add_row(str(one["seed"]), one["moments_dtype"], *losses, f"{1e3 * one['median_s']:.0f}")
    console = make_console()
    console.print(table)
    write_result(options.output, {"last_steps": LAST, "runs": runs}, console)


if __name__ == "__main__":
    main()
