"""Tokenised rows: kept on the disk, drawn, padded, and batched by length.

Shapes: N rows, B rows of a batch, T tokens of the longest.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import BatchSampler
from transformers import PreTrainedTokenizerBase

LENGTH = "length"  # the column of a row's number of tokens
TEXTS_PER_CALL = 1000  # the tokenizer's own records of a text are far larger than its ids
SAMPLES = "drawn by genre or article"  # what `draw` does, for result files

_STEPS_SORTED_TOGETHER = 50
_DRAW_SEED = 0  # not the run's: runs with other seeds are scored on the same rows


def cached_rows(
    encode: Callable[[], Iterator[Mapping[str, Any]]], *, key: Iterable[object], cache_dir: str | None
) -> Dataset:
    """Tokenised rows, read from the disk if the same were made before, with one more column, `length`.

    Args:
        encode: Yields the rows; each has `input_ids`, all have the same names.
        key: Everything that decides what it yields: the tokenizer's hash, settings, every text.
        cache_dir: Folder of the cache. None: that of the `datasets` library.
    """
    digest = hashlib.sha256()
    for part in key:
        text = str(part).encode("utf-8", errors="surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)

    def rows() -> Iterator[dict[str, Any]]:
        for row in encode():
            yield {**row, LENGTH: len(row["input_ids"])}

    made: Dataset = Dataset.from_generator(rows, cache_dir=cache_dir, fingerprint=digest.hexdigest()[:32])
    return made


def draw(groups: Sequence[str], count: int | None) -> list[int]:
    """Numbers of so many rows that stand for all, ascending, the same in every run; None takes all.

    `groups` is the genre or article of each row. Each has its share: files are sorted by them, so that the
    first rows are of one.
    """
    if count is None or count >= len(groups):
        return list(range(len(groups)))
    rng = np.random.default_rng(_DRAW_SEED)
    # By place, not by name, so that translations of a file are drawn from alike.
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    order = rng.permutation(len(groups))
    order = order[np.argsort([places[groups[row]] for row in order], kind="stable")]
    steps = ((rng.random() + np.arange(count)) * len(groups) / count).astype(int)
    return sorted(order[np.minimum(steps, len(groups) - 1)].tolist())


def collate(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Pad rows to the longest: `input_ids` and the like (B, T), and `labels`, (B, K) for K label names."""
    inputs = [{name: row[name] for name in tokenizer.model_input_names if name in row} for row in rows]
    # At their ends, whatever the tokenizer is set to: the first state is that of `<s>`, and words of answers
    # are counted from there.
    padded = tokenizer.pad(
        {name: [row[name] for row in inputs] for name in inputs[0]},
        padding_side="right",
        return_attention_mask=True,
        return_tensors="pt",
    )
    batch: dict[str, Tensor] = dict(padded)
    if label_names:
        batch["labels"] = torch.tensor([[row[name] for name in label_names] for row in rows])
    return batch


class LengthBuckets(BatchSampler):
    """Batches of rows of like length, in an order that is a function of seed and epoch alone.

    Rows are shuffled, sorted by length within 50 steps' worth of them, and the steps, of `accumulated`
    batches, are shuffled. As no generator with a state is drawn from, a resumed run meets the batches of an
    uninterrupted one. The rows of a step do not depend on how many batches it is cut into. The last batch may
    be smaller.
    """

    drop_last = False

    def __init__(self, lengths: np.ndarray, batch_size: int, *, accumulated: int = 1, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0
        self.step_size = batch_size * accumulated

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Row numbers of each batch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        window = self.step_size * _STEPS_SORTED_TOGETHER
        steps = []
        for start in range(0, len(order), window):
            rows = order[start : start + window]
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            steps += _cut(rows, self.step_size)
        # A short step comes last: the Trainer counts batches, and would add some of the next step to it.
        numbers = rng.permutation(len(steps))
        for number in sorted(numbers, key=lambda number: len(steps[number]) < self.step_size):
            yield from (batch.tolist() for batch in _cut(steps[number], self.batch_size))


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
