"""Output folders that appear whole or not at all."""

import glob
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from modeling_infoxlm.hub.loading import some
from modeling_infoxlm.runs.process import UsageError
from modeling_infoxlm.runs.provenance import writing


@contextmanager
def whole_folder(
    folder: str | Path, *, overwrite: bool, marker: str, ours: Sequence[str] = ("*",)
) -> Iterator[Path]:
    """Give a folder to write in that gets its name when the block ends; after an exception nothing is left.

    Args:
        folder: Final name; made beside it under another name first. It may exist if it is empty.
        overwrite: Replace an earlier output. What was there stays until the new one is complete.
        marker: File that every earlier output holds; a folder without it is never removed.
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
            _give_name(staged, final)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _recover(final: Path) -> None:
    """Put back what a process that was killed while it renamed has set aside, and remove what it left."""
    pattern = f".{glob.escape(final.name)}.{glob.escape(socket.gethostname())}-*"
    for path in sorted(final.parent.glob(pattern)):
        number = path.stem.rpartition("-")[2]
        if not number.isdecimal() or _is_running(int(number)):
            continue
        if path.suffix == ".old" and not final.exists():
            path.rename(final)
        elif path.suffix in (".old", ".partial"):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _check_replaceable(final: Path, *, overwrite: bool, marker: str, ours: Sequence[str]) -> None:
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
    if not (final / marker).is_file():
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


def _give_name(staged: Path, final: Path) -> None:
    """Rename; an earlier folder is set aside for that moment and comes back if the renaming fails."""
    if not final.exists():
        staged.rename(final)
        return
    aside = staged.with_suffix(".old")
    final.rename(aside)
    try:
        staged.rename(final)
    except BaseException:
        aside.rename(final)
        raise
    shutil.rmtree(aside)
