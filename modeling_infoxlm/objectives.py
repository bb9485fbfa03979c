"""The objectives of InfoXLM (arXiv 2007.07834) as small modules over rows, and how they are combined.

Each returns the *sum* of its losses and how many items it summed, in nats; `combine_losses` alone divides.
So a loss over several micro-batches and ranks is the same number as over one large batch.

Shapes: B sentences, M masked positions, D hidden, Q queued keys, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused_loss import linear_cross_entropy

IGNORE_INDEX = -100
LOWEST_TEMPERATURE = 1e-3  # below it a softmax is a maximum in fp32, and no gradient is left
Similarity = Literal["dot", "cosine"]
LossNormalization = Literal["per_objective", "per_item"]


class LossOutput(NamedTuple):
    """What an objective returns.

    Attributes:
        loss_sum: Scalar in nats with gradient, at least fp32: the sum over the items, not their mean.
        num_items: Number of items summed: masked tokens, or sentence pairs.
        metrics: Scalars without gradient, each a mean over the items.
        vectors: Of a contrast, queries and keys as they were compared, (B, D) each, without gradient: what
            `batch_metrics` of a whole batch needs, however it was cut.
    """

    loss_sum: Tensor
    num_items: int
    metrics: dict[str, Tensor]
    vectors: tuple[Tensor, Tensor] | None = None


class LanguageModelHead(Protocol):
    """What `MaskedLM` needs of a head: features of masked rows, and the output table."""

    def transform(self, rows: Tensor) -> Tensor:
        """Features that the output table is applied to, (M, D) to (M, D)."""
        ...

    def output_table(self) -> tuple[Tensor, Tensor]:
        """Weight (V, D) and bias (V,)."""
        ...


class MaskedLM(nn.Module):
    """Masked language modelling (paper, equation 1); of translated pairs it is TLM (equation 2)."""

    def forward(
        self, rows: Sequence[Tensor], labels: Sequence[Tensor], head: LanguageModelHead
    ) -> list[LossOutput]:
        """Cross entropy of the true tokens at masked positions over the whole vocabulary.

        MLM and TLM share the head, so one product with its table serves both: the table's gradient, 768 MB
        of XLM-R base, is made once.

        Args:
            rows: For each objective, last hidden states at its masked positions alone, (M, D).
            labels: For each objective, the true token of each, (M,).
            head: Language model head; its logits are never held as fp32 for the whole vocabulary.

        Returns:
            For each objective its loss summed over M in nats; `num_items` is M.

        Raises:
            ValueError: If there is not one label for each row.
        """
        weight, bias = head.output_table()
        losses = linear_cross_entropy(
            head.transform(torch.cat(list(rows))), weight, bias, torch.cat(list(labels))
        )
        parts = losses.split([len(part) for part in rows])
        return [LossOutput(part.sum(), len(part), {}) for part in parts]


class CrossLingualContrast(nn.Module):
    """XlCo: contrast of a sentence with its translation against other sentences (paper, equation 3).

    Args:
        hidden_size: Length D of a sentence vector.
        use_projection: Project by one bias-free matrix, shared by all languages, as in the released code.
        temperature: Softmax temperature; `logits = similarity / temperature`. 0.25 in the released code.
        similarity: `"dot"` product (released code) or `"cosine"`.
        in_batch_negatives: The other keys of the (global) batch are negatives too.
        symmetric: Average with the other direction, each key against the queries of the (global) batch.

    Raises:
        ValueError: If `temperature` is below 0.001 or `similarity` unknown.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        use_projection: bool = True,
        temperature: float = 0.25,
        similarity: Similarity = "dot",
        in_batch_negatives: bool = False,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        if not LOWEST_TEMPERATURE <= temperature < math.inf:  # nor is NaN
            raise ValueError(
                f"temperature must be at least {LOWEST_TEMPERATURE:g} and finite, found {temperature:g}; "
                "the released code has 0.25."
            )
        if similarity not in get_args(Similarity):
            raise ValueError(f"similarity must be one of {get_args(Similarity)}, found {similarity!r}.")
        self.projection = nn.Linear(hidden_size, hidden_size, bias=False) if use_projection else nn.Identity()
        self.temperature = temperature
        self.similarity = similarity
        self.in_batch_negatives = in_batch_negatives
        self.symmetric = symmetric

    def project(self, vectors: Tensor) -> Tensor:
        """Map pooled hidden states (B, D) to sentence vectors (B, D)."""
        projected: Tensor = self.projection(vectors)
        return projected

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor) -> LossOutput:
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
            keys, offset = _gather_rows(key)
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
        candidates, offset = _gather_rows(query)
        targets = torch.arange(offset, offset + len(key), device=key.device)
        return F.cross_entropy(key @ candidates.t() / self.temperature, targets, reduction="none")


def _gather_rows(rows: Tensor) -> tuple[Tensor, int]:
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
