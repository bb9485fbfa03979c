"""Where a number came from: command, commit, versions, machine, hash of weights; reading result files."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modeling_infoxlm.runs.errors import DataError
from modeling_infoxlm.runs.files import Each, check_shape, file_sha256, read_json, text_sha256
from modeling_infoxlm.runs.secrets import blot_command

PACKAGES = "torch transformers datasets tokenizers accelerate safetensors huggingface_hub numpy".split()
RESULT_SCHEMA = "infoxlm-result-1"


def describe_program(argv: Sequence[str]) -> dict[str, Any]:
    """Command, without secrets, commit, versions and machine of this process."""
    return {
        "command": blot_command(argv),
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{_gpus()}",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def hash_weights(folder: Path) -> str | None:
    """Hash of the weight files; of a single one it is the file's own, as the Hub shows it; None of none."""
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.bin"))
    digests = [file_sha256(path) for path in files]
    if len(digests) == 1:
        return digests[0]
    return text_sha256("".join(digests)) if digests else None


def is_result(path: Path) -> bool:
    """Whether a JSON file is a result of `evaluation`: the Trainer writes `*_results.json` as well."""
    content = read_json(path)
    return isinstance(content, dict) and content.get("schema") == RESULT_SCHEMA


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a result file; `evaluation/results.py` says what is in it.

    Raises:
        DataError: If it is none, of another schema, or something in it is missing or of another kind; with
            the file and the key.
    """
    content = read_json(path)
    found = content.get("schema") if isinstance(content, dict) else None
    if found != RESULT_SCHEMA:
        raise DataError(f"{path} is no result file: expected schema {RESULT_SCHEMA!r}, found {found!r:.80}.")
    check_shape(content, _RESULT, path)
    metric, tables = content["metric"], {f"scores.{key}": value for key, value in content["scores"].items()}
    if "g_xlt" in content["details"]:
        tables["details.g_xlt"] = content["details"]["g_xlt"]
    for place, table in tables.items():
        if metric not in table:
            raise DataError(f"{path}: metric is {metric!r:.80}, which {place} does not have.")
    mixed = content["details"].get("mixed_languages", {"languages": [], "matrix": []})
    if {len(mixed["languages"])} != {len(side) for side in (mixed["matrix"], *mixed["matrix"])}:
        raise DataError(
            f"{path}: details.mixed_languages.matrix is not of so many rows and columns as languages."
        )
    if not re.fullmatch(r"[\w-]+", content["task"]):
        raise DataError(f"{path}: task: expected a name of letters, found {content['task']!r:.80}.")
    return dict(content)


_ESTIMATE = {"value": float, "low": float, "high": float, "count": int}
_RESULT = {
    "task": str,
    "metric": str,
    "unit": ("percent", "nats"),
    "dataset": {
        "name": str,
        "files": Each(str),
        "revision": (str, None),
        "sha256": (str, None),
        "repo_id?": (str, None),
    },
    "model": {"name_or_path": str, "revision": (str, None), "sha256": (str, None)}
    | {"config_sha256?": (str, None), "tokenizer_sha256?": (str, None)},
    "settings": {"layer?": (int, None), "pooling?": ("mean", "cls", None)},
    "seed": (int, None),
    "scores": Each(Each(_ESTIMATE), least=1),
    "summary": Each(float),
    "details": {
        "measure?": str,
        "mixed_languages?": {"languages": [str], "matrix": [[float]]},
        "g_xlt?": Each(Each(Each(float))),
    },
    "identity?": {"files?": [str]},
    "command": [str],
    "commit": (str, None),
}


def _gpus() -> str:
    """GPUs of all processes of a run, or those of this machine; empty without any."""
    if not torch.cuda.is_available():
        return ""
    count = int(os.environ.get("WORLD_SIZE", torch.cuda.device_count()))
    return f", {count} x {torch.cuda.get_device_name()}"


def _commit() -> str | None:
    """Commit of the code, with `-dirty` where files differ from it; None outside its own repository.

    A package that was installed somewhere in another project's repository is not of that one's commit.
    """
    root = Path(__file__).resolve().parents[2]
    try:
        top, commit = _git(root, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() != root:
            return None
        _git(root, "ls-files", "--error-unmatch", __file__)
        return commit + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    # What a hook of git sets would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
