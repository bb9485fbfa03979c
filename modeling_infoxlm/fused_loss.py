"""Linear layer and cross entropy in one, without ever holding the logits of all rows.

Shapes: M rows, D hidden, V vocabulary. With XLM-R's vocabulary of 250,002 the fp32 logits of 1,000 rows take
1 GB, two or three times over in a plain cross entropy. Here rows are taken in chunks that fit a budget; the
gradient of each chunk is computed while its logits are at hand, so nothing is computed twice and memory
stays flat in M.
"""

from typing import Any

import torch
from torch import Tensor

# Bytes that the fp32 logits of one chunk may take. Large enough that chunks rarely matter to speed: each
# chunk reads the whole output table once.
LOGITS_BUDGET = 512 * 2**20


def linear_cross_entropy(
    rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, chunk_bytes: int = LOGITS_BUDGET
) -> Tensor:
    """Sum of the cross entropies of `softmax(rows @ weight.T + bias)` against `targets`.

    Equal to `F.cross_entropy(F.linear(rows, weight, bias), targets, reduction="sum")`
    in value and gradients. Under autocast the products run in the autocast type;
    softmax and loss are always at least fp32.

    Args:
        rows: Features, (M, D).
        weight: Output table, (V, D).
        bias: Output bias, (V,), or None.
        targets: Class of each row in 0..V-1, (M,).
        chunk_bytes: Budget for the logits of one chunk, in bytes; at least one row is always taken.

    Returns:
        Scalar in nats, fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: If the shapes of `rows`, `weight` and `targets` do not fit.
    """
    if rows.dim() != 2 or rows.shape[1] != weight.shape[1] or targets.shape != rows.shape[:1]:
        raise ValueError(
            f"rows {tuple(rows.shape)} must be (M, D), weight {tuple(weight.shape)} (V, D), "
            f"targets {tuple(targets.shape)} (M,)."
        )
    # A Function is told who requires gradients, not whether they are recorded.
    if not torch.is_grad_enabled():
        rows, weight, bias = rows.detach(), weight.detach(), None if bias is None else bias.detach()
    device = rows.device.type
    matmul_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
    # Half types are widened for the softmax: a sum of 250,002 exponentials needs the mantissa.
    softmax_dtype = torch.promote_types(rows.dtype, torch.float32)
    chunk_rows = max(1, chunk_bytes // (weight.shape[0] * softmax_dtype.itemsize))
    loss: Tensor = _LinearCrossEntropy.apply(
        rows, weight, bias, targets, chunk_rows, matmul_dtype, softmax_dtype
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_rows: int,
        matmul_dtype: torch.dtype,
        softmax_dtype: torch.dtype,
    ) -> Tensor:
        needs_rows, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        ctx.dtypes = (rows.dtype, weight.dtype, None if bias is None else bias.dtype)
        rows, weight = rows.to(matmul_dtype), weight.to(matmul_dtype)
        # Summed over chunks at full precision, whatever type the products run in.
        grad_rows = rows.new_empty(rows.shape) if needs_rows else None
        grad_weight = rows.new_zeros(weight.shape, dtype=softmax_dtype) if needs_weight else None
        grad_bias = rows.new_zeros(len(weight), dtype=softmax_dtype) if needs_bias else None
        loss = rows.new_zeros((), dtype=softmax_dtype)
        for start in range(0, len(rows), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            logits = torch.nn.functional.linear(rows[chunk], weight).to(softmax_dtype)
            if bias is not None:
                logits += bias
            log_normaliser = logits.logsumexp(dim=-1)
            index = targets[chunk].unsqueeze(1)
            loss += (log_normaliser - logits.gather(1, index).squeeze(1)).sum()
            if not (needs_rows or needs_weight or needs_bias):
                continue
            grad_logits = logits.sub_(log_normaliser.unsqueeze(1)).exp_()
            grad_logits.scatter_add_(1, index, grad_logits.new_full(index.shape, -1.0))
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
            grad_logits = grad_logits.to(matmul_dtype)
            if grad_rows is not None:
                torch.mm(grad_logits, weight, out=grad_rows[chunk])
            if grad_weight is not None:
                grad_weight += grad_logits.t() @ rows[chunk]
        ctx.gradients = (grad_rows, grad_weight, grad_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = upstream
        if ctx.gradients is None:
            raise RuntimeError(
                "a second backward pass through linear_cross_entropy: its gradients were scaled in place."
            )
        gradients = [
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        # Scaled in place above: a second backward pass must fail, not return wrong values.
        ctx.gradients = None
        return gradients[0], gradients[1], gradients[2], None, None, None, None
