"""Where a number came from: command, commit, versions, machine, and hashes of files."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "tokenizers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "numpy",
)
RUN_FILE = "run.json"  # what a run is and how it came to be
TRAINER_STATE = "trainer_state.json"
RESULT_SCHEMA = "infoxlm-result-1"
_SECRET = re.compile(r"hf_[\w.\-]{8,}")
_SECRET_FLAG = re.compile(r"--(?:[\w-]+[_-])?token")
_BLOT = "<token>"


def describe_program(argv: Sequence[str]) -> dict[str, Any]:
    """Command, commit, versions and machine of this process.

    Args:
        argv: Arguments of the command; what looks like a Hub token or follows a flag for one is blotted out.
    """
    return {
        "command": _without_secrets(argv),
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{_gpus()}",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def blot_secrets(text: str) -> str:
    """The text without what looks like a Hub token."""
    return _SECRET.sub(_BLOT, text)


def file_sha256(path: str | Path) -> str:
    """Hash of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_weights(folder: Path) -> str | None:
    """Hash of the weight files; of a single one it is the file's own, as the Hub shows it; None of none."""
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.bin"))
    digests = [file_sha256(path) for path in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest() if digests else None


def is_result(path: Path) -> bool:
    """Whether a JSON file is a result of `evaluation`: the Trainer writes `*_results.json` as well."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(content, dict) and content.get("schema") == RESULT_SCHEMA


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a result file; `evaluation/results.py` says what is in it.

    Raises:
        ValueError: If it is none, or of another schema.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    found = content.get("schema") if isinstance(content, dict) else None
    if found != RESULT_SCHEMA:
        raise ValueError(f"{path} is no result file: expected schema {RESULT_SCHEMA!r}, found {found!r}.")
    return dict(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def _without_secrets(argv: Sequence[str]) -> list[str]:
    command, secret = [], False
    for argument in argv:
        flag, equals, _ = argument.partition("=")
        names_secret = bool(_SECRET_FLAG.fullmatch(flag))
        if secret:
            command.append(_BLOT)
        elif names_secret and equals:
            command.append(f"{flag}={_BLOT}")
        else:
            command.append(blot_secrets(argument))
        secret = names_secret and not equals
    return command


def _gpus() -> str:
    """GPUs of all processes of a run, or those of this machine; empty without any."""
    if not torch.cuda.is_available():
        return ""
    count = int(os.environ.get("WORLD_SIZE", torch.cuda.device_count()))
    return f", {count} x {torch.cuda.get_device_name()}"


def _commit() -> str | None:
    """Commit of the code, None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
