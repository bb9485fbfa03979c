"""Text files as lines of bytes, compressed or not; what is no text is called by its name.

Text is UTF-8. A line ends at LF or CRLF and nowhere else: U+2028 and U+0085, which `str.splitlines` takes for
line ends, stay inside their sentence, so pairs stay aligned.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from modeling_infoxlm.data.sources import take_apart
from modeling_infoxlm.runs.errors import DataError

_COMPRESSED = {
    "gzip-compressed data": ".gz",
    "xz-compressed data": ".xz",
    "bzip2-compressed data": ".bz2",
    "zstd-compressed data": ".zst",
}
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
_HEAD = 1 << 12  # bytes that tell what a file is


def _what_else(head: bytes) -> str | None:
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
    with open(path, "rb") as file:
        kind = _what_else(file.read(_HEAD))
    ending = _COMPRESSED.get(kind or "")
    if ending and ending == take_apart(path).compression:
        with _open_bytes(path) as content:
            kind = _what_else(content.read(_HEAD))
        if kind:
            raise DataError(f"{path} holds {kind}, expected UTF-8 text.")
    elif ending:
        raise DataError(f"{path} is {kind}; its name must end in {ending}.")
    elif kind:
        encoding = kind.removesuffix(" text").lower()
        advice = f" (convert it: iconv -f {encoding} -t utf-8)" if kind.startswith("UTF") else ""
        raise DataError(f"{path} is {kind}, expected UTF-8 text{advice}.")


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
        import pyarrow

        # Not by zstandard, which does not notice a file that was cut short.
        return io.BufferedReader(pyarrow.CompressedInputStream(str(path), "zstd"), buffer_size=1 << 16)
    return open(path, "rb")


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
