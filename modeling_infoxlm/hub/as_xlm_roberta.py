"""Plain XLM-R folders: the release format that loads everywhere without custom code."""

from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
)

from modeling_infoxlm.configuration_infoxlm import InfoXLMConfig
from modeling_infoxlm.modeling_infoxlm import (
    InfoXLMForMaskedLM,
    InfoXLMForMultipleChoice,
    InfoXLMForPreTraining,
    InfoXLMForQuestionAnswering,
    InfoXLMForSequenceClassification,
    InfoXLMForTokenClassification,
    InfoXLMModel,
    InfoXLMPreTrainedModel,
)
from modeling_infoxlm.runs.process import UsageError

MAX_SHARD_SIZE = "5GB"

# What each of our classes becomes: the same parameters by the same names, less what only our objectives use.
PLAIN_CLASSES: dict[type[InfoXLMPreTrainedModel], type[PreTrainedModel]] = {
    InfoXLMModel: XLMRobertaModel,
    InfoXLMForPreTraining: XLMRobertaForMaskedLM,
    InfoXLMForMaskedLM: XLMRobertaForMaskedLM,
    InfoXLMForSequenceClassification: XLMRobertaForSequenceClassification,
    InfoXLMForTokenClassification: XLMRobertaForTokenClassification,
    InfoXLMForQuestionAnswering: XLMRobertaForQuestionAnswering,
    InfoXLMForMultipleChoice: XLMRobertaForMultipleChoice,
}

# Fields that the saving model writes anew.
_WRITTEN_FIELDS = frozenset({"model_type", "auto_map", "architectures", "transformers_version", "dtype"})
_LABEL_FIELDS = frozenset({"id2label", "label2id", "problem_type"})


def save_as_xlm_roberta(
    model: InfoXLMPreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> PreTrainedModel:
    """Write a model as plain `xlm-roberta`, safetensors only.

    Encoder and head keep XLM-R's names, and a fine-tuned model its labels. The projection of the contrast is
    left out, as in the released InfoXLM checkpoints; sentence vectors do not use it. An encoder without a
    head has no pooler.

    Args:
        model: Trained model, of any class of this package; not changed.
        folder: Where to write; made if missing.
        tokenizer: Written beside the weights when given.
        dtype: Type of the stored weights; None keeps the model's.
        max_shard_size: Weights that take more are stored in several files, each smaller than this.

    Returns:
        The model that was written.

    Raises:
        ValueError: If the model is of no class of this package.
        UsageError: If a weight cannot be held by the type.
    """
    plain = plain_model(model)
    return write_model(
        plain, folder, tokenizer=tokenizer, dtype=dtype or model.dtype, max_shard_size=max_shard_size
    )


def plain_model(model: InfoXLMPreTrainedModel) -> PreTrainedModel:
    """A copy in transformers' own class, in fp32 on the CPU.

    Raises:
        ValueError: If the model is of no class of this package.
    """
    if type(model) is InfoXLMModel:
        return plain_encoder(model)
    if type(model) not in PLAIN_CLASSES:
        known = ", ".join(our_class.__name__ for our_class in PLAIN_CLASSES)
        raise ValueError(f"cannot make a {type(model).__name__} plain XLM-R; expected one of {known}.")
    config = _plain_config(model.config, without=_WRITTEN_FIELDS)
    # Weights are drawn and then replaced; the run that saves must not lose its random numbers to that.
    with torch.random.fork_rng(devices=[]):
        plain = PLAIN_CLASSES[type(model)](config)
    return with_weights_of(model, plain)


def plain_encoder(model: InfoXLMPreTrainedModel, num_layers: int | None = None) -> XLMRobertaModel:
    """A copy of the encoder alone in transformers' own class, with its first layers only.

    Args:
        model: Encoder, with or without a head, which is left out, as is a pooler.
        num_layers: How many layers are kept; None keeps all.

    Raises:
        UsageError: If the model has no such layer.
    """
    config = _plain_config(model.config, without=_WRITTEN_FIELDS | _LABEL_FIELDS)
    if num_layers is not None:
        if not 0 <= num_layers <= config.num_hidden_layers:
            raise UsageError(
                f"layer is {num_layers} but the model has {config.num_hidden_layers} layers; "
                f"give one from 0 (embeddings) to {config.num_hidden_layers}."
            )
        config.num_hidden_layers = num_layers
    with torch.random.fork_rng(devices=[]):
        plain = XLMRobertaModel(config, add_pooling_layer=False)
    with_weights_of(model.base_model, plain)
    return plain


def with_weights_of(model: torch.nn.Module, released: PreTrainedModel) -> PreTrainedModel:
    """Give a model the weights that another has by the same names; the other may have more."""
    weights = model.state_dict()
    released.load_state_dict({name: weights[name] for name in released.state_dict()})
    return released.eval()


def write_model(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype,
    max_shard_size: str,
) -> PreTrainedModel:
    """Cast a model that is released, and write it; see `save_as_xlm_roberta`."""
    torch.nn.Module.to(model, dtype=dtype)
    _check_finite(model)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return model


def _check_finite(model: PreTrainedModel) -> None:
    """Refuse weights that are no numbers, or became none: float16 ends at 65,504.

    Raises:
        UsageError: With the first such parameter.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UsageError(
                f"{name} holds values that are not finite in {str(parameter.dtype).removeprefix('torch.')}; "
                "use a checkpoint from before training diverged, or the type that it was trained in."
            )


def _plain_config(config: InfoXLMConfig, *, without: frozenset[str]) -> XLMRobertaConfig:
    """The fields that XLM-R knows; `xlco_*` and the map of custom code stay behind."""
    fields = {
        name: value
        for name, value in config.to_dict().items()
        if name not in without and not name.startswith("xlco_")
    }
    return XLMRobertaConfig(**fields)
