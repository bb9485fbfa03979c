"""A fairseq checkpoint, read without running anything that it holds, checked, and renamed to XLM-R's names.

A checkpoint is one torch file, zipped or in torch's older layout: `args` (fairseq's flags), `model` (tensors
by name), and the state of optimiser, data and meters, which is not needed here. Two kinds are known: those of
the released InfoXLM code (two RoBERTa encoders `model_fast` and `model_slow`, one projection matrix each, the
queue of keys), and those of one RoBERTa or XLM-R.

Shapes: V vocabulary, P positions, D hidden, F feed-forward, Q queued keys.
"""

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeling_infoxlm.hub.file_checks import is_pickle, what_is
from modeling_infoxlm.hub.loading import explain_pickle
from modeling_infoxlm.runs.errors import UsageError, some

# What may be built while a file is read, besides tensors and plain containers: `argparse.Namespace` alone, in
# which fairseq keeps its flags. It is a plain data class: making one and setting its attributes runs no code.
# fairseq's Trainer also stores its running means in every checkpoint; objects of these names are read as a
# Namespace too, so that no class of fairseq is needed and none is called.
_METERS = ("AverageMeter", "TimeMeter", "StopwatchMeter")
_READABLE: list[Any] = [
    argparse.Namespace,
    *((argparse.Namespace, f"fairseq.meters.{name}") for name in _METERS),
]
_LETTERS = {
    "V": "vocab_size",
    "P": "max_position_embeddings",
    "D": "hidden_size",
    "F": "intermediate_size",
}
# Module names of fairseq's encoder and of XLM-R's in transformers, and shapes of the weights.
_LAYER_MODULES = {
    "self_attn.q_proj": ("attention.self.query", "DD"),
    "self_attn.k_proj": ("attention.self.key", "DD"),
    "self_attn.v_proj": ("attention.self.value", "DD"),
    "self_attn.out_proj": ("attention.output.dense", "DD"),
    "self_attn_layer_norm": ("attention.output.LayerNorm", "D"),
    "fc1": ("intermediate.dense", "FD"),
    "fc2": ("output.dense", "DF"),
    "final_layer_norm": ("output.LayerNorm", "D"),
}
_OTHER_MODULES = {
    "embed_tokens": ("roberta.embeddings.word_embeddings", "VD"),
    "embed_positions": ("roberta.embeddings.position_embeddings", "PD"),
    "emb_layer_norm": ("roberta.embeddings.LayerNorm", "D"),
    "lm_head.dense": ("lm_head.dense", "DD"),
    "lm_head.layer_norm": ("lm_head.layer_norm", "D"),
    "lm_head": ("lm_head", "VD"),
}
_CONTRAST = ("queue", "queue_ptr", "enqueue_cnt", "proj_matrix_fast", "proj_matrix_slow")
_PROJECTION = re.compile(r"self_attn\.[qkv]_proj\.")
_LAYER = re.compile(r"layers\.(0|[1-9]\d{0,3})\.(.+)")
# `decoder` up to fairseq 0.9, `encoder` later.
_ENCODER_TENSOR = r"(?:decoder|encoder)\.(?:sentence_encoder\.(?P<inner>.+)|(?P<head>lm_head\..+))"


@dataclass(frozen=True)
class Encoder:
    """One RoBERTa of a checkpoint."""

    name: str  # `model_fast`, `model_slow`, or `model` for the only one
    tensors: dict[str, Tensor]  # by fairseq's names from `embed_tokens.weight` on, projections split
    projection: Tensor | None  # weight of the linear projection of the contrast, (D, D)
    stored: set[str]  # names of the tensors in the file that these came from


@dataclass(frozen=True)
class Queue:
    """The queue of keys: (Q, D), the slot that is written next, and how many were ever written."""

    keys: Tensor
    cursor: int
    num_enqueued: int


@dataclass(frozen=True)
class Checkpoint:
    """A fairseq checkpoint whose tensors are complete and have the right shapes."""

    settings: dict[str, Any]  # fairseq's flags (`args`) by name; empty if the file has none
    sizes: dict[str, Any]  # of all encoders, by the names of XLM-R's configuration
    fast: Encoder  # the trained one
    slow: Encoder | None  # its momentum copy; None, as is the queue, for a single RoBERTa
    queue: Queue | None
    unknown: list[str]  # names of tensors that belong to neither
    other_entries: list[str]  # beside `args` and `model`, such as the optimiser's state


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a file's name before what is wrong with its content."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read_checkpoint(content: Mapping[str, Any]) -> Checkpoint:
    """Check a fairseq checkpoint.

    Args:
        content: As `read_file` gives it.

    Raises:
        UsageError: If tensors are missing or have other shapes than their encoder's.
    """
    model: dict[str, Tensor] = content["model"]
    is_joint = any(name.startswith("model_fast.") for name in model)
    contrast = {name: model[name] for name in _CONTRAST if is_joint and name in model}
    parts = ("model_fast", "model_slow") if is_joint else ("model",)
    names = {part: _names_of(part, model) for part in parts}
    sizes = _sizes({name: model[old] for name, old in names[parts[0]].items()})
    projections = _projections(contrast, sizes["hidden_size"])
    encoders = [_encoder(part, names[part], model, sizes, projections.get(part)) for part in parts]
    used = {name for encoder in encoders for name in encoder.stored} | contrast.keys()
    return Checkpoint(
        settings=vars(content.get("args") or argparse.Namespace()),
        sizes=sizes,
        fast=encoders[0],
        slow=encoders[1] if is_joint else None,
        queue=_queue(contrast, sizes["hidden_size"]) if is_joint else None,
        unknown=sorted(model.keys() - used),
        other_entries=sorted(str(name) for name in content if name not in ("args", "model")),
    )


def read_file(path: Path) -> dict[str, Any]:
    """Entries of a checkpoint file: tensors by name in `model`, flags in `args`, and others.

    Raises:
        UsageError: If it cannot be read, or holds anything but tensors, plain containers and fairseq's flags.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give a fairseq checkpoint such as checkpoint_last.pt.")
    try:
        with torch.serialization.safe_globals(_READABLE):
            content = torch.load(path, weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception as error:  # a damaged or hostile file may fail in any way
        reason = f"is {explain_pickle(error)}" if is_pickle(path) else what_is(path)
        raise UsageError(f"{path} {reason}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UsageError(f"{path} is no fairseq checkpoint: expected a dictionary with an entry `model`.")
    args = content.get("args")
    if args is not None and not isinstance(args, argparse.Namespace):
        raise UsageError(f"{path}: expected `args` to be fairseq's flags, found a {type(args).__name__}.")
    for name, value in content["model"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UsageError(f"{path}: entry {str(name)[:80]!r} of `model` is no tensor.")
        dense = value.layout == torch.strided and value.device.type == "cpu"
        # A hostile file can call a few bytes a tensor of terabytes, by strides of zero.
        if not dense or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UsageError(f"{path}: tensor {name[:80]!r} is not a plain dense tensor with all its values.")
    return content


def to_xlm_roberta(encoder: Encoder) -> dict[str, Tensor]:
    """State of `InfoXLMForPreTraining` for an encoder of a checkpoint, fp32, tied names included.

    fairseq numbers positions from 2 on, behind the padding's, as XLM-R does: the table is taken as it is. It
    has no token types, so their one vector is zero.
    """
    state = {_xlm_roberta_name(name): value.float() for name, value in encoder.tensors.items()}
    words = state["roberta.embeddings.word_embeddings.weight"]
    state["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, words.shape[1])
    state["lm_head.decoder.weight"], state["lm_head.decoder.bias"] = words, state["lm_head.bias"]
    del state["lm_head.weight"]  # equal to the embeddings, which `_encoder` saw to
    if encoder.projection is not None:
        state["objectives.xlco.projection.weight"] = encoder.projection.float()
    return state


def _xlm_roberta_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    layer = _LAYER.fullmatch(module)
    if layer:
        return f"roberta.encoder.layer.{int(layer[1])}.{_LAYER_MODULES[layer[2]][0]}.{kind}"
    return f"{_OTHER_MODULES[module][0]}.{kind}"


def layer_number(name: str) -> int | None:
    """Layer that a tensor belongs to, counted from 0; None for those of no layer."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def listed(names: Iterable[str]) -> str:
    """A few names and how many more there are; signs that a terminal would act on are written out."""
    return some([repr(name[:100])[1:-1] for name in names])


def _names_of(part: str, model: Iterable[str]) -> dict[str, str]:
    """Names of an encoder's tensors from `embed_tokens.weight` on, and their names in the file."""
    start = "" if part == "model" else re.escape(f"{part}.")
    matches = filter(None, (re.fullmatch(start + _ENCODER_TENSOR, old) for old in model))
    named = {match["inner"] or match["head"]: match[0] for match in matches}
    return {new.replace("layernorm_embedding.", "emb_layer_norm."): old for new, old in named.items()}


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    needed = ("embed_tokens.weight", "embed_positions.weight", "layers.0.fc1.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise UsageError(f"it is no RoBERTa encoder of fairseq: tensors missing: {', '.join(missing)}.")
    flat = [name for name in needed if tensors[name].dim() != 2]
    if flat:
        raise UsageError(f"{flat[0]} is {tuple(tensors[flat[0]].shape)}; expected two dimensions.")
    layers = {number for number in map(layer_number, tensors) if number is not None}
    if layers != set(range(len(layers))):
        raise UsageError(f"layers {listed(map(str, sorted(layers)))} are not numbered from 0 on.")
    words, positions, inner = (tensors[name].shape for name in needed)
    return {
        "vocab_size": words[0],
        "hidden_size": words[1],
        "max_position_embeddings": positions[0],
        "num_hidden_layers": len(layers),
        "intermediate_size": inner[0],
    }


def _expected_shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    modules = {name: letters for name, (_, letters) in _OTHER_MODULES.items()}
    for layer in range(sizes["num_hidden_layers"]):
        modules |= {f"layers.{layer}.{name}": letters for name, (_, letters) in _LAYER_MODULES.items()}
    shapes = {}
    for module, letters in modules.items():
        shapes[f"{module}.weight"] = tuple(sizes[_LETTERS[letter]] for letter in letters)
        if not module.startswith("embed_"):
            shapes[f"{module}.bias"] = shapes[f"{module}.weight"][:1]
    return shapes


def _encoder(
    part: str,
    names: Mapping[str, str],
    model: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    projection: Tensor | None,
) -> Encoder:
    """Take an encoder's tensors, all of the right shape; others of its name stay behind as unknown."""
    tensors, stored = {}, set()
    expected = _expected_shapes(sizes)
    # fairseq stacked query, key and value in this order, (3 D, D).
    fused = {name: _PROJECTION.sub("self_attn.in_proj_", name) for name in expected}
    missing = [name for name in expected if name not in names and fused[name] not in names]
    if missing:
        raise UsageError(f"{part} has no {listed(missing)}; the checkpoint is incomplete.")
    for name, shape in expected.items():
        if name in names and fused[name] in names and name != fused[name]:
            raise UsageError(f"it has {name} twice, on its own and in a fused tensor.")
        old = names.get(name) or names[fused[name]]
        value = model[old]
        if name not in names:
            value = torch.atleast_1d(value).tensor_split(3)["qkv".index(name.split(".")[3][0])]
        if tuple(value.shape) != shape or not value.is_floating_point():
            found = f"{name} of {part} is {tuple(value.shape)} {value.dtype}"
            raise UsageError(f"{found}; expected {shape} floating point numbers.")
        tensors[name] = value
        stored.add(old)
    table, words = tensors["lm_head.weight"], tensors["embed_tokens.weight"]
    if table.data_ptr() != words.data_ptr() and not torch.equal(table, words):
        raise UsageError(
            f"the output table of {part} is not its word embeddings (untied weights); "
            "XLM-R ties them, so this checkpoint cannot be converted."
        )
    return Encoder(part, tensors, projection, stored)


def _projections(contrast: Mapping[str, Tensor], hidden_size: int) -> dict[str, Tensor]:
    """Projection weights by encoder: fairseq multiplies by the matrix, a linear layer by its transpose.

    The released code keeps a stack of one matrix, (1, D, D), shared by all languages.
    """
    expected = (1, hidden_size, hidden_size)
    found = {name: value for name, value in contrast.items() if name.startswith("proj_matrix_")}
    for name, matrix in found.items():
        if tuple(matrix.shape) != expected or not matrix.is_floating_point():
            raise UsageError(f"{name} is {tuple(matrix.shape)}; expected {expected}.")
    parts = {
        name.replace("proj_matrix", "model"): matrix[0].t().contiguous() for name, matrix in found.items()
    }
    if len(parts) == 1:
        raise UsageError(f"it has the projection of {next(iter(parts))} alone; expected both or none.")
    return parts


def _queue(contrast: Mapping[str, Tensor], hidden_size: int) -> Queue:
    missing = [name for name in ("queue", "queue_ptr", "enqueue_cnt") if name not in contrast]
    if missing:
        raise UsageError(f"it has no {', '.join(missing)}; the checkpoint is incomplete.")
    keys = contrast["queue"]
    if keys.dim() != 2 or keys.shape[0] < 1 or keys.shape[1] != hidden_size or not keys.is_floating_point():
        raise UsageError(f"queue is {tuple(keys.shape)}; expected (keys, {hidden_size}).")
    numbers = {name: contrast[name] for name in ("queue_ptr", "enqueue_cnt")}
    for name, value in numbers.items():
        if tuple(value.shape) != (1,) or value.is_floating_point() or value.is_complex():
            raise UsageError(f"{name} is {tuple(value.shape)} {value.dtype}; expected one whole number.")
    cursor, count = (int(value) for value in numbers.values())
    if not 0 <= cursor < len(keys) or count < 0 or (count < len(keys) and cursor != count):
        raise UsageError(
            f"queue_ptr {cursor} and enqueue_cnt {count} do not fit a queue of {len(keys)} keys."
        )
    return Queue(keys, cursor, count)
