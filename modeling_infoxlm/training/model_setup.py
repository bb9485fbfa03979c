"""The model and tokenizer of a run: loaded from a checkpoint, or built from scratch around a tokenizer."""

import logging
from typing import Any, cast

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed

from modeling_infoxlm.backbones import max_sequence_length
from modeling_infoxlm.configuration_infoxlm import LAST_LAYER, InfoXLMConfig
from modeling_infoxlm.hub.loading import check_encoder, load, load_whole_model
from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.training.arguments import ContrastArguments, ModelArguments

logger = logging.getLogger(__name__)


def load_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the arguments name.

    Raises:
        UsageError: If none is named, it cannot be loaded, or is not a fast one with `<s>`, `</s>`,
            `<pad>`, `<mask>`.
    """
    name = arguments.tokenizer_name or arguments.model_name_or_path
    if name is None:
        raise UsageError(
            "no tokenizer: give --model_name_or_path, or --tokenizer_name for a model from scratch."
        )
    tokenizer: PreTrainedTokenizerBase = load(
        AutoTokenizer.from_pretrained, name, part="tokenizer", **_hub_options(arguments)
    )
    missing = [
        token
        for token in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
        if getattr(tokenizer, token) is None
    ]
    if missing or not tokenizer.is_fast:
        raise UsageError(
            f"tokenizer {name} must be a fast one in XLM-R's layout; "
            f"missing: {', '.join(missing) or 'a fast version'}. `infoxlm train-tokenizer` makes one."
        )
    return tokenizer


def build_model(
    arguments: ModelArguments, contrast: ContrastArguments, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> InfoXLMForPreTraining:
    """Load the model in fp32, or build it from scratch with weights that depend on the seed alone.

    Raises:
        UsageError: If the model cannot be loaded, or the tokenizer's vocabulary is larger than its table.
    """
    set_seed(seed)  # what the checkpoint lacks (the projection, or all) is drawn now
    # Checkpoints of XLM-R come with a dropout of 0.1, which would stay on while training.
    overrides = {**contrast.config_overrides(), **arguments.dropout_overrides()}
    if arguments.model_name_or_path is None:
        try:
            model = InfoXLMForPreTraining(_scratch_config(arguments, tokenizer, overrides))
        except ValueError as error:  # a layer that it does not have, a width that its heads do not divide
            raise UsageError(str(error)) from error
    else:
        # Checkpoints may be stored in half precision; the masters of training are fp32.
        model, report = load_whole_model(
            InfoXLMForPreTraining,
            arguments.model_name_or_path,
            dtype=torch.float32,
            **overrides,
            **_hub_options(arguments),
        )
        check_encoder(arguments.model_name_or_path, model, sorted(report["missing_keys"]))
    if len(tokenizer) > model.config.vocab_size:
        raise UsageError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model's table {model.config.vocab_size:,}; "
            "use the tokenizer that belongs to the model."
        )
    model.config.xlco_layer = model.xlco_layer  # what a checkpoint says is a number of its own layers
    return model


def check_lengths(model: InfoXLMForPreTraining, max_length: int) -> None:
    """Refuse data whose sequences are longer than the model's positions.

    Raises:
        UsageError: With both lengths.
    """
    if max_length > max_sequence_length(model.config):
        raise UsageError(
            f"the data has sequences of up to {max_length} tokens, "
            f"the model positions for {max_sequence_length(model.config)}; "
            f"prepare it with --max_seq_length {max_sequence_length(model.config)}."
        )


def evaluation_vectors(
    model: InfoXLMForPreTraining, eval_layer: int | None, eval_pooling: str | None
) -> tuple[int, str]:
    """Layer and pooling of held-out retrieval: those asked for, else what `sentence_vectors` takes by itself.

    Raises:
        UsageError: If the model has no such layer.
    """
    depth = model.config.num_hidden_layers
    if eval_layer is not None and eval_layer > depth:
        raise UsageError(
            f"eval_layer is {eval_layer} but the model has {depth} layers; "
            f"give one from 0 (embeddings) to {depth}, or {LAST_LAYER} for the last."
        )
    layer = {None: model.xlco_layer, LAST_LAYER: depth}.get(eval_layer, eval_layer)
    return cast(int, layer), eval_pooling or model.config.xlco_pooling


def _scratch_config(
    arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, overrides: dict[str, Any]
) -> InfoXLMConfig:
    """XLM-R base, or `config_name`, with the shapes given, around the tokenizer."""
    shape = arguments.shape_overrides()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "pad_token_id", "eos_token_id")}
    fields = {**shape, **overrides, **ids, "vocab_size": len(tokenizer)}
    if arguments.config_name is not None:
        options = {**fields, **_hub_options(arguments)}
        return load(InfoXLMConfig.from_pretrained, arguments.config_name, part="config", **options)
    return InfoXLMConfig(**fields)


def _hub_options(arguments: ModelArguments) -> dict[str, Any]:
    return {"cache_dir": arguments.cache_dir, "revision": arguments.model_revision, "token": arguments.token}
