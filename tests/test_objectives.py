"""The objectives and their sum against slow loops written from the paper and the released code."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import combine as slow_combine
from reference.contrast import contrast as slow_contrast
from reference.contrast import project as slow_project
from reference.masked_lm import lm_head_features
from reference.masked_lm import masked_lm as slow_masked_lm
from torch import Tensor, nn
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLMHead

from modeling_infoxlm import InfoXLMConfig
from modeling_infoxlm.backbones import XLM_ROBERTA
from modeling_infoxlm.data.streams import Stream, StreamSettings
from modeling_infoxlm.objectives import (
    CrossLingualContrast,
    LossOutput,
    MaskedLM,
    Objective,
    batch_metrics,
    combine_losses,
)

OPTIONS = [
    {"similarity": similarity, "in_batch_negatives": in_batch, "symmetric": symmetric}
    for similarity, in_batch, symmetric in product(["dot", "cosine"], [False, True], [False, True])
]


def random_batch(batch: int, hidden: int, queue: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, hidden), (batch, hidden), (queue, hidden)]
    query, key, negatives = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    return query, key, negatives


def contrast_of(hidden: int, **options: Any) -> CrossLingualContrast:
    """A contrast of vectors of this length; options without their `xlco_`."""
    fields = {f"xlco_{name}": value for name, value in options.items()}
    return CrossLingualContrast(InfoXLMConfig(hidden_size=hidden, **fields))


def masked_lm(rows: Sequence[Tensor], labels: Sequence[Tensor], head: Any) -> list[LossOutput]:
    """The losses of one or more objectives that share the head."""
    parts = {str(i): {"labels": each} for i, each in enumerate(labels)}
    given = {str(i): [each] for i, each in enumerate(rows)}
    return list(MaskedLM(InfoXLMConfig())(parts, given, head).values())


def built(hidden: int, **options: object) -> CrossLingualContrast:
    torch.manual_seed(3)
    module = contrast_of(hidden, **options).double()
    for weight in module.parameters():
        # The published initialisation, N(0, 0.02), would make all logits alike and hide errors.
        nn.init.normal_(weight, std=0.5)
    return module


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(1, 5),
    hidden=st.integers(1, 6),
    queue=st.integers(0, 6),
    temperature=st.floats(0.05, 5.0),
    use_projection=st.booleans(),
    seed=st.integers(0, 1000),
)
@example(batch=4, hidden=5, queue=7, temperature=0.25, use_projection=True, seed=0)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_contrast_equals_the_slow_loop(
    options: dict, batch: int, hidden: int, queue: int, temperature: float, use_projection: bool, seed: int
) -> None:
    """Loss, accuracy and the gradients of queries and projection; keys and negatives get none."""
    module = built(hidden, use_projection=use_projection, temperature=temperature, **options)
    vectors, key, negatives = random_batch(batch, hidden, queue, seed)
    fast_vectors, slow_vectors = (vectors.clone().requires_grad_() for _ in range(2))
    others = key.clone().requires_grad_(), negatives.clone().requires_grad_()
    fast = module.contrast(module.project(fast_vectors), *others)
    fast.loss_sum.backward()
    assert all(other.grad is None for other in others)
    assert not any(value.requires_grad for value in (*fast.metrics.values(), *fast.vectors))

    projection = dict(module.named_parameters())
    assert {name: (*w.shape,) for name, w in projection.items()} == (
        {"projection.weight": (hidden, hidden)} if use_projection else {}
    )
    weights = [weight.detach().clone().requires_grad_() for weight in projection.values()]
    query = slow_project(slow_vectors, *weights or [None])
    slow = slow_contrast(query, key, negatives, temperature=temperature, **options)
    slow.loss_sum.backward()
    assert fast.num_items == batch
    close = {"rtol": 1e-6, "atol": 1e-5}
    torch.testing.assert_close(fast.loss_sum.double(), slow.loss_sum, **close)
    torch.testing.assert_close(fast_vectors.grad, slow_vectors.grad, **close)
    assert float(fast.metrics["accuracy"]) == pytest.approx(slow.accuracy, abs=1e-6)
    candidates = (batch if options["in_batch_negatives"] else 1) + queue  # equal ones would lose log of that
    assert float(fast.metrics["log_candidates"]) == pytest.approx(math.log(candidates))
    for ours, theirs in zip(projection.values(), weights, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **close)
    if (batch, queue) == (4, 7):
        assert float(slow_vectors.grad.abs().max()) > 1e-3, "a test of zero gradients would prove nothing"


def test_accuracy_counts_queries_whose_own_key_wins() -> None:
    module = contrast_of(4, use_projection=False)
    key = torch.eye(4) * torch.tensor([[3.0], [3.0], [1.0], [-1.0]])
    output = module.contrast(torch.eye(4), key, torch.full((2, 4), 2.0))
    assert float(output.metrics["accuracy"]) == pytest.approx(0.5)
    # Where all vectors have collapsed into one, an accuracy of 100 % would be the opposite of the truth.
    ones = torch.ones(4, 4)
    assert float(module.contrast(ones, ones, ones).metrics["accuracy"]) == 0.0
    # That among the keys of the batch leaves the queue out.
    query, key = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    output = module.contrast(query, key, torch.full((3, 4), 5.0))
    assert float(batch_metrics(query, *output.vectors)["in_batch_accuracy"]) == pytest.approx(0.5)
    assert float(batch_metrics(query[1:3], *output.vectors, first=1)["in_batch_accuracy"]) == 0.5
    assert float(output.metrics["accuracy"]) == 0.0


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_norms_of_fresh_and_queued_keys_are_their_lengths(similarity: str) -> None:
    module = contrast_of(2, use_projection=False, similarity=similarity)
    key, negatives = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[6.0, 8.0]])
    metrics = module.contrast(torch.ones(2, 2), key, negatives).metrics
    assert float(metrics["key_norm"]) == pytest.approx(3.0)
    assert float(metrics["queue_norm"]) == pytest.approx(10.0)
    query = torch.full((2, 4), 100.0)
    large = contrast_of(4, use_projection=False).contrast(query, query, -query).loss_sum
    assert float(large) == pytest.approx(0.0, abs=1e-5), "large similarities must not overflow"


def test_spread_is_zero_for_collapsed_vectors_and_one_for_random_directions() -> None:
    """Lengths do not count: vectors of one direction and many lengths have collapsed too."""
    torch.manual_seed(0)
    collapsed = torch.rand(500, 1) * torch.randn(8)
    metrics = batch_metrics(collapsed, collapsed, torch.randn(500, 8))
    assert float(metrics["query_std"]) == pytest.approx(0.0, abs=1e-3)
    assert float(metrics["key_std"]) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16 vectors", "autocast"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_half_precision_gives_an_fp32_loss_of_exact_logits(options: dict, dtype: torch.dtype) -> None:
    query, key, negatives = (part.to(dtype) for part in random_batch(4, 5, 7))
    module = contrast_of(5, use_projection=False, **options)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        loss = module.contrast(query, key, negatives.float()).loss_sum
    parts = [part.double() for part in (query, key, negatives)]
    expected = slow_contrast(*parts, **{"temperature": 0.25, **options}).loss_sum
    assert loss.dtype == torch.float32
    # 1e-5 and not 1e-2: products of bf16 numbers are exact in fp32; only a bf16 matmul could be further off.
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("key", "negatives"),
    [((3, 5), (7, 5)), ((4, 6), (7, 5)), ((4, 5), (7, 6))],
    ids=["rows", "hidden", "queue"],
)
def test_shapes_that_do_not_fit_are_refused(key: tuple, negatives: tuple) -> None:
    module = contrast_of(5, use_projection=False)
    with pytest.raises(ValueError, match=r"\d"):
        module.contrast(torch.zeros(4, 5), torch.zeros(key), torch.zeros(negatives))
    with pytest.raises(ValueError, match=r"5.*4|4.*5"):
        masked_lm([torch.zeros(5, 6).double()], [torch.zeros(4, dtype=torch.long)], lm_head())


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": -1.0}, {"similarity": "euclid"}])
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        contrast_of(5, **options)


# --- masked language model


class Head(XLMRobertaLMHead):
    """What `MaskedLM` asks of a model, with the head's parameters alone."""

    def transform(self, rows: torch.Tensor) -> torch.Tensor:
        return XLM_ROBERTA.features(SimpleNamespace(lm_head=self), rows)

    def output_table(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.decoder.weight, self.decoder.bias


def lm_head(hidden: int = 6, vocab: int = 11) -> Head:
    torch.manual_seed(1)
    head = Head(InfoXLMConfig(hidden_size=hidden, vocab_size=vocab))
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    # A model ties the decoder's bias to the head's; a head on its own must do the same.
    head.decoder.bias = head.bias
    return head.double()


def test_masked_lm_of_two_objectives_equals_the_slow_loop() -> None:
    """Each with a weight of its own, although one product serves both."""
    head = lm_head()
    fast_rows = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    slow_rows = fast_rows.detach().clone().requires_grad_()
    labels = torch.tensor([0, 10, 3, 3, 7])

    first, second = masked_lm(fast_rows.split([3, 2]), labels.split([3, 2]), head)
    (first.loss_sum + 4 * second.loss_sum).backward()
    fast_gradients = {name: value.grad.clone() for name, value in head.named_parameters()}
    head.zero_grad()
    norm = head.layer_norm
    weights = (head.dense.weight, head.dense.bias, norm.weight, norm.bias, norm.eps)
    features = torch.stack([lm_head_features(row, *weights) for row in slow_rows])
    slow = [
        slow_masked_lm(features[part], head.decoder.weight, head.bias, labels[part].tolist())
        for part in (slice(0, 3), slice(3, 5))
    ]
    (slow[0] + 4 * slow[1]).backward()

    assert (first.num_items, second.num_items) == (3, 2)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(first.loss_sum.double(), slow[0], **close)
    torch.testing.assert_close(second.loss_sum.double(), slow[1], **close)
    torch.testing.assert_close(fast_rows.grad, slow_rows.grad, **close)
    for name, value in head.named_parameters():
        assert float(value.grad.abs().max()) > 1e-3, name
        torch.testing.assert_close(fast_gradients[name], value.grad, **close, msg=name)


# --- adding them up

ITEMS = {"mlm": [3.0, 1.5, 2.5, 4.0], "tlm": [0.5, 2.0], "xlco": [6.0]}
WEIGHTS = {"mlm": 1.0, "tlm": 0.5, "xlco": 2.0}


def as_losses(items: Mapping[str, list[float]]) -> dict[str, LossOutput]:
    return {
        name: LossOutput(loss_sum=torch.tensor(sum(losses)), num_items=len(losses), metrics={})
        for name, losses in items.items()
    }


@pytest.mark.parametrize("subset", [("mlm",), ("mlm", "tlm", "xlco"), ("mlm", "none", "xlco")], ids="+".join)
@pytest.mark.parametrize("rule", ["per_objective", "per_item"])
def test_combined_loss_equals_the_slow_loop_however_it_is_cut(rule: str, subset: tuple[str, ...]) -> None:
    """Parts divide by the global counts, so that accumulation and ranks change nothing.

    One objective may have no items; counts summed over ranks come as tensors, and are not read back.
    """
    items, weights = {name: ITEMS.get(name, []) for name in subset}, {**WEIGHTS, "none": 3.0}
    parts = [{name: losses[part] for name, losses in items.items()} for part in (slice(0, 3), slice(3, None))]
    counts = {name: len(losses) for name, losses in items.items()}
    expected = pytest.approx(getattr(slow_combine, rule)(items, weights), rel=1e-6)
    for each in (counts, {name: torch.tensor(float(count)) for name, count in counts.items()}):
        total = combine_losses(as_losses(items), each, weights, rule)
        assert total.shape == () and float(total) == expected
        assert sum(float(combine_losses(as_losses(part), each, weights, rule)) for part in parts) == expected
    losses = as_losses(items)
    loss_sum = losses["mlm"].loss_sum.requires_grad_()
    combine_losses(losses, counts, weights, rule).backward()
    denominator = counts["mlm"] if rule == "per_objective" else sum(counts.values())
    assert float(loss_sum.grad) == pytest.approx(weights["mlm"] / denominator)


@pytest.mark.parametrize(
    ("counts", "weights", "rule", "named"),
    [
        ({"mlm": 4}, WEIGHTS, "per_objective", "tlm"),
        ({"mlm": 4, "tlm": 2}, {"mlm": 1.0}, "per_objective", "tlm"),
        ({"mlm": 4, "tlm": 2}, WEIGHTS, "per_token", "per_token"),
    ],
)
def test_what_is_missing_or_unknown_is_refused_by_name(
    counts: dict, weights: dict, rule: str, named: str
) -> None:
    losses = as_losses({"mlm": ITEMS["mlm"], "tlm": ITEMS["tlm"]})
    with pytest.raises(ValueError, match=named):
        combine_losses(losses, counts, weights, rule)


def test_an_objective_or_stream_that_is_not_whole_is_refused_with_what_it_lacks() -> None:
    """When the model is made, and not after hours of preparing text."""

    class Half(Objective):
        def requests(self, part: Any) -> list[Any]:
            return []

    class Empty(Stream):
        pass

    with pytest.raises(TypeError, match="Half .*flops.*loss.*num_items"):
        Half(InfoXLMConfig())  # type: ignore[abstract]
    with pytest.raises(TypeError, match="Empty .*pack"):
        Empty(None, StreamSettings(), "mine")  # type: ignore[abstract]
