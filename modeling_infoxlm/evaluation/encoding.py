"""Sentence vectors of many texts: sorted by length, leaving the encoder at the asked layer.

A model that can runs packed: no padding is computed and no layer above the asked one (`layer_vectors`).
Beside the result, memory does not grow with the number of sentences: they are tokenised and sorted a window
at a time.

Shapes: N sentences, K layers, B sentences of a batch, T tokens, D hidden.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_infoxlm.backbones import max_sequence_length
from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.evaluation.batching import (
    check_finite,
    packed_ids,
    padded_inputs,
    progress_bar,
    run_batches,
    runs_packed,
)
from modeling_infoxlm.modeling_infoxlm import InfoXLMModel, pooled_vectors

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls"]

OUR_TYPES = ("xlm-roberta", "infoxlm")  # architectures that are loaded as ours
# Their positions are numbered from pad_token_id + 1, so so many rows of the table are never used.
_OFFSET_POSITIONS = ("roberta", "camembert", "xlm-roberta-xl", "mpnet", "xmod", "data2vec-text", "ibert")
SENTENCES_PER_WINDOW = 32768  # sorted by length together; their ids, 2 to 70 MB, are what is held in memory
TEXTS_PER_CALL = 1024  # the tokenizer's own records of a text are far larger than its ids


class EncodeOptions(TypedDict, total=False):
    """How vectors are made."""

    pooling: str  # `"mean"` over all tokens, special ones included, or `"cls"`, the first token
    normalize: bool  # scale each vector to length 1, so that dot products are cosines
    bf16: bool  # run products in bf16, about twice as fast where the processor has it; vectors stay fp32
    tokens_per_batch: int | None  # tokens encoded at once, at least one text; None suits the model's device


def encode_texts(
    model: InfoXLMModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    layer: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    **options: Unpack[EncodeOptions],
) -> Tensor:
    """Sentence vectors of texts, for search, mining and clustering.

    A text longer than the model's positions is cut there, and one warning says how many were.

        vectors = encode_texts(model, tokenizer, ["How are you?", "Wie geht es dir?"], layer=7)

    Args:
        model: Encoder; it runs in eval mode, and its mode is restored.
        tokenizer: Its tokenizer.
        texts: N texts, in any order; an empty one has the vector of `<s> </s>`.
        layer: 0 is the embedding output; None is the layer of the contrast, as in `sentence_vectors`.
        device: Where the vectors are gathered; None is the model's device. The model is not moved.
        progress: Show a progress bar when it takes longer than two seconds.
        options: See `EncodeOptions`; the pooling is the model's unless given.

    Returns:
        (N, D), fp32, row i for text i.

    Raises:
        ValueError: If `texts` is a single string, the layer or the pooling does not exist, or the vector of a
            text is not finite.
    """
    config = model.config
    layers = [config.resolved_xlco_layer() if layer is None else layer]
    options.setdefault("pooling", config.xlco_pooling)
    out = torch.empty(1, len(texts), config.hidden_size, device=device or model.device)
    return encode_layers(model, tokenizer, texts, out, layers=layers, progress=progress, **options)[0]


def encode_layers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    out: Tensor,
    *,
    layers: Sequence[int],
    progress: bool = True,
    **options: Unpack[EncodeOptions],
) -> Tensor:
    """Write sentence vectors of texts at each of K layers to `out`, (K, N, D), and return it.

    As `encode_texts`, for any model of transformers, and to wherever the vectors shall lie.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be a list of strings, found one string; write [text] for one text.")
    reader = _TextReader(tokenizer, longest_sequence(model.config, tokenizer))
    with progress_bar(len(texts), "encoding", " sentences", show=progress) as bar:
        encode_rows(
            model,
            lambda start, stop: reader.read(texts[start:stop]),
            out,
            layers=layers,
            show=lambda number: repr(texts[number]),
            bar=bar,
            **options,
        )
    reader.warn_of_cut_texts(len(texts))
    return out


def encode_rows(
    model: PreTrainedModel,
    read: Callable[[int, int], PackedRows],
    out: Tensor,
    *,
    layers: Sequence[int],
    show: Callable[[int], str],
    bar: Any = None,
    pooling: str = "mean",
    normalize: bool = False,
    bf16: bool = False,
    tokens_per_batch: int | None = None,
) -> None:
    """Write vectors of N whole token sequences at each of K layers to `out`, (K, N, D).

    `read` gives the sequences from one number up to another, special tokens and all; `show` says what to call
    one in an error. `bar` counts them. For the others see `EncodeOptions`.

    Raises:
        ValueError: If a sequence is longer than the model's positions, a layer or the pooling does not exist,
            or a vector is not finite.
    """
    for start in range(0, out.shape[1], SENTENCES_PER_WINDOW):
        window = read(start, min(start + SENTENCES_PER_WINDOW, out.shape[1]))
        found = out[:, start : start + len(window)]
        sums = torch.empty(len(layers), len(window), 1, device=model.device)

        def run(
            members: np.ndarray, window: PackedRows = window, found: Tensor = found, sums: Tensor = sums
        ) -> None:
            vectors = layer_vectors(model, window.take(members), layers, pooling).float()
            index = torch.from_numpy(members)
            sums[:, index.to(sums.device)] = vectors.sum(dim=-1, keepdim=True)
            vectors = F.normalize(vectors, dim=-1) if normalize else vectors
            found[:, index.to(found.device)] = vectors.to(found)

        run_batches(model, window.lengths, run, bf16=bf16, tokens_per_batch=tokens_per_batch, bar=bar)
        # Not of each batch: on a GPU each look waits for all that was asked of it.
        check_finite(sums, model, show, range(start, start + len(window)))


def layer_vectors(model: Any, batch: PackedRows, layers: Sequence[int], pooling: str) -> Tensor:
    """Sentence vectors of whole sequences at each layer, (K, B, D): packed where the model can, else padded.

    Several layers are taken from one padded pass, which keeps the states of all.
    """
    if runs_packed(model) and len(layers) == 1:
        ids = packed_ids(batch, model.device)
        return pooled_vectors(model, ids, batch.lengths.tolist(), layers[0], pooling)[None]
    inputs = padded_inputs(batch, model)
    hidden = model(**inputs, output_hidden_states=True).hidden_states
    return torch.stack([_pool(hidden[layer].float(), inputs["attention_mask"], pooling) for layer in layers])


def _pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Sentence vectors (B, D) of hidden states (B, T, D): the first token's, or the mean over the mask."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def longest_sequence(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens of a sequence that a model has positions for, special tokens included."""
    if config.model_type in OUR_TYPES:
        return max_sequence_length(config)
    # Models with relative positions name no limit; then the tokenizer's holds.
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if config.model_type in _OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    return int(min(positions, tokenizer.model_max_length))


class _TextReader:
    """Texts as whole token sequences, cut at `max_length`.

    It asks the backend of a fast tokenizer: transformers' own call, which also makes masks, was measured to
    take 1.3 times as long, and twice as long with padded tensors.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._tokenizer, self._max_length, self._num_cut = tokenizer, max_length, 0

    def read(self, texts: Sequence[str]) -> PackedRows:
        """Tokenise a window of texts."""
        calls = [list(texts[i : i + TEXTS_PER_CALL]) for i in range(0, len(texts), TEXTS_PER_CALL)]
        return PackedRows.join([self._tokenise(call) for call in calls])

    def _tokenise(self, texts: list[str]) -> PackedRows:
        rows = self._whole(texts)
        for i, ids in enumerate(rows):
            if len(ids) > self._max_length:
                self._num_cut += 1
                cut = self._tokenizer(texts[i], truncation=True, max_length=self._max_length)
                rows[i] = cut["input_ids"]
        return PackedRows.from_lists(rows)

    def _whole(self, texts: list[str]) -> list[list[int]]:
        if not self._tokenizer.is_fast:
            return list(self._tokenizer(texts, verbose=False)["input_ids"])
        backend = self._tokenizer.backend_tokenizer
        # What an earlier call left in it; transformers sets both anew at each call.
        backend.no_padding()
        backend.no_truncation()
        return [encoding.ids for encoding in backend.encode_batch_fast(texts)]

    def warn_of_cut_texts(self, num_texts: int) -> None:
        """Say once how many texts were cut."""
        if self._num_cut:
            message = (
                "%s texts have more than %s tokens, the model's positions, and were cut there; "
                "split them into sentences if their ends matter."
            )
            logger.warning(message, f"{self._num_cut:,} of {num_texts:,}", f"{self._max_length:,}")
