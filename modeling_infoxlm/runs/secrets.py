"""What looks like a token or a password, and texts without it.

What is written down or shown goes through `blot_secrets`: JSON files by `files.write_json`, cards, and all
that a program prints or logs (`process.run_main`). What looks like a secret in a flag that takes none is
refused (`config_file`).
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

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


def secrets_of_command(argv: Sequence[str], shortest: int = _SHORTEST_SECRET) -> list[str]:
    """Values of flags for a token, whatever they look like."""
    given = [argument.partition("=")[::2] for argument in argv if "=" in argument]
    given += zip(argv, argv[1:], strict=False)
    return [value for flag, value in given if takes_secret(flag) and len(value) >= shortest]


def _secrets_of_environment() -> list[str]:
    return [
        value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_SECRET
    ]


def blot_command(argv: Sequence[str]) -> list[str]:
    """A command, with what looks like a secret or follows a flag for one blotted out."""
    known = secrets_of_command(argv, shortest=1)
    flags = [argument.partition("=")[0] for argument in argv]
    return [
        _BLOT
        if argument in known
        else f"{flag}={_BLOT}"
        if takes_secret(flag) and flag != argument
        else blot_secrets(argument)
        for flag, argument in zip(flags, argv, strict=True)
    ]
