"""Fields of dataclasses of arguments, each of which is a flag."""

from dataclasses import field
from typing import Any


def flag(default: Any, text: str, **metadata: Any) -> Any:
    """A field whose help is `text`; argparse formats helps with %, so a literal one is doubled.

    Args:
        default: Its value where the flag is not given; a list is copied.
        text: What the flag says or does.
        metadata: More of the field's metadata.
    """
    metadata = {"help": text.replace("%", "%%"), **metadata}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
