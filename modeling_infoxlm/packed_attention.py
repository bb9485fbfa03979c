"""Attention within each sequence of a packed buffer, behind transformers' attention interface.

Layers of the library run over packed rows as they are: their attention modules call a function that is
registered here. It attends within sequences where a pass says `packed=`, and hands padded batches on to the
implementation that the user chose.

Shapes: B sequences, T tokens of all of them, R selected rows, H heads, D hidden; G sequences of a group.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from .trials import why_not

logger = logging.getLogger(__name__)

IMPLEMENTATION = "infoxlm_packed"
"""Name of `attention` in transformers' interface."""

# Sequences of similar length share one batched product; padding inside a group stays below this share of it.
GROUP_PADDING = 0.15
# Largest number of attention scores of one group and head: 4
# sequences of 512. Larger ones fall out of the cache.
GROUP_SCORES = 2**20
# What flash attention asks for (torch's `flash_api.cpp`), and how far a trial of it may be from fp32.
_FLASH_CAPABILITY, _FLASH_HEAD_SIZE, _FLASH_TOLERANCE = (8, 0), 256, 0.03


class PackedAttention(Protocol):
    """Attention within each sequence of a packed buffer, for all rows or for selected ones.

    Attributes:
        rows: Rows of the buffer that the layer goes on with, (R,); None for all of them.
    """

    rows: Tensor | None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        heads: int,
        scaling: float,
        dropout: float,
        window: int | None = None,
    ) -> Tensor:
        """Contexts (R, D) of queries (R, D) over keys and values (T, D); both less than `window` apart."""
        ...


# --- the interface ------------------------------------------------------------------------------------------


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    packed: PackedAttention | None = None,
    packed_rest: Tensor | None = None,
    packed_order: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """What an attention module of transformers calls; see `AttentionInterface`.

    Args:
        module: Attention module.
        query: (1, H, R, D / H) of a packed pass, (B, H, L, D / H) of a padded one; `key` and `value` too.
        key: See `query`.
        value: See `query`.
        args: Mask of a padded batch.
        packed: How the sequences of a packed pass attend.
        packed_rest: Hidden states of the other rows, (1, T - R, D), where the layer runs over selected ones
            alone: the module's `key` and `value` are applied to them here, inside the layer, so that hooks,
            sharding and recomputation see an ordinary call.
        packed_order: Where each row of the buffer lies among the selected and then the other ones, (T,).
        options: `dropout`, `scaling`, `sliding_window`, and what a release of transformers adds.
    """
    if packed is None:
        return _attend_padded(module, query, key, value, *args, **options)
    heads = query.shape[1]
    query, key, value = _to_rows(query), _to_rows(key), _to_rows(value)
    if packed_rest is not None and packed_order is not None:
        layer: Any = module
        rest = packed_rest.squeeze(0).to(matmul_dtype(packed_rest))
        key = take_rows(torch.cat([key, layer.key(rest)]), packed_order)
        value = take_rows(torch.cat([value, layer.value(rest)]), packed_order)
    contexts = packed(
        query,
        key,
        value,
        heads=heads,
        scaling=options["scaling"],
        dropout=options.get("dropout", 0.0),
        window=options.get("sliding_window"),
    )
    return contexts.unflatten(-1, (heads, -1))[None], None


AttentionInterface.register(IMPLEMENTATION, attention)


def _to_rows(heads: Tensor) -> Tensor:
    """(1, H, T, D / H) to (T, D); a view of what a projection has made."""
    return heads.transpose(1, 2).flatten(2).squeeze(0)


def install(module: Any) -> None:
    """Have an attention module call `attention`; it may have been installed already.

    The model's own configuration stays as it is, and with it masks and padded passes.
    """
    if not isinstance(module.config, _LayerConfig):
        eager = inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
        module.config = _LayerConfig(module.config, eager)
        module.register_forward_pre_hook(_cast_once)


class _LayerConfig:
    """A model's configuration as its attention modules see it.

    It names our function whatever the user has chosen; it is not switched for the time of a pass, because
    layers that are recomputed run once more in the backward pass.
    """

    _attn_implementation = IMPLEMENTATION

    def __init__(self, chosen: Any, eager: Callable[..., Any]) -> None:
        self.chosen, self.eager = chosen, eager

    def __getattr__(self, name: str) -> Any:
        if name == "chosen" or name.startswith("__"):  # a copy under way has no attributes yet
            raise AttributeError(name)
        return getattr(self.chosen, name)


class _AsChosen:
    """An attention module with the configuration of its user: implementations look into it."""

    def __init__(self, module: Any) -> None:
        self.module, self.config = module, module.config.chosen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def _attend_padded(module: Any, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    function = AttentionInterface().get(module.config.chosen._attn_implementation, module.config.eager)
    output: tuple[Tensor, Tensor | None] = function(_AsChosen(module), *args, **options)
    return output


def _cast_once(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast hidden states for all three projections: autocast would cast them anew for each, and back."""
    return (args[0].to(matmul_dtype(args[0])), *args[1:]) if args else args


def matmul_dtype(rows: Tensor) -> torch.dtype:
    """Type that products of these rows run in: the autocast type where autocast is on, else their own."""
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype


# --- how sequences attend -----------------------------------------------------------------------------------


def plan_attention(
    lengths: np.ndarray, rows: Tensor | None, hidden: Tensor, *, heads: int, needs_dropout: bool
) -> PackedAttention:
    """Choose how packed sequences attend.

    Torch's varlen flash attention on CUDA where the device can run it, else batched products of groups.

    Args:
        lengths: Tokens of each sequence, (B,).
        rows: Rows that the layer goes on with, (R,), or None for all.
        hidden: Input of the layer, (T, D): its device and type decide.
        heads: Heads of attention, H.
        needs_dropout: Whether attention dropout is on; flash attention over packed rows has none.
    """
    if hidden.is_cuda:
        reason = why_not_flash(hidden.device, matmul_dtype(hidden), hidden.shape[1] // heads)
        if needs_dropout:
            reason = "it has no dropout; set attention_probs_dropout_prob to 0 (the paper's value)"
        if reason is None:
            return VarlenAttention(lengths, rows, hidden.device)
        _log_fallback(reason)
    return GroupedAttention(lengths, rows, hidden.device)


@functools.cache
def why_not_flash(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why flash attention over packed rows cannot be used on a CUDA device; None if it can.

    What is known to be impossible is told from properties; the rest is tried on a few rows, once.
    """
    if torch.version.hip is not None:
        return "it is not used on ROCm"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it needs fp16 or bf16, the pass runs in {str(dtype).removeprefix('torch.')}"
    capability = torch.cuda.get_device_capability(device)
    if capability < _FLASH_CAPABILITY:
        name, found = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        return f"{name} has compute capability {found}, flash attention needs 8.0 (Ampere)"
    if head_size % 8 or head_size > _FLASH_HEAD_SIZE:
        return f"it needs heads of a multiple of 8 and at most {_FLASH_HEAD_SIZE}, found {head_size}"
    if not torch.backends.cuda.is_flash_attention_available():
        return f"torch {torch.__version__} was built without flash attention"
    if _varlen_attn() is None or "scale" not in inspect.signature(_varlen_attn()).parameters:
        return f"torch {torch.__version__} has no varlen_attn with a scale, 2.11 has"
    return _try_flash(device, dtype, head_size)


def _try_flash(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Values and gradients of a few rows beside grouped attention in fp32; one sequence has no query row."""

    def run(kind: type[Any], computed_in: torch.dtype) -> list[Tensor]:
        lengths, rows = np.array([5, 1, 9]), torch.tensor([0, 3, 8, 14], device=device)
        # Drawn on the host, where it does not touch the run's numbers; rounded for both to the half type.
        drawn = torch.randn(3, lengths.sum(), 2 * head_size, generator=torch.Generator().manual_seed(0))
        parts = [part.to(device, dtype).to(computed_in).requires_grad_() for part in drawn]
        attend: PackedAttention = kind(lengths, rows, device)
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            context = attend(parts[0][rows], *parts[1:], heads=2, scaling=head_size**-0.5, dropout=0.0)
            return [context.detach(), *torch.autograd.grad(context.float().square().sum(), parts)]

    return why_not(
        lambda: run(VarlenAttention, dtype), lambda: run(GroupedAttention, torch.float32), _FLASH_TOLERANCE
    )


@functools.cache
def _log_fallback(reason: str) -> None:
    logger.warning("Packed attention runs as batched products instead of flash attention: %s.", reason)


@functools.cache
def _varlen_attn() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return None
    return varlen_attn


class VarlenAttention:
    """Flash attention over packed rows by torch itself (CUDA, half types)."""

    def __init__(self, lengths: np.ndarray, rows: Tensor | None, device: torch.device) -> None:
        boundaries = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        self.rows = rows
        self.key_boundaries = to_device(boundaries, device)
        self.query_boundaries = self.key_boundaries
        if rows is not None:
            # Rows ascend: a sequence's first query is the first row not before its first token.
            self.query_boundaries = torch.searchsorted(rows, self.key_boundaries.long()).int()
        # An upper bound is enough for the queries; their true
        # maximum would have to be fetched from the device.
        self.max_length = int(lengths.max())

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        heads: int,
        scaling: float,
        dropout: float,
        window: int | None = None,
    ) -> Tensor:
        """Contexts (R, D); see `PackedAttention`."""
        query, key, value = (part.unflatten(-1, (heads, -1)) for part in (query, key, value))
        bounds = (self.query_boundaries, self.key_boundaries, self.max_length, self.max_length)
        options = {} if window is None else {"window_size": (window - 1, window - 1)}
        context: Tensor = _varlen_attn()(query, key, value, *bounds, scale=scaling, **options)
        return context.flatten(1)


class GroupedAttention:
    """Explicit softmax attention, batched over groups of sequences of similar length.

    On CPUs forward and backward together are faster than torch's scaled_dot_product_attention at every length
    up to 512, for short sentences about three times (`benchmarks/attention.py`).
    """

    def __init__(self, lengths: np.ndarray, rows: Tensor | None, device: torch.device) -> None:
        self.rows = rows
        starts = np.cumsum(lengths) - lengths
        if rows is None:
            counts = lengths
        else:
            counts = np.diff(np.append(np.searchsorted(rows.cpu().numpy(), starts), len(rows)))
        groups = _similar_lengths(lengths)
        self.key_grid = _Grid(lengths, groups, device)
        self.query_grid = self.key_grid if rows is None else _Grid(counts, groups, device)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        heads: int,
        scaling: float,
        dropout: float,
        window: int | None = None,
    ) -> Tensor:
        """Contexts (R, D); see `PackedAttention`."""
        if window is not None and self.rows is not None:
            raise ValueError("a layer with a window of attention runs over all rows, not over selected ones.")
        queries = self.query_grid.spread(query * scaling, heads)
        keys, values = self.key_grid.spread(key, heads), self.key_grid.spread(value, heads)
        masks = self.key_grid.masks
        # Autocast would widen the scores to fp32 for the
        # softmax, which sums in fp32 anyway, and cast them back.
        with torch.autocast(query.device.type, enabled=False):
            contexts = [
                _attend(q, k, v, _within(window, mask, k), dropout)
                for q, k, v, mask in zip(queries, keys, values, masks, strict=True)
            ]
        return self.query_grid.collect(contexts)


def _within(window: int | None, padding: Tensor | None, key: Tensor) -> Tensor | None:
    """True where a query does not look: at padding, and outside its window."""
    if window is None:
        return padding
    position = torch.arange(key.shape[2], device=key.device)
    outside = (position[:, None] - position).abs() >= window
    # A row of padding keeps itself, so that no row is without any key.
    return outside if padding is None else outside | (padding & (position[:, None] != position))


def _attend(query: Tensor, key: Tensor, value: Tensor, unseen: Tensor | None, dropout: float) -> Tensor:
    """Softmax attention of one padded group: queries (G, H, R, D / H), keys and values (G, H, T, D / H)."""
    scores = query @ key.transpose(-1, -2)
    if unseen is not None:
        scores = scores.masked_fill_(unseen, float("-inf"))
    return nn.functional.dropout(scores.softmax(dim=-1), dropout, training=dropout > 0) @ value


class _Grid:
    """Where the rows of packed sequences lie when each group of sequences is padded to its longest."""

    def __init__(self, lengths: np.ndarray, groups: Sequence[np.ndarray], device: torch.device) -> None:
        self.shapes = [(len(group), max(1, int(lengths[group].max()))) for group in groups]
        self.size = sum(count * longest for count, longest in self.shapes)
        first_slot = np.empty(len(lengths), dtype=np.int64)
        base = 0
        for group, (count, longest) in zip(groups, self.shapes, strict=True):
            first_slot[group] = base + longest * np.arange(count)
            base += count * longest
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        self.slots = to_device(np.repeat(first_slot, lengths) + offsets, device)
        self.masks = [_padding_mask(lengths[group], device) for group in groups]

    def spread(self, rows: Tensor, heads: int) -> list[Tensor]:
        """Rows (T, D) to one padded (G, H, longest, D / H) for each group."""
        pieces = put_rows(rows, self.slots, self.size).split(
            [count * longest for count, longest in self.shapes]
        )
        return [
            piece.view(count, longest, heads, -1).transpose(1, 2)
            for piece, (count, longest) in zip(pieces, self.shapes, strict=True)
        ]

    def collect(self, pieces: Sequence[Tensor]) -> Tensor:
        """Undo `spread`: padded (G, H, longest, D / H) of each group to rows (T, D)."""
        return take_rows(
            torch.cat([piece.transpose(1, 2).flatten(0, 1).flatten(1) for piece in pieces]), self.slots
        )


def _similar_lengths(lengths: np.ndarray) -> list[np.ndarray]:
    """Indices of sequences in groups of similar length, each group limited in padding and in size."""
    order = np.argsort(lengths, kind="stable")
    groups, start, tokens = [], 0, 0
    for end, length in enumerate(lengths[order].tolist()):
        count = end - start + 1
        too_padded = tokens + length < (1 - GROUP_PADDING) * count * length
        if count > 1 and (too_padded or count * length * length > GROUP_SCORES):
            groups.append(order[start:end])
            start, tokens = end, 0
        tokens += length
    groups.append(order[start:])
    return groups


def _padding_mask(lengths: np.ndarray, device: torch.device) -> Tensor | None:
    """True at padding, (G, 1, 1, longest); None if there is none."""
    if lengths.min() == lengths.max():
        return None
    return to_device(np.arange(lengths.max()) >= lengths[:, None], device)[:, None, None, :]


# --- moving rows --------------------------------------------------------------------------------------------


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of an array of the host, for which a GPU does not let the host wait: from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]` for distinct indices: the gradient is written, not accumulated, which is far cheaper."""
    taken: Tensor = _TakeRows.apply(rows, index)
    return taken


def other_rows(rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows of 0..size-1 that are not in `rows`, ascending; where each row lies in `cat(rows, others)`."""
    chosen = torch.zeros(size, dtype=torch.uint8, device=rows.device).index_fill_(0, rows, 1)
    # Sorted, not searched: a device would have to tell the host how many it has found.
    both = chosen.argsort(descending=True, stable=True)
    order = torch.empty_like(both).scatter_(0, both, torch.arange(size, device=rows.device))
    return both[len(rows) :], order


def put_rows(rows: Tensor, index: Tensor, size: int) -> Tensor:
    """Rows of zeros, (size, D), with `rows` at distinct indices."""
    put: Tensor = _PutRows.apply(rows, index, size)
    return put


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return put_rows(upstream[0], ctx.saved_tensors[0], ctx.size), None


class _PutRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, index, rows)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return take_rows(upstream[0], ctx.saved_tensors[0]), None, None
