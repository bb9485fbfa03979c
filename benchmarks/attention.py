"""Attention of packed sequences on the CPU: explicit softmax over groups against torch's own kernel.

    python -m benchmarks.attention [--output FILE]

Forward and backward, and the forward pass alone, by length. `GroupedAttention` is what a CPU step runs.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import DTYPES, make_parser, run_benchmark, run_in_turn
from modeling_infoxlm.packed_attention import GroupedAttention

HEADS, HEAD_SIZE = 12, 64
LENGTHS = (32, 64, 128, 256, 384, 512)


def alternatives(length: int, tokens: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Both kernels over sequences of one length, with and without the backward pass."""
    count = tokens // length
    rows = [torch.randn(count * length, HEADS * HEAD_SIZE, dtype=dtype, requires_grad=True) for _ in range(3)]
    upstream = torch.randn_like(rows[0])
    grouped = GroupedAttention(np.full(count, length), None, torch.device("cpu"))

    def explicit() -> Tensor:
        return grouped(*rows, heads=HEADS, scaling=HEAD_SIZE**-0.5, dropout=0.0)

    def kernel() -> Tensor:
        query, key, value = (part.view(count, length, HEADS, HEAD_SIZE).transpose(1, 2) for part in rows)
        context = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return context.transpose(1, 2).reshape(count * length, -1)

    return {
        "explicit": lambda: explicit().backward(upstream),
        "kernel": lambda: kernel().backward(upstream),
        "explicit forward": torch.no_grad()(explicit),
        "kernel forward": torch.no_grad()(kernel),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One record for each type and length."""
    records = []
    for name, dtype in DTYPES.items():
        for length in LENGTHS:
            samples = run_in_turn(alternatives(length, options.tokens, dtype), repeats=options.repeats)
            medians = {side: taken.median for side, taken in samples.items()}
            ratios = {
                "ratio": medians["kernel"] / medians["explicit"],
                "forward_ratio": medians["kernel forward"] / medians["explicit forward"],
            }
            summaries = {side: taken.summary() for side, taken in samples.items()}
            records.append({"dtype": name, "length": length, **ratios, **summaries})
    return {"tokens": options.tokens, "records": records}


def show(console: Console, result: dict[str, Any]) -> None:
    """A row for each type and length."""
    table = Table("type", "length", "explicit, ms", "kernel, ms", "ratio", "forward ratio")
    for record in result["records"]:
        times = [f"{1e3 * record[name]['median_s']:.1f}" for name in ("explicit", "kernel")]
        ratios = [f"{record[name]:.2f}" for name in ("ratio", "forward_ratio")]
        table.add_row(record["dtype"], str(record["length"]), *times, *ratios)
    console.print(table)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program."""
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of all sequences together")
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_benchmark(parse_arguments(), measure, show)
