"""One pass of the encoder over unpadded rows; each request leaves it at its own depth, with its own rows.

Released InfoXLM pads every batch, runs all 12 layers for sentence vectors of layer 8, and computes the last
layer at every position although only masked ones are predicted. Here all sequences of all requests lie one
after another in a single (T, D) buffer. The pass calls the encoder's own layers as modules, so hooks,
checkpointing and adapters work.

Shapes: B sequences, T tokens of all sequences, R selected rows, H heads, D hidden; G sequences of a group.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Sequences of similar length share one batched product; padding inside a group stays below this share of it.
GROUP_PADDING = 0.15
# Largest number of attention scores of one group and head: 4
# sequences of 512. Larger ones fall out of the cache.
GROUP_SCORES = 2**20


@dataclass(frozen=True)
class EncodeRequest:
    """Sequences to encode, and what to return of them.

    Attributes:
        input_ids: Tokens of all sequences one after another, (T,).
        lengths: Tokens of each sequence, on the host: B numbers that sum to T.
        layer: Layer to leave at; 0 is the embedding output, as in `hidden_states[layer]`.
        rows: Positions in 0..T-1 to return, ascending and distinct, (R,); None returns all.
    """

    input_ids: Tensor
    lengths: Sequence[int]
    layer: int
    rows: Tensor | None = None


class PackedAttention(Protocol):
    """Attention within each sequence of a packed buffer, for all rows or for selected ones.

    Attributes:
        rows: Rows of the buffer that the layer goes on with, (R,); None for all of them.
    """

    rows: Tensor | None

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, heads: int, scaling: float, dropout: float
    ) -> Tensor:
        """Contexts (R, D) of queries (R, D) over keys and values (T, D)."""
        ...


def encode(
    encoder: nn.Module, requests: Sequence[EncodeRequest], *, sparse_gradient: bool = False
) -> list[Tensor]:
    """Encode all requests in one pass.

    Args:
        encoder: An `InfoXLMModel` or a module with its `config`, `embeddings` and `encoder.layer`.
        requests: At least one.
        sparse_gradient: Look words up with a sparse gradient. To be set where a head gives the same table a
            dense one in the same backward pass: autograd then adds the few looked-up rows to it, where a
            second dense gradient would be 768 MB of zeros to write and add (XLM-R base).

    Returns:
        For each request its rows at its layer, (R, D).

    Raises:
        ValueError: If lengths do not sum to the number of tokens, a sequence is empty or longer than
            the model's positions, or a layer does not exist.
    """
    model: Any = encoder
    for request in requests:
        _check(request, num_layers=len(model.encoder.layer), max_length=max_sequence_length(model.config))
    # Deepest first: those that stay for another layer are then always a prefix of the buffer.
    active = sorted(range(len(requests)), key=lambda i: -requests[i].layer)
    hidden = _embed(model, [requests[i] for i in active], sparse_gradient)
    outputs: dict[int, Tensor] = {}
    plans: dict[int, PackedAttention] = {}
    for depth in range(requests[active[0]].layer + 1):
        staying = [i for i in active if requests[i].layer > depth]
        leaving = active[len(staying) :]
        rows = _kept_rows([requests[i] for i in active], depth) if leaving else None
        if depth > 0:
            if len(active) not in plans or rows is not None:
                lengths = np.concatenate([np.asarray(requests[i].lengths) for i in active])
                plans[len(active)] = plan_attention(
                    lengths, rows, hidden, needs_dropout=_attention_dropout(model)
                )
            hidden = model.encoder.layer[depth - 1](hidden, packed=plans[len(active)])
        elif rows is not None:
            hidden = take_rows(hidden, rows)
        if leaving:
            sizes = [_num_rows(requests[i]) for i in leaving]
            hidden, *pieces = hidden.split([len(hidden) - sum(sizes), *sizes])
            outputs.update(zip(leaving, pieces, strict=True))
        active = staying
    return [outputs[i] for i in range(len(requests))]


def first_rows(lengths: Sequence[int]) -> Tensor:
    """Row of the first token (`<s>`) of each packed sequence, (B,)."""
    return torch.from_numpy(np.cumsum(lengths) - lengths)


def sequence_means(rows: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean of the rows (T, D) of each packed sequence, (B, D), in fp32 at least."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    counts = torch.tensor(lengths).to(rows.device, non_blocking=True)
    index = torch.repeat_interleave(
        torch.arange(len(lengths), device=rows.device), counts, output_size=len(rows)
    )
    sums = rows.new_zeros(len(lengths), rows.shape[1], dtype=dtype).index_add(0, index, rows.to(dtype))
    return sums / counts.unsqueeze(1)


def max_sequence_length(config: Any) -> int:
    """Longest sequence that XLM-R's positions hold: they begin after the padding id."""
    return int(config.max_position_embeddings - config.pad_token_id - 1)


def matmul_dtype(rows: Tensor) -> torch.dtype:
    """Type that products of these rows run in: the autocast type where autocast is on, else their own."""
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype


def _check(request: EncodeRequest, *, num_layers: int, max_length: int) -> None:
    total = sum(request.lengths)
    if not request.lengths or total != len(request.input_ids):
        raise ValueError(
            f"lengths must sum to the number of tokens; {len(request.lengths)} lengths sum to {total}, "
            f"input_ids has {len(request.input_ids)}."
        )
    if min(request.lengths) < 1 or max(request.lengths) > max_length:
        raise ValueError(
            f"each sequence must have 1 to {max_length} tokens (the model's positions); "
            f"found {min(request.lengths)} to {max(request.lengths)}. "
            "Prepare the data with a smaller max_length."
        )
    if not 0 <= request.layer <= num_layers:
        raise ValueError(f"layer must be 0 (embeddings) to {num_layers}, found {request.layer}.")


def _embed(model: Any, requests: Sequence[EncodeRequest], sparse_gradient: bool) -> Tensor:
    """Embeddings of all tokens, (T, D); positions start anew in each sequence."""
    lengths = np.concatenate([np.asarray(request.lengths) for request in requests])
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    positions = torch.from_numpy(np.arange(len(starts)) - starts + model.config.pad_token_id + 1)
    input_ids = torch.cat([request.input_ids for request in requests])
    positions = positions.to(input_ids.device, non_blocking=True)
    words: dict[str, Tensor] = {"input_ids": input_ids[None]}
    table = model.embeddings.word_embeddings
    # An adapter or another subclass has a way of its own.
    if sparse_gradient and type(table) is nn.Embedding:
        # No padding_idx: nothing here is padding, and to leave it out a GPU would have to tell the host.
        looked_up = nn.functional.embedding(input_ids, table.weight, sparse=True)
        words = {"inputs_embeds": looked_up[None]}
    hidden: Tensor = model.embeddings(**words, position_ids=positions[None])
    return hidden[0]


def _num_rows(request: EncodeRequest) -> int:
    return len(request.input_ids) if request.rows is None else len(request.rows)


def _kept_rows(requests: Sequence[EncodeRequest], depth: int) -> Tensor | None:
    """Rows of the buffer needed after layer `depth`, ascending.

    All rows of requests that stay, selected ones of those that leave; None if that is every row.
    """
    if all(request.layer > depth or request.rows is None for request in requests):
        return None
    device, start, kept = requests[0].input_ids.device, 0, []
    for request in requests:
        if request.layer > depth or request.rows is None:
            kept.append(torch.arange(start, start + len(request.input_ids), device=device))
        else:
            kept.append(request.rows.to(device, non_blocking=True) + start)
        start += len(request.input_ids)
    return torch.cat(kept)


def _attention_dropout(model: Any) -> bool:
    return bool(model.training and model.config.attention_probs_dropout_prob > 0)


# --- attention ----------------------------------------------------------------------------------------------


def plan_attention(
    lengths: np.ndarray, rows: Tensor | None, hidden: Tensor, *, needs_dropout: bool
) -> PackedAttention:
    """Choose how packed sequences attend.

    Torch's varlen flash attention on CUDA where it can be used, else batched products of groups.

    Args:
        lengths: Tokens of each sequence, (B,).
        rows: Rows that the layer goes on with, (R,), or None for all.
        hidden: Input of the layer, (T, D): its device and type decide.
        needs_dropout: Whether attention dropout is on; flash attention over packed rows has none.
    """
    if hidden.is_cuda:
        reason = _why_not_varlen(hidden, needs_dropout)
        if reason is None:
            return VarlenAttention(lengths, rows, hidden.device)
        _log_fallback(reason)
    return GroupedAttention(lengths, rows, hidden.device)


def _why_not_varlen(hidden: Tensor, needs_dropout: bool) -> str | None:
    dtype = matmul_dtype(hidden)
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it needs fp16 or bf16, the pass runs in {dtype}"
    if needs_dropout:
        return "it has no dropout; set attention_probs_dropout_prob to 0 (the paper's value)"
    if _varlen_attn() is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    return None


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
        self.key_boundaries = torch.from_numpy(boundaries).to(device, non_blocking=True)
        self.query_boundaries = self.key_boundaries
        if rows is not None:
            # Rows ascend: a sequence's first query is the first row not before its first token.
            self.query_boundaries = torch.searchsorted(rows, self.key_boundaries.long()).int()
        # An upper bound is enough for the queries; their true
        # maximum would have to be fetched from the device.
        self.max_length = int(lengths.max())

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, heads: int, scaling: float, dropout: float
    ) -> Tensor:
        """Contexts (R, D); see `PackedAttention`."""
        query, key, value = (part.unflatten(-1, (heads, -1)) for part in (query, key, value))
        bounds = (self.query_boundaries, self.key_boundaries, self.max_length, self.max_length)
        context: Tensor = _varlen_attn()(query, key, value, *bounds, scale=scaling)
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
        self, query: Tensor, key: Tensor, value: Tensor, *, heads: int, scaling: float, dropout: float
    ) -> Tensor:
        """Contexts (R, D); see `PackedAttention`."""
        queries = self.query_grid.spread(query * scaling, heads)
        keys, values = self.key_grid.spread(key, heads), self.key_grid.spread(value, heads)
        masks = self.key_grid.masks
        # Autocast would widen the scores to fp32 for the
        # softmax, which sums in fp32 anyway, and cast them back.
        with torch.autocast(query.device.type, enabled=False):
            contexts = [_attend(*group, dropout) for group in zip(queries, keys, values, masks, strict=True)]
        return self.query_grid.collect(contexts)


def _attend(query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, dropout: float) -> Tensor:
    """Softmax attention of one padded group: queries (G, H, R, D / H), keys and values (G, H, T, D / H)."""
    scores = query @ key.transpose(-1, -2)
    if padding is not None:
        scores = scores.masked_fill_(padding, float("-inf"))
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
        self.slots = torch.from_numpy(np.repeat(first_slot, lengths) + offsets).to(device, non_blocking=True)
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
    mask = torch.from_numpy(np.arange(lengths.max()) >= lengths[:, None])
    return mask[:, None, None, :].to(device, non_blocking=True)


# --- moving rows --------------------------------------------------------------------------------------------


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]` for distinct indices: the gradient is written, not accumulated, which is far cheaper."""
    taken: Tensor = _TakeRows.apply(rows, index)
    return taken


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
