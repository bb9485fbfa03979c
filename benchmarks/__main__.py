"""The short set of benchmarks and the page made of them: `make bench`.

    python -m benchmarks [--only NAME ...] [--results docs/results/speed] [--report docs/results/speed.md]

Each runs in a process of its own and writes one result file; the page is generated from the files that are
there.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.report import LONG_SET, SHORT_SET, write_report


def run(name: str, results: Path) -> bool:
    """Run one benchmark; False if it failed, after saying so."""
    _, command = (SHORT_SET | LONG_SET)[name]
    print(f"\n--- {name}: python -m benchmarks.{command}", flush=True)
    output = ["--output", str(results / f"{name}.json")]
    status = subprocess.run([sys.executable, "-m", *f"benchmarks.{command}".split(), *output]).returncode
    if status:
        print(f"{name} failed with exit code {status}; its old result file, if any, stays.")
    return status == 0


def main() -> int:
    """Run what is asked for, then write the page; the exit code says whether all of it ran."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    which = "these alone; nothing: only the page"
    parser.add_argument("--only", nargs="*", choices=[*SHORT_SET, *LONG_SET], help=which)
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
