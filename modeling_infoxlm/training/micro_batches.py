"""Cutting a device's joint batch into packed micro-batches, so that its memory is even and bounded.

A batch is a number of examples, and that number defines the mathematics. How it is cut does not: objectives
return sums, and the loss divides by counts of the whole global batch, so the gradients of the micro-batches
add up to those of the batch. Nothing is truncated, padded or left out.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from modeling_infoxlm.data.streams import PART_FIELDS

Batch = dict[str, Any]


def split_batch(
    batch: Batch, *, tokens_per_device: int | None, by_objective: bool, whole: Collection[str] = ()
) -> list[Batch]:
    """Cut a joint batch between sequences, all parts together or one objective after another.

    Cut together, each part gives a share to every micro-batch; a part with fewer sequences than there are
    micro-batches gives to the last ones. So the last one has all parts: under DDP its backward pass is the
    one that exchanges gradients. Where that cannot be, it has the masked objectives, whose backward pass
    reaches all parameters but those that other objectives have of their own.

    Args:
        batch: Joint batch as `PretrainingCollator` makes it.
        tokens_per_device: Most tokens in a micro-batch, those whose activations are kept, see `kept_lengths`.
            A micro-batch is larger only if it is down to one example of each part. None: no such cut.
        by_objective: Parts apart, masked ones last: the least memory.
        whole: Parts to keep in one micro-batch of their own each, because the loss of an example depends on
            the others of the batch. They come first: ranks meet in them, however often each of them cuts.

    Returns:
        Micro-batches; sequences stay in order. Tokens and labels are views of the batch.
    """
    names = sorted(batch, reverse=True)  # xlco, tlm, mlm
    if by_objective:
        groups = [[name] for name in names]
    elif tokens_per_device is None:
        groups = [names]
    else:
        groups = [[name] for name in names if name in whole] + [[name for name in names if name not in whole]]
    micro_batches = []
    for group in groups:
        parts = {name: part for name, part in batch.items() if name in group}
        if tokens_per_device is None or any(name in whole for name in group):
            micro_batches += [parts] if parts else []
        else:
            micro_batches += _cut(parts, tokens_per_device) if parts else []
    return micro_batches


def kept_lengths(part: Mapping[str, Any]) -> list[int]:
    """Tokens of each example whose activations are kept for the backward pass: all views but `key`."""
    if "lengths" in part:
        lengths: list[int] = part["lengths"]
        return lengths
    views = [view["lengths"] for name, view in part.items() if name != "key" and isinstance(view, Mapping)]
    return [sum(each) for each in zip(*views, strict=True)]


def _cut(batch: Batch, budget: int) -> list[Batch]:
    """The fewest micro-batches within the budget, or one for each sequence of the part that has most."""
    lengths = {name: np.asarray(kept_lengths(part)) for name, part in batch.items()}
    most = max(len(values) for values in lengths.values())
    count = max(1, min(most, -(-sum(int(values.sum()) for values in lengths.values()) // budget)))
    while True:
        bounds = {name: _balanced_bounds(values, count) for name, values in lengths.items()}
        if count == most or _largest(lengths, bounds, count) <= budget:
            break
        count += 1
    if count == 1:
        return [batch]
    micro_batches: list[Batch] = [{} for _ in range(count)]
    for name, part in batch.items():
        pieces = _cut_part(part, bounds[name])
        for micro_batch, piece in zip(micro_batches[-len(pieces) :], pieces, strict=True):
            micro_batch[name] = piece
    return micro_batches


def _balanced_bounds(lengths: np.ndarray, count: int) -> np.ndarray:
    """First sequence of each of at most `count` contiguous pieces of about equal tokens, and the end.

    Returns:
        Ascending numbers from 0 to n; there are min(count, n) pieces, none of them empty.
    """
    count = min(count, len(lengths))
    ends = np.cumsum(lengths)
    targets = ends[-1] * np.arange(1, count) / count
    # The boundary nearest to each target: half of the sequence that lies across it decides.
    inner = np.searchsorted(ends - lengths / 2, targets)
    # Each piece needs a sequence, and leaves one for each piece behind it.
    steps = np.arange(1, count)
    inner = np.maximum.accumulate(np.maximum(inner, 1) - steps) + steps
    return np.concatenate([[0], np.minimum(inner, len(lengths) - count + steps), [len(lengths)]])


def _largest(lengths: Mapping[str, np.ndarray], bounds: Mapping[str, np.ndarray], count: int) -> int:
    """Tokens of the largest micro-batch."""
    totals = np.zeros(count, dtype=np.int64)
    for name, values in lengths.items():
        pieces = np.add.reduceat(values, bounds[name][:-1])
        totals[-len(pieces) :] += pieces
    return int(totals.max())


def _cut_part(part: Mapping[str, Any], bounds: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """Cut one part between sequences at `bounds`, the first sequence of each piece, and n.

    Raises:
        ValueError: If it has a field that is not in `PART_FIELDS`.
    """
    if "lengths" not in part:
        views = {view: _cut_part(value, bounds) for view, value in part.items()}
        return [dict(zip(views, pieces, strict=True)) for pieces in zip(*views.values(), strict=True)]
    return [
        _sequences(part, int(first), int(end)) for first, end in zip(bounds[:-1], bounds[1:], strict=True)
    ]


def _sequences(part: Mapping[str, Any], first: int, end: int) -> dict[str, Any]:
    """Sequences `first` to `end` - 1 of a part."""
    extents = {"sequence": (first, end), "token": _extent(part["lengths"], first, end)}
    if "masked_lengths" in part:
        extents["masked"] = _extent(part["masked_lengths"], first, end)
    piece = {}
    for name, value in part.items():
        if name not in PART_FIELDS:
            raise ValueError(
                f"field {name!r} of a part cannot be cut; say in data.streams.PART_FIELDS what it has one of."
            )
        start, stop = extents[PART_FIELDS[name]]
        piece[name] = value[start:stop]
    if "masked_rows" in piece:
        piece["masked_rows"] = piece["masked_rows"] - extents["token"][0]
    return piece


def _extent(lengths: Sequence[int], first: int, end: int) -> tuple[int, int]:
    """Rows of a packed buffer that belong to the sequences `first` to `end` - 1."""
    start = sum(lengths[:first])
    return start, start + sum(lengths[first:end])
