"""The short set of benchmarks and the page made of them: `make bench`.

    python -m benchmarks [--only NAME ...] [--results docs/results/speed] [--report docs/results/speed.md]

Each runs in a process of its own and writes one result file; the page is generated from the files that are
there.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.report import write_report

STEP = ("benchmarks.step", "--steps", "3")  # both sides together take 22 GiB, and more with each step
MEMORY = ("benchmarks.step", "--batch_size", "8", "--steps", "2")
DEFAULT = "--default_allocator"
# Name of the result file, and the module with its flags.
SHORT_SET: dict[str, tuple[str, ...]] = {
    "step_fp32": STEP,
    "step_bf16": (*STEP, "--dtype", "bfloat16"),
    "step_bf16_both": (*STEP, "--dtype", "bfloat16", "--baseline_dtype", "bfloat16"),
    "step_fp32_defaults": ("benchmarks.step", "--baseline_defaults", "--steps", "3"),
    "step_bf16_defaults": ("benchmarks.step", "--baseline_defaults", "--steps", "3", "--dtype", "bfloat16"),
    "memory_baseline": (*MEMORY, "--only", "baseline"),
    "memory_fp32": (*MEMORY, "--only", "ours"),
    "memory_bf16": (*MEMORY, "--only", "ours", "--dtype", "bfloat16"),
    "memory_baseline_default": (*MEMORY, DEFAULT, "--only", "baseline"),
    "memory_fp32_default": (*MEMORY, DEFAULT, "--only", "ours"),
    "memory_bf16_default": (*MEMORY, DEFAULT, "--only", "ours", "--dtype", "bfloat16"),
    "memory_sequential_default": (
        *(*MEMORY, DEFAULT, "--only", "ours"),
        *("--flag", "objective_backward=sequential"),
    ),
    "memory_recompute_default": (*MEMORY, DEFAULT, "--only", "ours", "--flag", "recompute_layers=1-9"),
    "attention": ("benchmarks.attention",),
    "scale": ("benchmarks.scale",),
    "data": ("benchmarks.data",),
    "evaluate": ("benchmarks.evaluate",),
    "optimizer_states": ("benchmarks.optimizer_states",),
}
# Run only when named: they take ten minutes and more.
LONG_SET: dict[str, tuple[str, ...]] = {
    "evaluate_5000": (
        *("benchmarks.evaluate", "--parts", "encoding", "--sentences", "5000"),
        *("--repeats", "1", "--dtypes", "float32"),
    ),
    "evaluate_20000": (
        *("benchmarks.evaluate", "--parts", "encoding", "--sentences", "20000"),
        *("--repeats", "1", "--dtypes", "bfloat16"),
    ),
}


def run(name: str, results: Path) -> bool:
    """Run one benchmark; False if it failed, after saying so."""
    module, *flags = (SHORT_SET | LONG_SET)[name]
    command = [sys.executable, "-m", module, *flags, "--output", str(results / f"{name}.json")]
    print(f"\n--- {name}: python -m {module} {' '.join(flags)}", flush=True)
    finished = subprocess.run(command)
    if finished.returncode:
        print(f"{name} failed with exit code {finished.returncode}; its old result file, if any, stays.")
    return finished.returncode == 0


def main() -> int:
    """Run what is asked for, then write the page; the exit code says whether all of it ran."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument(
        "--only", nargs="*", choices=[*SHORT_SET, *LONG_SET], help="these alone; nothing: only the page"
    )
    parser.add_argument("--results", type=Path, default=Path("docs/results/speed"))
    parser.add_argument("--report", type=Path, default=Path("docs/results/speed.md"))
    options = parser.parse_args()
    names = list(SHORT_SET) if options.only is None else options.only
    passed = [run(name, options.results) for name in names]
    write_report(options.results, options.report)
    print(f"\nwrote {options.report}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
