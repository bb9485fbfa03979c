"""Checkpoint files of fairseq, read without running anything that they hold.

A checkpoint is one torch file, zipped or in torch's older layout: `args` (fairseq's flags), `model` (tensors
by name), and the state of optimiser, data and meters, which is not needed here.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeling_infoxlm.hub.loading import explain_pickle, is_pickle, what_is
from modeling_infoxlm.runs.errors import UsageError

# What may be built while a file is read, besides tensors and plain containers: `argparse.Namespace` alone, in
# which fairseq keeps its flags. It is a plain data class: making one and setting its attributes runs no code.
# fairseq's Trainer also stores its running means in every checkpoint; objects of these names are read as a
# Namespace too, so that no class of fairseq is needed and none is called.
_METERS = ("AverageMeter", "TimeMeter", "StopwatchMeter")
_READABLE: list[Any] = [
    argparse.Namespace,
    *((argparse.Namespace, f"fairseq.meters.{name}") for name in _METERS),
]


@dataclass(frozen=True)
class FairseqFile:
    """Content of a checkpoint file.

    Attributes:
        tensors: The entry `model`.
        settings: fairseq's flags by name; empty if the file has none.
        other_entries: Names of its other entries, sorted.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    other_entries: list[str]


def read_file(path: Path) -> FairseqFile:
    """Read a checkpoint file.

    Raises:
        UsageError: If it cannot be read, or holds anything but tensors, plain containers and fairseq's flags.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give a fairseq checkpoint such as checkpoint_last.pt.")
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UsageError(f"{path} is no fairseq checkpoint: expected a dictionary with an entry `model`.")
    args = content.get("args")
    if args is not None and not isinstance(args, argparse.Namespace):
        raise UsageError(f"{path}: expected `args` to be fairseq's flags, found a {type(args).__name__}.")
    return FairseqFile(
        tensors=_checked_tensors(content["model"], path),
        settings={} if args is None else dict(vars(args)),
        other_entries=sorted(str(name) for name in content if name not in ("args", "model")),
    )


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_READABLE):
            return torch.load(path, weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception as error:  # a damaged or hostile file may fail in any way
        reason = f"is {explain_pickle(error)}" if is_pickle(path) else what_is(path)
        raise UsageError(f"{path} {reason}.") from error


def _checked_tensors(model: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    for name, value in model.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UsageError(f"{path}: entry {str(name)[:80]!r} of `model` is no tensor.")
        dense = value.layout == torch.strided and value.device.type == "cpu"
        # A hostile file can call a few bytes a tensor of terabytes, by strides of zero.
        if not dense or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UsageError(f"{path}: tensor {name[:80]!r} is not a plain dense tensor with all its values.")
    return dict(model)
