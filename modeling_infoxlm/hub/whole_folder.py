"""Output folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modeling_infoxlm.process import UsageError


@contextmanager
def whole_folder(folder: str | Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Give a folder to write in that gets its name when the block ends; after an exception nothing is left.

    Args:
        folder: Final name; made beside it under another name first. It may exist if it is empty.
        overwrite: Replace an earlier output. What was there stays until the new one is complete.
        marker: File that every earlier output holds; a folder without it is never removed.

    Yields:
        The folder to write in.

    Raises:
        UsageError: If something is there that may not be replaced.
    """
    final = Path(os.path.abspath(folder))
    _check_replaceable(final, overwrite=overwrite, marker=marker)
    final.parent.mkdir(parents=True, exist_ok=True)
    staged = final.with_name(f".{final.name}.{os.getpid()}.partial")
    shutil.rmtree(staged, ignore_errors=True)  # left by a killed process of the same number
    staged.mkdir()
    try:
        yield staged
        _give_name(staged, final)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _check_replaceable(final: Path, *, overwrite: bool, marker: str) -> None:
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


def _give_name(staged: Path, final: Path) -> None:
    """Rename; an earlier folder is set aside for that moment and comes back if the renaming fails."""
    if not final.exists():
        staged.rename(final)
        return
    aside = staged.with_suffix(".old")
    shutil.rmtree(aside, ignore_errors=True)
    final.rename(aside)
    try:
        staged.rename(final)
    except OSError:
        aside.rename(final)
        raise
    shutil.rmtree(aside)
