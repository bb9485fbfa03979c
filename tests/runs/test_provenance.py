"""The commit is that of the code, and hashes are of the weights alone."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from modeling_infoxlm.runs import provenance
from modeling_infoxlm.runs.provenance import describe_program, hash_weights


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
