"""InfoXLM models: XLM-R with a packed pass, sentence vectors and the pre-training objectives.

Parameter names are XLM-R's: every XLM-R and InfoXLM checkpoint loads into each class, and every checkpoint
of these classes is XLM-R plus its head. This file travels to Hub repositories with custom code: it imports
torch, transformers and its flat siblings alone.

Shapes: B sequences, L padded length, T packed tokens, M masked tokens, Q queued keys, D hidden, V vocabulary.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
    XLMRobertaPreTrainedModel,
)
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLMHead

from .backbones import backbone_of
from .configuration_infoxlm import InfoXLMConfig
from .objectives import IGNORE_INDEX, OBJECTIVES, LossOutput, Objective
from .packed import encode, pool, sentence_request


class InfoXLMPreTrainedModel(XLMRobertaPreTrainedModel):
    """Base of all InfoXLM models: weights initialised as XLM-R's, parameter names are XLM-R's."""

    config: InfoXLMConfig
    config_class = InfoXLMConfig
    # What a checkpoint may have and a class has no use for, and what begins anew where a checkpoint has none.
    _keys_to_ignore_on_load_unexpected = [r"pooler\.", r"^lm_head\.", r"^objectives\."]
    _keys_to_ignore_on_load_missing = [r"^objectives\."]


class InfoXLMModel(XLMRobertaModel, InfoXLMPreTrainedModel):
    """InfoXLM encoder (arXiv 2007.07834): XLM-R's, with sentence vectors of any layer.

    It has no pooler by default: no InfoXLM objective trains one, so it would be random.

    Args:
        config: Configuration.
        add_pooling_layer: Add XLM-R's pooler, for checkpoints that have a trained one.
    """

    config: InfoXLMConfig
    config_class = InfoXLMConfig

    def __init__(self, config: InfoXLMConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config, add_pooling_layer)

    def sentence_vectors(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        layer: int | None = None,
        pooling: str | None = None,
        *,
        token_type_ids: Tensor | None = None,
        special_tokens_mask: Tensor | None = None,
    ) -> Tensor:
        """Sentence vectors of any layer, not normalised; runs no layer above it and no padding.

        The paper's retrieval (Tatoeba) takes layer 7 of the base model and the mean.

        Args:
            input_ids: Tokens, (B, L).
            attention_mask: 1 for tokens, 0 for padding, (B, L); None for no padding.
            layer: 0 is the embedding output; None is the layer of the contrast,
                `config.resolved_xlco_layer()`.
            pooling: `"mean"` over all tokens, `<s>` and `</s>` included, or `"cls"` for the vector of `<s>`;
                None is `config.xlco_pooling`.
            token_type_ids: Not used: XLM-R has one type. Accepted, as some tokenizers give it.
            special_tokens_mask: Not used: `<s>` and `</s>` are part of the mean.

        Returns:
            (B, D), fp32 for mean pooling.

        Raises:
            ValueError: If the layer or the pooling does not exist, or a sentence has no token.
        """
        layer = self.config.resolved_xlco_layer() if layer is None else layer
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        lengths = mask.sum(dim=1).tolist()
        return pooled_vectors(
            self, input_ids[mask.bool()], lengths, layer, pooling or self.config.xlco_pooling
        )


def pooled_vectors(
    encoder: nn.Module, input_ids: Tensor, lengths: list[int], layer: int, pooling: str
) -> Tensor:
    """Sentence vectors (B, D) of packed sequences: tokens (T,) and B lengths.

    See `InfoXLMModel.sentence_vectors`.
    """
    (rows,) = encode(encoder, [sentence_request(input_ids, lengths, layer, pooling)])
    return pool(rows, lengths, pooling)


class InfoXLMForPreTraining(InfoXLMPreTrainedModel):
    """Encoder, language model head and objectives: one forward pass computes every loss of a joint batch.

    It has every objective that is registered when it is made. The momentum encoder and the queue are no part
    of it; whoever trains holds them and adds `keys` and `negatives` to the part of the contrast.

    Args:
        config: Configuration; its `xlco_*` fields define the contrast.

    Raises:
        ValueError: If `config.xlco_layer` or another field of the contrast is out of range.
    """

    config: InfoXLMConfig
    config_class = InfoXLMConfig
    _tied_weights_keys = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def __init__(self, config: InfoXLMConfig) -> None:
        super().__init__(config)
        self.xlco_layer = config.resolved_xlco_layer()
        self.roberta = InfoXLMModel(config)
        self.lm_head = XLMRobertaLMHead(config)
        # One of each class, under the first of its names.
        first_names = {kind: name for name, kind in reversed(OBJECTIVES.items())}
        self.objectives = nn.ModuleDict({name: kind(config) for kind, name in first_names.items()})
        self._places = {name: first_names[kind] for name, kind in OBJECTIVES.items()}
        self.post_init()

    def objective(self, name: str) -> Objective:
        """The objective that a name stands for."""
        module = self.objectives[self._places[name]]
        assert isinstance(module, Objective)
        return module

    def get_output_embeddings(self) -> nn.Module:
        """The output table, tied to the word embeddings."""
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output table."""
        self.lm_head.decoder = new_embeddings

    def transform(self, rows: Tensor) -> Tensor:
        """Features that the output table is applied to, (M, D) to (M, D)."""
        return backbone_of(self.config).features(self, rows)

    def output_table(self) -> tuple[Tensor, Tensor]:
        """Weight (V, D), tied to the word embeddings, and bias (V,)."""
        return self.lm_head.decoder.weight, self.lm_head.decoder.bias

    def sentence_vectors(self, *args: Any, **kwargs: Any) -> Tensor:
        """See `InfoXLMModel.sentence_vectors`; the projection of the contrast is not applied."""
        return self.roberta.sentence_vectors(*args, **kwargs)

    def forward(
        self, batch: Mapping[str, Any], streams: Mapping[str, str] | None = None
    ) -> dict[str, LossOutput]:
        """Compute the losses of all objectives in the batch by one pass over its packed rows.

        Args:
            batch: Parts by the name of their stream, as `PretrainingCollator` makes them; that of `xlco` with
                `keys`, see `CrossLingualContrast`. Some may be absent.
            streams: Objectives to compute, each with the name of the part that it reads; None for those whose
                own name is in the batch.

        Returns:
            For each objective with a part in the batch the sum of its losses and their number;
            `combine_losses` makes one loss of them.

        Raises:
            ValueError: If the batch has a part for no objective.
        """
        parts = self._parts(batch, streams)
        requests = {name: self.objective(name).requests(part) for name, part in parts.items()}
        sparse = self._is_tied() and any(self.objective(name).uses_table for name in parts)
        encoded = iter(encode(self.roberta, sum(requests.values(), []), sparse_gradient=sparse))
        rows = {name: [next(encoded) for _ in own] for name, own in requests.items()}
        losses: dict[str, LossOutput] = {}
        for place in dict.fromkeys(self._places[name] for name in parts):
            own = {name: part for name, part in parts.items() if self._places[name] == place}
            losses |= self.objectives[place](own, {name: rows[name] for name in own}, self)
        return losses

    def _parts(self, batch: Mapping[str, Any], streams: Mapping[str, str] | None) -> dict[str, Any]:
        """The part of each objective to compute, in the order of the register."""
        streams = {name: name for name in OBJECTIVES} if streams is None else streams
        parts = {name: batch[streams[name]] for name in self._places if streams.get(name) in batch}
        if not parts:
            raise ValueError(f"the batch has {sorted(batch)}; expected at least one of {list(self._places)}.")
        return parts

    def flops(self, batch: Mapping[str, Any], streams: Mapping[str, str] | None = None) -> float:
        """Useful floating point operations of a step on a batch; see `forward` and `Objective.flops`."""
        return sum(self.objective(name).flops(part) for name, part in self._parts(batch, streams).items())

    @torch.no_grad()
    def prepare(self, batch: dict[str, Any], streams: Mapping[str, str]) -> None:
        """Add to a batch, in place, what objectives make themselves before it is counted and cut."""
        parts = self._parts(batch, streams)
        preparing = [name for name in parts if type(self.objective(name)).prepare is not Objective.prepare]
        if not preparing:
            return
        was_training = self.training
        self.eval()
        for name in preparing:
            batch[streams[name]] = {**batch[streams[name]], **self.objective(name).prepare(parts[name], self)}
        self.train(was_training)

    def _is_tied(self) -> bool:
        """Whether the head's table is the word embeddings, so that both make a gradient of one tensor."""
        return self.lm_head.decoder.weight is self.roberta.embeddings.word_embeddings.weight

    def freeze_unused(self, objectives: Collection[str]) -> list[str]:
        """Switch gradients off for parameters that no given objective trains; return their names.

        So DDP finds a gradient for each parameter it waits for,
        and weight decay does not shrink what is not trained.
        """
        used = [self.objective(name) for name in objectives]
        unused = [*self.roberta.encoder.layer[max(objective.layer for objective in used) :]]
        unused += [module for module in self.objectives.values() if module not in used]
        if not any(objective.uses_table for objective in used):
            unused += [self.lm_head.dense, self.lm_head.layer_norm]
            self.lm_head.bias.requires_grad_(False)
        for module in unused:
            module.requires_grad_(False)
        return [name for name, parameter in self.named_parameters() if not parameter.requires_grad]


def _over_whole_batch(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A head's forward pass whose loss is its share of the mean over all items of a step.

    The Trainer tells `num_items_in_batch`, the labels of all accumulated micro-batches and ranks, to whatever
    takes it, and then adds the losses up. transformers' own heads take and ignore it: their loss, and
    gradient, are multiplied by the number of micro-batches.
    """

    @functools.wraps(forward)
    def over_whole_batch(self: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        labels = kwargs.get("labels")
        if labels is None or num_items_in_batch is None:
            return forward(self, *args, **kwargs)
        counted = labels != IGNORE_INDEX
        # A micro-batch without an item has no mean, and no share: any label will do.
        kwargs["labels"] = torch.where(counted.any(), labels, torch.zeros_like(labels))
        share = counted.sum() / num_items_in_batch
        output = forward(self, *args, **kwargs)
        if isinstance(output, tuple):
            return (output[0] * share, *output[1:])
        output.loss = output.loss * share
        return output

    return over_whole_batch


class InfoXLMForMaskedLM(XLMRobertaForMaskedLM, InfoXLMPreTrainedModel):
    """InfoXLM with XLM-R's language model head, for fill-mask."""

    config: InfoXLMConfig
    config_class = InfoXLMConfig

    forward = _over_whole_batch(XLMRobertaForMaskedLM.forward)


class InfoXLMForSequenceClassification(XLMRobertaForSequenceClassification, InfoXLMPreTrainedModel):
    """InfoXLM with XLM-R's classification head on `<s>`, for XNLI."""

    config: InfoXLMConfig
    config_class = InfoXLMConfig

    forward = _over_whole_batch(XLMRobertaForSequenceClassification.forward)


class InfoXLMForQuestionAnswering(XLMRobertaForQuestionAnswering, InfoXLMPreTrainedModel):
    """InfoXLM with XLM-R's span head, for MLQA."""

    config: InfoXLMConfig
    config_class = InfoXLMConfig


class InfoXLMForTokenClassification(XLMRobertaForTokenClassification, InfoXLMPreTrainedModel):
    """InfoXLM with XLM-R's token classification head, for tagging."""

    config: InfoXLMConfig
    config_class = InfoXLMConfig

    forward = _over_whole_batch(XLMRobertaForTokenClassification.forward)


class InfoXLMForMultipleChoice(XLMRobertaForMultipleChoice, InfoXLMPreTrainedModel):
    """InfoXLM with XLM-R's multiple choice head, on the pooler, which is trained with it."""

    config: InfoXLMConfig
    config_class = InfoXLMConfig

    forward = _over_whole_batch(XLMRobertaForMultipleChoice.forward)


__all__ = [
    "InfoXLMForMaskedLM",
    "InfoXLMForMultipleChoice",
    "InfoXLMForPreTraining",
    "InfoXLMForQuestionAnswering",
    "InfoXLMForSequenceClassification",
    "InfoXLMForTokenClassification",
    "InfoXLMModel",
    "InfoXLMPreTrainedModel",
]
