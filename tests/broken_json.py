"""A JSON file with one thing wrong, for each thing that can be."""

import copy
from collections.abc import Iterator
from typing import Any

_OTHERS = (None, "x", {"x": None}, float("nan"))

NO_JSON_OF_OURS = (
    b"",
    b"no json",
    b"[1]",
    b"NaN",
    b'"text"',
    b'{"schema": ' + b"[" * 100_000,
    b'{"schema": ' + b"9" * 5_000 + b"}",
    b'{"schema": "\xff"}',
    '{"schema": "infoxlm-result-1"}'.encode("utf-16"),
    b'{"schema": "\\ud800"}',
    b'{"schema": "infoxlm-result-1", "x": "\\ud800"}',
)


def with_one_fault(content: Any) -> Iterator[tuple[str, Any]]:
    """Copies in which one key is missing, or one value another.

    Yields:
        The key, with those that it lies in, and the copy.
    """
    for place in list(_places(content)):
        parent, key = place[:-1], place[-1]
        for other in ("missing", *_OTHERS):
            changed = copy.deepcopy(content)
            inner = changed
            for step in parent:
                inner = inner[step]
            if other == "missing":
                del inner[key]
            else:
                inner[key] = other
            yield ".".join(map(str, place)), changed


def _places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in inside:
        yield (*place, key)
        if isinstance(value, (dict, list)):
            yield from _places(value, (*place, key))
