"""Attention of packed sequences on the CPU: explicit softmax over groups against torch's own kernel.

    python -m benchmarks.attention [--output FILE]

Forward and backward, and the forward pass alone, by length. `GroupedAttention` is what a CPU step runs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from benchmarks.measure import make_console, run_in_turn, write_result
from modeling_infoxlm.packed_attention import GroupedAttention
from modeling_infoxlm.runs.process import configure_process

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


def measure(tokens: int, repeats: int) -> list[dict[str, Any]]:
    """One record for each type and length."""
    records = []
    for dtype in (torch.float32, torch.bfloat16):
        for length in LENGTHS:
            samples = run_in_turn(alternatives(length, tokens, dtype), repeats=repeats)
            summaries = {name: taken.summary() for name, taken in samples.items()}
            ratios = {
                "ratio": samples["kernel"].median / samples["explicit"].median,
                "forward_ratio": samples["kernel forward"].median / samples["explicit forward"].median,
            }
            records.append(
                {"dtype": str(dtype).removeprefix("torch."), "length": length, **ratios, **summaries}
            )
    return records


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of all sequences together")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="result file, JSON")
    return parser.parse_args(argv)


def main() -> None:
    """Measure, print and write."""
    options = parse_arguments()
    configure_process()
    records = measure(options.tokens, options.repeats)
    table = Table("type", "length", "explicit, ms", "kernel, ms", "ratio", "forward ratio")
    for record in records:
        times = [f"{1e3 * record[name]['median_s']:.1f}" for name in ("explicit", "kernel")]
        ratios = [f"{record[name]:.2f}" for name in ("ratio", "forward_ratio")]
        table.add_row(record["dtype"], str(record["length"]), *times, *ratios)
    console = make_console()
    console.print(table)
    write_result(options.output, {"tokens": options.tokens, "records": records}, console)


if __name__ == "__main__":
    main()
