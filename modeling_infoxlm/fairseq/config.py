"""The configuration of a fairseq checkpoint: sizes from its tensors, the rest from fairseq's flags."""

from collections.abc import Mapping
from typing import Any

from modeling_infoxlm.configuration_infoxlm import XLCO_LAYER_BY_DEPTH, InfoXLMConfig
from modeling_infoxlm.fairseq.weights import Checkpoint
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.flags import check_number

_HEAD_SIZE = 64  # of every published RoBERTa and XLM-R
_FIRST_POSITION = 2  # positions are numbered behind the padding's id, which is 1
# fairseq's flags and our fields, with the size by which theirs is less.
_SIZES = {
    "encoder_embed_dim": ("hidden_size", 0),
    "encoder_ffn_embed_dim": ("intermediate_size", 0),
    "encoder_layers": ("num_hidden_layers", 0),
    "max_positions": ("max_position_embeddings", _FIRST_POSITION),
}
# fairseq's flags and our fields.
_NUMBERS = {
    "xlco_softmax_tau": "xlco_temperature",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
# Flags that a record of the conversion keeps; the others say how fairseq trained, and where its files lay.
_RECORDED = (
    *_SIZES,
    *_NUMBERS,
    *("activation_fn", "arch", "encoder_attention_heads", "use_proj"),
    *("xlco_lambda", "xlco_layer", "xlco_momentum", "xlco_queue_size"),
)


def recorded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that tell what the model is, those that are plain values."""
    plain = (str, int, float, bool)
    return {name: settings[name] for name in sorted(_RECORDED) if isinstance(settings.get(name), plain)}


def make_config(checkpoint: Checkpoint, xlco_layer: int | None) -> tuple[InfoXLMConfig, list[str]]:
    """Configuration of a checkpoint's encoders.

    Args:
        checkpoint: The checkpoint.
        xlco_layer: Layer of the contrast; None takes fairseq's flag, or the default for the depth.

    Returns:
        The configuration, and what had to be assumed.

    Raises:
        UsageError: If a flag contradicts the tensors, or is missing and has no default.
    """
    sizes, settings = checkpoint.sizes, checkpoint.settings
    _check_flags(checkpoint)
    heads, notes = settings.get("encoder_attention_heads"), []
    if heads is None:  # which no tensor tells
        heads = max(1, sizes["hidden_size"] // _HEAD_SIZE)
        notes = [f"encoder_attention_heads is not stored: {heads} of {_HEAD_SIZE} values are assumed."]
    if not _is_whole(heads) or heads < 1 or sizes["hidden_size"] % heads:
        raise UsageError(
            f"{heads!r} attention heads do not divide the {sizes['hidden_size']} values of a vector."
        )
    config = InfoXLMConfig(
        **sizes,
        num_attention_heads=heads,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        xlco_layer=_contrast_layer(sizes["num_hidden_layers"], settings, xlco_layer),
        xlco_use_projection=checkpoint.fast.projection is not None,
        **_numbers(settings),
    )
    return config, notes


def _check_flags(checkpoint: Checkpoint) -> None:
    """Refuse flags that contradict the tensors, and activations that XLM-R's head does not have."""
    settings = checkpoint.settings
    for flag, (name, less) in _SIZES.items():
        size = checkpoint.sizes[name] - less
        if settings.get(flag) not in (None, size):
            raise UsageError(f"its flags say {flag} {settings[flag]!r}, its tensors {size}.")
    if settings.get("activation_fn", "gelu") != "gelu":
        raise UsageError(
            f"activation_fn is {settings['activation_fn']!r}; only gelu, XLM-R's, can be converted."
        )
    if settings.get("use_proj") is True and checkpoint.fast.projection is None:
        raise UsageError("its flags say use_proj, but it has no proj_matrix_fast; it is incomplete.")


def _contrast_layer(depth: int, settings: Mapping[str, Any], asked: int | None) -> Any:
    known = (asked, settings.get("xlco_layer"), XLCO_LAYER_BY_DEPTH.get(depth))
    layer: Any = next((value for value in known if value is not None), None)
    if not _is_whole(layer) or not 1 <= layer <= depth:
        raise UsageError(f"the layer of the contrast is {layer!r}; give --xlco_layer, from 1 to {depth}.")
    return layer


def _numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    fields = {}
    for flag, name in _NUMBERS.items():
        value = settings.get(flag)
        if value is None:
            continue
        try:
            if not isinstance(value, float) and not _is_whole(value):
                raise ValueError("must be a number")
            check_number(name, value)
        except ValueError as error:
            raise UsageError(f"its flag {flag} is {value!r}; it {error}") from error
        fields[name] = float(value)
    return fields


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
