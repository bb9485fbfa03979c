"""A trial of what may not run on a machine, or run wrongly, before it is used."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def why_not(
    attempt: Callable[[], Iterable[Tensor]], reference: Callable[[], Iterable[Tensor]], tolerance: float
) -> str | None:
    """Run an attempt beside what it would replace; why it cannot, or None if it can.

    Args:
        attempt: Makes tensors.
        reference: Makes what they should be.
        tolerance: Largest norm of a difference, relative to that of what it should be.
    """
    with torch.inference_mode(False):  # as training will be, wherever the question comes up first
        try:
            found = list(attempt())
        except Exception as error:  # kernels, compilers and what they call raise whatever they like
            return f"a trial failed: {' '.join(str(error).split())[:200]}"
        errors = [
            float((ours.float() - true.float()).norm() / true.float().norm())
            for ours, true in zip(found, reference(), strict=True)
        ]
    if all(error < tolerance for error in errors):  # which a NaN is not
        return None
    return f"in a trial it was wrong, relative errors {', '.join(f'{error:.1e}' for error in errors)}"
