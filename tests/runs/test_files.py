"""Files and folders appear whole or not at all; only what is known to be an output is replaced."""

import errno
import json
import os
import socket
from pathlib import Path

import pytest
from disk_limit import file_size_limit

from modeling_infoxlm.runs import files
from modeling_infoxlm.runs.errors import DiskFullError, UsageError
from modeling_infoxlm.runs.files import whole_file, whole_folder, write_json, writing


def test_a_full_disk_is_named_with_its_place() -> None:
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ):
        says = r"^out/model cannot be written: its disk is full.*free some room"
        with pytest.raises(DiskFullError, match=says), writing("out/model"):
            try:
                raise error
            except Exception as cause:
                raise ValueError("some library's own words") from cause


def test_a_file_or_folder_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    write(tmp_path / "out", "1")
    with file_size_limit(1000), pytest.raises(DiskFullError, match=r"a\.json cannot be written"):
        write_json(tmp_path / "a.json", {"x": "y" * 5000})
    with (
        file_size_limit(1000),
        pytest.raises(DiskFullError, match=r"out cannot be written: its disk is full"),
    ):
        write(tmp_path / "out", "2" * 5000, overwrite=True)
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.json") as partial:
        partial.write_text("2")
        raise RuntimeError("in the middle")
    for folder, overwrite in (("out", True), ("new", False)):
        with pytest.raises(RuntimeError, match="in the middle"):
            write(tmp_path / folder, "2", overwrite=overwrite, fail=True)
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert (tmp_path / "out/mark").read_text() == "1" and names(tmp_path) == ["a.json", "out"]
    with pytest.raises(PermissionError), writing("out"):  # other errors stay what they are
        raise PermissionError(errno.EACCES, "Permission denied")


def test_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut can leave the name without the content."""
    events, replace = [], Path.replace
    monkeypatch.setattr(files, "fsync_file", lambda path: events.append(path.name))
    monkeypatch.setattr(
        Path, "replace", lambda self, target: events.append("rename") or replace(self, target)
    )
    write_json(tmp_path / "a.json", {})
    partial, *then = events
    assert partial.startswith("a.json.") and then == ["rename", tmp_path.name]
    events.clear()
    write(tmp_path / "out", "1")
    assert events[0] == "mark" and events[2:] == ["rename", tmp_path.name]


# ------------------------------ folders


def write(folder: Path, content: str, *, overwrite: bool = False, fail: bool = False) -> None:
    with whole_folder(folder, overwrite=overwrite, marker="mark") as staged:
        (staged / "mark").write_text(content)
        assert not (folder / "mark").exists() or (folder / "mark").read_text() != content
        if fail:
            raise RuntimeError("in the middle")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_gets_its_name_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # an empty one may be there
    write(tmp_path / "out", "1")
    write(tmp_path / "out", "3", overwrite=True)
    assert (tmp_path / "out/mark").read_text() == "3" and names(tmp_path) == ["out"]
    write(tmp_path / "new/out", "1")
    assert names(tmp_path / "new") == ["out"] and (tmp_path / "new/out/mark").read_text() == "1"


def test_a_failed_renaming_brings_the_output_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "1")
    replace = Path.replace

    def fail_at_the_end(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("no space")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_at_the_end)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "out", "2", overwrite=True)
    assert (tmp_path / "out/mark").read_text() == "1" and names(tmp_path) == ["out"]


def test_what_may_not_be_replaced_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out", "1")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/precious").write_text("")
    before = names(tmp_path)
    for name, overwrite, expected in (
        ("out", False, "is not empty"),
        ("file", True, "not a folder"),
        ("link", True, "not a folder"),
        ("home", True, "holds no mark"),
    ):
        with pytest.raises(UsageError, match=expected):
            write(tmp_path / name, "2", overwrite=overwrite)
    assert names(tmp_path) == before and (tmp_path / "home/precious").exists()


def test_a_folder_in_which_others_have_put_something_is_not_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "1")
    (out / "checkpoint-5").mkdir()
    (out / "checkpoint-5" / "model.safetensors").write_text("a day of training")

    def replace(while_written: str | None = None) -> None:
        with whole_folder(out, overwrite=True, marker="mark", ours=("mark", "shards/*")) as staged:
            (staged / "mark").write_text("2")
            if while_written:
                (out / while_written).write_text("")

    with pytest.raises(
        UsageError, match=r"out holds checkpoint-5/model\.safetensors, which this command did not"
    ):
        replace()
    (out / "checkpoint-5").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="out holds notes, which this command did not write"):
        replace("notes")
    assert (out / "mark").read_text() == "1" and names(tmp_path) == ["elsewhere", "out"]
    (out / "notes").unlink()
    replace()
    assert (out / "mark").read_text() == "2"


@pytest.mark.parametrize("renamed", [False, True], ids=["before", "between the renamings"])
def test_what_a_killed_process_left_is_put_back_or_removed(tmp_path: Path, renamed: bool) -> None:
    gone = 2**22 + 1  # a number that no process has
    prefix = f".out.{socket.gethostname()}-"
    (tmp_path / f"{prefix}{gone}.partial").mkdir()
    (tmp_path / f"{prefix}{os.getppid()}.partial").mkdir()
    write(tmp_path / "out", "1")
    if renamed:
        (tmp_path / "out").rename(tmp_path / f"{prefix}{gone}.old")
    with pytest.raises(UsageError, match="is not empty"):
        write(tmp_path / "out", "2")
    assert (tmp_path / "out" / "mark").read_text() == "1"
    assert names(tmp_path) == [f"{prefix}{os.getppid()}.partial", "out"]
