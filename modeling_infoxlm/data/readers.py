"""Readers: from sources to sentences and pairs, streamed line by line.

`read_pairs` and `read_sentences` stream one source. Text is UTF-8. A line ends at LF or CRLF and nowhere
else: U+2028 and U+0085, which `str.splitlines` takes for line ends, stay inside their sentence, so pairs stay
aligned.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import logging
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from modeling_infoxlm.data.sources import (
    BitextSource,
    MonoSource,
    describe,
    format_of,
    hub_parts,
    is_hub,
    take_apart,
)
from modeling_infoxlm.runs.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SAMPLE = 20  # lines that tell what a column holds
_NUMBER = re.compile(rb"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*")


class BadLineHandler(Protocol):
    """What happens to a line that cannot be used; it either raises the error or counts it."""

    def __call__(self, error: DataError) -> None:
        """Raise `error`, or return to have the line skipped."""


def fail_on_bad_line(error: DataError) -> None:
    """Stop at the first bad line.

    Args:
        error: What is wrong, with file and line.

    Raises:
        DataError: Always.
    """
    raise DataError(f"{error}; mend it, or leave such lines out with --on_bad_line skip")


class SkipBadLines:
    """A handler that skips bad lines and counts them; the first is logged.

    Attributes:
        count: Lines skipped so far.
    """

    def __init__(self) -> None:
        """Start at none."""
        self.count = 0

    def __call__(self, error: DataError) -> None:
        """Skip one line."""
        if self.count == 0:
            logger.warning("%s; skipped, and so are further such lines", error)
        self.count += 1


# ------------------------------------------------------------------------------------------------- raw lines


class _ZstdFile(io.RawIOBase):
    """A .zst file as raw bytes. Unlike zstandard's own reader it notices a file that was cut short."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{path}: .zst files need one more package: pip install zstandard") from None
        self._zstandard = zstandard
        self._file = open(path, "rb")
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._decompress_more():
            pass
        chunk, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def _decompress_more(self) -> bool:
        """Fill `_ready` from the next piece of the file; False at its end."""
        compressed = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
        compressed = compressed or self._file.read(1 << 16)
        if not compressed:
            if self._frame is not None and not self._frame.eof:
                raise EOFError("the compressed data ends in the middle")
            return False
        if self._frame is None or self._frame.eof:
            self._frame = self._zstandard.ZstdDecompressor().decompressobj()
        try:
            self._ready = self._frame.decompress(compressed)
        except self._zstandard.ZstdError as error:
            raise OSError(str(error)) from None
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_bytes(path: Path) -> IO[bytes]:
    compression = take_apart(path).compression
    # Buffered once more: these modules find the ends of lines in Python.
    if compression == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))
    if compression == ".xz":
        return io.BufferedReader(lzma.open(path, "rb"))
    if compression == ".bz2":
        return io.BufferedReader(bz2.open(path, "rb"))
    if compression == ".zst":
        return io.BufferedReader(_ZstdFile(path), buffer_size=1 << 16)
    return open(path, "rb")


# How files begin that are no text. UTF-32 comes before UTF-16, whose mark it begins with.
_BEGINNINGS = {
    b"\x1f\x8b": "gzip-compressed data",
    b"BZh": "bzip2-compressed data",
    b"\xfd7zXZ\x00": "xz-compressed data",
    b"\x28\xb5\x2f\xfd": "zstd-compressed data",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
    b"PAR1": "a Parquet table",
    b"ARROW1": "an Arrow table",
    b"SQLite format 3\x00": "an SQLite database",
    b"%PDF-": "a PDF document",
    b"\xff\xfe\x00\x00": "UTF-32 text",
    b"\x00\x00\xfe\xff": "UTF-32 text",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself (run: git lfs pull)",
}
_ENDINGS = {"gzip": ".gz", "xz": ".xz", "bzip2": ".bz2", "zstd": ".zst"}
_HEAD = 1 << 12  # bytes that tell what a file is


def what_else(head: bytes) -> str | None:
    """What a file is that begins with these bytes, if that is plainly not UTF-8 text: `UTF-16 text`, say."""
    for beginning, kind in _BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 1:
        return "a Python pickle"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        return "text whose lines end in CR alone (convert them: tr '\\r' '\\n')"
    # Without a byte order mark: which of four bytes in turn are null.
    nulls = [head[offset::4].count(0) / max(1, len(head[offset::4])) for offset in range(4)]
    if max(min(nulls[:2]), min(nulls[2:])) > 0.9 > min(nulls):
        return "UTF-32 text"
    evens, odds = (nulls[0] + nulls[2]) / 2, (nulls[1] + nulls[3]) / 2
    if max(evens, odds) > max(0.02, 8 * min(evens, odds)):  # tabs and line ends alone in Chinese
        return "UTF-16 text"
    return None


def _refuse_other_content(path: Path) -> None:
    """Complain of a file that is no text at all, or compressed in another way than its name says.

    Without this each of its lines would be a bad line.
    """
    compression = take_apart(path).compression
    with open(path, "rb") as file:
        kind = what_else(file.read(_HEAD))
    expected = next((name for name, ending in _ENDINGS.items() if ending == compression), None)
    if compression and kind == f"{expected}-compressed data":
        with _open_bytes(path) as content:
            kind = what_else(content.read(_HEAD))
        if kind:
            raise DataError(f"{path} holds {kind}, expected UTF-8 text.")
    elif kind and kind.endswith("-compressed data"):
        raise DataError(f"{path} is {kind}; its name must end in {_ENDINGS[kind.partition('-')[0]]}.")
    elif kind:
        encoding = kind.removesuffix(" text").lower()
        advice = f" (convert it: iconv -f {encoding} -t utf-8)" if kind.startswith("UTF") else ""
        raise DataError(f"{path} is {kind}, expected UTF-8 text{advice}.")


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line, without its end and without a byte order mark."""
    number = 0
    try:
        _refuse_other_content(path)
        with _open_bytes(path) as lines:
            for number, line in enumerate(lines, start=1):
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read beyond line {number:,} ({error}); is the file damaged?"
        ) from error
    if number == 0:
        raise DataError(f"{path} is empty.")


def decode(line: bytes) -> str:
    """Text of a line.

    Raises:
        ValueError: If it is not UTF-8, with the first wrong byte, or holds a null byte.
    """
    if b"\x00" in line:
        raise ValueError(f"a null byte at position {line.index(0)}, which no text has")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8, byte 0x{line[error.start]:02x} at position {error.start}") from None


def _parse_lines(path: Path, parse: Callable[[str], T], on_bad_line: BadLineHandler) -> Iterator[T]:
    for number, line in raw_lines(path):
        try:
            record = parse(decode(line))
        except ValueError as error:
            on_bad_line(DataError(f"{path}, line {number:,}: {error}"))
            continue
        yield record


# --------------------------------------------------------------------------------------- records and columns


class _TsvFields:
    """Splits TSV lines, all of which must have the wanted columns and as many of them as the first."""

    def __init__(self, columns: tuple[int, ...]) -> None:
        self._needed = max(column + 1 if column >= 0 else -column for column in columns)
        self._num_columns: int | None = None

    def __call__(self, line: str) -> list[str]:
        if not line:
            return [""] * self._needed
        fields = line.split("\t")
        if len(fields) < self._needed:
            raise ValueError(
                f"missing columns: {self._needed} needed, {len(fields)} found (columns are split by tabs)"
            )
        self._num_columns = self._num_columns or len(fields)
        if len(fields) != self._num_columns:
            raise ValueError(f"{len(fields)} columns, but the lines before have {self._num_columns}")
        return fields


def _field(record: Mapping[str, Any], name: str) -> str:
    if name not in record:
        raise ValueError(f"missing column {name!r}; found {', '.join(sorted(map(str, record))) or 'none'}")
    value = record[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"column {name!r} holds {type(value).__name__}, expected text")
    _require_characters(value, name)
    return value


def _require_characters(value: str, name: str) -> None:
    """JSON can say half of a character, and the null character; tokenizers fail on the one or the other."""
    try:
        null = value.encode().find(0)
    except UnicodeEncodeError as error:
        raise ValueError(f"column {name!r} holds half a surrogate pair at character {error.start}") from None
    if null >= 0:
        raise ValueError(f"column {name!r} holds a null character")


def _pair_fields(record: Any, languages: tuple[str, str]) -> tuple[str, str]:
    """Both sides of `{"en": ..., "de": ...}` or of `{"translation": {"en": ..., "de": ...}}`."""
    if isinstance(record, Mapping) and isinstance(record.get("translation"), Mapping):
        record = record["translation"]
    if not isinstance(record, Mapping):
        raise ValueError(
            f"found {type(record).__name__}, expected an object with the fields {', '.join(languages)}"
        )
    return _field(record, languages[0]), _field(record, languages[1])


def _text_field(record: Any) -> str:
    if not isinstance(record, Mapping):
        raise ValueError(f"found {type(record).__name__}, expected an object with the field 'text'")
    return _field(record, "text")


def from_json(line: str) -> Any:
    """What a line of JSON lines says.

    Raises:
        ValueError: If it is not JSON, with the place.
    """
    try:
        return json.loads(line, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return record


def parquet_records(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Place and record of each row; only the columns among `names` are read."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if file.metadata.num_rows == 0:
            raise DataError(f"{path} is empty.")
        present = file.schema_arrow.names
        columns = [name for name in names if name in present]
        if not columns:
            raise DataError(f"{path}: missing columns {' / '.join(names)}; found {', '.join(present)}")
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            try:
                records = batch.to_pylist()
            except ValueError as error:
                last = row + batch.num_rows
                raise DataError(f"{path}, rows {row + 1:,} to {last:,}: cannot be read ({error})") from error
            for record in records:
                row += 1
                yield f"{path}, row {row:,}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error


def hub_revision(location: str, *, revision: str | None = None, token: str | None = None) -> str:
    """The commit that a Hub dataset stands at now, which identifies its content.

    Args:
        location: `hub:NAME[:CONFIG[:SPLIT]]`.
        revision: Branch, tag or commit; None is the main branch.
        token: Of the Hub; None is the stored one.

    Returns:
        The commit hash.

    Raises:
        DataError: If the Hub cannot be reached or does not know the dataset.
    """
    from huggingface_hub import HfApi

    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    name = hub_parts(location)[0]
    try:
        return str(HfApi(token=token).dataset_info(name, revision=revision).sha)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{location}: dataset not reachable on the Hub ({str(error).splitlines()[0]})"
        ) from error


def _hub_records(location: str, revision: str | None) -> Iterator[tuple[str, Any]]:
    import datasets

    name, config, split = hub_parts(location)
    row = 0
    try:
        for record in datasets.load_dataset(name, config, split=split, streaming=True, revision=revision):
            row += 1
            yield f"{location}, row {row:,}", record
    except (OSError, ValueError) as error:
        raise DataError(
            f"{location}: cannot be read beyond row {row:,} ({str(error).splitlines()[0]})"
        ) from error
    if row == 0:
        raise DataError(f"{location} is empty.")


def _parse_records(
    records: Iterable[tuple[str, Any]], parse: Callable[[Any], T], on_bad_line: BadLineHandler
) -> Iterator[T]:
    for place, record in records:
        try:
            parsed = parse(record)
        except ValueError as error:
            on_bad_line(DataError(f"{place}: {error}"))
            continue
        yield parsed


# --------------------------------------------------------------------------------------------------- reading


def warn_of_extra_columns(
    sources: Iterable[BitextSource | MonoSource], columns: tuple[int, int] | None
) -> None:
    """Log one warning if TSV bitext has more than two columns and none were chosen.

    Args:
        sources: Any sources; only TSV bitext is looked at, its first line.
        columns: The columns that were chosen, if any.
    """
    if columns is not None:
        return
    found = [(source, count) for source in sources if (count := _num_tsv_columns(source)) > 2]
    if found:
        logger.warning(
            "%d bitext file(s) have more than two columns (%s has %d); the last two are read as source and "
            "target, choose others with --bitext_columns",
            len(found),
            describe(found[0][0]),
            found[0][1],
        )


def _num_tsv_columns(source: BitextSource | MonoSource) -> int:
    path = Path(source.locations[0])
    if not isinstance(source, BitextSource) or is_hub(source) or take_apart(path).format != "tsv":
        return 0
    return next(raw_lines(path))[1].count(b"\t") + 1


def read_pairs(
    source: BitextSource,
    *,
    columns: tuple[int, int] | None = None,
    revision: str | None = None,
    on_bad_line: BadLineHandler = fail_on_bad_line,
) -> Iterator[tuple[str, str]]:
    """Stream the pairs of one source.

    Args:
        source: Where they are.
        columns: 0-based TSV columns of source and target; None takes the last two.
        revision: Commit of a Hub dataset; None takes the newest.
        on_bad_line: What to do with a line that cannot be used: invalid UTF-8, missing columns, no JSON.

    Yields:
        Source and target sentence; a side may be empty.

    Raises:
        DataError: If the source is empty, damaged, or its two files differ in length.
    """
    pairs: Iterator[tuple[str, str]]
    if is_hub(source):
        records = _hub_records(source.locations[0], revision)
        pairs = _parse_records(records, lambda record: _pair_fields(record, source.languages), on_bad_line)
    elif len(source.locations) == 2:
        pairs = _read_two_files(source, on_bad_line)
    else:
        pairs = _read_pair_file(Path(source.locations[0]), source.languages, columns, on_bad_line)
    yield from pairs


def _read_pair_file(
    path: Path, languages: tuple[str, str], columns: tuple[int, int] | None, on_bad_line: BadLineHandler
) -> Iterator[tuple[str, str]]:
    kind = format_of(path, None)
    if kind == "tsv":
        if columns is None:
            _refuse_scores(path, at_least=3, advice="say which columns are text: --bitext_columns 0 1")
        columns = columns or (-2, -1)
        fields, take = _TsvFields(columns), itemgetter(*columns)
        return _parse_lines(path, lambda line: take(fields(line)), on_bad_line)
    if kind == "jsonl":
        return _parse_lines(
            path,
            lambda line: _pair_fields(from_json(line), languages) if line.strip() else ("", ""),
            on_bad_line,
        )
    records = parquet_records(path, ("translation", *languages))
    return _parse_records(records, lambda record: _pair_fields(record, languages), on_bad_line)


def _read_two_files(source: BitextSource, on_bad_line: BadLineHandler) -> Iterator[tuple[str, str]]:
    paths = [Path(location) for location in source.locations]
    lines = zip_longest(*(raw_lines(path) for path in paths))
    for first, second in lines:
        if first is None or second is None:
            number, line = first or second
            left = [bool(line.strip()), *(bool((one or other)[1].strip()) for one, other in lines)]
            if not any(left):
                return  # a blank line at the end of one of the files
            counts = [number - 1, number - 1 + len(left)]
            raise _unequal_lines(source, counts if first is None else counts[::-1])
        texts = []
        for path, (number, line) in zip(paths, (first, second), strict=True):
            try:
                texts.append(decode(line))
            except ValueError as error:
                on_bad_line(DataError(f"{path}, line {number:,}: {error}"))
                break
        else:
            yield texts[0], texts[1]


def _refuse_scores(path: Path, *, at_least: int, advice: str) -> None:
    """Refuse a file whose last column, which is read as text, holds only numbers in its first lines."""
    rows = [line.split(b"\t") for _, line in islice(raw_lines(path), _SAMPLE)]
    full = [row for row in rows if len(row) >= at_least]
    if full and all(_NUMBER.fullmatch(row[-1]) for row in full):
        raise DataError(
            f"{path}: the last of {len(full[0])} columns, which is read as text, holds numbers only "
            f"({full[0][-1].decode()}): {advice}"
        )


def _unequal_lines(source: BitextSource, counts: Sequence[int]) -> DataError:
    return DataError(
        f"bitext {source.pair} has {counts[0]:,} source lines ({source.locations[0]}) but {counts[1]:,} "
        f"target lines ({source.locations[1]}); line i of each file must be a translation of line i of the "
        "other."
    )


def read_sentences(
    source: MonoSource, *, revision: str | None = None, on_bad_line: BadLineHandler = fail_on_bad_line
) -> Iterator[str]:
    """Stream the sentences of one source: lines of text, the last column of TSV, the lines of `text` fields.

    Args:
        source: Where they are.
        revision: Commit of a Hub dataset; None takes the newest.
        on_bad_line: What to do with a line that cannot be used.

    Yields:
        Sentences; they may be empty.

    Raises:
        DataError: If the source is empty or damaged.
    """
    if is_hub(source):
        texts = _parse_records(_hub_records(source.locations[0], revision), _text_field, on_bad_line)
    else:
        texts = _read_mono_file(Path(source.locations[0]), source.language, on_bad_line)
    for text in texts:
        yield from text.split("\n")


def _read_mono_file(path: Path, language: str, on_bad_line: BadLineHandler) -> Iterator[str]:
    kind = format_of(path, language)
    if kind == "text":
        return _parse_lines(path, str, on_bad_line)
    if kind == "tsv":
        _refuse_scores(path, at_least=2, advice="leave that column out: cut -f1")
        fields = _TsvFields((-1,))
        return _parse_lines(path, lambda line: fields(line)[-1], on_bad_line)
    if kind == "jsonl":
        return _parse_lines(
            path, lambda line: _text_field(from_json(line)) if line.strip() else "", on_bad_line
        )
    return _parse_records(parquet_records(path, ("text",)), _text_field, on_bad_line)
