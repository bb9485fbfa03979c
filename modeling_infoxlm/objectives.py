"""The objectives of InfoXLM (arXiv 2007.07834), the contract they follow, and how their losses are combined.

A pretext task is a choice of views, a score, and candidates. `Objective` says what a task has to say; models,
batches, meters and flags go by the register. Each returns the *sum* of its losses and how many items it
summed, in nats; `combine_losses` alone divides. So a loss over several micro-batches and ranks is the same
number as over one large batch.

Shapes: B sentences, T tokens, M masked positions, D hidden, Q queued keys, V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused_loss import linear_cross_entropy
from .packed import EncodeRequest, check_pooling, pool, sentence_request

IGNORE_INDEX = -100
LOWEST_TEMPERATURE = 1e-3  # below it a softmax is a maximum in fp32, and no gradient is left
Similarity = Literal["dot", "cosine"]
LossNormalization = Literal["per_objective", "per_item"]
Part = Mapping[str, Any]
Kind = TypeVar("Kind", bound=type["Objective"])
FORWARD_BACKWARD = 3  # the backward pass costs two products for each one of the forward pass


class LossOutput(NamedTuple):
    """What an objective returns.

    Attributes:
        loss_sum: Scalar in nats with gradient, at least fp32: the sum over the items, not their mean.
        num_items: Number of items summed: masked tokens, or sentence pairs; a scalar tensor where only the
            device knows it.
        metrics: Scalars without gradient, each a mean over the items. Of a contrast or another choice among
            candidates `log_candidates`, the logarithm of their number: `log_candidates - loss` bounds the
            mutual information of the two views from below. Without it no such bound is claimed.
        vectors: Of a contrast, queries and keys as they were compared, (B, D) each, without gradient: what
            `batch_metrics` of a whole batch needs, however it was cut.
    """

    loss_sum: Tensor
    num_items: int | Tensor
    metrics: dict[str, Tensor]
    vectors: tuple[Tensor, Tensor] | None = None


OBJECTIVES: dict[str, type["Objective"]] = {}
"""The class of each objective, by the name that it has in flags and logs; `register_objective` adds to it."""


def register_objective(*names: str) -> Callable[[Kind], Kind]:
    """Have models compute an objective under one or more names: a decorator of its class.

    Raises:
        ValueError: If a name is no identifier, or is taken by another class.
    """

    def register(kind: Kind) -> Kind:
        for name in names:
            taken = OBJECTIVES.get(name, kind)
            if not name.isidentifier() or taken.__qualname__ != kind.__qualname__:
                raise ValueError(f"objective {name!r}: the name is no identifier, or taken by {taken}.")
            OBJECTIVES[name] = kind
        return kind

    return register


class Objective(nn.Module, ABC):
    """A pretext task: which sequences it encodes, and how their rows become a summed loss.

    It holds what it trains beside the encoder and never the encoder itself. A part is what its stream packs
    (see `data.batches`): views with `input_ids` (T,) and `lengths` (B numbers), and what else it needs.

    Args:
        config: Configuration of the model.

    Attributes:
        layer: The deepest layer that it trains, 0 for the embeddings alone.
        uses_table: Whether it trains the language model head, whose table is the word embeddings.
        whole_batch: Whether the loss of an item depends on the others of the batch, which is then not cut.
    """

    uses_table = False
    whole_batch = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.layer: int = config.num_hidden_layers

    @abstractmethod
    def requests(self, part: Part) -> list[EncodeRequest]:
        """What the encoder is asked for; the same sequences at the same layer are encoded once for all."""

    @abstractmethod
    def loss(self, part: Part, rows: list[Tensor], model: Any) -> LossOutput:
        """The summed loss of a part, given the rows of each request, (R, D), and the model.

        Of the model it may use `transform` and `output_table`.
        """

    def forward(
        self, parts: Mapping[str, Part], rows: Mapping[str, list[Tensor]], model: Any
    ) -> dict[str, LossOutput]:
        """The loss under each name; to be overridden where several share their work."""
        return {name: self.loss(part, rows[name], model) for name, part in parts.items()}

    @abstractmethod
    def num_items(self, part: Part) -> int | Tensor:
        """Items whose losses are summed; known before the forward pass, for the mean over a global batch."""

    @abstractmethod
    def flops(self, part: Part) -> float:
        """Useful floating point operations, forward and backward; padding and other waste do not count."""

    def prepare(self, part: Part, model: Any) -> dict[str, Any]:
        """Fields to add to a part before it is counted and cut: such as labels that the model itself makes.

        Called once an update for each batch of a device, without gradient and in eval mode.
        """
        return {}


def encoder_flops(config: Any, lengths: Sequence[int], num_layers: int) -> float:
    """Floating point operations of a forward pass through the first layers; a multiply-add counts as two."""
    linear = 2 * sum(lengths) * config.hidden_size * (4 * config.hidden_size + 2 * config.intermediate_size)
    attention = 4 * sum(length * length for length in lengths) * config.hidden_size
    return num_layers * float(linear + attention)


@register_objective("mlm", "tlm")
class MaskedLM(Objective):
    """Masked language modelling (paper, equation 1); of translated pairs it is TLM (equation 2).

    Its parts have one view, with `masked_rows` (M,) and the true tokens there as `labels` (M,).
    """

    uses_table = True

    def requests(self, part: Part) -> list[EncodeRequest]:
        """The last layer at masked positions."""
        return [EncodeRequest(part["input_ids"], part["lengths"], self.layer, part["masked_rows"])]

    def forward(
        self, parts: Mapping[str, Part], rows: Mapping[str, list[Tensor]], model: Any
    ) -> dict[str, LossOutput]:
        """Cross entropy of the true tokens over the whole vocabulary, summed over M for each name.

        MLM and TLM share the head, so one product with its table serves both: the table's gradient, 768 MB
        of XLM-R base, is made once. Logits are never held as fp32 for the whole vocabulary.
        """
        hidden = [rows[name][0] for name in parts]
        labels = torch.cat([part["labels"] for part in parts.values()])
        weight, bias = model.output_table()
        losses = linear_cross_entropy(model.transform(torch.cat(hidden)), weight, bias, labels)
        bound = {"log_candidates": losses.new_full((), math.log(len(weight)))}
        pieces = losses.split([len(each) for each in hidden])
        return {
            name: LossOutput(piece.sum(), len(piece), bound)
            for name, piece in zip(parts, pieces, strict=True)
        }

    def loss(self, part: Part, rows: list[Tensor], model: Any) -> LossOutput:
        """The loss of one part by itself; see `forward`."""
        return self.forward({"": part}, {"": rows}, model)[""]

    def num_items(self, part: Part) -> int:
        """Masked tokens."""
        return len(part["labels"])

    def flops(self, part: Part) -> float:
        """All layers, and the head on masked rows only."""
        hidden, vocabulary = self.config.hidden_size, self.config.vocab_size
        head = 2 * len(part["labels"]) * hidden * (hidden + vocabulary)
        return FORWARD_BACKWARD * (encoder_flops(self.config, part["lengths"], self.layer) + head)


@register_objective("xlco")
class CrossLingualContrast(Objective):
    """XlCo: contrast of a sentence with its translation against other sentences (paper, equation 3).

    Its part has the views `query` and `key`; before the forward pass the trainer adds `keys` (B, D), the
    projected vectors of the key view by the momentum encoder, and `negatives` (Q, D), the queued keys.

    Args:
        config: Its `xlco_*` fields define the contrast: layer, pooling, similarity, temperature, projection
            by one bias-free matrix for all languages, in-batch negatives, and whether the other direction,
            each key against the queries of the (global) batch, is averaged in.

    Raises:
        ValueError: If the temperature is below 0.001, or another field means nothing.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layer = config.resolved_xlco_layer()
        self.pooling = check_pooling(config.xlco_pooling, "xlco_pooling")
        self.temperature, self.similarity = config.xlco_temperature, config.xlco_similarity
        if not LOWEST_TEMPERATURE <= self.temperature < math.inf:  # nor is NaN
            raise ValueError(
                f"xlco_temperature must be at least {LOWEST_TEMPERATURE:g} and finite, found "
                f"{self.temperature:g}; the released code has 0.25."
            )
        if self.similarity not in get_args(Similarity):
            raise ValueError(
                f"xlco_similarity must be one of {get_args(Similarity)}, not {self.similarity!r}."
            )
        hidden = config.hidden_size
        self.projection = (
            nn.Linear(hidden, hidden, bias=False) if config.xlco_use_projection else nn.Identity()
        )
        self.in_batch_negatives, self.symmetric = config.xlco_in_batch_negatives, config.xlco_symmetric
        self.whole_batch = self.in_batch_negatives or self.symmetric

    def requests(self, part: Part) -> list[EncodeRequest]:
        """The query view up to the layer of the contrast."""
        query = part["query"]
        return [sentence_request(query["input_ids"], query["lengths"], self.layer, self.pooling)]

    def loss(self, part: Part, rows: list[Tensor], model: Any) -> LossOutput:
        """The contrast of the part's queries.

        Raises:
            ValueError: If the part has no `keys`.
        """
        if "keys" not in part:
            raise ValueError(
                "the xlco part has no keys; encode its `key` view with a MomentumEncoder as the trainer does."
            )
        pooled = pool(rows[0], part["query"]["lengths"], self.pooling)
        keys = part["keys"]
        return self.contrast(self.project(pooled.to(rows[0].dtype)), keys, part.get("negatives", keys[:0]))

    def num_items(self, part: Part) -> int:
        """Pairs."""
        return len(part["query"]["lengths"])

    def flops(self, part: Part) -> float:
        """No layer above the contrast's; keys have no backward pass, and negatives no gradient."""
        query, key = (
            encoder_flops(self.config, part[view]["lengths"], self.layer) for view in ("query", "key")
        )
        scores = 2 * 2 * self.num_items(part) * len(part.get("negatives", ())) * self.config.hidden_size
        return FORWARD_BACKWARD * query + key + scores

    def project(self, vectors: Tensor) -> Tensor:
        """Map pooled hidden states (B, D) to sentence vectors (B, D)."""
        projected: Tensor = self.projection(vectors)
        return projected

    def contrast(self, query: Tensor, key: Tensor, negatives: Tensor) -> LossOutput:
        """InfoNCE of each query against its own key and the negatives, in fp32 whatever comes in.

        Args:
            query: Projected sentence vectors with gradient, (B, D).
            key: Projected vectors of the translations by the momentum
                encoder, (B, D). Row i is the positive of row i.
            negatives: Queued keys of earlier batches, (Q, D); Q may be 0.

        Returns:
            Loss summed over B in nats; `num_items` is B. Metrics, all without gradient: `accuracy` among all
            candidates (0..1); `key_norm` and `queue_norm`, mean lengths: when they part, fresh keys can be
            told from queued ones by size; `log_candidates`, the logarithm of the number of candidates:
            `log_candidates - loss` bounds the mutual information of the two sentences from below.

        Raises:
            ValueError: If `query` and `key` differ in shape.
        """
        if query.shape != key.shape:
            raise ValueError(
                f"query {tuple(query.shape)} and key {tuple(key.shape)} must have the same shape (B, D)."
            )
        if negatives.dim() != 2 or negatives.shape[1] != query.shape[1]:
            raise ValueError(f"negatives {tuple(negatives.shape)} must be (Q, {query.shape[1]}).")
        dtype = torch.promote_types(query.dtype, torch.float32)
        # Autocast would run the products in half precision; with 131,073 candidates that loses the small
        # differences the gradient is made of.
        with torch.autocast(query.device.type, enabled=False):
            query, key, negatives = query.to(dtype), key.detach().to(dtype), negatives.detach().to(dtype)
            norms = negatives.norm(dim=-1)
            metrics = {
                "key_norm": key.norm(dim=-1).mean(),
                "queue_norm": norms.mean() if len(norms) else key.new_zeros(()),
            }
            if self.similarity == "cosine":
                query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
            # (B, Q); the queue's scores are scaled rather than its keys, of which there are 402 MB.
            queued = query @ negatives.t()
            if self.similarity == "cosine":
                queued = queued / norms.clamp(min=1e-12)
            losses, metrics["accuracy"], num_candidates = self._query_to_key(query, key, queued)
            metrics["log_candidates"] = losses.new_full((), num_candidates).log()
            if self.symmetric:
                losses = (losses + self._key_to_query(query, key)) / 2
        return LossOutput(losses.sum(), len(query), metrics, (query.detach(), key))

    def _query_to_key(self, query: Tensor, key: Tensor, queued: Tensor) -> tuple[Tensor, Tensor, int]:
        """Losses (B,) given the scores with the queue (B, Q); share that is right; number of candidates."""
        if self.in_batch_negatives:
            keys, offset = gather_rows(key)
            targets = torch.arange(offset, offset + len(query), device=query.device)
            similarity = query @ keys.t()
        else:
            targets = torch.zeros(len(query), dtype=torch.long, device=query.device)
            similarity = (query * key).sum(dim=-1, keepdim=True)
        logits = torch.cat([similarity, queued], dim=1)
        losses = F.cross_entropy(logits / self.temperature, targets, reduction="none")
        return losses, _share_highest(logits.detach(), targets), logits.shape[1]

    def _key_to_query(self, query: Tensor, key: Tensor) -> Tensor:
        """Losses (B,) of keys against the queries of the global batch."""
        candidates, offset = gather_rows(query)
        targets = torch.arange(offset, offset + len(key), device=key.device)
        return F.cross_entropy(key @ candidates.t() / self.temperature, targets, reduction="none")


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Rows of all ranks in rank order, with gradient, and where this rank's begin; all hold equally many."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows, 0
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered, torch.distributed.get_rank() * len(rows)


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; every rank's loss may depend on them, so their gradients are summed over ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        gathered = rows.new_empty(torch.distributed.get_world_size() * len(rows), *rows.shape[1:])
        torch.distributed.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        summed = upstream[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(summed)
        start = torch.distributed.get_rank() * ctx.count
        return summed[start : start + ctx.count]


def _share_highest(scores: Tensor, targets: Tensor) -> Tensor:
    """Share of rows whose target scores highest; a tie is no hit, so collapsed vectors score 0."""
    return ((scores >= scores.gather(1, targets[:, None])).sum(dim=1) == 1).float().mean()


def batch_metrics(query: Tensor, queries: Tensor, keys: Tensor, first: int = 0) -> dict[str, Tensor]:
    """How well a contrast spreads its vectors, over a whole batch: a part of one would say otherwise.

    Args:
        query: Queries whose own keys are looked for, (B, D).
        queries: Queries of the whole batch, (N, D).
        keys: Keys of the whole batch, (N, D).
        first: Number of the first of `query` in the batch.

    Returns:
        `in_batch_accuracy` among the batch's keys (0..1); `query_std` and `key_std`, the standard deviation
        over the batch of L2-normalised vectors times sqrt(D), near 1 when they spread and 0 when they have
        collapsed.
    """
    own = torch.arange(first, first + len(query), device=query.device)
    return {
        "in_batch_accuracy": _share_highest(query @ keys.t(), own),
        "query_std": _spread(queries),
        "key_std": _spread(keys),
    }


def _spread(vectors: Tensor) -> Tensor:
    """Standard deviation of normalised vectors over the batch, times sqrt(D).

    1 for random directions, 0 if all are one.
    """
    normalised = F.normalize(vectors, dim=-1)
    return normalised.std(dim=0, correction=0).pow(2).sum().sqrt()


def combine_losses(
    losses: Mapping[str, LossOutput],
    num_items: Mapping[str, float | Tensor],
    weights: Mapping[str, float],
    rule: LossNormalization = "per_objective",
) -> Tensor:
    """Weighted sum of the objectives' losses over the items of the whole global batch.

    Args:
        losses: Output of each objective on this micro-batch and rank.
        num_items: Items of each objective over all ranks and accumulation steps of the update.
        weights: Weight of each objective.
        rule: `"per_objective"`: each objective's own global mean, then weighted (the paper's plain sum of
            losses). `"per_item"`: one denominator, the number of items of all objectives (the released code;
            a sentence then counts as much as a masked token, so XlCo gets about 1 % of the weight).

    Returns:
        Scalar whose gradients, summed over ranks and accumulation steps, are those of the global batch.

    Raises:
        ValueError: If the rule is unknown, or an objective has no weight or no global count.
    """
    if rule not in get_args(LossNormalization):
        raise ValueError(f"loss normalization must be one of {get_args(LossNormalization)}, found {rule!r}.")
    missing = [name for name in losses if name not in num_items or name not in weights]
    if missing or not losses:
        raise ValueError(
            f"every objective needs a weight and a count; losses {list(losses)}, missing {missing}."
        )
    total = sum(num_items.values())
    denominators = num_items if rule == "per_objective" else dict.fromkeys(losses, total)
    terms = [
        weights[name] * loss.loss_sum / _at_least_one(denominators[name]) for name, loss in losses.items()
    ]
    return torch.stack(terms).sum()


def _at_least_one(count: float | Tensor) -> float | Tensor:
    """A stream without items in this update adds 0, not 0 / 0."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
