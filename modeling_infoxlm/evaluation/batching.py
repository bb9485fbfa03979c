"""A model over many rows: those of like length together, the longest first, without gradients.

Everything that is encoded, predicted or scored goes through `run_batches`:

    with progress_bar(len(rows), "predicting", " rows") as bar:
        run_batches(model, lengths, take, bf16=True, bar=bar)  # take(members) for each batch

Shapes: N rows, B rows of a batch, T tokens of the longest.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from modeling_infoxlm.backbones import BACKBONES
from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.runs.errors import UsageError

# On 2 cores 2,048 to 4,096 tokens at once were fastest in fp32 and bf16, 256 were 7 to 13 % slower.
# A GPU needs more to be busy; its figure is not measured.
CPU_TOKENS_PER_BATCH, GPU_TOKENS_PER_BATCH = 4096, 32768
PROGRESS_DELAY = 2.0  # seconds


def progress_bar(total: int, description: str, unit: str, *, show: bool = True) -> Any:
    """A bar that appears when the work takes longer than two seconds."""
    return tqdm(total=total, desc=description, unit=unit, delay=PROGRESS_DELAY, disable=not show)


@torch.no_grad()  # not inference_mode: its tensors cannot be inputs of something that is trained later
def run_batches(
    model: nn.Module,
    lengths: np.ndarray,
    run: Callable[[np.ndarray], None],
    *,
    bf16: bool = False,
    tokens_per_batch: int | None = None,
    bar: Any = None,
) -> None:
    """Call `run` with the numbers of the rows of each batch, (B,), the model in eval mode.

    Args:
        model: On its device; each of its modules has its own mode back afterwards.
        lengths: Tokens of each row, (N,).
        run: Computes a batch, and puts what it finds where it belongs.
        bf16: Run products in bf16.
        tokens_per_batch: Of a padded batch, which holds at least one row; None suits the model's device.
        bar: Progress in rows.
    """
    device = next(model.parameters()).device
    default = CPU_TOKENS_PER_BATCH if device.type == "cpu" else GPU_TOKENS_PER_BATCH
    # One autocast around all batches: it keeps the weights that it has cast until it ends.
    # Not autocast(enabled=False): that would end one of the caller's.
    with _evaluating(model), torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
        for members in batches_by_length(lengths, tokens_per_batch or default):
            run(members)
            if bar is not None:
                bar.update(len(members))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards each module in the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def batches_by_length(lengths: np.ndarray, most_tokens: int) -> Iterator[np.ndarray]:
    """Numbers of sequences of like length, whose padded batch has at most so many tokens, or one sequence.

    The longest come first: they need the most memory, and if it is not enough it shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, most_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def runs_packed(model: Any) -> bool:
    """Whether a model, with or without a head, has a packed pass; any other one runs padded."""
    return model.config.model_type in BACKBONES


def packed_ids(batch: PackedRows, device: torch.device) -> Tensor:
    """The tokens of a batch as a model takes them, one sequence after another."""
    return torch.from_numpy(batch.tokens.astype(np.int64)).to(device)


def padded_inputs(batch: PackedRows, model: Any) -> dict[str, Tensor]:
    """`input_ids` (B, T), padded at their ends, and `attention_mask` for any model of transformers.

    At their ends: the first state is that of `<s>`, and words and answers are counted from there.
    """
    ids = packed_ids(batch, model.device).split(batch.lengths.tolist())
    pad = model.config.pad_token_id or 0
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return {"input_ids": pad_sequence(list(ids), batch_first=True, padding_value=pad), "attention_mask": mask}


def check_finite(
    vectors: Tensor, model: Any, show: Callable[[int], str], numbers: Sequence[int] | np.ndarray | None = None
) -> None:
    """Refuse vectors with NaN or infinities: whatever is computed of them looks like a result, and is none.

    Args:
        vectors: Or logits, or losses, of N texts: (..., N, D).
        model: Which made them.
        show: What to call a text, by its number.
        numbers: Of the N texts; None for 0 to N - 1.
    """
    wrong = ~vectors.sum(dim=-1).isfinite()
    if wrong.any():
        first = int(wrong.reshape(-1, wrong.shape[-1]).any(dim=0).nonzero()[0])
        text = show(first if numbers is None else int(numbers[first]))
        raise UsageError(
            f"{model.name_or_path or type(model).__name__} gives vectors that are not finite, first for "
            f"{text:.80}; its weights are damaged, or too large for the precision that it runs in."
        )
