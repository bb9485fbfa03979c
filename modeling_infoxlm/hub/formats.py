"""What a trained model is released as: plain XLM-R, InfoXLM with its code, or a sentence-transformers folder.

`as_onnx.py` has the fourth format, which needs packages of its own.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, XLMRobertaConfig, XLMRobertaModel

from modeling_infoxlm import modeling_infoxlm
from modeling_infoxlm.backbones import max_sequence_length
from modeling_infoxlm.configuration_infoxlm import InfoXLMConfig
from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining, InfoXLMModel, InfoXLMPreTrainedModel
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import write_text

Pooling = Literal["cls", "mean"]
Model = TypeVar("Model", bound=PreTrainedModel)

MAX_SHARD_SIZE = "5GB"
DEFAULT_POOLING: Pooling = "mean"  # the paper's retrieval (Tatoeba), and held-out retrieval while training

# What each of our classes becomes: the same parameters by the same names, less what only our objectives use.
PLAIN_CLASSES: dict[type[InfoXLMPreTrainedModel], type[PreTrainedModel]] = {
    **{
        getattr(modeling_infoxlm, f"InfoXLM{name}"): getattr(transformers, f"XLMRoberta{name}")
        for name in (
            "Model ForMaskedLM ForSequenceClassification ForTokenClassification ForQuestionAnswering "
            "ForMultipleChoice"
        ).split()
    },
    InfoXLMForPreTraining: transformers.XLMRobertaForMaskedLM,
}

# Fields that the saving model writes anew.
_WRITTEN_FIELDS = ("model_type", "auto_map", "architectures", "transformers_version", "dtype")
_LABEL_FIELDS = ("id2label", "label2id", "problem_type")
_VECTOR_FIELDS = ("xlco_layer", "xlco_pooling")  # XLM-R keeps, and does not read, what it does not know
_POOLING_FLAGS: dict[Pooling, str] = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
_OTHER_POOLINGS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")


def save_as_xlm_roberta(
    model: InfoXLMPreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> PreTrainedModel:
    """Write a model as plain `xlm-roberta`, safetensors only: the format that loads everywhere.

    Encoder and head keep XLM-R's names, and a fine-tuned model its labels. The projection of the contrast is
    left out, as in the released InfoXLM checkpoints; sentence vectors do not use it. An encoder without a
    head has no pooler. Returns the model that was written.

    Args:
        model: Trained model, of any class of this package; not changed.
        folder: Where to write; made if missing.
        tokenizer: Written beside the weights when given.
        dtype: Type of the stored weights; None keeps the model's.
        max_shard_size: Weights that take more are stored in several files, each smaller than this.

    Raises:
        ValueError: If the model is of no class of this package.
        UsageError: If a weight cannot be held by the type.
    """
    return _write(plain_model(model), folder, tokenizer, dtype or model.dtype, max_shard_size)


def save_as_infoxlm(
    model: InfoXLMPreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> PreTrainedModel:
    """Write a model as `infoxlm`, with the code of the model files: to go on with the pre-training.

    The folder loads with this package, or without it by `trust_remote_code=True`: whichever head was saved,
    `auto_map` names a class for every auto class that InfoXLM has. transformers copies the file of the class
    and all that it imports from its folder. Arguments, return value and errors: see `save_as_xlm_roberta`.
    """
    released = _copy_of(model, lambda: type(model)(copy.deepcopy(model.config)))
    return _write(released, folder, tokenizer, dtype or model.dtype, max_shard_size)


def save_as_sentence_transformer(
    model: InfoXLMPreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    layer: int | None = None,
    pooling: Pooling = DEFAULT_POOLING,
    normalize: bool = False,
    dtype: torch.dtype | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> PreTrainedModel:
    """Write a folder that `SentenceTransformer(folder)` loads, whose vectors are `sentence_vectors`.

    The layers above the sentence layer, and every head, are left out: the folder is a plain XLM-R of `layer`
    layers, smaller and faster than the whole. Its few JSON files are written here, so that a release can be
    made without sentence-transformers, in the layout of its version 2, which every later version reads too.
    Returns the encoder that was written.

    Args:
        model: Trained model; not changed.
        folder: See `save_as_xlm_roberta`, as of `dtype` and `max_shard_size`.
        tokenizer: Written beside the weights.
        layer: Layer of the vectors, 0 is the embedding output. None is that of the contrast,
            `config.resolved_xlco_layer()`.
        pooling: `"mean"` over all tokens, `<s>` and `</s>` included, or `"cls"`, the vector of `<s>`.
        normalize: Add a module that scales each vector to length 1.
        dtype: Type of the stored weights.
        max_shard_size: Of one file of weights.

    Raises:
        UsageError: If there is no such layer or pooling, the depth has no default layer, or a weight cannot
            be held by the type.

    Example:
        >>> save_as_sentence_transformer(model, "st/", tokenizer=tokenizer, layer=8)
        >>> SentenceTransformer("st/").encode(["Guten Morgen!"])
    """
    if pooling not in _POOLING_FLAGS:
        raise UsageError(f"pooling must be one of {tuple(_POOLING_FLAGS)}, found {pooling!r}.")
    try:
        layer = model.config.resolved_xlco_layer() if layer is None else layer
    except ValueError as error:
        raise UsageError(f"the sentence layer is not known: {error} Give it by --layer.") from error
    encoder = plain_encoder(model, layer)
    _write(encoder, folder, tokenizer, dtype or model.dtype, max_shard_size)
    length = min(tokenizer.model_max_length, max_sequence_length(encoder.config))
    files = _sentence_transformer_files(encoder.config.hidden_size, length, pooling, normalize)
    for name, content in files.items():
        write_text(Path(folder, name), json.dumps(content, indent=2) + "\n")
    return encoder


def plain_model(model: InfoXLMPreTrainedModel) -> PreTrainedModel:
    """A copy in transformers' own class, in fp32 on the CPU; `ValueError` for no class of this package."""
    if type(model) is InfoXLMModel:
        return plain_encoder(model)
    if type(model) not in PLAIN_CLASSES:
        known = ", ".join(our_class.__name__ for our_class in PLAIN_CLASSES)
        raise ValueError(f"cannot make a {type(model).__name__} plain XLM-R; expected one of {known}.")
    config = _plain_config(model.config, without=_WRITTEN_FIELDS)
    return _copy_of(model, lambda: PLAIN_CLASSES[type(model)](config))


def plain_encoder(model: InfoXLMPreTrainedModel, num_layers: int | None = None) -> XLMRobertaModel:
    """A copy of the encoder alone in transformers' own class, with its first layers only.

    A head and a pooler are left out. `num_layers` are kept, all for None; `UsageError` if there are fewer.
    """
    cut = () if num_layers is None else _VECTOR_FIELDS  # its vectors are those of its last layer
    config = _plain_config(model.config, without=(*_WRITTEN_FIELDS, *_LABEL_FIELDS, *cut))
    if num_layers is not None:
        if not 0 <= num_layers <= config.num_hidden_layers:
            raise UsageError(
                f"layer is {num_layers} but the model has {config.num_hidden_layers} layers; "
                f"give one from 0 (embeddings) to {config.num_hidden_layers}."
            )
        config.num_hidden_layers = num_layers
    return _copy_of(model.base_model, lambda: XLMRobertaModel(config, add_pooling_layer=False))


def _plain_config(config: InfoXLMConfig, *, without: tuple[str, ...]) -> XLMRobertaConfig:
    """The fields that XLM-R knows, and of the contrast what says which sentence vectors it has trained."""
    fields = config.to_dict().items()
    stays = [name for name, _ in fields if name.startswith("xlco_") and name not in _VECTOR_FIELDS]
    return XLMRobertaConfig(**{name: value for name, value in fields if name not in (*without, *stays)})


def _copy_of(model: torch.nn.Module, make: Callable[[], Model]) -> Model:
    """A new model with the weights that another has by the same names; the other may have more."""
    # Weights are drawn and then replaced; the run that saves must not lose its random numbers to that.
    with torch.random.fork_rng(devices=[]):
        released = make()
    weights = model.state_dict()
    released.load_state_dict({name: weights[name] for name in released.state_dict()})
    return released.eval()


def _write(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype,
    max_shard_size: str,
) -> PreTrainedModel:
    """Cast a model that is released, and write it; refuses what is no number: float16 ends at 65,504."""
    torch.nn.Module.to(model, dtype=dtype)
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UsageError(
                f"{name} holds values that are not finite in {str(dtype).removeprefix('torch.')}; "
                "use a checkpoint from before training diverged, or the type that it was trained in."
            )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return model


def _sentence_transformer_files(
    hidden_size: int, max_length: int, pooling: Pooling, normalize: bool
) -> dict[str, Any]:
    """Contents of the JSON files of sentence-transformers, by their names."""
    # The first module lies in the folder itself, the last has no files.
    modules = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    if not normalize:
        del modules["Normalize"]
    flags = {flag: name == pooling for name, flag in _POOLING_FLAGS.items()}
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (name, path) in enumerate(modules.items())
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": hidden_size, **flags}
        | dict.fromkeys(_OTHER_POOLINGS, False),
        "sentence_bert_config.json": {
            # Its own default is max_position_embeddings, two more than XLM-R's positions hold.
            "max_seq_length": max_length,
            "do_lower_case": False,
            # Else a pooler is drawn at random and reported as missing; nothing reads it.
            "model_args": {"add_pooling_layer": False},
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
