"""The configuration of a fairseq checkpoint: sizes from its tensors, the rest from fairseq's flags."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modeling_infoxlm.configuration_infoxlm import XLCO_LAYER_BY_DEPTH, InfoXLMConfig
from modeling_infoxlm.fairseq.weights import Checkpoint, Geometry
from modeling_infoxlm.runs.errors import UsageError

_HEAD_SIZE = 64  # of every published RoBERTa and XLM-R
_FIRST_POSITION = 2  # positions are numbered behind the padding's id, which is 1
# fairseq's flag, our field, and whether a value of it can be used.
_NUMBERS = (
    ("xlco_softmax_tau", "xlco_temperature", lambda value: value > 0),
    ("dropout", "hidden_dropout_prob", lambda value: 0 <= value < 1),
    ("attention_dropout", "attention_probs_dropout_prob", lambda value: 0 <= value < 1),
)
# Flags that a record of the conversion keeps; the others say how fairseq trained, and where its files lay.
_RECORDED = (
    "activation_fn",
    "arch",
    "attention_dropout",
    "dropout",
    "encoder_attention_heads",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_layers",
    "max_positions",
    "use_proj",
    "xlco_lambda",
    "xlco_layer",
    "xlco_momentum",
    "xlco_queue_size",
    "xlco_softmax_tau",
)


def recorded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that tell what the model is, those that are plain values."""
    plain = (str, int, float, bool)
    return {name: settings[name] for name in _RECORDED if isinstance(settings.get(name), plain)}


def make_config(
    checkpoint: Checkpoint, xlco_layer: int | None, path: Path
) -> tuple[InfoXLMConfig, list[str]]:
    """Configuration of a checkpoint's encoders.

    Args:
        checkpoint: The checkpoint.
        xlco_layer: Layer of the contrast; None takes fairseq's flag, or the default for the depth.
        path: Its file, for messages.

    Returns:
        The configuration, and what had to be assumed.

    Raises:
        UsageError: If a flag contradicts the tensors, or is missing and has no default.
    """
    geometry, settings = checkpoint.geometry, checkpoint.settings
    _check_sizes(geometry, settings, path)
    if settings.get("use_proj") is True and checkpoint.fast.projection is None:
        raise UsageError(f"{path}: its flags say use_proj, but it has no proj_matrix_fast; it is incomplete.")
    heads, notes = _attention_heads(geometry, settings, path)
    config = InfoXLMConfig(
        vocab_size=geometry.vocab_size,
        hidden_size=geometry.hidden_size,
        num_hidden_layers=geometry.num_layers,
        num_attention_heads=heads,
        intermediate_size=geometry.intermediate_size,
        max_position_embeddings=geometry.num_positions,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        xlco_layer=_contrast_layer(geometry, settings, xlco_layer, path),
        xlco_use_projection=checkpoint.fast.projection is not None,
        **_numbers(settings, path),
    )
    return config, notes


def _check_sizes(geometry: Geometry, settings: Mapping[str, Any], path: Path) -> None:
    """Refuse flags that contradict the tensors, and activations that XLM-R's head does not have."""
    sizes = {
        "encoder_embed_dim": geometry.hidden_size,
        "encoder_ffn_embed_dim": geometry.intermediate_size,
        "encoder_layers": geometry.num_layers,
        "max_positions": geometry.num_positions - _FIRST_POSITION,
    }
    for flag, size in sizes.items():
        if settings.get(flag) not in (None, size):
            raise UsageError(f"{path}: its flags say {flag} {settings[flag]!r}, its tensors {size}.")
    if geometry.num_positions <= _FIRST_POSITION:
        raise UsageError(
            f"{path}: embed_positions has {geometry.num_positions} rows; the first {_FIRST_POSITION} are for "
            "padding, and positions need at least one more."
        )
    if settings.get("activation_fn", "gelu") != "gelu":
        raise UsageError(
            f"{path}: activation_fn is {settings['activation_fn']!r}; only gelu, XLM-R's, can be converted."
        )


def _attention_heads(geometry: Geometry, settings: Mapping[str, Any], path: Path) -> tuple[int, list[str]]:
    """Number of heads, which no tensor tells, and a note if it had to be assumed."""
    heads = settings.get("encoder_attention_heads")
    notes = []
    if heads is None:
        heads = max(1, geometry.hidden_size // _HEAD_SIZE)
        notes.append(f"encoder_attention_heads is not stored: {heads} of {_HEAD_SIZE} values are assumed.")
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or geometry.hidden_size % heads:
        raise UsageError(
            f"{path}: {heads!r} attention heads do not divide the {geometry.hidden_size} values of a vector."
        )
    return heads, notes


def _contrast_layer(geometry: Geometry, settings: Mapping[str, Any], asked: int | None, path: Path) -> int:
    default = XLCO_LAYER_BY_DEPTH.get(geometry.num_layers)
    layer = next((value for value in (asked, settings.get("xlco_layer"), default) if value is not None), None)
    if not isinstance(layer, int) or isinstance(layer, bool) or not 1 <= layer <= geometry.num_layers:
        raise UsageError(
            f"{path}: the layer of the contrast is {layer!r}; "
            f"give --xlco_layer, from 1 to {geometry.num_layers}."
        )
    return layer


def _numbers(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for flag, name, is_usable in _NUMBERS:
        value = settings.get(flag)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not is_usable(value):
            raise UsageError(f"{path}: its flag {flag} is {value!r}, which is not a usable number.")
        fields[name] = float(value)
    return fields
