"""Encoders and queue of a fairseq checkpoint, checked and renamed to XLM-R's names.

Two kinds are known: those of the released InfoXLM code (two RoBERTa encoders `model_fast` and `model_slow`,
one projection matrix each, the queue of keys), and those of one RoBERTa or XLM-R.

Shapes: V vocabulary, P positions, D hidden, F feed-forward, Q queued keys.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeling_infoxlm.fairseq.checkpoint_file import read_file
from modeling_infoxlm.runs.errors import UsageError

# Module names of fairseq's encoder and of XLM-R's in transformers.
_LAYER_MODULES = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}
_OTHER_MODULES = {
    "embed_tokens": "roberta.embeddings.word_embeddings",
    "embed_positions": "roberta.embeddings.position_embeddings",
    "emb_layer_norm": "roberta.embeddings.LayerNorm",
    "lm_head.dense": "lm_head.dense",
    "lm_head.layer_norm": "lm_head.layer_norm",
    "lm_head": "lm_head",
}
_CONTRAST = ("queue", "queue_ptr", "enqueue_cnt", "proj_matrix_fast", "proj_matrix_slow")
_LAYER = re.compile(r"layers\.(0|[1-9]\d{0,3})\.(.+)")
# `decoder` up to fairseq 0.9, `encoder` later.
_ENCODER_TENSOR = r"(?:decoder|encoder)\.(?:sentence_encoder\.(?P<inner>.+)|(?P<head>lm_head\..+))"
_MOST_LISTED = 8


@dataclass(frozen=True)
class Geometry:
    """Sizes of an encoder, as its tensors have them."""

    vocab_size: int
    hidden_size: int
    num_positions: int
    num_layers: int
    intermediate_size: int


@dataclass(frozen=True)
class Encoder:
    """One RoBERTa of a checkpoint.

    Attributes:
        name: `model_fast`, `model_slow`, or `model` for the only one.
        tensors: By fairseq's names from `embed_tokens.weight` on, attention projections split.
        projection: Weight of the linear projection of the contrast, (D, D); None without.
        num_stored: Tensors of the file that these came from.
    """

    name: str
    tensors: dict[str, Tensor]
    projection: Tensor | None
    num_stored: int


@dataclass(frozen=True)
class Queue:
    """The queue of keys: (Q, D), the slot that is written next, and how many were ever written."""

    keys: Tensor
    cursor: int
    num_enqueued: int


@dataclass(frozen=True)
class Checkpoint:
    """A fairseq checkpoint whose tensors are complete and have the right shapes.

    Attributes:
        settings: fairseq's flags (`args`) by name; empty if the file has none.
        geometry: Sizes, the same for all encoders.
        fast: The trained encoder.
        slow: Its momentum copy; None for a single RoBERTa.
        queue: None for a single RoBERTa.
        unknown: Names of tensors that belong to neither, sorted.
        other_entries: Entries of the file beside `args` and `model`, such as the optimiser's state.
    """

    settings: dict[str, Any]
    geometry: Geometry
    fast: Encoder
    slow: Encoder | None
    queue: Queue | None
    unknown: list[str]
    other_entries: list[str]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a fairseq checkpoint; nothing in the file is executed.

    Raises:
        UsageError: If it cannot be read, holds anything but tensors, plain containers and flags, or tensors
            are missing or have other shapes than their encoder's.
    """
    file = read_file(path)
    model = file.tensors
    joint = any(name.startswith("model_fast.") for name in model)
    names = {part: _names_of(part, model) for part in (("model_fast", "model_slow") if joint else ("model",))}
    contrast = {name: model[name] for name in _CONTRAST if joint and name in model}
    used = {old for part in names.values() for old in part.values()} | set(contrast)
    tensors = {
        part: _split_attention({new: model[old] for new, old in named.items()}, path)
        for part, named in names.items()
    }
    first = next(iter(names))
    geometry = _geometry(tensors[first], path)
    for part in names:
        _check_shapes(part, tensors[part], _expected_shapes(geometry), path)
    projections = _projections(contrast, geometry.hidden_size, path)
    encoders = {part: Encoder(part, tensors[part], projections.get(part), len(names[part])) for part in names}
    return Checkpoint(
        settings=file.settings,
        geometry=geometry,
        fast=encoders[first],
        slow=encoders.get("model_slow"),
        queue=_queue(contrast, geometry.hidden_size, path) if joint else None,
        unknown=sorted(set(model) - used),
        other_entries=file.other_entries,
    )


def to_xlm_roberta(encoder: Encoder) -> dict[str, Tensor]:
    """State of `InfoXLMForPreTraining` for an encoder of a checkpoint, fp32, tied names included.

    fairseq numbers positions from 2 on, behind the padding's, as XLM-R does: the table is taken as it is. It
    has no token types, so their one vector is zero.
    """
    state = {_xlm_roberta_name(name): value.float() for name, value in encoder.tensors.items()}
    words = state["roberta.embeddings.word_embeddings.weight"]
    state["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, words.shape[1])
    state["lm_head.decoder.weight"], state["lm_head.decoder.bias"] = words, state["lm_head.bias"]
    del state["lm_head.weight"]  # equal to the embeddings, which `_check_shapes` saw to
    if encoder.projection is not None:
        state["objectives.xlco.projection.weight"] = encoder.projection.float()
    return state


def layer_number(name: str) -> int | None:
    """Layer that a tensor belongs to, counted from 0; None for those of no layer."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def listed(names: Iterable[str]) -> str:
    """A few names and how many more there are; signs that a terminal would act on are written out."""
    names = [repr(name[:100])[1:-1] for name in names]
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


# --- the encoders -------------------------------------------------------------------------------------------


def _names_of(part: str, model: Iterable[str]) -> dict[str, str]:
    """Names of an encoder's tensors from `embed_tokens.weight` on, and their names in the file."""
    start = "" if part == "model" else re.escape(f"{part}.")
    found = {}
    for old in model:
        match = re.fullmatch(start + _ENCODER_TENSOR, old)
        if match:
            new = (match["inner"] or match["head"]).replace("layernorm_embedding.", "emb_layer_norm.")
            if _is_known(new):
                found[new] = old
    return found


def _is_known(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    layer = _LAYER.fullmatch(module)
    if layer and layer[2] == "self_attn":
        return kind in ("in_proj_weight", "in_proj_bias")
    if layer:
        return layer[2] in _LAYER_MODULES and kind in ("weight", "bias")
    kinds = ("weight",) if module.startswith("embed_") else ("weight", "bias")
    return module in _OTHER_MODULES and kind in kinds


def _split_attention(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Cut fused projections (3 D, D) into query, key and value, in whose order fairseq stacked them."""
    split: dict[str, Tensor] = {}
    for name, value in tensors.items():
        module, fused, kind = name.partition(".in_proj_")
        if fused and (value.numel() == 0 or value.dim() == 0 or value.shape[0] % 3):
            raise UsageError(f"{path}: {name} is {_shape(value)}; expected three projections in one.")
        names = [f"{module}.{letter}_proj.{kind}" for letter in "qkv"] if fused else [name]
        twice = [new for new in names if new in split]
        if twice:
            raise UsageError(f"{path} has {twice[0]} twice, on its own and in a fused tensor.")
        split |= zip(names, value.chunk(len(names)) if fused else [value], strict=True)
    return split


def _xlm_roberta_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    layer = _LAYER.fullmatch(module)
    if layer:
        return f"roberta.encoder.layer.{int(layer[1])}.{_LAYER_MODULES[layer[2]]}.{kind}"
    return f"{_OTHER_MODULES[module]}.{kind}"


def _geometry(tensors: Mapping[str, Tensor], path: Path) -> Geometry:
    needed = ("embed_tokens.weight", "embed_positions.weight", "layers.0.fc1.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise UsageError(f"{path} is no RoBERTa encoder of fairseq: tensors missing: {', '.join(missing)}.")
    words, positions, inner = (tensors[name] for name in needed)
    flat = [name for name in needed if tensors[name].dim() != 2]
    if flat:
        raise UsageError(f"{path}: {flat[0]} is {_shape(tensors[flat[0]])}; expected two dimensions.")
    layers = {number for number in map(layer_number, tensors) if number is not None}
    if layers != set(range(len(layers))):
        raise UsageError(f"{path}: layers {listed(map(str, sorted(layers)))} are not numbered from 0 on.")
    return Geometry(words.shape[0], words.shape[1], positions.shape[0], len(layers), inner.shape[0])


def _expected_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    d, f, v = geometry.hidden_size, geometry.intermediate_size, geometry.vocab_size
    square = {name: (d, d) for name in _LAYER_MODULES if name.startswith("self_attn.")}
    weights = {**square, "self_attn_layer_norm": (d,), "fc1": (f, d), "fc2": (d, f), "final_layer_norm": (d,)}
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (v, d)}
    shapes["embed_positions.weight"] = (geometry.num_positions, d)
    for module in ("emb_layer_norm", "lm_head.dense", "lm_head.layer_norm"):
        shapes[f"{module}.weight"] = (d, d) if module.endswith("dense") else (d,)
        shapes[f"{module}.bias"] = (d,)
    for layer in range(geometry.num_layers):
        for module, shape in weights.items():
            shapes[f"layers.{layer}.{module}.weight"] = shape
            shapes[f"layers.{layer}.{module}.bias"] = shape[:1]
    return {**shapes, "lm_head.weight": (v, d), "lm_head.bias": (v,)}


def _check_shapes(
    encoder: str, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise UsageError(f"{path}: {encoder} has no {listed(missing)}; the checkpoint is incomplete.")
    extra = [name for name in tensors if name not in expected]
    if extra:
        raise UsageError(f"{path}: {encoder} has {listed(extra)}, beyond the layers of the other encoder.")
    for name, value in tensors.items():
        if tuple(value.shape) != expected[name] or not value.is_floating_point():
            raise UsageError(
                f"{path}: {name} of {encoder} is {_shape(value)} {value.dtype}; "
                f"expected {expected[name]} floating point numbers."
            )
    table, words = tensors["lm_head.weight"], tensors["embed_tokens.weight"]
    if table.data_ptr() != words.data_ptr() and not torch.equal(table, words):
        raise UsageError(
            f"{path}: the output table of {encoder} is not its word embeddings (untied weights); "
            "XLM-R ties them, so this checkpoint cannot be converted."
        )


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))


# --- the contrast -------------------------------------------------------------------------------------------


def _projections(contrast: Mapping[str, Tensor], hidden_size: int, path: Path) -> dict[str, Tensor]:
    """Projection weights by encoder: fairseq multiplies by the matrix, a linear layer by its transpose.

    The released code keeps a stack of one matrix, (1, D, D), shared by all languages.
    """
    found = {}
    for part in ("fast", "slow"):
        matrix = contrast.get(f"proj_matrix_{part}")
        if matrix is None:
            continue
        if tuple(matrix.shape) != (1, hidden_size, hidden_size) or not matrix.is_floating_point():
            raise UsageError(
                f"{path}: proj_matrix_{part} is {_shape(matrix)}; expected {(1, hidden_size, hidden_size)}."
            )
        found[f"model_{part}"] = matrix[0].t().contiguous()
    if len(found) == 1:
        raise UsageError(f"{path} has the projection of {next(iter(found))} alone; expected both or none.")
    return found


def _queue(contrast: Mapping[str, Tensor], hidden_size: int, path: Path) -> Queue:
    missing = [name for name in ("queue", "queue_ptr", "enqueue_cnt") if name not in contrast]
    if missing:
        raise UsageError(f"{path} has no {', '.join(missing)}; the checkpoint is incomplete.")
    keys = contrast["queue"]
    if keys.dim() != 2 or keys.shape[0] < 1 or keys.shape[1] != hidden_size or not keys.is_floating_point():
        raise UsageError(f"{path}: queue is {_shape(keys)}; expected (keys, {hidden_size}).")
    cursor, count = (_integer(contrast[name], name, path) for name in ("queue_ptr", "enqueue_cnt"))
    if not 0 <= cursor < len(keys) or count < 0 or (count < len(keys) and cursor != count):
        raise UsageError(
            f"{path}: queue_ptr {cursor} and enqueue_cnt {count} do not fit a queue of {len(keys)} keys."
        )
    return Queue(keys, cursor, count)


def _integer(value: Tensor, name: str, path: Path) -> int:
    if tuple(value.shape) != (1,) or value.is_floating_point() or value.is_complex():
        raise UsageError(f"{path}: {name} is {_shape(value)} {value.dtype}; expected one whole number.")
    return int(value)
