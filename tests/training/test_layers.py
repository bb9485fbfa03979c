"""Layers recomputed in the backward pass or compiled: the same gradients, in the layers asked for alone."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_run import tiny_model
from torch import Tensor
from torch._dynamo.utils import counters

from modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.momentum import MomentumEncoder
from modeling_infoxlm.packed import EncodeRequest, encode
from modeling_infoxlm.training.layers import compile_layers, recompute_layers

BATCHES = [[3, 4, 5], [7, 9, 2, 11], [6, 6], [8, 3, 4, 5, 5, 9]]


def run(model: InfoXLMForPreTraining, lengths: list[int]) -> dict[str, Tensor]:
    """Gradients of all parameters, where a part of the rows leaves early."""
    ids = torch.randint(4, 50, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([0, 2, 6])
    requests = [EncodeRequest(ids, lengths, 3, rows), EncodeRequest(ids, lengths, 2)]
    model.zero_grad()
    torch.manual_seed(5)  # of dropout
    last, second = encode(model.roberta, requests)
    (last.sin().sum() + second.cos().sum()).backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert any(value.abs().max() > 1e-3 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def count_calls(model: InfoXLMForPreTraining) -> Counter[int]:
    """Calls of the feed-forward part of each layer, from 1, counted from now on."""
    calls: Counter[int] = Counter()
    for number, layer in enumerate(model.roberta.encoder.layer, start=1):

        def count(*args: Any, number: int = number) -> None:
            calls[number] += 1

        layer.intermediate.register_forward_hook(count)
    return calls


@pytest.fixture
def dynamo() -> Iterator[Callable[[], int]]:
    """Graphs compiled since the test began."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "layers, calls", [("1-2", [2, 2, 1]), ("3", [1, 1, 2]), ("2-3", [1, 2, 2]), ("all", [2, 2, 2])]
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_layers_give_the_same_gradients(layers: str, calls: list[int], dropout: float) -> None:
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    expected = run(tiny_model(**drop).train(), BATCHES[1])
    model = tiny_model(**drop).train()
    recompute_layers(model, layers)
    counted = count_calls(model)
    assert_same(run(model, BATCHES[1]), expected)
    assert [counted[number] for number in (1, 2, 3)] == calls


def test_the_momentum_encoder_recomputes_nothing_and_the_state_stays() -> None:
    part = {"input_ids": torch.arange(4, 16), "lengths": [5, 7]}
    expected = MomentumEncoder(tiny_model()).encode(part)
    model = tiny_model().train()
    recompute_layers(model, "all")
    encoder = MomentumEncoder(model)
    calls: list[Any] = []
    for layer in encoder.encoder.layer:
        layer._gradient_checkpointing_func = lambda function, *args: calls.append(function) or function(*args)
    assert torch.equal(encoder.train().encode(part), expected)
    assert calls == []
    model = tiny_model()
    names, config = list(model.state_dict()), model.config.to_dict()
    recompute_layers(model, "1-2")
    assert list(model.state_dict()) == names
    assert model.config.to_dict() == config


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_compiled_layers_serve_every_batch_with_the_same_gradients(
    dynamo: Callable[[], int], backend: str, recomputed: bool
) -> None:
    plain, model = tiny_model().train(), tiny_model().train()
    names = list(model.state_dict())
    compile_layers(model, model.device, backend=backend)
    if recomputed:
        recompute_layers(model, "all")
    graphs = []
    for lengths in BATCHES:
        assert_same(run(model, lengths), run(plain, lengths))
        graphs.append(dynamo())
    assert graphs[0] > 0
    assert graphs[-1] == graphs[0]  # none was compiled for a later batch
    assert not counters["graph_break"]
    assert list(model.state_dict()) == names


def test_a_copy_of_compiled_layers_has_weights_of_its_own() -> None:
    """A copy that still called the compiled original would make keys of the query encoder's weights."""
    part = {"input_ids": torch.arange(4, 16), "lengths": [5, 7]}
    model = tiny_model()
    compile_layers(model, model.device, backend="eager")
    encoder = MomentumEncoder(model)
    before = encoder.encode(part)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert before.abs().max() > 0
    assert torch.equal(encoder.encode(part), before)
