"""The benchmark's two sides compute the same thing, and it reports what it measured.

The first tests are also the proof that the fast step is exact: N1 is the plain way to write it.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import step
from benchmarks.baselines import PlainTransformers
from benchmarks.measure import Elsewhere
from benchmarks.step import make_baseline
from benchmarks.workload import Workload
from modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.data.batches import PretrainingCollator
from modeling_infoxlm.momentum import MomentumEncoder
from modeling_infoxlm.objectives import combine_losses

SIZES = {"vocab_size": 300, "queue_size": 64, "max_length": 48, "num_pairs": 60}
TINY = Workload(geometry="tiny", warmup=1, steps=2, **SIZES)
WEIGHTS = {"mlm": 1.0, "tlm": 1.0, "xlco": 1.0}


@pytest.fixture
def sides(tmp_path: Path) -> tuple[InfoXLMForPreTraining, PlainTransformers, dict[str, Any]]:
    """Our model, N1 with the same weights and queue, and a joint batch."""
    model = TINY.model()
    plain = make_baseline(TINY, "float32")
    batch = PretrainingCollator()(TINY.dataset(tmp_path).__getitems__(range(TINY.batch_size)))
    return model, plain, batch


def our_losses_and_gradients(
    model: InfoXLMForPreTraining, queue: Tensor, batch: dict[str, Any], dtype: torch.dtype | None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        keys = MomentumEncoder(model).encode(batch["xlco"]["key"])
        losses = model({**batch, "xlco": {**batch["xlco"], "keys": keys, "negatives": queue}})
    combine_losses(losses, {name: loss.num_items for name, loss in losses.items()}, WEIGHTS).backward()
    means = {name: float(loss.loss_sum.detach()) / loss.num_items for name, loss in losses.items()}
    return means, {name: value.grad for name, value in model.named_parameters()}


def test_losses_and_all_gradients_equal_plain_transformers(sides: Any) -> None:
    model, plain, batch = sides
    losses, gradients = our_losses_and_gradients(model, plain.queue, batch, None)
    # Its lookups give a sparse one, which must end in the head's.
    assert gradients["roberta.embeddings.word_embeddings.weight"].layout == torch.strided
    expected = plain.backward(plain.pad(batch))
    assert set(losses) == {"mlm", "tlm", "xlco"}
    for name, loss in losses.items():
        assert loss == pytest.approx(float(expected[name]), rel=1e-6), name
    theirs = {name: value.grad for name, value in plain.parameters().items()}
    assert set(gradients) == set(theirs)
    # A key's bias shifts all scores of a query alike: its gradient is 0 but for rounding.
    norm = torch.stack([value.norm() for value in theirs.values()]).norm()
    errors = {name: (gradient - theirs[name]).norm() for name, gradient in gradients.items()}
    for name, error in errors.items():
        assert error <= 1e-5 * max(theirs[name].norm(), 1e-3 * norm), name
    assert torch.stack([*errors.values()]).norm() <= 1e-5 * norm

    model.zero_grad()
    rounded, gradients = our_losses_and_gradients(model, plain.queue, batch, torch.bfloat16)
    for name, loss in rounded.items():
        assert loss == pytest.approx(float(expected[name]), rel=1e-3), name
        assert loss != losses[name], f"{name} was not computed in bf16"
    errors = {name: (gradient - theirs[name]).norm() for name, gradient in gradients.items()}
    assert torch.stack([*errors.values()]).norm() <= 5e-2 * norm

    model.zero_grad()  # without the head it is dense too
    keys = MomentumEncoder(model).encode(batch["xlco"]["key"])
    part = {**batch["xlco"], "keys": keys, "negatives": plain.queue}
    model({"xlco": part})["xlco"].loss_sum.backward()
    assert model.roberta.embeddings.word_embeddings.weight.grad.layout == torch.strided


@pytest.mark.parametrize("broken", ["momentum", "optimizer", "queue"])
def test_a_baseline_that_does_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """The equality above would mean nothing if losses did not depend on these."""
    baseline = make_baseline(replace(TINY, flags=("max_grad_norm=0",)), "float32")
    if broken == "momentum":
        baseline.momentum = 0.0
    elif broken == "queue":
        baseline.queue.neg_()
    else:
        monkeypatch.setattr(baseline.optimizer, "step", lambda: None)
    turns = step.run_ours(TINY, "float32", baseline.timed_step)
    assert step.largest_difference(turns.ours.losses, turns.theirs.losses) > 1e-5


def test_the_real_trainer_goes_the_way_of_the_baseline_and_that_is_reported() -> None:
    """Step after step: losses, clipping, optimiser, momentum and queue all show in the next losses."""
    elsewhere = Elsewhere(make_baseline, TINY, "float32")
    turns = step.run_ours(TINY, "float32", partial(elsewhere.call, "timed_step"))
    assert len(turns.ours.losses) == 3 and len(turns.ours.samples.seconds) == 2
    assert turns.ours.losses[0] != turns.ours.losses[-1]
    result = step.summarise(turns, peak=1e12)
    assert result["largest_loss_difference"] < 1e-5
    assert result["ratio"] == pytest.approx(result["baseline"]["median_s"] / result["ours"]["median_s"])
    assert result["mfu"] == pytest.approx(result["useful_flops"] / result["ours"]["median_s"] / 1e12)
    total = sum(result["ours"]["phases_s"].values())
    assert total == pytest.approx(result["ours"]["median_s"], rel=0.5)
    json.dumps(result)
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    step.print_result(console, {"peak_memory_gib": 1.0, **result})
    text = console.export_text()
    for side in ("ours", "baseline"):
        assert f"{result['losses'][side][0]['mlm']:.6f}" in text
    assert f"ratio {result['ratio']:.2f}x" in text
