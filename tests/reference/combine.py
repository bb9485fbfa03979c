"""Slow oracle of the two ways to add up objectives: loops over single predictions."""

from collections.abc import Mapping, Sequence


def per_objective(items: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> float:
    """Sum over objectives of weight times the mean of the objective's own items: the paper's formula."""
    total = 0.0
    for name, losses in items.items():
        for loss in losses:
            total += weights[name] * loss / len(losses)
    return total


def per_item(items: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> float:
    """Weighted sum of all items over the number of all items: the released code's one denominator."""
    total, count = 0.0, 0
    for name, losses in items.items():
        for loss in losses:
            total += weights[name] * loss
            count += 1
    return total / count
