"""Sentence vectors of many texts: length-sorted, packed, leaving the encoder at the asked layer.

No padding is computed and no layer above the asked one. Beside the result, memory does not grow with the
number of sentences: they are tokenised and sorted a window at a time.

Shapes: N sentences, T tokens, D hidden.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from modeling_infoxlm.data.ragged import PackedRows, join_pieces
from modeling_infoxlm.data.shards import SpecialTokens
from modeling_infoxlm.modeling_infoxlm import InfoXLMModel, pooled_vectors
from modeling_infoxlm.packed import max_sequence_length
from modeling_infoxlm.runs.process import UsageError

logger = logging.getLogger(__name__)

# On 2 cores 2,048 to 4,096 tokens at once were fastest in fp32 and bf16, 256 were 7 to 13 % slower.
# A GPU needs more to be busy; its figure is not measured.
CPU_TOKENS_PER_BATCH, GPU_TOKENS_PER_BATCH = 4096, 32768
SENTENCES_PER_WINDOW = 32768  # sorted by length together; their ids, 2 to 70 MB, are what is held in memory
PROGRESS_DELAY = 2.0  # seconds
TEXTS_PER_CALL = 1024  # the tokenizer's own records of a text are far larger than its ids


def encode_texts(
    model: InfoXLMModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    layer: int | None = None,
    pooling: str | None = None,
    normalize: bool = False,
    bf16: bool = False,
    tokens_per_batch: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Tensor:
    """Sentence vectors of texts, for search, mining and clustering.

    A text longer than the model's positions is cut there, and one warning says how many were.

        vectors = encode_texts(model, tokenizer, ["How are you?", "Wie geht es dir?"], layer=7)

    Args:
        model: Encoder; it runs in eval mode, and its mode is restored.
        tokenizer: Its tokenizer, a fast one of transformers.
        texts: N texts, in any order; an empty one has the vector of `<s> </s>`.
        layer: 0 is the embedding output; None is the layer of the contrast, as in `sentence_vectors`.
        pooling: `"mean"` over all tokens or `"cls"`; None is the model's.
        normalize: Scale each vector to length 1, so that dot products are cosines.
        bf16: Run products in bf16, about twice as fast where the processor has it; vectors stay fp32.
        tokens_per_batch: Tokens encoded at once, at least one text; None suits the model's device.
        device: Where the vectors are gathered; None is the model's device. The model is not moved.
        progress: Show a progress bar when it takes longer than two seconds.

    Returns:
        (N, D), fp32, row i for text i.

    Raises:
        ValueError: If `texts` is a single string, the tokenizer is not a fast one, the layer or the pooling
            does not exist, or the vector of a text is not finite.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be a list of strings, found one string; write [text] for one text.")
    config = model.config
    reader = _TextReader(tokenizer, max_sequence_length(config))
    vectors = _encode(
        model,
        len(texts),
        lambda start, stop: reader.read(texts[start:stop]),
        layer=config.resolved_xlco_layer() if layer is None else layer,
        pooling=pooling or config.xlco_pooling,
        bf16=bf16,
        tokens_per_batch=tokens_per_batch,
        device=device,
        progress=progress,
        show=lambda number: repr(texts[number]),
    )
    reader.warn_of_cut_texts(len(texts))
    return torch.nn.functional.normalize(vectors, dim=-1, out=vectors) if normalize else vectors


def encode_sequences(
    model: InfoXLMModel,
    sequences: Sequence[np.ndarray],
    special: SpecialTokens,
    *,
    layer: int,
    pooling: str = "mean",
    bf16: bool = False,
    tokens_per_batch: int | None = None,
) -> Tensor:
    """Sentence vectors of `<s> ids </s>` for each sequence of bare ids.

    Args:
        model: Encoder; it runs in eval mode, and its mode is restored.
        sequences: N arrays of token ids without special tokens.
        special: The tokenizer's special tokens.
        layer: Layer of the vectors; 0 is the embedding output.
        pooling: `"mean"` over all tokens or `"cls"`.
        bf16: Run products in bf16.
        tokens_per_batch: Tokens encoded at once, at least one sequence; None suits the model's device.

    Returns:
        (N, D), fp32, on the model's device.

    Raises:
        ValueError: If a sequence is longer than the model's positions, the layer or the pooling does not
            exist, or a vector is not finite.
    """

    def read(start: int, stop: int) -> PackedRows:
        window = [sequences[i] for i in range(start, stop)]
        bare = PackedRows(np.concatenate(window), np.array([len(ids) for ids in window]))
        return join_pieces(bare, np.ones(len(bare), dtype=np.int64), special)

    return _encode(
        model,
        len(sequences),
        read,
        layer=layer,
        pooling=pooling,
        bf16=bf16,
        tokens_per_batch=tokens_per_batch,
        device=None,
        progress=False,
        show=lambda number: f"number {number:,} of {len(sequences):,} sequences",
    )


def check_finite(
    vectors: Tensor, model: Any, show: Callable[[int], str], numbers: Sequence[int] | np.ndarray | None = None
) -> None:
    """Refuse vectors with NaN or infinities: whatever is computed of them looks like a result, and is none.

    Args:
        vectors: Or logits, or losses, of N texts: (..., N, D).
        model: Which made them.
        show: What to call a text, by its number.
        numbers: Of the N texts; None for 0 to N - 1.

    Raises:
        UsageError: With the model and the first such text.
    """
    wrong = ~vectors.sum(dim=-1).isfinite()
    if wrong.any():
        first = int(wrong.reshape(-1, wrong.shape[-1]).any(dim=0).nonzero()[0])
        text = show(first if numbers is None else int(numbers[first]))
        raise UsageError(
            f"{model.name_or_path or type(model).__name__} gives vectors that are not finite, first for "
            f"{text:.80}; its weights are damaged, or too large for the precision that it runs in."
        )


@torch.no_grad()  # not inference_mode: its tensors cannot be inputs of something that is trained later
def _encode(
    model: InfoXLMModel,
    count: int,
    read: Callable[[int, int], PackedRows],
    *,
    layer: int,
    pooling: str,
    bf16: bool,
    tokens_per_batch: int | None,
    device: torch.device | str | None,
    progress: bool,
    show: Callable[[int], str],
) -> Tensor:
    """Encode whole sequences 0 to `count`, of which `read(start, stop)` gives a range; see `check_finite`."""
    model_device = next(model.parameters()).device
    default = CPU_TOKENS_PER_BATCH if model_device.type == "cpu" else GPU_TOKENS_PER_BATCH
    vectors = torch.empty(count, model.config.hidden_size, device=device or model_device)
    bar = tqdm(total=count, desc="encoding", unit=" sentences", delay=PROGRESS_DELAY, disable=not progress)
    # One autocast around all batches: it keeps the weights that it has cast until it ends.
    with _evaluating(model), _autocast(model_device, bf16), bar:
        for start in range(0, count, SENTENCES_PER_WINDOW):
            window = read(start, min(start + SENTENCES_PER_WINDOW, count))
            sums = torch.empty(len(window), 1, device=model_device)
            for members, batch in _batches(window, tokens_per_batch or default):
                input_ids = torch.from_numpy(batch.tokens.astype(np.int64)).to(model_device)
                pooled = pooled_vectors(model, input_ids, batch.lengths.tolist(), layer, pooling)
                vectors[torch.from_numpy(start + members).to(vectors.device)] = pooled.to(vectors)
                sums[torch.from_numpy(members).to(model_device)] = pooled.float().sum(dim=1, keepdim=True)
                bar.update(len(members))
            # Not of each batch: on a GPU each look waits for all that was asked of it.
            check_finite(sums, model, show, range(start, start + len(window)))
    return vectors


def _batches(window: PackedRows, most: int) -> Iterator[tuple[np.ndarray, PackedRows]]:
    """Cut a window into batches of like length, of at most `most` tokens but at least one sequence.

    The longest come first: they need the most memory, and if it is not enough it shows at once.

    Yields:
        Numbers of the sequences in the window, and the sequences.
    """
    order = np.argsort(-window.lengths, kind="stable")
    window = window.take(order)
    ends = np.cumsum(window.lengths)
    start = first = 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(ends, first + most, side="right")))
        last = int(ends[stop - 1])
        yield order[start:stop], PackedRows(window.tokens[first:last], window.lengths[start:stop])
        start, first = stop, last


class _TextReader:
    """Texts as whole token sequences, cut at `max_length`.

    It asks the tokenizer's backend: transformers' own call, which also makes masks, was measured to take
    1.3 times as long, and twice as long with padded tensors.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; load one with AutoTokenizer."
            )
        self._backend, self._max_length, self._num_cut = tokenizer.backend_tokenizer, max_length, 0
        # What an earlier call left in it; transformers sets both anew at each call.
        self._backend.no_padding()
        self._backend.no_truncation()

    def read(self, texts: Sequence[str]) -> PackedRows:
        """Tokenise a window of texts."""
        calls = [texts[i : i + TEXTS_PER_CALL] for i in range(0, len(texts), TEXTS_PER_CALL)]
        return PackedRows.join([self._tokenise(list(call)) for call in calls])

    def _tokenise(self, texts: list[str]) -> PackedRows:
        encodings = self._backend.encode_batch_fast(texts)
        return PackedRows.from_lists([self._cut(encoding.ids) for encoding in encodings])

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self._max_length:
            return ids
        self._num_cut += 1
        return [*ids[: self._max_length - 1], ids[-1]]  # the closing </s> stays

    def warn_of_cut_texts(self, num_texts: int) -> None:
        """Say once how many texts were cut."""
        if self._num_cut:
            logger.warning(
                "%s of %s texts have more than %s tokens, the model's positions, and were cut there; "
                "split them into sentences if their ends matter.",
                f"{self._num_cut:,}",
                f"{num_texts:,}",
                f"{self._max_length:,}",
            )


@contextmanager
def _evaluating(model: InfoXLMModel) -> Iterator[None]:
    """Eval mode, and afterwards each module in the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _autocast(device: torch.device, bf16: bool) -> AbstractContextManager[None]:
    # Not autocast(enabled=False): that would end one of the caller's.
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
