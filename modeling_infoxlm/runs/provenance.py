"""Where a number came from: command, commit, versions, machine and hashes; and files without secrets.

What is written down or shown goes through `blot_secrets`: JSON files by `write_json`, cards, and all that a
program prints or logs (`process.run_main`). What looks like a secret in a flag that takes none is refused
(`config_file`).
"""

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from modeling_infoxlm.runs.json_files import Each, check_shape, read_json

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
_BLOT = "<token>"
_SECRET_FLAG = re.compile(r"--(?:[\w-]+[_-])?token")
_SECRET_VARIABLE = re.compile(r"(?:TOKEN|API_KEY|SECRET|PASSWORD)$")
# Each keeps its first group: what stands before the secret.
_SECRETS = tuple(
    re.compile(pattern)
    for pattern in (
        r"()(?:hf_(?:oauth|jwt)_[\w.\-]{8,}|(?:hf|api_org)_[A-Za-z0-9]{14,})",
        # No value goes on behind a quote or a backslash: what is JSON stays JSON.
        r"(://)[^\s/?#\\\"'<>]+(?=@)",
        r"(?i)([?&](?:[\w\-]*(?:token|key|secret|password|signature)|sig)=)[^&#\s\\\"'<>]+",
        r"(?i)(authorization[\\\"']*\s*[:=]\s*[\\\"']*(?:\w+\s++)?+)[^\s\\\"',<>]+",
        # Prose has a bearer and a basic of something too: only what has digits or capitals within is no word.
        r"(\b[Bb]earer\s+)(?=[^\s<]*[0-9A-Z])[\w.\-~+/]{12,}=*",
        r"(\b[Bb]asic\s+)(?=[^\s<]*(?:[a-z][A-Z0-9]|=))[A-Za-z0-9+/]{12,}=*",
        r"(\b[A-Z][A-Z0-9_]*(?:TOKEN|API_KEY|SECRET|PASSWORD)=)[^\s\\\"'<>]+",
    )
)
# Shorter than tokens are, and as a folder may be called: blotted out, but no reason to refuse it.
_LIKELY = re.compile(r"()hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}")
_TEXTS = (".json", ".md", ".yaml", ".yml", ".txt", ".py", ".tsv", ".csv")
_LARGEST_TEXT = 1 << 22  # bytes
_SHORTEST_SECRET = 8  # of an environment variable: shorter ones are words that stand everywhere
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries that write by other means than Python's give the system's words or its number.
_FULL_WORDS = re.compile(
    rf"os error (?:{'|'.join(map(str, _FULL))})\b|" + "|".join(os.strerror(number) for number in _FULL)
)


class DiskFullError(OSError):
    """There is no room for what is written; one line with the place and what to do."""


def describe_program(argv: Sequence[str]) -> dict[str, Any]:
    """Command, commit, versions and machine of this process.

    Args:
        argv: Arguments of the command; what looks like a secret or follows a flag for one is blotted out.
    """
    return {
        "command": _without_secrets(argv),
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{_gpus()}",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def blot_secrets(text: str, known: Iterable[str] = ()) -> str:
    """The text without what looks like a token or a password, and without those of the environment.

    Args:
        text: Any text; in JSON and YAML only values change.
        known: Secrets that cannot be told by their form.
    """
    for secret in (*known, *_secrets_of_environment()):
        text = text.replace(secret, _BLOT)
    for pattern in (*_SECRETS, _LIKELY):
        text = pattern.sub(rf"\1{_BLOT}", text)
    return text


def holds_secret(text: str) -> bool:
    """Whether there surely is a token or a password in a text."""
    return any(pattern.search(text) for pattern in _SECRETS)


def holds_token(path: Path) -> bool:
    """Whether a token of the Hub stands in a file of text; very large ones are not looked at."""
    if path.suffix not in _TEXTS or path.stat().st_size > _LARGEST_TEXT:
        return False
    return bool(_SECRETS[0].search(path.read_text(encoding="utf-8", errors="replace")))


def takes_secret(flag: str) -> bool:
    """Whether a flag is one for a token."""
    return bool(_SECRET_FLAG.fullmatch(flag))


def secrets_of_command(argv: Sequence[str]) -> list[str]:
    """Values of flags for a token, whatever they look like."""
    given = [argument.partition("=") for argument in argv]
    values = [value for flag, _, value in given if takes_secret(flag)]
    values += [value for flag, value in zip(argv, argv[1:], strict=False) if takes_secret(flag)]
    return [value for value in values if len(value) >= _SHORTEST_SECRET]


def _secrets_of_environment() -> list[str]:
    return [
        value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_SECRET
    ]


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
    content = read_json(path)
    return isinstance(content, dict) and content.get("schema") == RESULT_SCHEMA


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a result file; `evaluation/results.py` says what is in it.

    Raises:
        ValueError: If it is none, of another schema, or something in it is missing or of another kind; with
            the file and the key.
    """
    content = read_json(path)
    found = content.get("schema") if isinstance(content, dict) else None
    if found != RESULT_SCHEMA:
        raise ValueError(f"{path} is no result file: expected schema {RESULT_SCHEMA!r}, found {found!r:.80}.")
    check_shape(content, _RESULT, path)
    metric, tables = content["metric"], {f"scores.{key}": value for key, value in content["scores"].items()}
    if "g_xlt" in content["details"]:
        tables["details.g_xlt"] = content["details"]["g_xlt"]
    for place, table in tables.items():
        if metric not in table:
            raise ValueError(f"{path}: metric is {metric!r:.80}, which {place} does not have.")
    mixed = content["details"].get("mixed_languages", {"languages": [], "matrix": []})
    if {len(mixed["languages"])} != {len(side) for side in (mixed["matrix"], *mixed["matrix"])}:
        raise ValueError(
            f"{path}: details.mixed_languages.matrix is not of so many rows and columns as languages."
        )
    if not re.fullmatch(r"[\w-]+", content["task"]):
        raise ValueError(f"{path}: task: expected a name of letters, found {content['task']!r:.80}.")
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all, without secrets, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    text = blot_secrets(json.dumps(content, indent=2, ensure_ascii=False, default=str))
    with writing(path):
        try:
            with open(partial, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())  # else a power cut can leave the name without the content
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """Say where the disk is full and what to do, whichever library meets it: none of them names the place.

    Args:
        place: File or folder that is written in the block.

    Raises:
        DiskFullError: If there is no room.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        named = getattr(error, "filename", None) or place
        raise DiskFullError(
            f"{named} cannot be written: its disk is full, or a quota or a limit of file sizes is reached; "
            "free some room, or write to another disk, and run the same command again."
        ) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that there is no room for a file."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL or _FULL_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _without_secrets(argv: Sequence[str]) -> list[str]:
    command, secret = [], False
    for argument in argv:
        flag, equals, _ = argument.partition("=")
        names_secret = takes_secret(flag)
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
