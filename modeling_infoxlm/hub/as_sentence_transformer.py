"""sentence-transformers folders: the encoder cut at its sentence layer, and a pooling.

The few JSON files are written here, so that a release can be made without sentence-transformers. They are in
the layout of its version 2, which every later version reads too.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_infoxlm.hub.as_xlm_roberta import MAX_SHARD_SIZE, plain_encoder, write_model
from modeling_infoxlm.modeling_infoxlm import InfoXLMPreTrainedModel
from modeling_infoxlm.packed import max_sequence_length
from modeling_infoxlm.runs.process import UsageError

Pooling = Literal["cls", "mean"]
DEFAULT_POOLING: Pooling = "mean"  # the paper's retrieval (Tatoeba), and held-out retrieval while training

_MODULES = "sentence_transformers.models"
_POOLING_FLAGS: dict[Pooling, str] = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
_OTHER_POOLINGS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")


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
    layers, smaller and faster than the whole.

    Args:
        model: Trained model; not changed.
        folder: Where to write; made if missing.
        tokenizer: Written beside the weights.
        layer: Layer of the vectors, 0 is the embedding output. None is that of the contrast,
            `config.resolved_xlco_layer()`.
        pooling: `"mean"` over all tokens, `<s>` and `</s>` included, or `"cls"`, the vector of `<s>`.
        normalize: Add a module that scales each vector to length 1.
        dtype: Type of the stored weights; None keeps the model's.
        max_shard_size: Weights that take more are stored in several files, each smaller than this.

    Returns:
        The encoder that was written.

    Raises:
        UsageError: If there is no such layer or pooling, the depth has no default layer, or a weight cannot
            be held by the type.

    Example:
        >>> save_as_sentence_transformer(model, "st/", tokenizer=tokenizer, layer=8)
        >>> SentenceTransformer("st/").encode(["Guten Morgen!"])
    """
    if pooling not in _POOLING_FLAGS:
        raise UsageError(f"pooling must be one of {tuple(_POOLING_FLAGS)}, found {pooling!r}.")
    encoder = plain_encoder(model, sentence_layer(model, layer))
    folder = Path(folder)
    write_model(
        encoder, folder, tokenizer=tokenizer, dtype=dtype or model.dtype, max_shard_size=max_shard_size
    )
    _write_modules(folder, normalize)
    _write_pooling(folder / "1_Pooling", pooling, encoder.config.hidden_size)
    max_length = min(tokenizer.model_max_length, max_sequence_length(encoder.config))
    _write_settings(folder, max_length)
    return encoder


def sentence_layer(model: InfoXLMPreTrainedModel, layer: int | None) -> int:
    """The layer asked for, else that of the contrast.

    Raises:
        UsageError: If none is given and the depth has no default.
    """
    if layer is not None:
        return layer
    try:
        return model.config.resolved_xlco_layer()
    except ValueError as error:
        raise UsageError(f"the sentence layer is not known: {error} Give it by --layer.") from error


def _write_modules(folder: Path, normalize: bool) -> None:
    """The list of modules; the first lies in the folder itself, the last has no files."""
    paths = {"Transformer": "", "Pooling": "1_Pooling", **({"Normalize": "2_Normalize"} if normalize else {})}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_MODULES}.{name}"}
        for number, (name, path) in enumerate(paths.items())
    ]
    _write_json(folder / "modules.json", modules)


def _write_pooling(folder: Path, pooling: Pooling, hidden_size: int) -> None:
    folder.mkdir(exist_ok=True)
    flags = {flag: name == pooling for name, flag in _POOLING_FLAGS.items()}
    others = dict.fromkeys(_OTHER_POOLINGS, False)
    _write_json(folder / "config.json", {"word_embedding_dimension": hidden_size, **flags, **others})


def _write_settings(folder: Path, max_length: int) -> None:
    transformer = {
        # Its own default is max_position_embeddings, two more than XLM-R's positions hold.
        "max_seq_length": max_length,
        "do_lower_case": False,
        # Else a pooler is drawn at random and reported as missing; nothing reads it.
        "model_args": {"add_pooling_layer": False},
    }
    _write_json(folder / "sentence_bert_config.json", transformer)
    whole: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _write_json(folder / "config_sentence_transformers.json", whole)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
