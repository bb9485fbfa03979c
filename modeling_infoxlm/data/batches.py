"""From a prepared corpus to packed training batches: a part for each stream, such as "mlm", "tlm", "xlco".

Item i of the dataset holds the next few examples of each stream.

Shape letters: n sequences of a part, T tokens of all of them, M masked positions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.data.streams import STREAMS, Stream, StreamSettings


class JointDataset(Dataset[dict[str, Any]]):
    """The training streams as one map-style dataset.

    Item i holds the examples i * r .. i * r + r - 1 of each stream, r being its examples per item. The
    streams are independent: none is cut to the shortest, and each goes round its own examples as often as
    needed. An item is a function of its number alone, so it is the same in any worker, after a resume and
    at any world size.

    Example:
        >>> dataset = JointDataset(Corpus.open("prepared/"), StreamSettings(), num_items=2048 * 150_000)
        >>> loader = DataLoader(dataset, batch_size=16, collate_fn=PretrainingCollator(), num_workers=2)
    """

    def __init__(self, corpus: Corpus, settings: StreamSettings, num_items: int) -> None:
        """Lay out the streams of the wanted objectives.

        Args:
            corpus: The prepared corpus.
            settings: What an item is made of.
            num_items: Length of the dataset: items that the whole run needs.

        Raises:
            DataError: If an objective is wanted that the corpus has no data for.
            ValueError: If `num_items` is less than 1.
        """
        if num_items < 1:
            raise ValueError(f"num_items must be at least 1; found {num_items}.")
        self.num_items = num_items
        self.objectives = settings.streams
        kinds = {name: kind for name, kind in STREAMS.values() if name in self.objectives.values()}
        self.streams = {name: kind(corpus, settings, name) for name, kind in kinds.items()}

    def __len__(self) -> int:
        """Number of items."""
        return self.num_items

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The packed parts of one item."""
        return self.pack([index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The packed parts of many items, already joined; DataLoader prefers this to `__getitem__`."""
        return [self.pack(indices)]

    def pack(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Make the packed parts of several items in one go.

        Args:
            indices: Item numbers.

        Returns:
            For each stream its part, with numpy arrays, as `PretrainingCollator` documents them.

        Raises:
            IndexError: If an item number is outside [0, num_items).
            ValueError: If no item is asked for.
        """
        items = np.asarray(indices, dtype=np.int64)
        if items.size == 0:
            raise ValueError("pack needs at least one item; found none.")
        if items.min() < 0 or items.max() >= self.num_items:
            raise IndexError(f"items must be in [0, {self.num_items}); found {items.min()} .. {items.max()}.")
        return {
            objective: stream.pack(_number_examples(items, stream.examples_per_item))
            for objective, stream in self.streams.items()
        }

    def describe(self) -> dict[str, dict[str, object]]:
        """What the streams hold, for logs and `run.json`.

        Returns:
            For each objective `examples_per_item`, `epoch_size` and `groups`: for each language or pair its
            `examples`, sampling `probability` and `expected_share` of an epoch (the probability rounded to
            whole examples, which every epoch keeps exactly), and `mean_tokens` and `most_tokens` of an
            example as it is trained on. The lengths come from the manifest, whatever the size of the corpus.
        """
        return {objective: _describe_stream(stream) for objective, stream in self.streams.items()}


def _describe_stream(stream: Stream) -> dict[str, object]:
    groups = {
        name: {**group, **stream.tokens_per_example(name)}
        for name, group in stream.sampler.describe_groups().items()
    }
    epoch_size = stream.sampler.epoch_size
    return {"examples_per_item": stream.examples_per_item, "epoch_size": epoch_size, "groups": groups}


def _number_examples(items: np.ndarray, per_item: int) -> np.ndarray:
    """Numbers of the examples in these items: i * r .. i * r + r - 1 for each item i, (n,)."""
    return (items[:, None] * per_item + np.arange(per_item)).reshape(-1)


class PretrainingCollator:
    """Joins the packed parts of several items into one batch of tensors.

    The batch, without the parts whose objective is off (T, n and M are each part's own)::

        {"mlm": {"input_ids": LongTensor (T,), "lengths": list[int] (n), "masked_rows": LongTensor (M,),
                 "masked_lengths": list[int] (n), "labels": LongTensor (M,)},
         "tlm": the same,
         "xlco": {"query": {"input_ids", "lengths"}, "key": {"input_ids", "lengths"}}}

    `masked_rows` count from the start of their own part and ascend; `masked_lengths` says how many of them
    each sequence has, so that a part can be cut between sequences without looking at tensors. Sequences
    are in item order.
    """

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate what `JointDataset` returned, one or several packed dictionaries."""
        return {name: _collate([item[name] for item in items]) for name in items[0]}


def _collate(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if "lengths" not in parts[0]:
        return {view: _collate([part[view] for part in parts]) for view in parts[0]}
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if "masked_rows" in joined:
        starts = np.cumsum([0, *(len(part["input_ids"]) for part in parts[:-1])])
        joined["masked_rows"] += np.repeat(starts, [len(part["masked_rows"]) for part in parts])
    # Lengths are looked at by the host alone.
    return {
        name: values.tolist()
        if name in ("lengths", "masked_lengths")
        else torch.from_numpy(values.astype(np.int64))
        for name, values in joined.items()
    }
