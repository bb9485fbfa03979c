"""One way of measuring: alternatives in turn, printed and written with the machine that they ran on."""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from modeling_infoxlm.runs.process import configure_process
from modeling_infoxlm.training.throughput import matmul_peak

DISTURBED = 1.25  # a sample this many times the median was disturbed by something else on the machine
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Samples:
    """Seconds of repeated runs of one alternative, in the order taken, warm-up left out."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    def summary(self) -> dict[str, Any]:
        """What goes into a result file; samples far above the median are shown, never dropped."""
        disturbed = [value for value in self.seconds if value > DISTURBED * self.median]
        return {"median_s": self.median, "samples_s": self.seconds, "disturbed_s": disturbed}


def run_in_turn(
    alternatives: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 1
) -> dict[str, Samples]:
    """Run A B C A B C ... and time each; the first `warmup` rounds are not counted."""
    samples = {name: Samples() for name in alternatives}
    for round_ in range(warmup + repeats):
        for name, run in alternatives.items():
            start = time.perf_counter()
            run()
            if round_ >= warmup:
                samples[name].seconds.append(time.perf_counter() - start)
    return samples


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Exponent b of values = a x sizes^b; None if a value is 0 or unknown, or there are fewer than two."""
    if len(sizes) < 2 or not all(value > 0 for value in values):
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def measured_peak(dtype: str) -> float:
    """Floating point operations per second of a large product here."""
    return matmul_peak(DEVICE, DTYPES[dtype], seconds=2.0)


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def memory_peaks() -> dict[str, float]:
    """`peak_memory`, and of a GPU what torch has allocated at most, in GiB."""
    gpu = {"peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30} if DEVICE.type == "cuda" else {}
    return {"peak_memory_gib": peak_memory(), **gpu}


class Elsewhere:
    """What `make(*arguments)` makes, in a process where torch and the allocator are as they come."""

    _there: Any = None  # in the other process

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, Elsewhere._begin, (make, arguments))

    @staticmethod
    def _begin(make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        quiet()
        Elsewhere._there = make(*arguments)

    @staticmethod
    def _call(method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(Elsewhere._there, method)(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method there; this process waits meanwhile."""
        return self._pool.submit(Elsewhere._call, method, arguments).result()


def quiet() -> None:
    """Without transformers' reports and bars."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def make_parser(about: str | None) -> argparse.ArgumentParser:
    """A parser of a benchmark's flags."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--output", type=Path, help="result file, JSON")
    return parser


def run_benchmark(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    show: Callable[[Console, dict[str, Any]], None],
    *,
    configure: Callable[[], None] = configure_process,
) -> None:
    """Measure, print, and write the result with command, machine and what was printed, if asked for."""
    configure()
    quiet()
    console, result = Console(width=120, record=True, highlight=False), measure(options)
    show(console, result)
    if options.output is not None:
        command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
        printed = console.export_text(clear=False)
        record = {"command": command, "machine": describe_machine(), "printed": printed, **result}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
    }
