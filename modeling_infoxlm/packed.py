"""One pass of the encoder over unpadded rows; each request leaves it at its own depth, with its own rows.

Released InfoXLM pads every batch, runs all 12 layers for sentence vectors of layer 8, and computes the last
layer at every position although only masked ones are predicted. Here all sequences of all requests lie one
after another in a single (T, D) buffer. The pass calls the library's own layers as modules, of every
architecture in `backbones`.

Shapes: B sequences, T tokens of all sequences, R selected rows, D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .backbones import Backbone, LayerOptions, backbone_of, run_layer
from .packed_attention import PackedAttention, plan_attention, take_rows, to_device


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


def encode(
    encoder: nn.Module, requests: Sequence[EncodeRequest], *, sparse_gradient: bool = False
) -> list[Tensor]:
    """Encode all requests in one pass.

    Args:
        encoder: Model without a head of an architecture in `backbones.BACKBONES`, such as `AutoModel` loads.
        requests: At least one.
        sparse_gradient: Look words up with a sparse gradient. To be set where a head gives the same table a
            dense one in the same backward pass: autograd then adds the few looked-up rows to it, where a
            second dense gradient would be 768 MB of zeros to write and add (XLM-R base).

    Returns:
        For each request its rows at its layer, (R, D). Requests for the same `input_ids` (the same tensor) at
        the same layer, one of them for all rows, run once for all.

    Raises:
        ValueError: If the architecture is not known, lengths do not sum to the number of tokens, a sequence
            is empty or longer than the model's positions, or a layer does not exist.
    """
    model: Any = encoder
    backbone = backbone_of(model.config)
    layers = backbone.prepare(model)
    for request in requests:
        _check(request, num_layers=len(layers), max_length=backbone.max_length(model.config))
    requests, answers = _merge(requests)
    # Deepest first: those that stay for another layer are then always a prefix of the buffer.
    active = sorted(range(len(requests)), key=lambda i: -requests[i].layer)
    hidden, options = _embed(backbone, model, [requests[i] for i in active], sparse_gradient)
    outputs: dict[int, Tensor] = {}
    plans: dict[int, PackedAttention] = {}
    for depth in range(requests[active[0]].layer + 1):
        staying = [i for i in active if requests[i].layer > depth]
        leaving = active[len(staying) :]
        rows = _kept_rows([requests[i] for i in active], depth) if leaving else None
        if depth > 0:
            selected = _at_least_one(rows) if backbone.selects_rows else None
            if len(active) not in plans or selected is not None:
                lengths = np.concatenate([np.asarray(requests[i].lengths) for i in active])
                plans[len(active)] = plan_attention(
                    lengths,
                    selected,
                    hidden,
                    heads=model.config.num_attention_heads,
                    needs_dropout=backbone.drops_attention(model),
                )
            layer = layers[depth - 1]
            hidden = run_layer(layer, hidden, plans[len(active)], options(layer, len(hidden)))
            if rows is not None and backbone.selects_rows:
                hidden = hidden[: len(rows)]
        if depth == model.config.num_hidden_layers:
            hidden = backbone.finish(model, hidden)
        if rows is not None and (depth == 0 or not backbone.selects_rows):
            hidden = take_rows(hidden, rows)
        if leaving:
            sizes = [_num_rows(requests[i]) for i in leaving]
            hidden, *pieces = hidden.split([len(hidden) - sum(sizes), *sizes])
            outputs.update(zip(leaving, pieces, strict=True))
        active = staying
    return [outputs[i] if rows is None else take_rows(outputs[i], rows) for i, rows in answers]


def _merge(
    requests: Sequence[EncodeRequest],
) -> tuple[list[EncodeRequest], list[tuple[int, Tensor | None]]]:
    """What to encode; and for each request which of that answers it, with rows to take of it."""
    merged: list[EncodeRequest] = []
    places: dict[tuple[int, int], int] = {}
    for request in requests:
        if request.rows is None:
            places.setdefault((id(request.input_ids), request.layer), len(places))
            if len(merged) < len(places):
                merged.append(request)
    answers: list[tuple[int, Tensor | None]] = []
    for request in requests:
        place = places.get((id(request.input_ids), request.layer))
        if place is None:
            place, rows = len(merged), None
            merged.append(request)
        else:
            rows = request.rows
        answers.append((place, rows))
    return merged, answers


def first_rows(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Row of the first token (`<s>`) of each packed sequence, (B,)."""
    return to_device(np.cumsum(lengths) - lengths, device)


def sequence_means(rows: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean of the rows (T, D) of each packed sequence, (B, D), in fp32 at least."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    counts = to_device(np.asarray(lengths), rows.device)
    index = torch.repeat_interleave(
        torch.arange(len(lengths), device=rows.device), counts, output_size=len(rows)
    )
    sums = rows.new_zeros(len(lengths), rows.shape[1], dtype=dtype).index_add(0, index, rows.to(dtype))
    return sums / counts.unsqueeze(1)


POOLINGS = ("cls", "mean")


def check_pooling(pooling: str, name: str = "pooling") -> str:
    """The pooling itself.

    Raises:
        ValueError: If it is not one of `POOLINGS`.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"{name} must be one of {POOLINGS}, found {pooling!r}.")
    return pooling


def sentence_request(input_ids: Tensor, lengths: Sequence[int], layer: int, pooling: str) -> EncodeRequest:
    """The request of which `pool` makes sentence vectors."""
    rows = None
    if check_pooling(pooling) == "cls":
        rows = first_rows(lengths, input_ids.device)
    return EncodeRequest(input_ids, lengths, layer, rows)


def pool(rows: Tensor, lengths: Sequence[int], pooling: str) -> Tensor:
    """Sentence vectors (B, D) of a `sentence_request`'s rows; fp32 for the mean."""
    return rows if pooling == "cls" else sequence_means(rows, lengths)


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


def _embed(
    backbone: Backbone, model: Any, requests: Sequence[EncodeRequest], sparse_gradient: bool
) -> tuple[Tensor, LayerOptions]:
    """Embeddings of all tokens, (T, D); positions start anew in each sequence."""
    lengths = np.concatenate([np.asarray(request.lengths) for request in requests])
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    input_ids = torch.cat([request.input_ids for request in requests])
    numbers = np.arange(len(starts)) - starts + backbone.first_position(model.config)
    positions = to_device(numbers, input_ids.device)
    words: dict[str, Tensor] = {"input_ids": input_ids[None]}
    table = backbone.table_of(model)
    # An adapter or another subclass has a way of its own.
    if sparse_gradient and type(table) is nn.Embedding:
        # No padding_idx: nothing here is padding, and to leave it out a GPU would have to tell the host.
        looked_up = nn.functional.embedding(input_ids, table.weight, sparse=True)
        words = {"inputs_embeds": looked_up[None]}
    hidden, options = backbone.embed(model, positions[None], words)
    return hidden.squeeze(0), options


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


def _at_least_one(rows: Tensor | None) -> Tensor | None:
    """The library's layers do not run over no row at all, and without them DDP would miss gradients."""
    return rows.new_zeros(1) if rows is not None and len(rows) == 0 else rows
