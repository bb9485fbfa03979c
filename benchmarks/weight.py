"""What the house weighs: lines of code, the longest file, ties to the Trainer's inside, cost of a help page.

python -m benchmarks.weight [--root FOLDER]
"""

import argparse
import importlib
import pkgutil
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from transformers import Trainer

import modeling_infoxlm.evaluation
import modeling_infoxlm.training

FOLDERS = {"package": "modeling_infoxlm", "tests": "tests", "benchmarks": "benchmarks"}


def lines(folder: Path) -> dict[Path, int]:
    """Lines of each Python file in a folder, those of comments and empty ones included."""
    return {path: len(path.read_bytes().splitlines()) for path in sorted(folder.rglob("*.py"))}


def subclasses(base: type) -> Iterator[type]:
    """All classes of ours that are made from a class, at any distance."""
    found: list[type] = base.__subclasses__()
    for one in found:
        if one.__module__.startswith("modeling_infoxlm."):
            yield one
        yield from subclasses(one)


def overridden_private_methods(base: type) -> list[str]:
    """Names of private methods of a library's class that classes of ours replace."""
    names = {name for one in subclasses(base) for name, value in vars(one).items() if callable(value)}
    return sorted(name for name in names if name[0] == "_" and name[:2] != "__" and hasattr(base, name))


def import_all(package: object) -> None:
    """Import every module of a package: only then its classes are known."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")  # type: ignore[attr-defined]
    for module in found:
        importlib.import_module(module.name)


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
    for package in (modeling_infoxlm.training, modeling_infoxlm.evaluation):
        import_all(package)
    private = overridden_private_methods(Trainer)
    print(f"private Trainer methods overridden: {len(private)} ({', '.join(private)})")
    print(f"infoxlm --help, CPU seconds: {cpu_seconds_of_help(root):.1f}")


if __name__ == "__main__":
    main()
