"""The one kind of error that the user mends: input that cannot be used."""

from pathlib import Path


class DataError(ValueError):
    """Input that the user has to mend; its message is one clear line that says what and where."""


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
