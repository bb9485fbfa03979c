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
from .objectives import IGNORE_INDEX, CrossLingualContrast, LossOutput, MaskedLM
from .packed import EncodeRequest, encode, first_rows, sequence_means

POOLINGS = ("cls", "mean")
MASKED_OBJECTIVES = ("mlm", "tlm")
OBJECTIVES = (*MASKED_OBJECTIVES, "xlco")


class InfoXLMPreTrainedModel(XLMRobertaPreTrainedModel):
    """Base of all InfoXLM models: weights initialised as XLM-R's, parameter names are XLM-R's."""

    config: InfoXLMConfig
    config_class = InfoXLMConfig
    # What a checkpoint may have and a class has no use for.
    _keys_to_ignore_on_load_unexpected = [r"pooler\."]


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
    (rows,) = encode(encoder, [_sentence_request(input_ids, lengths, layer, pooling)])
    return _pool(rows, lengths, pooling)


def _sentence_request(input_ids: Tensor, lengths: list[int], layer: int, pooling: str) -> EncodeRequest:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {POOLINGS}, found {pooling!r}.")
    rows = first_rows(lengths).to(input_ids.device, non_blocking=True) if pooling == "cls" else None
    return EncodeRequest(input_ids, lengths, layer, rows)


def _pool(rows: Tensor, lengths: list[int], pooling: str) -> Tensor:
    return rows if pooling == "cls" else sequence_means(rows, lengths)


class InfoXLMForPreTraining(InfoXLMPreTrainedModel):
    """Encoder, language model head and objectives: one forward pass computes every loss of a joint batch.

    The momentum encoder and the queue are no part of it;
    whoever trains holds them and gives `keys` and `negatives`.

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
        if config.xlco_pooling not in POOLINGS:
            raise ValueError(f"xlco_pooling must be one of {POOLINGS}, found {config.xlco_pooling!r}.")
        self.xlco_layer = config.resolved_xlco_layer()
        self.roberta = InfoXLMModel(config)
        self.lm_head = XLMRobertaLMHead(config)
        contrast = CrossLingualContrast(
            config.hidden_size,
            use_projection=config.xlco_use_projection,
            temperature=config.xlco_temperature,
            similarity=config.xlco_similarity,  # type: ignore[arg-type]  # checked by the objective
            in_batch_negatives=config.xlco_in_batch_negatives,
            symmetric=config.xlco_symmetric,
        )
        self.objectives = nn.ModuleDict({"masked_lm": MaskedLM(), "xlco": contrast})
        self.post_init()

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
        self, batch: Mapping[str, Any], keys: Tensor | None = None, negatives: Tensor | None = None
    ) -> dict[str, LossOutput]:
        """Compute the losses of all objectives in the batch by one pass over its packed rows.

        Args:
            batch: `mlm` and `tlm`: `input_ids` (T,), `lengths` (B numbers), `masked_rows` (M,), `labels`
                (M,); `xlco`: `query` with `input_ids` and `lengths`. Objectives may be absent.
                `PretrainingCollator` makes it.
            keys: Projected sentence vectors of the translations by
                the momentum encoder, (B, D); needed for `xlco`.
            negatives: Queued keys, (Q, D); None for none.

        Returns:
            For each objective in the batch (`mlm`, `tlm`, `xlco`) the sum of its losses and their number;
            `combine_losses` makes one loss of them.

        Raises:
            ValueError: If the batch has no known objective, or `xlco` without `keys`.
        """
        names = [name for name in OBJECTIVES if name in batch]
        if not names:
            raise ValueError(f"the batch has {sorted(batch)}; expected at least one of {list(OBJECTIVES)}.")
        masked = [name for name in names if name in MASKED_OBJECTIVES]
        requests = [self._request(name, batch[name]) for name in names]
        encoded = encode(self.roberta, requests, sparse_gradient=bool(masked) and self._is_tied())
        rows = dict(zip(names, encoded, strict=True))
        losses: dict[str, LossOutput] = {}
        if masked:
            labels = [batch[name]["labels"] for name in masked]
            outputs = self.objectives["masked_lm"]([rows[name] for name in masked], labels, self)
            losses.update(zip(masked, outputs, strict=True))
        if "xlco" in names:
            losses["xlco"] = self._contrast(rows["xlco"], batch["xlco"]["query"]["lengths"], keys, negatives)
        return losses

    def _is_tied(self) -> bool:
        """Whether the head's table is the word embeddings, so that both make a gradient of one tensor."""
        return self.lm_head.decoder.weight is self.roberta.embeddings.word_embeddings.weight

    def _request(self, name: str, part: Mapping[str, Any]) -> EncodeRequest:
        if name in MASKED_OBJECTIVES:
            last = self.config.num_hidden_layers
            return EncodeRequest(part["input_ids"], part["lengths"], last, part["masked_rows"])
        query = part["query"]
        return _sentence_request(
            query["input_ids"], query["lengths"], self.xlco_layer, self.config.xlco_pooling
        )

    def _contrast(
        self, rows: Tensor, lengths: list[int], keys: Tensor | None, negatives: Tensor | None
    ) -> LossOutput:
        if keys is None:
            raise ValueError(
                "the batch has an xlco part but no keys; encode its `key` side with a MomentumEncoder."
            )
        contrast: Any = self.objectives["xlco"]
        query = contrast.project(_pool(rows, lengths, self.config.xlco_pooling).to(rows.dtype))
        output: LossOutput = contrast(query, keys, keys[:0] if negatives is None else negatives)
        return output

    def freeze_unused(self, objectives: Collection[str]) -> list[str]:
        """Switch gradients off for parameters that no given objective trains; return their names.

        So DDP finds a gradient for each parameter it waits for,
        and weight decay does not shrink what is not trained.
        """
        masked = any(name in objectives for name in MASKED_OBJECTIVES)
        unused: list[nn.Module] = []
        if not masked:
            unused += [
                self.lm_head.dense,
                self.lm_head.layer_norm,
                *self.roberta.encoder.layer[self.xlco_layer :],
            ]
            self.lm_head.bias.requires_grad_(False)
        if "xlco" not in objectives:
            unused.append(self.objectives["xlco"])
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
