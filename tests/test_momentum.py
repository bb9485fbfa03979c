"""The momentum encoder: its average, what it holds, that nothing wakes it up; and the momentum schedules."""

from typing import Any

import pytest
import torch
from reference.momentum import moving_average
from reference.padded import PAD, TINY, pad, random_sequences
from torch import Tensor

from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining
from modeling_infoxlm.momentum import MomentumEncoder, momentum_schedule

SMALL = {**TINY, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 40}
XLCO_LAYER = 3


def query_model(**changes: Any) -> InfoXLMForPreTraining:
    torch.manual_seed(0)
    return InfoXLMForPreTraining(InfoXLMConfig(**{**SMALL, "xlco_layer": XLCO_LAYER, **changes}))


@torch.no_grad()
def move(model: InfoXLMForPreTraining, seed: int, scale: float = 0.02) -> None:
    """What an optimiser would do: move every parameter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def key_parameters(model: InfoXLMForPreTraining) -> dict[str, Tensor]:
    """The model's parameters that make a key, under the names they have in the momentum encoder."""
    layers = [f"roberta.encoder.layer.{i}." for i in range(XLCO_LAYER)]
    return {
        name.removeprefix("roberta.").removeprefix("objectives.xlco."): parameter.detach()
        for name, parameter in model.named_parameters()
        if name.startswith(("roberta.embeddings.", "objectives.xlco.", *layers))
    }


def part(lengths: list[int], seed: int = 0) -> dict[str, Any]:
    sequences = [ids % SMALL["vocab_size"] for ids in random_sequences(lengths, seed)]
    sequences = [torch.where(ids == PAD, 5, ids) for ids in sequences]
    return {"input_ids": torch.cat(sequences), "lengths": lengths}


def key_by_hand(model: InfoXLMForPreTraining, tokens: dict[str, Any], pooling: str = "cls") -> Tensor:
    """Key of each sentence by the padded forward of the whole model, one sentence at a time."""
    keys = []
    for ids in tokens["input_ids"].split(tokens["lengths"]):
        states = model.roberta(**pad([ids]), output_hidden_states=True).hidden_states[XLCO_LAYER][0]
        vector = states[0] if pooling == "cls" else states.mean(dim=0)
        keys.append(model.objectives["xlco"].project(vector[None])[0])
    return torch.stack(keys).detach()


@pytest.mark.parametrize("use_projection", [True, False], ids=["projected", "plain"])
def test_holds_a_copy_of_what_makes_a_key_and_nothing_else(use_projection: bool) -> None:
    model = query_model(xlco_use_projection=use_projection)
    own = dict(MomentumEncoder(model).named_parameters())
    expected = key_parameters(model)
    assert set(own) == set(expected)
    for name, parameter in own.items():
        assert torch.equal(parameter, expected[name]), name
        assert parameter.data_ptr() != expected[name].data_ptr(), (
            f"{name} is shared with the model that is trained"
        )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_keys_equal_a_padded_forward_of_the_model_as_it_was_at_the_last_update(pooling: str) -> None:
    model, tokens = query_model(xlco_pooling=pooling).eval(), part([4, 1, 12, 7])
    momentum_encoder, expected = MomentumEncoder(model), key_by_hand(model, tokens, pooling)
    move(model, seed=1, scale=0.3)
    assert not torch.allclose(key_by_hand(model, tokens, pooling), expected)
    keys = momentum_encoder.encode(tokens)
    assert keys.shape == (4, 16) and keys.dtype == torch.float32
    torch.testing.assert_close(keys, expected, rtol=1e-5, atol=1e-6)


def test_updates_equal_the_slow_average_of_a_moving_model() -> None:
    model = query_model()
    momentum_encoder = MomentumEncoder(model)
    start = {name: p.clone() for name, p in momentum_encoder.named_parameters()}
    momenta, seen = [0.9, 1.0, 0.99, 0.0, 0.7], []
    for step, momentum in enumerate(momenta):
        move(model, seed=step)
        seen.append({name: p.clone() for name, p in key_parameters(model).items()})
        momentum_encoder.update(model, momentum=momentum)
    for name, parameter in momentum_encoder.named_parameters():
        expected = moving_average(start[name], [values[name] for values in seen], momenta)
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_the_average_moves_in_steps_of_one_in_ten_thousand(dtype: torch.dtype) -> None:
    """In half precision the released code's key encoder hardly moves: cosine 0.09 in bf16, 0.29 in fp16."""
    steps, momentum = 2000, 0.9999
    model = query_model().to(dtype)
    momentum_encoder = MomentumEncoder(model)

    def average() -> Tensor:
        return torch.cat([p.double().flatten() for p in momentum_encoder.parameters()])

    start = average()
    move(model, seed=1)
    moved = key_parameters(model)
    target = torch.cat([moved[name].double().flatten() for name, _ in momentum_encoder.named_parameters()])
    for _ in range(steps):
        momentum_encoder.update(model, momentum=momentum)
    displacement, ideal = average() - start, (1 - momentum**steps) * (target - start)
    assert float(torch.cosine_similarity(displacement, ideal, dim=0)) > 0.999
    assert float(displacement.norm() / ideal.norm()) == pytest.approx(1.0, abs=0.01)


def test_frozen_fp32_and_eval_whatever_the_model_is_in() -> None:
    model = query_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).bfloat16().train()
    momentum_encoder, tokens = MomentumEncoder(model), part([4, 12])
    for state in (momentum_encoder, momentum_encoder.train(), momentum_encoder.train(True)):
        assert not any(module.training for module in state.modules())
    assert model.training and all(p.requires_grad for p in model.parameters()), "it must stay as it was"
    keys = momentum_encoder.encode(tokens)
    assert torch.equal(momentum_encoder.encode(tokens), keys), "dropout must not reach the keys"
    torch.testing.assert_close(keys, key_by_hand(model.float().eval(), tokens), rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = momentum_encoder.encode(tokens)
    assert keys.dtype == rounded.dtype == torch.float32 and not keys.requires_grad
    for momentum in (-0.1, 1.1, 9999):
        with pytest.raises(ValueError, match=str(momentum)):
            momentum_encoder.update(model, momentum=momentum)
    momentum_encoder.update(model, momentum=0.5)
    for parameter in momentum_encoder.parameters():
        assert parameter.dtype == torch.float32 and not parameter.requires_grad and parameter.grad_fn is None


# --- schedules


RISING = {"momentum": 1.0, "start": 0.5, "warmup_steps": 10}


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("constant", {"momentum": 0.9999}, {1: 0.9999, 2: 0.9999, 1000: 0.9999}),
        ("linear", RISING, {0: 0.5, 1: 0.55, 5: 0.75, 10: 1.0, 11: 1.0, 500: 1.0}),
        # The released code's clip(1 - t ** -alpha, min, max).
        (
            "exponential",
            {"momentum": 0.99, "start": 0.6, "exponent": 1.0},
            {1: 0.6, 2: 0.6, 4: 0.75, 10: 0.9, 100: 0.99, 10**6: 0.99},
        ),
        ("exponential", {"momentum": 1.0, "start": 0.0, "exponent": 0.5}, {4: 0.5, 16: 0.75, 10**4: 0.99}),
    ],
)
def test_schedules(kind: str, options: dict[str, Any], expected: dict[int, float]) -> None:
    schedule = momentum_schedule(kind, **options)
    assert {step: schedule(step) for step in expected} == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="cosine"):
        momentum_schedule("cosine", momentum=0.9)
