"""Slow oracles of momentum contrast: the moving average in float64 and the queue as a deque."""

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def moving_average(key: Tensor, queries: Iterable[Tensor], momenta: Iterable[float]) -> Tensor:
    """Apply key <- m key + (1 - m) query once for each query and momentum, in float64."""
    average = key.double().clone()
    for query, momentum in zip(queries, momenta, strict=True):
        average = momentum * average + (1 - momentum) * query.double()
    return average


class SlowQueue:
    """The last `size` keys; key number n of the whole run lies in slot n mod size."""

    def __init__(self, size: int) -> None:
        """Start empty."""
        self.size = size
        self.newest: deque[tuple[int, list[float]]] = deque(maxlen=size)
        self.count = 0

    def enqueue(self, keys: Sequence[Sequence[float]]) -> None:
        """Append keys one by one; the oldest fall out at the other end."""
        for key in keys:
            self.newest.append((self.count, list(key)))
            self.count += 1

    def slots(self) -> dict[int, list[float]]:
        """Return slot -> key for every slot that was ever written."""
        return {number % self.size: key for number, key in self.newest}

    @property
    def cursor(self) -> int:
        """Slot that the next key will take."""
        return self.count % self.size

    def negatives(self) -> Tensor:
        """Keys in slot order, (num_filled, D)."""
        slots = self.slots()
        return torch.tensor([slots[slot] for slot in sorted(slots)])
