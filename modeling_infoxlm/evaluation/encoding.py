"""Sentence vectors of many token sequences: length-sorted, packed, leaving the encoder at the asked layer.

Shapes: N sentences, D hidden.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from modeling_infoxlm.data.shards import SpecialTokens
from modeling_infoxlm.modeling_infoxlm import InfoXLMModel, pooled_vectors

TOKENS_PER_BATCH = 8192


@torch.no_grad()
def encode_sequences(
    model: InfoXLMModel,
    sequences: Sequence[np.ndarray],
    special: SpecialTokens,
    *,
    layer: int,
    pooling: str = "mean",
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Tensor:
    """Sentence vectors of `<s> ids </s>` for each sequence of bare ids.

    Args:
        model: Encoder; its mode is left as it is, so call `model.eval()` first.
        sequences: N arrays of token ids without special tokens.
        special: The tokenizer's special tokens.
        layer: Layer of the vectors; 0 is the embedding output.
        pooling: `"mean"` over all tokens or `"cls"`.
        tokens_per_batch: Tokens encoded at once; bounds the memory.

    Returns:
        (N, D), fp32, on the model's device.
    """
    device = next(model.parameters()).device
    whole = [np.concatenate([[special.bos], ids, [special.eos]]).astype(np.int64) for ids in sequences]
    lengths = np.array([len(ids) for ids in whole])
    order = np.argsort(lengths, kind="stable")
    vectors = torch.empty(len(whole), model.config.hidden_size, device=device)
    for batch in _batches(order, lengths, tokens_per_batch):
        input_ids = torch.from_numpy(np.concatenate([whole[i] for i in batch])).to(device)
        pooled = pooled_vectors(model, input_ids, lengths[batch].tolist(), layer, pooling)
        vectors[torch.from_numpy(batch).to(device)] = pooled.float()
    return vectors


def _batches(order: np.ndarray, lengths: np.ndarray, tokens_per_batch: int) -> list[np.ndarray]:
    """Cut the order into runs of at most `tokens_per_batch` tokens, at least one sequence each."""
    runs: list[list[int]] = []
    room = 0
    for i in order.tolist():
        if not runs or lengths[i] > room:
            runs.append([])
            room = tokens_per_batch
        runs[-1].append(i)
        room -= lengths[i]
    return [np.array(run) for run in runs]
