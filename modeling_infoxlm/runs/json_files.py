"""JSON files that may have been cut short, changed or written by others: refused with file and key."""

import json
import sys
from pathlib import Path
from typing import Any

_LARGEST_JSON = 1 << 26  # a hundred times the largest result


def read_json(path: str | Path) -> Any:
    """Read a JSON file that may be anything.

    Raises:
        ValueError: With the file, if it cannot be read, is no JSON, or is larger or deeper than any of ours.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"more than {_LARGEST_JSON:,} bytes")
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # half a surrogate could not be written again
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{path} is no JSON file: half of a surrogate pair in a text.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no JSON file: no UTF-8 at byte {error.start:,}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is no JSON file of ours: nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}.") from error
    return content


class Each:
    """The shape of an object with any keys: that of each of its values.

    Args:
        shape: Of the values.
        least: Fewest keys.
    """

    def __init__(self, shape: Any, *, least: int = 0) -> None:
        self.shape, self.least = shape, least


def check_shape(content: Any, shape: Any, path: str | Path, place: str = "") -> None:
    """Check that what was read from a file is what its reader expects.

    Args:
        content: What was read.
        shape: `str`, `int`, `float` (finite), `bool`, `object` (anything) or None; a text, which it must be;
            a tuple of shapes, of which one must fit; a list of one shape, for lists of it; a dict of shapes
            by key, where keys that end in `?` may be missing; or `Each`.
        path: The file, for the message.
        place: Key of `content` in the file.

    Raises:
        ValueError: With file and key, if it is not.
    """
    where = f"{path}: {place or 'the whole'}"
    if isinstance(shape, tuple):
        if not any(_fits(content, one) for one in shape):
            _refuse(content, " or ".join(map(_name, shape)), where)
        shape = next(one for one in shape if _fits(content, one))
    elif not _fits(content, shape):
        _refuse(content, _name(shape), where)
    inside = f"{place}." if place else ""
    if isinstance(shape, dict):
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if name in content:
                check_shape(content[name], inner, path, inside + name)
            elif name == key:
                raise ValueError(f"{path}: {inside}{key} is missing; was the file written whole, by us?")
    elif isinstance(shape, Each):
        if len(content) < shape.least:
            raise ValueError(f"{where} is empty.")
        for name, value in content.items():
            check_shape(value, shape.shape, path, inside + name)
    elif isinstance(shape, list):
        for number, value in enumerate(content):
            check_shape(value, shape[0], path, f"{inside}{number}")


def _fits(content: Any, shape: Any) -> bool:
    """Whether it is of the kind of a shape, whatever lies in it."""
    if shape is None or isinstance(shape, str):
        return bool(content == shape)
    if isinstance(shape, (dict, Each)):
        return isinstance(content, dict)
    if isinstance(shape, list):
        return isinstance(content, list)
    if shape is float:
        is_number = isinstance(content, (int, float)) and not isinstance(content, bool)
        return is_number and abs(content) < sys.float_info.max  # neither is NaN
    return isinstance(content, shape) and (shape is not int or not isinstance(content, bool))


def _name(shape: Any) -> str:
    if isinstance(shape, (dict, Each)):
        return "an object"
    if isinstance(shape, list):
        return "a list"
    names = {str: "a text", int: "a whole number", float: "a finite number", bool: "true or false"}
    return names.get(shape) or ("null" if shape is None else repr(shape))


def _refuse(content: Any, expected: str, where: str) -> None:
    # A text of its first characters: the value may be as long as the file.
    found = "an object" if isinstance(content, dict) else "a list" if isinstance(content, list) else None
    raise ValueError(f"{where}: expected {expected}, found {found or f'{json.dumps(content):.60}'}.")
