"""Files and folders that appear whole or not at all, and JSON that may have been broken.

Everything is written under a name of its own beside the final one, made durable, and renamed: a kill or a
power cut leaves what was there before.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from modeling_infoxlm.runs.errors import DataError, DiskFullError, UsageError, some
from modeling_infoxlm.runs.secrets import blot_secrets

_LARGEST_JSON = 1 << 26  # bytes; a hundred times the largest result
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries that write by other means than Python's give the system's words or its number.
_FULL_WORDS = re.compile(
    rf"os error (?:{'|'.join(map(str, _FULL))})\b|" + "|".join(os.strerror(number) for number in _FULL)
)


def file_sha256(path: str | Path) -> str:
    """Hash of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """Hash of a text in UTF-8, hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# --------------------------------------------------------------------------------------------------- writing


def own_name(path: Path) -> Path:
    """A name beside `path` that no other job and no other call has; a kill leaves it as `NAME.*.partial`."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")


def fsync_file(path: Path) -> None:
    """Force a written file or a folder's names to the disk: a later rename never reveals an empty one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_name(written: Path, final: Path) -> None:
    """Make a file or a whole folder durable, then rename it; a file that has the name is replaced."""
    for path in (*written.rglob("*"), written):
        fsync_file(path)
    written.replace(final)
    fsync_file(final.parent)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a name to write a file at, which gets its own when the block ends; its folder is made.

    After an exception nothing is left, and an earlier file stays.

    Raises:
        DiskFullError: If there is no room.
    """
    final = Path(path)
    partial = own_name(final)
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            give_name(partial, final)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all, and the folder that it lies in."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """The same of JSON, without secrets."""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    write_text(path, blot_secrets(text) + "\n")


def make_folder(folder: Path) -> None:
    """Make an output folder.

    Raises:
        DataError: If a file is in its place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DataError(
            f"{folder} cannot be made: a file is in its place; give another --output_dir."
        ) from None


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """Say where the disk is full and what to do, whichever library meets it: none of them names the place.

    Raises:
        DiskFullError: If there is no room for the file or folder that is written in the block.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        named = getattr(error, "filename", None) or place
        raise DiskFullError(
            f"{named} cannot be written: its disk is full, or a quota or a limit of file sizes is reached; "
            "free some room, or write to another disk, and run the same command again."
        ) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that there is no room for a file."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL or _FULL_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def whole_folder(
    folder: str | Path, *, overwrite: bool, marker: str | None = None, ours: Sequence[str] = ("*",)
) -> Iterator[Path]:
    """Give a folder to write in that gets its name when the block ends; after an exception nothing is left.

    Args:
        folder: Final name; made beside it under another name first. It may exist if it is empty.
        overwrite: Replace an earlier output. What was there stays until the new one is complete.
        marker: File that every earlier output holds; a folder without it is never removed. None: any.
        ours: Patterns of the files that an output consists of; a folder that holds others is never removed.

    Yields:
        The folder to write in.

    Raises:
        UsageError: If something is there that may not be replaced.
        DiskFullError: If there is no room.
    """
    final = Path(os.path.abspath(folder))
    _recover(final)
    _check_replaceable(final, overwrite=overwrite, marker=marker, ours=ours)
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        staged = final.with_name(f".{final.name}.{socket.gethostname()}-{os.getpid()}.partial")
        shutil.rmtree(staged, ignore_errors=True)  # left by a killed process of the same number
        staged.mkdir()
        try:
            yield staged
            # Once more: somebody may have put something there meanwhile.
            _check_replaceable(final, overwrite=overwrite, marker=marker, ours=ours)
            _replace(staged, final)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _recover(final: Path) -> None:
    """Put back what a process that was killed while it renamed has set aside, and remove what it left."""
    pattern = f".{glob.escape(final.name)}.{glob.escape(socket.gethostname())}-*"
    for path in sorted(final.parent.glob(pattern)):
        number = path.stem.rpartition("-")[2]
        if not number.isdecimal() or is_running(int(number)):
            continue
        if path.suffix == ".old" and not final.exists():
            path.rename(final)
        elif path.suffix in (".old", ".partial"):
            shutil.rmtree(path, ignore_errors=True)


def is_running(number: int) -> bool:
    """Whether this machine has a process of this number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _check_replaceable(final: Path, *, overwrite: bool, marker: str | None, ours: Sequence[str]) -> None:
    if not final.exists() and not final.is_symlink():
        return
    if final.is_symlink() or not final.is_dir():
        raise UsageError(f"{final} exists and is not a folder; choose another output folder.")
    if not any(final.iterdir()):
        return
    if not overwrite:
        raise UsageError(
            f"{final} is not empty; choose another folder, or add --overwrite_output_dir true to replace it."
        )
    if marker is not None and not (final / marker).is_file():
        raise UsageError(
            f"{final} holds no {marker}, so this command did not write it; choose another folder."
        )
    names = (path.relative_to(final).as_posix() for path in final.rglob("*") if not path.is_dir())
    foreign = sorted(name for name in names if not any(fnmatch(name, pattern) for pattern in ours))
    if foreign:
        raise UsageError(
            f"{final} holds {some(foreign)}, which this command did not write and which would be lost with "
            "the output that is replaced; move that away, or choose another folder."
        )


def _replace(staged: Path, final: Path) -> None:
    """Rename; an earlier folder is set aside for that moment and comes back if the renaming fails."""
    if not final.exists():
        give_name(staged, final)
        return
    aside = staged.with_suffix(".old")
    final.rename(aside)
    try:
        give_name(staged, final)
    except BaseException:
        aside.rename(final)
        raise
    shutil.rmtree(aside)


# ------------------------------------------------------------------------------------------------------ JSON


def read_json(path: str | Path) -> Any:
    """Read a JSON file that may be anything.

    Raises:
        DataError: With the file, if it cannot be read, is no JSON, or is larger or deeper than any of ours.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"more than {_LARGEST_JSON:,} bytes")
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # half a surrogate could not be written again
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (RecursionError, ValueError) as error:  # no UTF-8 among it, and half of a surrogate pair
        raise DataError(f"{path} is no JSON file of ours: {error}.") from error
    return content


@dataclass(frozen=True)
class Each:
    """The shape of an object with any keys, at least so many: that of each of its values."""

    shape: Any
    least: int = 0


def check_shape(content: Any, shape: Any, path: str | Path, place: str = "") -> None:
    """Check that what was read from a file is what its reader expects.

    Args:
        content: What was read.
        shape: `str`, `int`, `float` (finite), `bool`, `object` (anything) or None; a text, which it must be;
            a tuple of shapes, of which one must fit; a list of one shape, for lists of it; a dict of shapes
            by key, where keys that end in `?` may be missing; or `Each`.
        path: The file, for the message.
        place: Key of `content` in the file.

    Raises:
        DataError: With file and key, if it is not.
    """
    where = f"{path}: {place or 'the whole'}"
    if isinstance(shape, tuple):
        if not any(_fits(content, one) for one in shape):
            _refuse(content, " or ".join(map(_name, shape)), where)
        shape = next(one for one in shape if _fits(content, one))
    elif not _fits(content, shape):
        _refuse(content, _name(shape), where)
    inside = f"{place}." if place else ""
    if isinstance(shape, dict):
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if name in content:
                check_shape(content[name], inner, path, inside + name)
            elif name == key:
                raise DataError(f"{path}: {inside}{key} is missing; was the file written whole, by us?")
    elif isinstance(shape, Each):
        if len(content) < shape.least:
            raise DataError(f"{where} is empty.")
        for name, value in content.items():
            check_shape(value, shape.shape, path, f"{inside}{name}")
    elif isinstance(shape, list):
        for number, value in enumerate(content):
            check_shape(value, shape[0], path, f"{inside}{number}")


def _fits(content: Any, shape: Any) -> bool:
    """Whether it is of the kind of a shape, whatever lies in it."""
    if shape is None or isinstance(shape, str):
        return bool(content == shape)
    if isinstance(shape, (dict, Each)):
        return isinstance(content, dict)
    if isinstance(shape, list):
        return isinstance(content, list)
    if shape is float:
        is_number = isinstance(content, (int, float)) and not isinstance(content, bool)
        return is_number and abs(content) < sys.float_info.max  # neither is NaN
    return isinstance(content, shape) and (shape is not int or not isinstance(content, bool))


def _name(shape: Any) -> str:
    if isinstance(shape, (dict, Each)):
        return "an object"
    if isinstance(shape, list):
        return "a list"
    names = {str: "a text", int: "a whole number", float: "a finite number", bool: "true or false"}
    return names.get(shape) or ("null" if shape is None else repr(shape))


def _refuse(content: Any, expected: str, where: str) -> None:
    # A text of its first characters: the value may be as long as the file.
    found = "an object" if isinstance(content, dict) else "a list" if isinstance(content, list) else None
    raise DataError(f"{where}: expected {expected}, found {found or f'{json.dumps(content):.60}'}.")
