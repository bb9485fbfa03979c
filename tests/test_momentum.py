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
    found = {}
    for name, parameter in model.named_parameters():
        if name.startswith(
            ("roberta.embeddings.", *(f"roberta.encoder.layer.{i}." for i in range(XLCO_LAYER)))
        ):
            found[name.removeprefix("roberta.")] = parameter.detach()
        elif name.startswith("objectives.xlco."):
            found[name.removeprefix("objectives.xlco.")] = parameter.detach()
    return found


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
def test_keys_equal_a_padded_forward_of_the_model(pooling: str) -> None:
    model, tokens = query_model(xlco_pooling=pooling).eval(), part([4, 1, 12, 7])
    keys = MomentumEncoder(model).encode(tokens)
    assert keys.shape == (4, 16) and keys.dtype == torch.float32
    torch.testing.assert_close(keys, key_by_hand(model, tokens, pooling), rtol=1e-5, atol=1e-6)


def test_keys_are_those_of_the_average_and_not_of_the_model() -> None:
    model, tokens = query_model().eval(), part([4, 12])
    momentum_encoder = MomentumEncoder(model)
    before = momentum_encoder.encode(tokens)
    move(model, seed=1, scale=0.3)
    assert torch.equal(momentum_encoder.encode(tokens), before)
    assert not torch.allclose(key_by_hand(model, tokens), before)


def test_momentum_one_keeps_the_key_encoder() -> None:
    model = query_model()
    momentum_encoder = MomentumEncoder(model)
    before = {name: p.clone() for name, p in momentum_encoder.named_parameters()}
    move(model, seed=1)
    momentum_encoder.update(model, momentum=1.0)
    assert all(torch.equal(p, before[name]) for name, p in momentum_encoder.named_parameters())


def test_momentum_zero_copies_the_query_encoder() -> None:
    model = query_model()
    momentum_encoder = MomentumEncoder(model)
    move(model, seed=1)
    momentum_encoder.update(model, momentum=0.0)
    expected = key_parameters(model)
    assert all(torch.equal(p, expected[name]) for name, p in momentum_encoder.named_parameters())


def test_updates_equal_the_slow_average_of_a_moving_model() -> None:
    model = query_model()
    momentum_encoder = MomentumEncoder(model)
    start = {name: p.clone() for name, p in momentum_encoder.named_parameters()}
    momenta, seen = [0.9, 0.5, 0.99, 0.0, 0.7], []
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
    names = [name for name, _ in momentum_encoder.named_parameters()]
    start = torch.cat([p.double().flatten() for p in momentum_encoder.parameters()])
    move(model, seed=1)
    target = torch.cat([key_parameters(model)[name].double().flatten() for name in names])
    for _ in range(steps):
        momentum_encoder.update(model, momentum=momentum)
    displacement = torch.cat([p.double().flatten() for p in momentum_encoder.parameters()]) - start
    ideal = (1 - momentum**steps) * (target - start)
    assert float(torch.cosine_similarity(displacement, ideal, dim=0)) > 0.999
    assert float(displacement.norm() / ideal.norm()) == pytest.approx(1.0, abs=0.01)


def test_frozen_fp32_and_eval_whatever_train_says() -> None:
    model = query_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).bfloat16().train()
    momentum_encoder = MomentumEncoder(model)
    for state in (momentum_encoder, momentum_encoder.train(), momentum_encoder.train(True)):
        assert not any(module.training for module in state.modules())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in momentum_encoder.parameters())
    assert model.training and all(p.requires_grad for p in model.parameters()), (
        "the model itself must stay as it was"
    )


def test_dropout_of_the_trained_model_does_not_reach_the_keys() -> None:
    model = query_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    momentum_encoder, tokens = MomentumEncoder(model), part([4, 12])
    keys = momentum_encoder.train().encode(tokens)
    assert torch.equal(momentum_encoder.encode(tokens), keys)
    torch.testing.assert_close(keys, key_by_hand(model.eval(), tokens), rtol=1e-5, atol=1e-6)


def test_encoding_and_updating_leave_no_graph() -> None:
    model = query_model()
    momentum_encoder = MomentumEncoder(model)
    assert not momentum_encoder.encode(part([4, 12])).requires_grad
    momentum_encoder.update(model, momentum=0.5)
    assert all(p.grad_fn is None and not p.requires_grad for p in momentum_encoder.parameters())


def test_bf16_model_and_autocast_give_fp32_keys() -> None:
    momentum_encoder = MomentumEncoder(query_model().bfloat16())
    assert momentum_encoder.encode(part([4, 12])).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert momentum_encoder.encode(part([4, 12])).dtype == torch.float32


def test_activation_checkpointing_of_the_model_does_not_disturb_the_keys() -> None:
    model, tokens = query_model(), part([4, 12])
    expected = MomentumEncoder(model).encode(tokens)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # before 5.23
    assert torch.equal(MomentumEncoder(model.train()).encode(tokens), expected)


def test_state_survives_saving() -> None:
    model = query_model()
    trained, fresh = MomentumEncoder(model), MomentumEncoder(model)
    move(model, seed=1)
    trained.update(model, momentum=0.3)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.encode(part([4, 12])), trained.encode(part([4, 12])))


@pytest.mark.parametrize("momentum", [-0.1, 1.1, 9999])
def test_momentum_outside_zero_to_one_is_refused(momentum: float) -> None:
    model = query_model()
    with pytest.raises(ValueError, match=str(momentum)):
        MomentumEncoder(model).update(model, momentum=momentum)


# --- schedules


def values(steps: list[int], kind: str, **options: float) -> list[float]:
    schedule = momentum_schedule(kind, **options)
    return [schedule(step) for step in steps]


def test_constant_schedule() -> None:
    assert values([1, 2, 1000], "constant", momentum=0.9999) == [0.9999] * 3


def test_linear_schedule_rises_and_then_stays() -> None:
    found = values([0, 1, 5, 10, 11, 500], "linear", momentum=1.0, start=0.5, warmup_steps=10)
    assert found == pytest.approx([0.5, 0.55, 0.75, 1.0, 1.0, 1.0], abs=1e-12)


def test_exponential_schedule_is_clipped_on_both_sides() -> None:
    """The released code's clip(1 - t ** -alpha, min, max)."""
    found = values([1, 2, 4, 10, 100, 10**6], "exponential", momentum=0.99, start=0.6, exponent=1.0)
    assert found == pytest.approx([0.6, 0.6, 0.75, 0.9, 0.99, 0.99], abs=1e-12)
    found = values([4, 16, 10**4], "exponential", momentum=1.0, start=0.0, exponent=0.5)
    assert found == pytest.approx([0.5, 0.75, 0.99], abs=1e-12)


def test_an_unknown_schedule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="cosine"):
        momentum_schedule("cosine", momentum=0.9)
