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

# How files begin that are no text; what is compressed, by the ending of its name.
_BEGINNINGS = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\x00": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet table",
    b"%PDF-": "a PDF document",
    b"\xff\xfe": "UTF-16 or UTF-32 text",
    b"\xfe\xff": "UTF-16 or UTF-32 text",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself (run: git lfs pull)",
}
_HEAD = 1 << 12  # bytes that tell what a file is


def _what_else(file: IO[bytes]) -> str | None:
    """What a file is that is plainly no UTF-8 text, by its first bytes."""
    head = file.read(_HEAD)
    if kind := next((kind for mark, kind in _BEGINNINGS.items() if head.startswith(mark)), None):
        return kind
    if head.count(0) > 0.01 * len(head):  # Chinese in UTF-16 has them in tabs and line ends alone
        return "UTF-16 or UTF-32 text, an archive, or no text at all"
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        return "text whose lines end in CR alone (convert them: tr '\\r' '\\n')"
    return None


def _refuse_other_content(path: Path) -> None:
    """Complain of a file that is no text at all, or compressed in another way than its name says.

    Without this each of its lines would be a bad line.
    """
    with open(path, "rb") as file:
        kind = _what_else(file)
    if kind and kind == take_apart(path).compression:
        with _open_bytes(path) as content:
            kind = _what_else(content)
    elif kind and kind.startswith("."):
        raise DataError(f"{path} is compressed data; its name must end in {kind}.")
    if kind:
        advice = " (convert it: iconv -f utf-16 -t utf-8)" if kind.startswith("UTF") else ""
        raise DataError(f"{path} holds {kind}, expected UTF-8 text{advice}.")


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
