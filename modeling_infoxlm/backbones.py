"""What the packed pass has to know of an architecture, so that it runs the library's own layers.

Shapes: T tokens of all sequences, M masked tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from transformers.activations import gelu

from .packed_attention import PackedAttention, install, other_rows, take_rows

LayerOptions = Callable[[Any, int], dict[str, Any]]
"""Further arguments of a layer, given the layer and the number of rows that it runs over."""


def _no_options(layer: Any, num_rows: int) -> dict[str, Any]:
    return {}


def _embed_learnt(model: Any, positions: Tensor, words: Mapping[str, Tensor]) -> tuple[Tensor, LayerOptions]:
    # One for all tokens: of each, the gradients would be added to the same row of the table one by one.
    token_type = positions.new_zeros(1, 1)
    return model.embeddings(**words, position_ids=positions, token_type_ids=token_type), _no_options


@dataclass(frozen=True)
class Backbone:
    """An architecture whose layers run over packed rows.

    Attributes:
        layers: Where the encoder, without a head, has its layers.
        attention: Where a layer has the module that calls transformers' attention interface.
        word_table: Where the encoder has its word embeddings.
        features: What the output table of its masked language model, `get_output_embeddings()`, is applied
            to, of masked rows: model and (M, D) to (M, D).
        attention_dropout: Field of the configuration with the probability that a weight is dropped.
        first_position: Position of the first token of a sequence.
        embed: Embeddings (1, T, D), given the encoder, positions (1, T) that start anew in each sequence, and
            `input_ids` (1, T) or `inputs_embeds` (1, T, D); and what else its layers are given.
        final_norm: Where the encoder has a norm after its last layer, if it has one.
        selects_rows: Whether a layer can go on with selected rows alone. Its attention module has `key` and
            `value` then, and nothing but attention looks at other rows.
    """

    layers: str
    attention: str
    word_table: str
    features: Callable[[Any, Tensor], Tensor]
    attention_dropout: str = "attention_probs_dropout_prob"
    first_position: Callable[[Any], int] = lambda config: 0
    embed: Callable[[Any, Tensor, Mapping[str, Tensor]], tuple[Tensor, LayerOptions]] = _embed_learnt
    final_norm: str | None = None
    selects_rows: bool = False

    def max_length(self, config: Any) -> int:
        """Longest sequence in tokens that the positions hold."""
        return int(config.max_position_embeddings - self.first_position(config))

    def prepare(self, model: Any) -> list[Any]:
        """The layers of an encoder, ready for packed rows."""
        layers = list(attrgetter(self.layers)(model))
        for layer in layers:
            install(attrgetter(self.attention)(layer))
        return layers

    def table_of(self, model: Any) -> nn.Module:
        """The word embeddings of an encoder."""
        table: nn.Module = attrgetter(self.word_table)(model)
        return table

    def drops_attention(self, model: Any) -> bool:
        """Whether an encoder drops weights of attention as it stands."""
        return bool(model.training and getattr(model.config, self.attention_dropout) > 0)

    def finish(self, model: Any, hidden: Tensor) -> Tensor:
        """What comes after the last layer, (T, D) to (T, D)."""
        finished: Tensor = attrgetter(self.final_norm)(model)(hidden) if self.final_norm else hidden
        return finished


def run_layer(layer: Any, hidden: Tensor, packed: PackedAttention, options: Mapping[str, Any]) -> Tensor:
    """One layer over rows (T, D), to all or to selected rows, called as a module.

    Hooks, recomputation, sharding and adapters see an ordinary call.
    """
    if packed.rows is None:
        output: Tensor = layer(hidden[None], packed=packed, **options)
        return output.squeeze(0)
    rest, order = other_rows(packed.rows, len(hidden))
    output = layer(
        take_rows(hidden, packed.rows)[None],
        packed=packed,
        packed_rest=take_rows(hidden, rest)[None],
        packed_order=order,
        **options,
    )
    return output.squeeze(0)


def _features_of_xlm_roberta(model: Any, rows: Tensor) -> Tensor:
    features: Tensor = model.lm_head.layer_norm(gelu(model.lm_head.dense(rows)))
    return features


XLM_ROBERTA = Backbone(
    layers="encoder.layer",
    attention="attention.self",
    word_table="embeddings.word_embeddings",
    features=_features_of_xlm_roberta,
    first_position=lambda config: config.pad_token_id + 1,
    selects_rows=True,
)
BERT = Backbone(
    layers="encoder.layer",
    attention="attention.self",
    word_table="embeddings.word_embeddings",
    features=lambda model, rows: model.cls.predictions.transform(rows),
    selects_rows=True,
)


def _embed_rotary(model: Any, positions: Tensor, words: Mapping[str, Tensor]) -> tuple[Tensor, LayerOptions]:
    embedded = model.embeddings(**words)
    rotations = {kind: model.rotary_emb(embedded, positions, kind) for kind in set(model.config.layer_types)}

    def options(layer: Any, num_rows: int) -> dict[str, Any]:
        cosines, sines = rotations[layer.attention_type]
        return {"position_embeddings": (cosines[:, :num_rows], sines[:, :num_rows])}

    return embedded, options


MODERN_BERT = Backbone(
    layers="layers",
    attention="attn",
    word_table="embeddings.tok_embeddings",
    features=lambda model, rows: model.head(rows),
    attention_dropout="attention_dropout",
    embed=_embed_rotary,
    final_norm="final_norm",
)

BACKBONES = {"bert": BERT, "infoxlm": XLM_ROBERTA, "modernbert": MODERN_BERT, "xlm-roberta": XLM_ROBERTA}
"""Of each `model_type`; another architecture is one more entry."""


def backbone_of(config: Any) -> Backbone:
    """The backbone of a model's configuration.

    Raises:
        ValueError: If there is none for its `model_type`.
    """
    if config.model_type not in BACKBONES:
        raise ValueError(
            f"no packed pass is known for model_type {config.model_type!r}, only for "
            f"{', '.join(BACKBONES)}; add an entry to modeling_infoxlm.backbones.BACKBONES."
        )
    return BACKBONES[config.model_type]


def max_sequence_length(config: Any) -> int:
    """Longest sequence in tokens that the model's positions hold."""
    return backbone_of(config).max_length(config)
