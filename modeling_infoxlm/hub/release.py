"""A release folder: the model in its format, the evidence, and the card; this is what a push uploads."""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modeling_infoxlm.hub.card import CARD_NAME, is_ours, write_card
from modeling_infoxlm.hub.checkup import PICKLES
from modeling_infoxlm.hub.evidence import LEADERBOARD_FOLDER, add_evidence, refuse_outside
from modeling_infoxlm.hub.export import RELEASE_FILE, export, read_record
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import write_json, writing
from modeling_infoxlm.runs.secrets import holds_token

WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".data")


def build_release(
    source: Path,
    folder: Path,
    *,
    repo_id: str,
    results: Sequence[Path] = (),
    license: str | None = None,
    **options: Any,
) -> None:
    """Make the folder that is published; the source is not changed.

    Args:
        source: Folder of a run, a checkpoint in it, or a release of `export`, which is taken as it is.
        folder: Made here.
        repo_id: Repository that the card's code names.
        results: Result files of this model besides those in the source, or folders of them.
        license: Licence of the model, for the card.
        options: Fields of `FormatOptions`, for `export`.

    Raises:
        UsageError: If the source is no complete model, the options do not fit it, or a result is another's.
    """
    made, form = read_record(source), options.get("format")
    if made is not None and form not in (None, made.format):
        raise UsageError(
            f"{source} is a release as {made.format}, not as {form}; give the folder of the run."
        )
    with writing(folder), ExitStack() as undo:
        if made is None:
            export(source, folder, **options)
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        card = source / CARD_NAME
        if made is not None:
            copy_tree(source, folder)
        elif card.is_file() and not is_ours(card.read_bytes()):  # people's own goes with the model
            shutil.copyfile(card, folder / CARD_NAME)
        complete_release(source, folder, repo_id=repo_id, results=results, license=license)
        undo.pop_all()


def complete_release(
    source: Path, folder: Path, *, repo_id: str, results: Sequence[Path] = (), license: str | None = None
) -> None:
    """Add evidence and card to the files of a release; see `build_release`. The source may be the folder."""
    add_evidence(source, folder, results=results)
    write_card(folder, repo_id, license=license)
    _list_files(folder)


def list_release(folder: Path) -> dict[str, Path]:
    """Files that a push uploads, by their names in the repository, sorted.

    Raises:
        UsageError: If there is none, one could run code when it is loaded, lies outside by a link, or holds a
            token.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or _is_hidden(path.relative_to(folder)):
            continue
        name = path.relative_to(folder).as_posix()
        refuse_outside(path, folder)
        if path.suffix.lower() in PICKLES:
            raise UsageError(f"{folder / name} may be a pickle, which is never uploaded; remove it.")
        if holds_token(path):
            raise UsageError(f"{folder / name} holds an access token, which is never uploaded; remove it.")
        files[name] = path
    if not files:
        raise UsageError(f"there is nothing to push in {folder}.")
    return files


def read_release_files(record: bytes) -> set[str]:
    """Names of the files that a release brought, by its `release.json`; none if it is not ours."""
    try:
        return {str(name) for name in json.loads(record)["files"]}
    except (ValueError, TypeError, KeyError):  # another program's file of this name
        return set()


def copy_tree(source: Path, folder: Path) -> None:
    """Copy a folder; weights, which nobody writes into, get a second name where the disk allows it."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and not _is_hidden(path.relative_to(source)):
            refuse_outside(path, source)
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in WEIGHT_SUFFIXES:
                with suppress(OSError):  # another disk, or one without links
                    os.link(path.resolve(), target)
                    continue
            shutil.copyfile(path, target)


def _is_hidden(path: Path) -> bool:
    """Whether a file is of some other tool: `.git`, `.cache`, `.DS_Store`."""
    return any(part.startswith(".") and part != LEADERBOARD_FOLDER for part in path.parts)


def _list_files(folder: Path) -> None:
    """Note all files in `release.json`, so that the next push knows what to remove."""
    record = read_record(folder)
    if record is None:
        raise UsageError(f"{folder} holds no {RELEASE_FILE}.")
    write_json(folder / RELEASE_FILE, asdict(replace(record, files=tuple(list_release(folder)))))
