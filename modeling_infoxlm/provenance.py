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
_SECRET = re.compile(r"hf_[\w.\-]{8,}")


def describe_program(argv: Sequence[str]) -> dict[str, Any]:
    """Command, commit, versions and machine of this process.

    Args:
        argv: Arguments of the command; secrets that look like Hub tokens are blotted out.
    """
    return {
        "command": [_SECRET.sub("<token>", argument) for argument in argv],
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def file_sha256(path: str | Path) -> str:
    """Hash of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def _commit() -> str | None:
    """Commit of the code, None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
