"""Slow oracle of masked language modelling: one prediction and one vocabulary item at a time, in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def masked_lm(rows: Tensor, weight: Tensor, bias: Tensor | None, labels: Sequence[int]) -> Tensor:
    """Sum over predictions of -log softmax(weight row + bias)[label], in nats; rows (M, D), weight (V, D)."""
    loss = torch.zeros((), dtype=torch.float64)
    for row, label in zip(rows, labels, strict=True):
        logits = []
        for item in range(len(weight)):
            offset = bias[item] if bias is not None else 0.0
            logits.append((row * weight[item]).sum() + offset)
        largest = max(float(logit.detach()) for logit in logits)
        total = torch.zeros((), dtype=torch.float64)
        for logit in logits:
            total = total + torch.exp(logit - largest)
        loss = loss + torch.log(total) + largest - logits[label]
    return loss


def lm_head_features(
    row: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> Tensor:
    """Dense layer, exact GELU and layer norm of one (D,) vector: RoBERTa's LM head before its decoder."""
    hidden = []
    for output in range(len(weight)):
        x = (weight[output] * row).sum() + bias[output]
        hidden.append(x * (1 + torch.erf(x / math.sqrt(2))) / 2)
    mean = torch.stack(hidden).sum() / len(hidden)
    variance = torch.stack([(x - mean) ** 2 for x in hidden]).sum() / len(hidden)
    normal = [(x - mean) / torch.sqrt(variance + eps) for x in hidden]
    return torch.stack([x * scale[i] + shift[i] for i, x in enumerate(normal)])
