"""How much useful work a step does, and how much the machine could do.

Work is counted in tokens and floating point operations; what the machine could do is its matmul peak.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator


def count_tokens(batch: Mapping[str, Any]) -> int:
    """Real tokens of a joint batch, all views included."""
    if "lengths" in batch:
        return sum(batch["lengths"])
    return sum(count_tokens(part) for part in batch.values() if isinstance(part, Mapping))


@torch.no_grad()
def matmul_peak(device: torch.device, dtype: torch.dtype, *, size: int = 2048, seconds: float = 0.3) -> float:
    """Measure floating point operations per second of a large product, as torch runs it on this device."""
    if device.type == "cuda":
        size *= 4
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(left, right)  # the first call chooses kernels
    _wait(device)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Speedometer:
    """Tokens and useful floating point operations per second since the last log entry."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._tokens, self._flops, self._start = 0, 0.0, time.perf_counter()

    def add(self, tokens: int, flops: float) -> None:
        """Count a micro-batch."""
        self._tokens += tokens
        self._flops += flops

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out: evaluation is no training."""
        begun = time.perf_counter()
        yield
        self._start += time.perf_counter() - begun

    def pop(self, accelerator: Accelerator, peak: float | None) -> dict[str, float]:
        """Return `tokens_per_second` of all ranks and `mfu`, the share of their matmul peaks; begin anew."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        work = torch.tensor([self._tokens, self._flops], dtype=torch.float64, device=accelerator.device)
        tokens, flops = accelerator.reduce(work, reduction="sum").tolist()
        logs = {"tokens_per_second": tokens / seconds}
        if peak is not None:
            logs["mfu"] = flops / seconds / (peak * accelerator.num_processes)
        self._restart()
        return logs
