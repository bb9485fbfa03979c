"""What the house weighs: lines of code, the longest file, ties to the Trainer's inside, cost of a help page.

python -m benchmarks.weight [--root FOLDER]
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from transformers import Trainer

from modeling_infoxlm.evaluation.finetuning.trainer import FineTuner
from modeling_infoxlm.training.trainer import InfoXLMTrainer

FOLDERS = {"package": "modeling_infoxlm", "tests": "tests", "benchmarks": "benchmarks"}


def lines(folder: Path) -> dict[Path, int]:
    """Lines of each Python file in a folder, those of comments and empty ones included."""
    return {path: len(path.read_bytes().splitlines()) for path in sorted(folder.rglob("*.py"))}


def overridden_private_methods(base: type, classes: Iterable[type]) -> list[str]:
    """Names of private methods of a library's class that classes of ours, and their bases, replace."""
    ours = {one for leaf in classes for one in leaf.__mro__ if one.__module__.startswith("modeling_infoxlm.")}
    names = {name for one in ours for name, value in vars(one).items() if callable(value)}
    return sorted(name for name in names if name[0] == "_" and name[:2] != "__" and hasattr(base, name))


def cpu_seconds_of_help(root: Path) -> float:
    """Seconds of processor time, user's and system's, of `infoxlm --help` in a checkout."""
    command = [sys.executable, "-c", "import infoxlm; infoxlm.main()", "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(argv: list[str] | None = None) -> None:
    """Print each number on a line of its own."""
    parser = argparse.ArgumentParser(description="What the house weighs.")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="a checkout")
    root = parser.parse_args(argv).root
    counts = {name: lines(root / folder) for name, folder in FOLDERS.items()}
    for name, found in counts.items():
        print(f"{name}, lines: {sum(found.values()):,}")
    files = {path: count for found in counts.values() for path, count in found.items()}
    longest = max(files, key=files.__getitem__)
    print(f"longest file, lines: {files[longest]:,} ({longest.relative_to(root)})")
    private = overridden_private_methods(Trainer, (InfoXLMTrainer, FineTuner))
    print(f"private Trainer methods overridden: {len(private)} ({', '.join(private)})")
    print(f"infoxlm --help, CPU seconds: {cpu_seconds_of_help(root):.1f}")


if __name__ == "__main__":
    main()
