"""Provenance: no secret is written down, and hashes are of the weights alone."""

import errno
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from disk_limit import file_size_limit

from modeling_infoxlm.runs import provenance
from modeling_infoxlm.runs.provenance import (
    DiskFullError,
    blot_secrets,
    describe_program,
    hash_weights,
    write_json,
    writing,
)

TOKEN = "hf_" + "x" * 30


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (["--token", "secret", "--seed", "1"], ["--token", "<token>", "--seed", "1"]),
        (["--hub_token=secret"], ["--hub_token=<token>"]),
        (["--hub-token", "secret"], ["--hub-token", "<token>"]),
        (["--push_to_hub_token", TOKEN], ["--push_to_hub_token", "<token>"]),
        (["--name", f"x{TOKEN}"], ["--name", "x<token>"]),
        (
            ["--tokenizer_name", "mine", "--max_tokens", "3"],
            ["--tokenizer_name", "mine", "--max_tokens", "3"],
        ),
    ],
)
def test_commands_are_written_without_secrets(given: list[str], written: list[str]) -> None:
    assert describe_program(given)["command"] == written


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"bad answer for Bearer {TOKEN}.", "bad answer for Bearer <token>."),
        (f"'{TOKEN}'", "'<token>'"),
        ("api_org_AbCdEfGhIjKlMn", "<token>"),
        ("https://me:pa:s@s@hub.org/x", "https://<token>@hub.org/x"),
        ("GET /x?a=1&token=s3cret&b=2", "GET /x?a=1&token=<token>&b=2"),
        ("https://hub.org/x?X-Amz-Signature=0a1b", "https://hub.org/x?X-Amz-Signature=<token>"),
        ("{'Authorization': 'Basic bWU6cGFzcw=='}", "{'Authorization': 'Basic <token>'}"),
        ("authorization: s3cret", "authorization: <token>"),
        ("with Basic bWU6cGFzc3dvcmQ= failed", "with Basic <token> failed"),
        ("Bearer eyJhbGciOiJI.eyJzdWIi", "Bearer <token>"),
        ("HF_TOKEN=s3cret python", "HF_TOKEN=<token> python"),
        ("of the environment: plain words", "of the environment: <token>"),
    ],
)
def test_secrets_are_blotted_out_of_texts(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "plain words")
    assert blot_secrets(text) == shown == blot_secrets(shown)
    quoted = json.dumps({"x": f'say "{text}"', "y": json.dumps({"z": text})})
    assert "s3cret" not in blot_secrets(quoted) and json.loads(blot_secrets(quoted)).keys() == {"x", "y"}


@pytest.mark.parametrize(
    "text",
    [
        "https://hub.org:443/a?b=c#d and org/name@main, me@home.org",
        "the bearer responsibilities; Basic JavaScript; a basic understanding",
        "--max_tokens=3 mask_token=<mask> tokenizer=mine {'token': null}",
        "by hf_hub_download, hf_transfer or hf_raise_for_status, in hf_checkpoints",
    ],
)
def test_words_are_no_secrets(text: str) -> None:
    assert blot_secrets(text) == text


def test_files_hold_no_secret(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {TOKEN: [f"https://me:pass@hub.org/{TOKEN}"]})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {
        "<token>": ["https://<token>@hub.org/<token>"]
    }
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_with_its_place(error: Exception) -> None:
    with pytest.raises(
        DiskFullError, match=r"^out/model cannot be written: its disk is full.*free some room"
    ):
        with writing("out/model"):
            try:
                raise error
            except Exception as cause:
                raise ValueError("some library's own words") from cause


def test_other_errors_of_writing_stay_what_they_are() -> None:
    with pytest.raises(PermissionError), writing("out"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_file_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with file_size_limit(1000), pytest.raises(DiskFullError, match=r"a\.json cannot be written"):
        write_json(tmp_path / "a.json", {"x": "y" * 5000})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1} and len(list(tmp_path.iterdir())) == 1


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_commit_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a project that has it in an environment or a folder, and not of changed files."""
    own = tmp_path / "modeling_infoxlm" / "runs" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(own))
    own.parent.mkdir(parents=True)
    own.write_text("one")
    (tmp_path / "other.py").write_text("")
    assert describe_program([])["commit"] is None  # no repository
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "other.py")
    git(tmp_path, "commit", "-q", "-m", "x")
    assert describe_program([])["commit"] is None  # installed into another project's
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "of a hook"))
    commit = describe_program([])["commit"]
    assert len(commit) == 40
    own.write_text("two")
    assert describe_program([])["commit"] == f"{commit}-dirty"
    vendored = tmp_path / "vendor" / "modeling_infoxlm" / "runs" / "provenance.py"
    vendored.parent.mkdir(parents=True)
    vendored.write_text("one")
    monkeypatch.delenv("GIT_DIR")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    monkeypatch.setattr(provenance, "__file__", str(vendored))
    assert describe_program([])["commit"] is None


def test_the_hash_is_of_the_weights_alone(tmp_path: Path) -> None:
    assert hash_weights(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "optimizer.safetensors").write_bytes(b"state")
    assert hash_weights(tmp_path) == hashlib.sha256(b"one").hexdigest()
    (tmp_path / "model.safetensors").unlink()
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(str(number).encode())
    parts = "".join(hashlib.sha256(text).hexdigest() for text in (b"1", b"2"))
    assert hash_weights(tmp_path) == hashlib.sha256(parts.encode()).hexdigest()
