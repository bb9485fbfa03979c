"""How much useful work a step does, and how much the machine could do.

Work is counted in tokens and floating point operations; what the machine could do is its matmul peak.

Shapes: D hidden, F intermediate, V vocabulary, Q queue.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from modeling_infoxlm.configuration_infoxlm import InfoXLMConfig

FORWARD_BACKWARD = 3  # the backward pass costs two products for each one of the forward pass


def count_tokens(batch: Mapping[str, Any]) -> int:
    """Real tokens of a joint batch, both sides of the contrast included."""
    return sum(sum(part["lengths"]) for part in _parts(batch))


def _parts(batch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    parts = []
    for name, part in batch.items():
        parts += [part["query"], part["key"]] if name == "xlco" else [part]
    return parts


def useful_flops(config: InfoXLMConfig, batch: Mapping[str, Any], *, queue_size: int = 0) -> float:
    """Floating point operations that a joint step needs at least.

    No padding, the head on masked rows only, and for the contrast no layer above its own.

    Args:
        config: Model.
        batch: Joint batch as `PretrainingCollator` makes it.
        queue_size: Queued keys that each query is compared with.
    """
    total = 0.0
    for name in ("mlm", "tlm"):
        if name in batch:
            encoder = encoder_flops(config, batch[name]["lengths"], config.num_hidden_layers)
            head = (
                2 * len(batch[name]["labels"]) * config.hidden_size * (config.hidden_size + config.vocab_size)
            )
            total += FORWARD_BACKWARD * (encoder + head)
    if "xlco" in batch:
        layer, query, key = config.resolved_xlco_layer(), batch["xlco"]["query"], batch["xlco"]["key"]
        total += FORWARD_BACKWARD * encoder_flops(config, query["lengths"], layer)
        total += encoder_flops(config, key["lengths"], layer)
        total += 2 * 2 * len(query["lengths"]) * queue_size * config.hidden_size  # negatives need no gradient
    return total


def encoder_flops(config: InfoXLMConfig, lengths: Sequence[int], num_layers: int) -> float:
    """Floating point operations of a forward pass through the first layers; a multiply-add counts as two."""
    linear = 2 * sum(lengths) * config.hidden_size * (4 * config.hidden_size + 2 * config.intermediate_size)
    attention = 4 * sum(length * length for length in lengths) * config.hidden_size
    return num_layers * float(linear + attention)


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
