"""What every benchmark needs: samples of alternatives taken in turn, and the machine they were taken on."""

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

DISTURBED = 1.25  # a sample this many times the median was disturbed by something else on the machine


@dataclass
class Samples:
    """Seconds of repeated runs of one alternative.

    Attributes:
        seconds: All samples in the order taken, warm-up left out.
    """

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    @property
    def disturbed(self) -> list[float]:
        """Samples far above the median: shown, never dropped."""
        return [value for value in self.seconds if value > DISTURBED * self.median]

    def summary(self) -> dict[str, Any]:
        """Return what goes into a result file."""
        return {"median_s": self.median, "samples_s": self.seconds, "disturbed_s": self.disturbed}


def run_in_turn(
    alternatives: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 1
) -> dict[str, Samples]:
    """Run A B C A B C ... and time each; the first `warmup` rounds are not counted.

    Args:
        alternatives: Name and what to run.
        repeats: Counted rounds.
        warmup: Rounds before them.
    """
    samples = {name: Samples() for name in alternatives}
    for round_ in range(warmup + repeats):
        for name, run in alternatives.items():
            start = time.perf_counter()
            run()
            if round_ >= warmup:
                samples[name].seconds.append(time.perf_counter() - start)
    return samples


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def make_console() -> Console:
    """Console whose text also goes into the result file, see `write_result`."""
    return Console(width=120, record=True)


def write_result(path: Path | None, result: Mapping[str, Any], console: Console) -> None:
    """Write a result file with the command, the machine and what was printed, if a path was asked for."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    printed = console.export_text(clear=False)
    record = {"command": command, "machine": describe_machine(), "printed": printed, **result}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
