"""Clipping inside fused AdamW is clipping before plain AdamW; the norm is exact; fused is the default."""

import copy
import math
from typing import Any

import pytest
import torch
from tiny_run import tiny_model
from torch import nn
from transformers import Trainer

from modeling_infoxlm.training.arguments import PretrainingArguments
from modeling_infoxlm.training.optimizer import (
    AdamWBf16Moments,
    clip_in_step,
    divides_gradients,
    gradient_norm,
)

ADAM: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(300, 16), (16, 16), (16,)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], *, step: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in params:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0], ids=["below the maximum", "above it", "far above it"])
def test_clipping_in_the_step_is_clipping_before_it(scale: float) -> None:
    one, other = parameters(), parameters()
    fused, plain = torch.optim.AdamW(one, fused=True, **ADAM), torch.optim.AdamW(other, foreach=False, **ADAM)
    assert divides_gradients(fused)
    # The second step is far smaller: the scale of the first must not stay.
    for step, factor in enumerate((1.0, 1e-3, 1.0)):
        give_gradients(one, step=step, scale=factor * scale)
        give_gradients(other, step=step, scale=factor * scale)
        norm = gradient_norm(one)
        clip_in_step(fused, norm, max_norm=1.0)
        fused.step()
        expected = nn.utils.clip_grad_norm_(other, 1.0)
        plain.step()
        assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
    for found, wanted, start in zip(one, other, parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
        assert (found - start).abs().max() > 1e-3  # it did step
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                fused.state[found][name], plain.state[wanted][name], rtol=1e-4, atol=1e-9
            )


def test_the_norm_of_a_large_table_is_exact() -> None:
    """Torch's own norm on the CPU, summed in fp32 from end to end, is further off here."""
    table = nn.Parameter(torch.zeros(2**26 // 16, 16))
    table.grad = torch.full_like(table, 1e-3)
    assert gradient_norm([table]).item() == pytest.approx(1e-3 * math.sqrt(2**26), rel=1e-4)


@pytest.mark.parametrize("optim", [None, "adamw_torch", "adafactor", "sgd"])
def test_only_the_fused_default_clips_in_the_step(tmp_path: Any, optim: str | None) -> None:
    own = {} if optim is None else {"optim": optim}
    args = PretrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **own)
    assert divides_gradients(Trainer(tiny_model(), args).create_optimizer()) == (optim is None)


def trained(optimizer_class: type, steps: int = 30, **options: Any) -> tuple[list[nn.Parameter], Any]:
    params = parameters()
    optimizer = optimizer_class(params, **ADAM, **options)
    for step in range(steps):
        give_gradients(params, step=step, scale=1.0)
        clip_in_step(optimizer, gradient_norm(params), max_norm=1.0)
        optimizer.step()
    return params, optimizer


def test_bf16_moments_follow_adamw() -> None:
    """To the rounding of the moments: a share of the way, not of the weights."""
    found, optimizer = trained(AdamWBf16Moments)
    wanted, _ = trained(torch.optim.AdamW, fused=True)
    for mine, theirs, start in zip(found, wanted, parameters(), strict=True):
        way = (theirs - start).norm()
        assert way > 0.1
        assert (mine - theirs).norm() < 5e-3 * way
        assert {optimizer.state[mine][name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}


def test_bf16_moments_go_on_bit_by_bit_after_a_reload() -> None:
    params, optimizer = trained(AdamWBf16Moments, steps=5)
    optimizer.grad_scale = None  # of the last step alone
    copies = [nn.Parameter(value.detach().clone()) for value in params]
    other = AdamWBf16Moments(copies, **ADAM)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as from a file
    assert other.state[copies[0]]["exp_avg"].dtype == torch.bfloat16
    for owned, resumed in ((params, optimizer), (copies, other)):
        give_gradients(owned, step=9, scale=1.0)
        resumed.step()
    assert all(torch.equal(one, two) for one, two in zip(params, copies, strict=True))


@pytest.mark.parametrize("optim", ["adafactor", "adamw_torch_8bit"])
def test_bf16_moments_refuse_what_they_cannot_do(tmp_path: Any, optim: str) -> None:
    with pytest.raises(ValueError, match="moments_dtype bfloat16"):
        PretrainingArguments(output_dir=str(tmp_path), moments_dtype="bfloat16", optim=optim, use_cpu=True)
    with pytest.raises(ValueError, match="closure"):
        AdamWBf16Moments(parameters(), **ADAM).step(lambda: None)
