"""How the cost of a step grows with batch, length, queue, vocabulary, layers, languages and corpus.

    python -m benchmarks.scale [--quick] [--output FILE]

Each is made larger by itself, from the same small workload; `time ~ size ^ exponent` is fitted. 1 is linear,
0 is no growth. A part of every step is fixed, so that exponents below 1 are expected of what is linear.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Samples, exponent, make_parser, run_benchmark
from benchmarks.step import run_ours
from benchmarks.workload import Workload

SIZES = {"vocab_size": 16_000, "queue_size": 8192, "batch_size": 16, "max_length": 128}
START = Workload(geometry="demo", warmup=2, steps=5, **SIZES)  # type: ignore[arg-type]
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
    points = []
    for size in sizes:
        change: dict[str, Any] = {name: size}
        turns = run_ours(replace(START, **change))
        tokens = Samples(turns.tokens).median
        points.append({"size": size, "tokens": tokens, **turns.ours.samples.summary()})
    seconds = [point["median_s"] for point in points]
    per_token = [point["median_s"] / point["tokens"] for point in points]
    exponents = {"exponent": exponent(sizes, seconds), "exponent_per_token": exponent(sizes, per_token)}
    return {"axis": name, "points": points, **exponents}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every axis."""
    kept = QUICK if options.quick else None
    return {"axes": [measure_axis(name, sizes[:kept]) for name, sizes in AXES.items()]}


def show(console: Console, result: dict[str, Any]) -> None:
    """A row for each axis."""
    table = Table("what grows", "sizes", "ms a step", "exponent", "exponent for a token")
    for axis in result["axes"]:
        sizes = " ".join(f"{point['size']:,}" for point in axis["points"])
        times = " ".join(f"{1e3 * point['median_s']:.0f}" for point in axis["points"])
        exponents = [f"{axis[name]:.2f}" for name in ("exponent", "exponent_per_token")]
        table.add_row(MEANING.get(axis["axis"], axis["axis"]), sizes, times, *exponents)
    console.print(table)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program."""
    parser = make_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help=f"only the first {QUICK} sizes of each axis")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_benchmark(parse_arguments(), measure, show)
