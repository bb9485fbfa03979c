"""Token files of fairseq in its `mmap` layout: `PREFIX.idx` says where each item lies in `PREFIX.bin`.

`PREFIX.idx`: the mark `MMIDIDX`, version 1, a code of the type of ids, the number n of items, n lengths
(int32) and n places in bytes (int64), all little-endian. `PREFIX.bin`: the ids of all items, end to end.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.process import UsageError

_HEADER = struct.Struct("<9sQBQ")
_MARK, _VERSION = b"MMIDIDX\x00\x00", 1
_OLDER_MARK = b"TNTIDX\x00\x00"
_ID_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
_BATCH_ITEMS = 4096


class IndexedItems:
    """Read-only view of a pair of files `.bin` and `.idx`, checked when it is opened.

    Args:
        prefix: Path without `.bin` and `.idx`.
        vocab_size: Ids must lie below it.

    Raises:
        UsageError: If a file is missing, of another layout, or damaged.
    """

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        self.files = tuple(prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx"))
        for path in self.files:
            if not path.is_file():
                raise UsageError(f"{path} is not a file; fairseq writes NAME.bin and NAME.idx.")
        self._vocab_size = vocab_size
        self._lengths, self._ids = _open(*self.files)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)])

    def __len__(self) -> int:
        """Number of items."""
        return len(self._lengths)

    def read(self, first: int, last: int) -> PackedRows:
        """The items `first` to `last`, which is left out.

        Raises:
            UsageError: If an id is not one of the vocabulary.
        """
        ids = self._ids[self._starts[first] : self._starts[last]]
        bad = np.flatnonzero((ids < 0) | (ids >= self._vocab_size))
        if bad.size:
            item = int(np.searchsorted(self._starts, self._starts[first] + bad[0], side="right")) - 1
            raise UsageError(
                f"{self.files[0]}: item {item:,} holds the id {int(ids[bad[0]])}, but the tokenizer has "
                f"{self._vocab_size:,} tokens; give the tokenizer that made the file."
            )
        return PackedRows(ids.astype(np.uint32), self._lengths[first:last].astype(np.int64))

    def batches(self, last: int) -> Iterator[tuple[int, PackedRows]]:
        """The items up to `last` in order, some thousands at a time, and the number of the first of them."""
        for start in range(0, last, _BATCH_ITEMS):
            yield start, self.read(start, min(last, start + _BATCH_ITEMS))


def _open(data: Path, index: Path) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the items, (n,), and all ids, both mapped."""
    count, dtype = _read_header(index)
    expected = _HEADER.size + 12 * count
    if os.path.getsize(index) != expected:
        raise UsageError(
            f"{index} has {os.path.getsize(index):,} bytes, but {count:,} items need {expected:,}; "
            "it is cut short, or of another program."
        )
    lengths = np.memmap(index, dtype="<i4", mode="r", offset=_HEADER.size, shape=(count,))
    places = np.memmap(index, dtype="<i8", mode="r", offset=_HEADER.size + 4 * count, shape=(count,))
    if lengths.min() < 1:
        item = int(np.argmax(lengths < 1))
        raise UsageError(f"{index}: item {item:,} has the length {lengths[item]}; the file is damaged.")
    ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
    wrong = np.flatnonzero(places != ends - lengths.astype(np.int64) * dtype.itemsize)
    if wrong.size:
        raise UsageError(f"{index}: item {wrong[0]:,} does not lie behind the one before it; it is damaged.")
    if os.path.getsize(data) != ends[-1]:
        raise UsageError(
            f"{data} has {os.path.getsize(data):,} bytes, but its index says {int(ends[-1]):,}; "
            "it is cut short, or the index of another file."
        )
    return np.asarray(lengths), np.asarray(np.memmap(data, dtype=dtype, mode="r"))


def _read_header(index: Path) -> tuple[int, np.dtype]:
    """Number of items and type of ids."""
    with open(index, "rb") as file:
        header = file.read(_HEADER.size)
    if header.startswith(_OLDER_MARK):
        raise UsageError(f"{index} is in fairseq's older layout; make it again with --dataset_impl mmap.")
    if not header.startswith(_MARK) or len(header) < _HEADER.size:
        raise UsageError(f"{index} is no index of fairseq's mmap layout: it must begin with MMIDIDX.")
    _, version, code, count = _HEADER.unpack(header)
    if version != _VERSION:
        raise UsageError(f"{index} has version {version} of the layout; expected {_VERSION}.")
    if code not in _ID_TYPES:
        raise UsageError(f"{index} says type {code} of ids; expected whole numbers, one of {[*_ID_TYPES]}.")
    if count < 1:
        raise UsageError(f"{index} lists no items.")
    return count, np.dtype(_ID_TYPES[code])
