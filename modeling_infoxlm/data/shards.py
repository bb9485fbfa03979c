"""Memory-mapped token shards and the prepared corpus that is made of them.

A shard with prefix `P` is two files: `P.tokens` (uint32, all sequences end to end) and `P.offsets` (int64,
n + 1 values: sequence i is `tokens[offsets[i]:offsets[i + 1]]`). So corpora of any size cost no memory, and a
sequence is found in O(1).

Sizes in shapes: n sequences asked for, L tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modeling_infoxlm.data.ragged import PackedRows, SpecialTokens
from modeling_infoxlm.data.sources import check_pair
from modeling_infoxlm.runs.errors import DataError
from modeling_infoxlm.runs.files import Each, check_shape, read_json, whole_file

# 1: sentences were told apart by text, so held-out ones were trained on in other spellings.
FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
_TOKEN_DTYPE = np.dtype("<u4")
_OFFSET_DTYPE = np.dtype("<i8")
_PREPARE_AGAIN = "delete the prepared folder and prepare it again."
_BUFFER_BYTES = 1 << 20  # of ids are held before they are written


def shard_files(prefix: Path) -> tuple[Path, Path]:
    """The tokens file and the offsets file of the shard `prefix`."""
    # Not with_suffix(): a prefix such as "en-de.source" already has a dot.
    return prefix.with_name(prefix.name + ".tokens"), prefix.with_name(prefix.name + ".offsets")


class TokenStoreWriter:
    """Writes one shard; a shard either exists complete or not at all.

    ```python
    with TokenStoreWriter(Path("mono/de/news")) as writer:
        writer.append([0, 17, 23, 2])
    ```

    The two files carry temporary names until the block ends without an exception; then they are made durable
    and renamed. After an exception nothing is left behind.
    """

    def __init__(self, prefix: Path) -> None:
        """Create the folder and the temporary files of the shard, named without `.tokens` / `.offsets`."""
        self.num_tokens = 0
        self._num_sequences = 0
        self._lengths = [np.zeros(1, dtype=_OFFSET_DTYPE)]  # of nothing, whose end is the first offset
        self._stack = ExitStack()
        tokens, self._offsets = (self._stack.enter_context(whole_file(path)) for path in shard_files(prefix))
        self._stack.push(self._write_offsets)
        self._tokens_file = self._stack.enter_context(open(tokens, "wb", buffering=_BUFFER_BYTES))

    def __enter__(self) -> TokenStoreWriter:
        """The writer itself."""
        return self

    def __len__(self) -> int:
        """Number of sequences appended so far."""
        return self._num_sequences

    def append(self, ids: Sequence[int] | np.ndarray) -> None:
        """Add one sequence of token ids, (L,)."""
        self.extend(PackedRows(np.asarray(ids, dtype=_TOKEN_DTYPE), np.array([len(ids)])))

    def extend(self, rows: PackedRows) -> None:
        """Add n sequences."""
        # Not ndarray.tofile(): on a full disk it raises an OSError without errno.
        self._tokens_file.write(np.ascontiguousarray(rows.tokens, dtype=_TOKEN_DTYPE).data)
        self._lengths.append(rows.lengths)
        self._num_sequences += len(rows)
        self.num_tokens += len(rows.tokens)

    def __exit__(self, *error: Any) -> None:
        """Complete the shard, or remove every trace of it after an exception."""
        self._stack.__exit__(*error)

    def _write_offsets(self, error_type: type[BaseException] | None, *_: Any) -> None:
        if error_type is None:
            offsets = np.cumsum(np.concatenate(self._lengths), dtype=_OFFSET_DTYPE)
            self._offsets.write_bytes(offsets.data)


def _open_shard(prefix: Path) -> tuple[np.ndarray, np.ndarray]:
    tokens_path, offsets_path = shard_files(prefix)
    for path in (tokens_path, offsets_path):
        if not path.is_file():
            raise DataError(f"shard file {path} is missing; {_PREPARE_AGAIN}")
    size, offsets = offsets_path.stat().st_size, None
    num_found = tokens_path.stat().st_size // _TOKEN_DTYPE.itemsize
    if size and not size % _OFFSET_DTYPE.itemsize:
        offsets = _map(offsets_path, _OFFSET_DTYPE)
    if offsets is None or num_found != offsets[-1]:
        said = "are no whole number" if offsets is None else f"say {int(offsets[-1]):,}"
        raise DataError(
            f"shard {tokens_path} holds {num_found:,} tokens but its offsets {said}; it was cut short. "
            f"{_PREPARE_AGAIN.capitalize()}"
        )
    # An empty file cannot be memory-mapped.
    return _map(tokens_path, _TOKEN_DTYPE) if num_found else np.empty(0, dtype=_TOKEN_DTYPE), offsets


def _map(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    # A plain array over the mapped file: numpy.memmap does work of its own for every array cut out of it.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


class TokenStore:
    """Read-only, memory-mapped view of one or many shards as a single list of sequences."""

    def __init__(self, prefixes: Sequence[Path]) -> None:
        """Map the shards, named without `.tokens` / `.offsets`, in the order in which they are to be seen."""
        self._open([Path(prefix) for prefix in prefixes])

    def _open(self, prefixes: list[Path]) -> None:
        self.prefixes = prefixes
        shards = [_open_shard(prefix) for prefix in prefixes]
        self._tokens = [tokens for tokens, _ in shards]
        self._offsets = [offsets for _, offsets in shards]
        # Number of the first sequence of each shard, and behind the last the number of all: (shards + 1,).
        counts = [0, *(len(offsets) - 1 for offsets in self._offsets)]
        self._starts = np.cumsum(counts, dtype=np.int64)

    def __getstate__(self) -> list[Path]:
        """Only the paths: a DataLoader worker maps the files itself instead of receiving a copy of them."""
        return self.prefixes

    def __setstate__(self, prefixes: list[Path]) -> None:
        """Map the files again in the receiving process."""
        self._open(prefixes)

    def __len__(self) -> int:
        """Number of sequences in all shards."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """The token ids of one sequence, (L,) uint32; negative numbers count from the end.

        Raises:
            IndexError: If there is no such sequence.
        """
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"sequence {index} of a store of {size:,} sequences")
        return self.gather(np.array([index % size]))[0]

    def _bounds(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shard number, first token in that shard and length of each sequence, each (n,) int64."""
        if indices.size and not (0 <= indices.min() and indices.max() < len(self)):
            raise IndexError(
                f"indices {indices.min()}..{indices.max()} of a store of {len(self):,} sequences"
            )
        shard = np.searchsorted(self._starts, indices, side="right") - 1
        first = np.empty(len(indices), dtype=np.int64)
        length = np.empty(len(indices), dtype=np.int64)
        for number in np.unique(shard):
            chosen = np.flatnonzero(shard == number)
            local = indices[chosen] - self._starts[number]
            offsets = self._offsets[number]
            first[chosen] = offsets[local]
            length[chosen] = offsets[local + 1] - first[chosen]
        return shard, first, length

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Tokens in each of the sequences `indices`, (n,) int64, without touching them."""
        return self._bounds(np.asarray(indices, dtype=np.int64))[2]

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sequences `indices`, (n,), end to end and in order; it loops over shards, never over sequences.

        Returns:
            Their tokens, (sum of L,) uint32, and their lengths, (n,) int64.
        """
        shard, first, length = self._bounds(np.asarray(indices, dtype=np.int64))
        out_first = np.cumsum(length) - length
        # Position of each output token in its shard: its rank in the output plus a shift, one per sequence.
        position = np.repeat(first - out_first, length)
        position += np.arange(len(position))
        used = np.unique(shard)
        if len(used) == 1:
            return self._tokens[used[0]][position], length
        tokens = np.empty(len(position), dtype=_TOKEN_DTYPE)
        token_shard = np.repeat(shard, length)
        for number in used:
            chosen = token_shard == number
            tokens[chosen] = self._tokens[number][position[chosen]]
        return tokens, length


@dataclass(frozen=True)
class PairStore:
    """Aligned sentences of two languages, bare ids; sequence i of one translates sequence i of the other."""

    source: TokenStore
    target: TokenStore
    source_language: str
    target_language: str

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.source)


@dataclass(frozen=True)
class Corpus:
    """A prepared folder: token shards of every language and pair, and the manifest that describes them.

    Attributes:
        folder: The prepared folder.
        manifest: Content of its `manifest.json`.
        special: Special token ids of the tokenizer the shards were made with.
        max_length: Longest MLM block in tokens, special tokens included.
        mono: Language -> MLM blocks, each a complete sequence `<s> s1 </s> s2 </s> ... </s>`.
        bitext: Pair such as `"en-de"` -> both sides, bare ids without special tokens.
        heldout: The same for the pairs that are never trained on.
    """

    folder: Path
    manifest: Mapping[str, Any]
    special: SpecialTokens
    max_length: int
    mono: Mapping[str, TokenStore]
    bitext: Mapping[str, PairStore]
    heldout: Mapping[str, PairStore]

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Open a folder written by `prepare`, its shards memory-mapped.

        Raises:
            DataError: If there is no manifest, or one of another format.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        special = dict(manifest["tokenizer"]["special"])
        special["all_ids"] = tuple(special["all_ids"])
        return cls(
            folder=folder,
            manifest=manifest,
            special=SpecialTokens(**special),
            max_length=manifest["settings"]["max_length"],
            mono={
                language: TokenStore([folder / shard for shard in entry["shards"]])
                for language, entry in manifest["mono"].items()
            },
            bitext=_open_pairs(folder, manifest["bitext"]),
            heldout=_open_pairs(folder, manifest["heldout"]),
        )

    def heldout_text(self, pair: str) -> list[tuple[str, str]]:
        """The held-out sentences of a pair such as `"en-de"` as text, in the order of `heldout[pair]`."""
        with open(self.folder / "heldout" / f"{pair}.tsv", encoding="utf-8", newline="\n") as lines:
            return [_split_line(line) for line in lines]


def _split_line(line: str) -> tuple[str, str]:
    source, target = line.removesuffix("\n").split("\t")
    return source, target


def _open_pairs(folder: Path, entries: Mapping[str, Any]) -> dict[str, PairStore]:
    return {pair: _open_pair(folder, pair, entry["shards"]) for pair, entry in entries.items()}


def _open_pair(folder: Path, pair: str, shards: Iterable[str]) -> PairStore:
    prefixes = [folder / shard for shard in shards]
    source_language, target_language = check_pair(pair)
    source = TokenStore([prefix.with_name(prefix.name + ".source") for prefix in prefixes])
    target = TokenStore([prefix.with_name(prefix.name + ".target") for prefix in prefixes])
    if len(source) != len(target):
        raise DataError(
            f"prepared pair {pair} in {folder} has {len(source):,} source but {len(target):,} target "
            f"sentences; {_PREPARE_AGAIN}"
        )
    return PairStore(source, target, source_language, target_language)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check `manifest.json` of a prepared folder.

    Raises:
        DataError: If it is missing, unreadable, or of another format version.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise DataError(f"{folder} holds no {MANIFEST_NAME}; make it with `infoxlm prepare`.")
    try:
        manifest = read_json(path)
        version = manifest.get("format_version") if isinstance(manifest, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {version}, expected {FORMAT_VERSION} (1 told sentences apart by "
                "their text, 2 does by their tokens)."
            )
        check_shape(manifest, _MANIFEST, path)
    except ValueError as error:
        raise DataError(f"{error} Delete the folder and prepare it again.") from error
    return dict(manifest)


# What a manifest holds, as far as it is read.
_ENTRY = {
    "num_examples": int,
    "num_sentences": int,
    "num_tokens": int,
    "max_length": int,
    "dropped": Each(int),
    "shards": [str],
}
_SPECIAL = {**dict.fromkeys(("bos", "pad", "eos", "unk", "mask", "vocab_size"), int), "all_ids": [int]}
_FILE = {"path": str, "size": int, "mtime_ns": int, "sha256": str}
_MANIFEST = {
    "tokenizer": {"name": str, "sha256": str, "vocab_size": int, "special": _SPECIAL},
    "settings": {"max_length": int},
    "sources": [{"kind": str, "languages": [str], "files": [_FILE]}],
    "mono": Each(_ENTRY),
    "bitext": Each(_ENTRY),
    "heldout": Each(_ENTRY),
}
