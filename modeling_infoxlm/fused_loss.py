"""Linear layer and cross entropy in one, a block of the vocabulary at a time.

With XLM-R's vocabulary of 250,002 the fp32 logits of 1,000 rows take 1 GB, and a plain cross entropy holds
them two or three times and goes over each a dozen times. Here the table is taken in blocks whose logits stay
in the cache: the forward pass keeps their logarithmic sum, the backward pass turns each block into its
gradient while it is at hand. The logits themselves are kept, in the type of the products, as long as they fit
a budget; beyond it the backward pass computes them anew, so that memory stays flat in the number of rows.

Shapes: M rows, D hidden, V vocabulary, N columns of a block.
"""

import functools
import importlib.util
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .trials import why_not

logger = logging.getLogger(__name__)

# Bytes of one block's logits: what stays in the cache of a CPU core, or fills a GPU.
CPU_BLOCK_BYTES = 4 * 2**20
GPU_BLOCK_BYTES = 256 * 2**20
# Logits kept for the backward pass: computing them again costs a third of the layer's forward and backward.
# On CUDA a share of the memory that is free: 65,000 tokens of a joint batch of XLM-R base make 4.9 GB.
CPU_KEPT_BYTES = 2**30
GPU_KEPT_SHARE = 0.25
_TRIAL_TOLERANCE = 0.02  # bf16


def linear_cross_entropy(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    block_bytes: int | None = None,
    kept_bytes: int | None = None,
) -> Tensor:
    """Cross entropy of `softmax(rows @ weight.T + bias)` against `targets`, for each row.

    Equal to `F.cross_entropy(F.linear(rows, weight, bias), targets, reduction="none")` in value and
    gradients. Under autocast the products run in the autocast type; softmax and loss are at least fp32.

    Args:
        rows: Features, (M, D).
        weight: Output table, (V, D).
        bias: Output bias, (V,), or None.
        targets: Class of each row in 0..V-1, (M,).
        block_bytes: Bytes of the logits of one block; None takes what suits the device.
        kept_bytes: Most bytes of logits to keep for the backward pass; None takes what suits the device.

    Returns:
        Losses in nats, (M,), fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: If the shapes of `rows`, `weight` and `targets` do not fit.
    """
    if rows.dim() != 2 or rows.shape[1] != weight.shape[1] or targets.shape != rows.shape[:1]:
        raise ValueError(
            f"rows {tuple(rows.shape)} must be (M, D), weight {tuple(weight.shape)} (V, D), "
            f"targets {tuple(targets.shape)} (M,)."
        )
    device = rows.device.type
    matmul_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
    # Half types are widened for the softmax: a sum of 250,002 exponentials needs the mantissa.
    softmax_dtype = torch.promote_types(rows.dtype, torch.float32)
    if block_bytes is None:
        block_bytes = CPU_BLOCK_BYTES if device == "cpu" else GPU_BLOCK_BYTES
    columns = max(1, block_bytes // (softmax_dtype.itemsize * max(1, len(rows))))
    # A Function is told who requires gradients, not whether they are recorded.
    keep = torch.is_grad_enabled()
    if keep:
        kept_bytes = _kept_bytes(rows.device) if kept_bytes is None else kept_bytes
        keep = len(rows) * len(weight) * matmul_dtype.itemsize <= kept_bytes
    losses: Tensor = _LinearCrossEntropy.apply(
        rows, weight, bias, targets, matmul_dtype, softmax_dtype, columns, keep
    )
    return losses


def _kept_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_KEPT_BYTES
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's, and unused
    return int(GPU_KEPT_SHARE * (torch.cuda.mem_get_info(device)[0] + reserved))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        matmul_dtype: torch.dtype,
        softmax_dtype: torch.dtype,
        columns: int,
        keep: bool,
    ) -> Tensor:
        inputs = rows.to(matmul_dtype)
        log_sum_and_target = _kernels(rows.device.type)[0]
        log_normaliser = rows.new_full((len(rows),), float("-inf"), dtype=softmax_dtype)
        target_logits = torch.zeros_like(log_normaliser)
        kept: list[Tensor] = []
        for block in _blocks(len(weight), columns):
            logits = inputs @ weight[block].to(matmul_dtype).t()
            if keep:
                kept.append(logits)
            log_sum, target = log_sum_and_target(
                logits, _part(bias, block), targets - block.start, softmax_dtype
            )
            log_normaliser = torch.logaddexp(log_normaliser, log_sum)
            target_logits += target
        ctx.save_for_backward(rows, weight, bias, targets, log_normaliser, *kept)
        ctx.settings = matmul_dtype, softmax_dtype, columns
        return log_normaliser - target_logits

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, targets, log_normaliser, *kept = ctx.saved_tensors
        matmul_dtype, softmax_dtype, columns = ctx.settings
        needs_rows, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        scale = upstream[0]
        inputs = rows.to(matmul_dtype)
        gradient_of_logits = _kernels(rows.device.type)[1]
        scaled_inputs = (rows * scale.unsqueeze(1)).to(matmul_dtype)
        grad_rows = torch.zeros_like(rows, dtype=softmax_dtype) if needs_rows else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        for number, block in enumerate(_blocks(len(weight), columns)):
            table = weight[block].to(matmul_dtype)
            logits = kept[number] if kept else inputs @ table.t()
            grad_logits, bias_part = gradient_of_logits(
                logits, _part(bias, block), targets - block.start, log_normaliser, scale, matmul_dtype
            )
            if grad_bias is not None:
                grad_bias[block] = bias_part
            if grad_rows is not None:
                grad_rows += grad_logits @ table
            if grad_weight is not None:
                _product_into(grad_weight[block], grad_logits.t(), scaled_inputs)
        if grad_rows is not None:
            grad_rows = grad_rows.mul_(scale.unsqueeze(1)).to(rows.dtype)
        return grad_rows, grad_weight, grad_bias, None, None, None, None, None


def _blocks(size: int, columns: int) -> Iterator[slice]:
    for start in range(0, size, columns):
        yield slice(start, min(size, start + columns))


def _part(bias: Tensor | None, block: slice) -> Tensor | None:
    return None if bias is None else bias[block]


def _product_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Write `left @ right` into `out`, which may be of a wider type."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


# --- what is done to the logits of a block, between the products --------------------------------------------


Kernels = tuple[Callable[..., Any], Callable[..., Any]]


@functools.cache
def _kernels(device_type: str) -> Kernels:
    """The functions below; on CUDA each is compiled to one Triton kernel.

    There, every elementwise step by itself would go through memory once more; on a CPU the block is in the
    cache.
    """
    reason = why_not_compiled(device_type) if device_type == "cuda" else ""
    if reason is None:
        return _compiled()
    if reason:
        logger.warning("The loss of masked tokens runs uncompiled, which is slower: %s.", reason)
    return _EAGER


def compile_kernels(**options: Any) -> Kernels:
    """Compile both functions for any shape; `options` go to `torch.compile`."""
    return (
        torch.compile(_log_sum_and_target, dynamic=True, fullgraph=True, **options),
        functools.partial(
            torch.compile(_gradient_of_logits, dynamic=True, fullgraph=True, **options), one_kernel=True
        ),
    )


_compiled = functools.cache(compile_kernels)


@functools.cache
def why_not_compiled(device_type: str) -> str | None:
    """Why the functions cannot run compiled on a device, after a trial on a few rows; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"

    def run(kernels: Kernels) -> list[Tensor]:
        drawn = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
        logits, targets = drawn.to(device_type, torch.bfloat16), torch.arange(5, device=device_type)
        with torch.autocast(device_type, enabled=False):
            total, target = kernels[0](logits, None, targets, torch.float32)
            ones = torch.ones_like(total)
            return [total, target, *kernels[1](logits, None, targets, total, ones, logits.dtype)]

    return why_not(lambda: run(_compiled()), lambda: run(_EAGER), _TRIAL_TOLERANCE)


def _log_sum_and_target(
    logits: Tensor, bias: Tensor | None, targets: Tensor, softmax_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Logarithm of the summed exponentials (M,), and logit of the target if it is in the block, else 0 (M,).

    Args:
        logits: Of the block, (M, N).
        bias: Of the block, (N,), or None.
        targets: Columns, outside 0..N-1 if the target is in another block, (M,).
        softmax_dtype: Type to compute in.
    """
    wide = logits.to(softmax_dtype, copy=True)
    if bias is not None:
        wide.add_(bias)
    column, inside = _columns_of(targets, logits.shape[1])
    return wide.logsumexp(dim=-1), wide.gather(1, column).squeeze(1) * inside


def _gradient_of_logits(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    log_normaliser: Tensor,
    scale: Tensor,
    matmul_dtype: torch.dtype,
    *,
    one_kernel: bool = False,
) -> tuple[Tensor, Tensor]:
    """Softmax less 1 at the target, (M, N), in the type of the products; its sum over rows by `scale`, (N,).

    Args:
        logits: Of the block, (M, N).
        bias: Of the block, (N,), or None.
        targets: Columns, outside 0..N-1 if the target is in another block, (M,).
        log_normaliser: Of each row over the whole vocabulary, (M,).
        scale: Gradient of each row's loss, (M,).
        matmul_dtype: Type of the first result.
        one_kernel: Find the target by comparison and sum the rounded numbers: a compiler makes three kernels
            of `scatter_add_`, with the block in fp32 between them. On a CPU that one is the faster.
    """
    wide = logits.to(log_normaliser.dtype, copy=True)
    if bias is not None:
        wide.add_(bias)
    wide.sub_(log_normaliser.unsqueeze(1)).exp_()
    if one_kernel:
        hit = torch.arange(logits.shape[1], device=logits.device) == targets.unsqueeze(1)
        rounded = torch.where(hit, wide - 1, wide).to(matmul_dtype)
        return rounded, (scale.to(matmul_dtype) @ rounded).to(wide.dtype)
    column, inside = _columns_of(targets, logits.shape[1])
    wide.scatter_add_(1, column, -inside.to(wide.dtype).unsqueeze(1))
    return wide.to(matmul_dtype), scale @ wide


_EAGER: Kernels = _log_sum_and_target, _gradient_of_logits


def _columns_of(targets: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """Column of each target, (M, 1), any column if it is in another block; whether it is in this, (M,)."""
    inside = (targets >= 0) & (targets < num_columns)
    return targets.clamp(0, num_columns - 1).unsqueeze(1), inside
