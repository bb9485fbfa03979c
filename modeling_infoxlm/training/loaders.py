"""Loading batches of consecutive numbers: example i already is a random one, so nothing is shuffled."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments


def consecutive_loader(
    dataset: Dataset[Any], batch_size: int, *, collate: Callable[..., Any], args: TrainingArguments
) -> DataLoader:
    """Batches of consecutive numbers, an incomplete last one left out; workers as the arguments say."""
    return DataLoader(
        dataset,
        batch_sampler=cast(Any, ConsecutiveBatches(len(cast(Any, dataset)), batch_size)),
        # Its own: each start of a loader draws a number, and dropout must not depend on evaluations.
        generator=torch.Generator(),
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )


class ConsecutiveBatches(Sampler[Sequence[int]]):
    """Batches of consecutive numbers as ranges: a resumed run skips a million in a fraction of a second."""

    drop_last = True

    def __init__(self, num_rows: int, batch_size: int) -> None:
        self.num_rows, self.batch_size = num_rows, batch_size

    def __len__(self) -> int:
        """Number of batches."""
        return self.num_rows // self.batch_size

    def __iter__(self) -> Iterator[Sequence[int]]:
        """The ranges, in order."""
        for first in range(0, len(self) * self.batch_size, self.batch_size):
            yield range(first, first + self.batch_size)
