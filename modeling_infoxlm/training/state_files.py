"""Nested state in one safetensors file: what optimisers, schedules and generators need to go on.

torch.save would write a pickle. Here tensors and arrays are stored as such, and all around them, down to the
bits of its floats, as JSON in the file's metadata.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_TREE = "tree"
_SCALARS = (str, bool, int, float, type(None))


def save_state(state: Any, path: str | Path) -> None:
    """Write nested dicts, lists and tuples of tensors, arrays and plain values, such as an optimiser's state.

    Raises:
        TypeError: If there is anything else in it; its place is named.
    """
    tensors: dict[str, Tensor] = {}
    tree = _describe(state, "state", tensors)
    save_file(tensors, path, metadata={_TREE: json.dumps(tree)})


def load_state(path: str | Path, *, device: torch.device | str = "cpu") -> Any:
    """Read what `save_state` wrote, tensors to the device, arrays to the host.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If another program wrote it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is missing: the checkpoint is not whole, or another program wrote it."
        )
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata = file.metadata() or {}
        if _TREE not in metadata:
            raise ValueError(f"{path} holds no nested state; expected a file of this package's checkpoints.")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    return _rebuild(json.loads(metadata[_TREE]), tensors)


def _describe(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON: containers as {kind: content}, plain values as themselves, tensors by name."""
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        tensors[name] = torch.as_tensor(value).detach().contiguous()
        return {kind: name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _describe(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_describe(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    raise TypeError(f"{name} is a {type(value).__name__}; only tensors, arrays and plain values are saved.")


def _rebuild(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].cpu().numpy()
    if kind == "dict":
        return {key: _rebuild(item, tensors) for key, item in content}
    items = [_rebuild(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
