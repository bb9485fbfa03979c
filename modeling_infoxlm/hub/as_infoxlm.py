"""InfoXLM folders with their code: for those who go on with the pre-training."""

import copy
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_infoxlm.hub.as_xlm_roberta import MAX_SHARD_SIZE, with_weights_of, write_model
from modeling_infoxlm.modeling_infoxlm import InfoXLMPreTrainedModel


def save_as_infoxlm(
    model: InfoXLMPreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> PreTrainedModel:
    """Write a model as `infoxlm`, with the code of the model files beside the weights.

    The folder loads with this package, or without it by `trust_remote_code=True`: whichever head was saved,
    `auto_map` names a class for every auto class that InfoXLM has.

    Args:
        model: Trained model; not changed.
        folder: Where to write; made if missing.
        tokenizer: Written beside the weights when given.
        dtype: Type of the stored weights; None keeps the model's.
        max_shard_size: Weights that take more are stored in several files, each smaller than this.

    Returns:
        The model that was written.

    Raises:
        UsageError: If a weight cannot be held by the type.
    """
    # Weights are drawn and then replaced; the run that saves must not lose its random numbers to that.
    with torch.random.fork_rng(devices=[]):
        released = type(model)(copy.deepcopy(model.config))
    with_weights_of(model, released)
    return write_model(
        released, folder, tokenizer=tokenizer, dtype=dtype or model.dtype, max_shard_size=max_shard_size
    )
