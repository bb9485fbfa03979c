"""Configuration of InfoXLM models: XLM-R's architecture plus what defines the cross-lingual contrast."""

import sys
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import XLMRobertaConfig

# Every class that a folder with custom code must offer to the auto classes; `save_pretrained` keeps this map.
AUTO_MAP = {
    "AutoConfig": "configuration_infoxlm.InfoXLMConfig",
    "AutoModel": "modeling_infoxlm.InfoXLMModel",
    "AutoModelForPreTraining": "modeling_infoxlm.InfoXLMForPreTraining",
    "AutoModelForMaskedLM": "modeling_infoxlm.InfoXLMForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_infoxlm.InfoXLMForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_infoxlm.InfoXLMForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_infoxlm.InfoXLMForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_infoxlm.InfoXLMForMultipleChoice",
}

# The layer whose sentence vector is contrasted, by number of
# layers: released command (12 layers: 8), paper (24: 12).
XLCO_LAYER_BY_DEPTH = {12: 8, 24: 12}
LAST_LAYER = -1


@strict
class InfoXLMConfig(XLMRobertaConfig):
    r"""Configuration of an InfoXLM encoder (arXiv 2007.07834): XLM-R's, and what defines the contrast.

    The defaults are the published base model's. A folder of plain XLM-R (`model_type: xlm-roberta`, as
    `microsoft/infoxlm-base` is) loads as an InfoXLM configuration.

    Args:
        xlco_layer: Layer whose sentence vector is contrasted, counted from 1: `hidden_states[xlco_layer]`;
            -1 is the last. None means 8 for 12 layers (released command) and 12 for 24 layers (paper).
        xlco_pooling: `"cls"` takes the vector of `<s>` (paper),
            `"mean"` the mean over all tokens of the sentence.
        xlco_use_projection: Project the sentence vector by one
            bias-free matrix before the contrast (paper, section 4).
        xlco_similarity: `"dot"` product (released code) or `"cosine"`.
        xlco_temperature: Softmax temperature; 0.25 is the released code's.
        xlco_in_batch_negatives: Also contrast with the other keys
            of the batch; the released code uses the queue alone.
        xlco_symmetric: Average with the contrast of each key against the queries of the batch.

    Example:
        >>> InfoXLMConfig(xlco_layer=8).hidden_size
        768
    """

    model_type = "infoxlm"

    vocab_size: int = 250002
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    tokenizer_class: str | None = "XLMRobertaTokenizer"  # of a folder that does not say so itself
    xlco_layer: int | None = None
    xlco_pooling: str = "cls"
    xlco_use_projection: bool = True
    xlco_similarity: str = "dot"
    xlco_temperature: float | int = 0.25
    xlco_in_batch_negatives: bool = False
    xlco_symmetric: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Offer every class of this package to the auto classes of a folder with custom code."""
        super().__post_init__(**kwargs)
        self.auto_map = dict(AUTO_MAP)

    def to_dict(self) -> dict[str, Any]:
        """All fields; written, shown, and asked for by what adapts a model to its type.

        A model of pre-training is named as its masked LM too, which its folder also is: SparseEncoder takes
        the vocabulary's scores where it finds that name, and else puts random weights on the encoder.
        """
        fields: dict[str, Any] = super().to_dict()
        if fields.get("architectures") == ["InfoXLMForPreTraining"]:
            fields["architectures"] = ["InfoXLMForPreTraining", "InfoXLMForMaskedLM"]
        _offer_adapter_targets(self.model_type)
        return fields

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a configuration; one of plain XLM-R is taken as InfoXLM's, which has the same architecture.

        Without this the loaded configuration would keep `model_type == "xlm-roberta"` and warn about it.
        """
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config.get("model_type") == "xlm-roberta":
            config = {**config, "model_type": cls.model_type}
        return config, kwargs

    def resolved_xlco_layer(self) -> int:
        """Return the layer of the contrast, counted from 1, with the default for 12 and 24 layers filled in.

        Not checked on construction: `from_pretrained(path, xlco_layer=2)`
        sets its overrides after the checks.

        Raises:
            ValueError: If none is given and the depth has no published default, or it does not exist.
        """
        layer = (
            XLCO_LAYER_BY_DEPTH.get(self.num_hidden_layers) if self.xlco_layer is None else self.xlco_layer
        )
        if layer is None:
            raise ValueError(
                f"xlco_layer has no default for a model of {self.num_hidden_layers} layers; "
                f"give one from 1 to {self.num_hidden_layers} "
                "(about two thirds of the depth: the paper takes 8 of 12)."
            )
        if layer != LAST_LAYER and not 1 <= layer <= self.num_hidden_layers:
            raise ValueError(
                f"xlco_layer is {layer} but the model has {self.num_hidden_layers} layers; "
                f"give a layer from 1 to {self.num_hidden_layers}, or {LAST_LAYER} for the last."
            )
        return self.num_hidden_layers if layer == LAST_LAYER else layer


def _offer_adapter_targets(model_type: str) -> None:
    """Name to peft, if that is in use, XLM-R's default targets of adapters as InfoXLM's.

    peft has tables by model type, into which it looks with the dictionary of a configuration. It need not be
    imported before this file, nor at all.
    """
    constants = sys.modules.get("peft.utils.constants")
    for table in [] if constants is None else vars(constants).values():
        if isinstance(table, dict) and XLMRobertaConfig.model_type in table:
            table.setdefault(model_type, table[XLMRobertaConfig.model_type])


__all__ = ["InfoXLMConfig"]
