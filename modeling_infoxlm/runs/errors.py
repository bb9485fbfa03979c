"""The errors that a person mends, each one clear line; `process.run_main` makes exit codes of them."""

import importlib
from collections.abc import Sequence
from typing import Any

_MOST_NAMES = 6  # in a message


class UsageError(ValueError):
    """What was asked for cannot be done with what was given: one line, exit code 2."""


class DataError(UsageError):
    """Input that the user has to mend; its message is one clear line that says what and where."""


class DiskFullError(OSError):
    """There is no room for what is written; one line with the place and what to do."""


class Interrupted(Exception):
    """Training was stopped by a signal after a checkpoint."""


def some(items: Sequence[str]) -> str:
    """The first items and the number of the others."""
    shown = ", ".join(items[:_MOST_NAMES]) or "none"
    return shown if len(items) <= _MOST_NAMES else f"{shown} and {len(items) - _MOST_NAMES:,} more"


def import_extra(module: str, *, extra: str, purpose: str) -> Any:
    """Import a module that an extra of the package brings; `purpose`, a plural, is what needs it.

    Raises:
        UsageError: If something is not installed, with the command that does it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{purpose} need {error.name}: pip install 'modeling-infoxlm[{extra}]'.") from error
