"""How the cost of a step grows with batch, length, queue, vocabulary, layers, languages and corpus.

    python -m benchmarks.scale [--quick] [--output FILE]

Each is made larger by itself, from the same small workload; `time ~ size ^ exponent` is fitted. 1 is linear,
0 is no growth. A part of every step is fixed, so that exponents below 1 are expected of what is linear.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from transformers.utils import logging as transformers_logging

from benchmarks.measure import make_console, write_result
from benchmarks.step import Workload, run_ours
from modeling_infoxlm.runs.process import configure_process

START = Workload(
    geometry="demo",
    vocab_size=16_000,
    queue_size=8192,
    batch_size=16,
    max_length=128,
    warmup=2,
    steps=5,
    num_pairs=2000,
)
AXES: dict[str, Sequence[int]] = {
    "batch_size": (8, 16, 32, 64),
    "max_length": (64, 128, 256, 512),
    "queue_size": (8192, 16_384, 32_768, 65_536),
    "vocab_size": (16_000, 32_000, 64_000, 128_000),
    "num_layers": (2, 4, 8, 16),
    "num_languages": (1, 4, 16, 64),
    "num_pairs": (2000, 8000, 32_000, 128_000),
}
QUICK = 2  # points of each axis
MEANING = {"num_pairs": "corpus (pairs)"}


def measure_axis(name: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Median seconds of a step at each size, and the exponents of time and of time for a token."""
    points = [_measure(name, size) for size in sizes]
    seconds = [point["median_s"] for point in points]
    per_token = [point["median_s"] / point["tokens"] for point in points]
    return {
        "axis": name,
        "points": points,
        "exponent": exponent(sizes, seconds),
        "exponent_per_token": exponent(sizes, per_token),
    }


def _measure(name: str, size: int) -> dict[str, Any]:
    change: dict[str, Any] = {name: size}
    workload = replace(START, **change)
    with tempfile.TemporaryDirectory() as folder:
        turns = run_ours(workload, Path(folder), "float32", None)
    tokens = float(np.median(turns.tokens))
    return {"size": size, "tokens": tokens, **turns.ours.samples.summary()}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"only the first {QUICK} sizes of each axis")
    parser.add_argument("--output", type=Path, help="result file, JSON")
    return parser.parse_args(argv)


def main() -> None:
    """Measure every axis, print and write."""
    options = parse_arguments()
    configure_process()
    transformers_logging.set_verbosity_error()
    axes = [measure_axis(name, sizes[:QUICK] if options.quick else sizes) for name, sizes in AXES.items()]
    table = Table("what grows", "sizes", "ms a step", "exponent", "exponent for a token")
    for axis in axes:
        sizes = " ".join(f"{point['size']:,}" for point in axis["points"])
        times = " ".join(f"{1e3 * point['median_s']:.0f}" for point in axis["points"])
        table.add_row(
            MEANING.get(axis["axis"], axis["axis"]),
            sizes,
            times,
            f"{axis['exponent']:.2f}",
            f"{axis['exponent_per_token']:.2f}",
        )
    console = make_console()
    console.print(table)
    write_result(options.output, {"axes": axes}, console)


if __name__ == "__main__":
    main()
