"""A CUDA device computes what the CPU computes in fp32: attention, losses, gradients, kernels, runs."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_corpus
from tiny_trainer import parameters, same, trainer_maker
from torch import Tensor
from transformers import TrainerCallback

from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining
from modeling_infoxlm.data.batches import JointDataset, PretrainingCollator
from modeling_infoxlm.data.streams import StreamSettings
from modeling_infoxlm.fused_loss import linear_cross_entropy
from modeling_infoxlm.packed_attention import GroupedAttention, plan_attention

pytestmark = pytest.mark.gpu

HALF = 3e-2  # relative norm of a difference in bf16 and fp16
FULL = 1e-5  # and in fp32 without TF32
HEADS, HEAD_SIZE = 12, 64
Move = Callable[[Any], Any]


def difference(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_attention(device: torch.device, dtype: torch.dtype, seed: int) -> None:
    if device.type == "cpu" and dtype == torch.float16:
        pytest.skip("fp16 is for GPUs")
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 513, size=24)
    total = int(lengths.sum())
    drawn = torch.randn(3, total, HEADS * HEAD_SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)
    for count in (None, 5, total // 7):  # 5 rows of 24 sequences: most have no query
        rows = None if count is None else torch.from_numpy(np.sort(rng.permutation(total)[:count]))

        def run(attend: Any, parts: Tensor, rows: Tensor | None = rows) -> list[Tensor]:
            query, key, value = (part.clone().requires_grad_() for part in parts)
            chosen = query if rows is None else query[rows.to(query.device)]
            context = attend(chosen, key, value, heads=HEADS, scaling=HEAD_SIZE**-0.5, dropout=0.0)
            return [context, *torch.autograd.grad(context.float().square().sum(), (query, key, value))]

        there = drawn.to(device)
        own_rows = None if rows is None else rows.to(device)
        attend = plan_attention(lengths, own_rows, there[0], heads=HEADS, needs_dropout=False)
        expected = run(GroupedAttention(lengths, rows, torch.device("cpu")), drawn.float())
        errors = map(difference, run(attend, there), expected)
        assert max(errors) < HALF


@cache
def joint_model(vocabulary: int) -> InfoXLMForPreTraining:
    torch.manual_seed(0)
    config = InfoXLMConfig(
        num_hidden_layers=4,
        vocab_size=vocabulary,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        xlco_layer=3,
        xlco_in_batch_negatives=True,
    )
    return InfoXLMForPreTraining(config)


def losses_and_gradients(
    model: InfoXLMForPreTraining, batch: dict[str, Any], device: torch.device, half: bool
) -> tuple[dict[str, float], dict[str, Tensor]]:
    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: move(part) for name, part in value.items()}
        return value.to(device) if isinstance(value, Tensor) else value

    torch.nn.Module.to(model, device)
    model.zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        losses = model(move(batch))
    means = {name: loss.loss_sum / loss.num_items for name, loss in losses.items()}
    sum(means.values()).backward()
    gradients = {name: value.grad.cpu() for name, value in model.named_parameters() if value.grad is not None}
    return {name: float(mean) for name, mean in means.items()}, gradients


@pytest.mark.parametrize(("half", "bound"), [(True, HALF), (False, FULL)], ids=["bf16", "fp32"])
def test_losses_and_all_gradients(device: torch.device, tmp_path: Path, half: bool, bound: float) -> None:
    dataset = JointDataset(tiny_corpus(tmp_path), StreamSettings(), 16)
    batch = PretrainingCollator()([dataset.pack(range(16))])
    model = joint_model(250_002)
    count = len(batch["xlco"]["key"]["lengths"])
    generator = torch.Generator().manual_seed(1)
    keys, negatives = torch.randn(count, 768, generator=generator), torch.randn(64, 768, generator=generator)
    batch["xlco"] |= {"keys": keys, "negatives": negatives}
    expected, expected_gradients = losses_and_gradients(model, batch, torch.device("cpu"), half=False)
    found, gradients = losses_and_gradients(model, batch, device, half)
    assert found == pytest.approx(expected, rel=bound)
    assert gradients.keys() == expected_gradients.keys()
    whole = {
        name: torch.cat([part[key].flatten().double() for key in sorted(part)])
        for name, part in (("found", gradients), ("expected", expected_gradients))
    }
    assert difference(whole["found"], whole["expected"]) < bound


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize("rows", [1, 2, 3, 17, 100, 2147, 9800])
def test_the_loss_of_any_number_of_rows(device: torch.device, rows: int, kept: bool) -> None:
    vocabulary, hidden = (250_002, 768) if device.type == "cuda" else (2_002, 24)
    generator = torch.Generator().manual_seed(rows)
    given = [
        torch.randn(rows, hidden, generator=generator),
        torch.randn(vocabulary, hidden, generator=generator),
    ]
    given += [torch.randn(vocabulary, generator=generator)]
    targets = torch.randint(vocabulary, (rows,), generator=generator).to(device)
    found = []
    for fused in (True, False):
        leaves = [(0.05 * part).to(device).requires_grad_() for part in given]
        with torch.autocast(device.type, torch.bfloat16):
            if fused:
                losses = linear_cross_entropy(*leaves, targets, kept_bytes=2**40 if kept else 0)
            else:
                logits = torch.nn.functional.linear(*leaves)
                losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        found.append([losses, *torch.autograd.grad(losses.mean(), leaves)])
    assert max(map(difference, *found)) < HALF


def test_a_step_that_overflows_in_fp16_moves_nothing(device: torch.device, tmp_path: Path) -> None:
    if device.type == "cpu":
        pytest.skip("fp16 is for GPUs")

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.append((trainer.accelerator.optimizer_step_was_skipped, parameters(trainer.model)))

    steps: list[tuple[bool, dict[str, Tensor]]] = []
    values = {"use_cpu": False, "fp16": True, "max_steps": 40, "save_strategy": "no", "logging_steps": 40}
    trainer = trainer_maker(tmp_path)(**values, callbacks=[Watch()])
    trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**127, growth_interval=10**6)
    trainer.train()
    assert steps[0][0] and not steps[-1][0]
    for (_, before), (skipped, after) in zip(steps, steps[1:], strict=False):
        assert skipped == same(before, after)


def test_a_resumed_run_has_the_losses_of_an_unbroken_one(device: torch.device, tmp_path: Path) -> None:
    on_gpu = device.type == "cuda"
    values = {"use_cpu": not on_gpu, "bf16": True, "max_steps": 6, "save_steps": 3, "save_total_limit": 5}

    def losses(folder: str, **more: Any) -> list[float]:
        trainer = trainer_maker(tmp_path)(**values, folder=folder)
        trainer.train(**more)
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    unbroken = losses("a")
    resumed = losses("b", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert len(unbroken) == len(resumed) == 6
    assert resumed == pytest.approx(unbroken, rel=1e-3)
