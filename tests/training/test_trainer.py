"""The joint step inside transformers' loop: what it trains, however it is cut, and what is logged."""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_model
from tiny_trainer import ALL, Make, batch_of, parameters, same
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback

from modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.runs.process import StopOnSignal
from modeling_infoxlm.training.arguments import PretrainingArguments
from modeling_infoxlm.training.meter import ContrastCollapsed
from modeling_infoxlm.training.throughput import Speedometer, count_tokens
from modeling_infoxlm.training.trainer import InfoXLMTrainer


@pytest.mark.parametrize("objectives", [("tlm",), ("mlm", "tlm"), ("xlco",), ALL], ids="+".join)
def test_every_subset_trains_and_logs_just_what_it_uses(make: Make, objectives: tuple[str, ...]) -> None:
    # In the first step of a contrast alone the queue is empty, the loss 0 and so is every gradient.
    trainer = make(objectives=objectives, max_steps=2)
    before = parameters(trainer.model)
    trainer.train()
    after = parameters(trainer.model)
    fixed = {name for name in before if torch.equal(before[name], after[name])}
    head = {"dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias", "bias", "decoder.bias"}
    expected = set()
    if objectives == ("xlco",):  # the contrast is at layer 2 of 3
        expected = {f"lm_head.{name}" for name in head}
        expected |= {name for name in before if name.startswith("roberta.encoder.layer.2.")}
    if "xlco" not in objectives:
        expected = {"objectives.xlco.projection.weight"}
        assert trainer.contrast is None
        of_each = ("loss/{}", "information/{}", "length/{}", "length/{}_longest")
        logged = {name for name in trainer.state.log_history[0] if "/" in name}
        assert logged == {form.format(name) for name in objectives for form in of_each}
    assert fixed == expected
    # Switched off, too: DDP waits for the gradient of every other one.
    off = {name for name, value in trainer.model.named_parameters() if not value.requires_grad}
    assert off == expected - {"lm_head.decoder.bias"}  # the same parameter as lm_head.bias


@pytest.mark.parametrize("rule", ["per_objective", "per_item"])
def test_logged_loss_is_the_weighted_mean_over_the_whole_batch(make: Make, rule: str) -> None:
    """Catches a second division by the accumulation steps, inside the Trainer."""
    weights = {"mlm": 0.5, "tlm": 2.0, "xlco": 3.0}
    named = {f"{name}_weight": value for name, value in weights.items()}
    trainer = make(loss_normalization=rule, gradient_accumulation_steps=3, **named)
    batch = batch_of(trainer, range(6))
    items = {name: len(batch[name]["labels"]) for name in ("mlm", "tlm")}
    items["xlco"] = len(batch["xlco"]["query"]["lengths"])
    trainer.train()
    logs = trainer.state.log_history[0]
    share = {name: 1.0 if rule == "per_objective" else items[name] / sum(items.values()) for name in ALL}
    expected = sum(weights[name] * share[name] * logs[f"loss/{name}"] for name in ALL)
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)


class Gradients(TrainerCallback):
    """Keeps the gradients that the optimiser gets, of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        named = model.named_parameters()
        self.steps.append({name: value.grad.clone() for name, value in named if value.grad is not None})


CUTS: dict[str, dict[str, Any]] = {
    "sequential": {"objective_backward": "sequential"},
    "one sequence each": {"tokens_per_device": 1, "loss_normalization": "per_item"},
    "sequential with a budget": {"objective_backward": "sequential", "tokens_per_device": 40},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
}
CUTS["accumulated with a budget"] = {
    **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    **{"tokens_per_device": 60, "loss_normalization": "per_item"},
}
IN_BATCH = {"xlco_in_batch_negatives": True, "xlco_symmetric": True}


@pytest.mark.parametrize(
    "definition, cut",
    [*(({}, name) for name in CUTS), (IN_BATCH, "one sequence each"), (IN_BATCH, "sequential with a budget")],
)
def test_however_a_batch_is_cut_loss_gradients_keys_and_work_are_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch, definition: dict[str, bool], cut: str
) -> None:
    rule = {"loss_normalization": CUTS[cut].get("loss_normalization", "per_objective")}
    work: list[tuple[int, float]] = []
    monkeypatch.setattr(Speedometer, "add", lambda self, tokens, flops: work.append((tokens, flops)))
    runs, totals = [], []
    for folder, values in (("merged", rule), ("cut", CUTS[cut])):
        gradients = Gradients()
        # Without a step of the optimiser the second batch meets the same weights: no rounding is amplified.
        given = {"per_device_train_batch_size": 8, "max_steps": 2, "learning_rate": 0.0, **values}
        trainer = make(
            # Fresh vectors are nearly equal; differences of what is nearly equal would be rounding.
            model=tiny_model(initializer_range=0.1, **definition),
            contrast={"queue_prefill": True, "momentum": 0.5},
            folder=folder,
            callbacks=[gradients],
            **given,
        )
        trainer.train()
        runs.append((trainer, gradients))
        totals.append((*np.sum(work, axis=0), trainer.state.total_flos))
        work.clear()
    assert totals[1] == pytest.approx(totals[0]) and totals[0][0] > 100
    (merged, expected), (other, found) = runs
    for one, two in zip(expected.steps, found.steps, strict=True):
        assert one.keys() == two.keys()
        norms = torch.stack([value.norm() for value in one.values()])
        errors = torch.stack([(two[name] - value).norm() for name, value in one.items()])
        assert norms.norm() > 0.1 and errors.norm() < 1e-5 * norms.norm()
        # One by one too: a small one could hide behind the others. A key's bias has rounding alone.
        assert (errors < 1e-4 * norms + 1e-6 * norms.norm()).all()
    queues = [trainer.contrast.queue for trainer in (merged, other)]
    torch.testing.assert_close(queues[1].keys, queues[0].keys, rtol=1e-5, atol=1e-6)
    assert (queues[1].cursor, queues[1].num_filled) == (queues[0].cursor, queues[0].num_filled)
    logs = [[e for e in trainer.state.log_history if "loss/xlco" in e] for trainer in (merged, other)]
    how = {"micro_batches", "micro_batch_tokens", "tokens_per_second", "mfu"}
    for one, two in zip(*logs, strict=True):
        assert {name: two[name] for name in one.keys() - how} == pytest.approx(
            {name: one[name] for name in one.keys() - how}, rel=1e-5, abs=1e-6
        )


@pytest.mark.parametrize(
    "optim, max_grad_norm",
    [*(("adamw_torch_fused", norm) for norm in (0.0, 0.05, 1e3)), ("adamw_torch", 0.05)],
)
def test_clipping_in_the_step_trains_what_clipping_before_it_does(
    make: Make, monkeypatch: pytest.MonkeyPatch, optim: str, max_grad_norm: float
) -> None:
    # Adam divides by the root of the second moment; a large epsilon keeps it from amplifying rounding.
    given = {"max_steps": 3, "max_grad_norm": max_grad_norm, "optim": optim, "adam_epsilon": 1e-3}
    found = make(folder="found", **given)
    found.train()
    monkeypatch.setattr(InfoXLMTrainer, "_clip_grad_norm", Trainer._clip_grad_norm)
    expected = make(folder="expected", **given)
    expected.train()
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    norms = [[e["grad_norm"] for e in t.state.log_history if "loss" in e] for t in (found, expected)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[0][0] > 0.1  # before clipping, as the Trainer logs it
    assert bool(found.optimizer.optimizer.param_groups[0]["fused"]) == (optim == "adamw_torch_fused")


def test_a_step_that_overflows_in_fp16_moves_nothing(make: Make) -> None:
    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            skipped.append(trainer.accelerator.optimizer_step_was_skipped)
            weights.append(parameters(trainer.model))
            keys.append(parameters(trainer.contrast.encoder))
            rates.append(trainer.lr_scheduler.get_last_lr()[0])

    skipped, weights, keys, rates = [], [], [], []
    args = {"max_steps": 30, "callbacks": [Watch()], "save_strategy": "no", "logging_steps": 30}
    trainer = make(**args, optim="adamw_torch")
    # As --fp16 has it on a GPU: at this scale the first steps overflow, and it is halved until none does.
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    trainer.train()
    assert skipped[0] and not skipped[-1]
    for step in range(1, 30):
        moved = not skipped[step]
        assert moved != same(weights[step], weights[step - 1])
        assert moved != same(keys[step], keys[step - 1])
        assert moved != (rates[step] == rates[step - 1])


def test_fp16_takes_an_optimiser_that_tells_of_a_skipped_step(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modeling_infoxlm.training.arguments.settle_precision", lambda args: None)
    assert make(fp16=True).args.optim == "adamw_torch" and make().args.optim == "adamw_torch_fused"


@pytest.mark.parametrize("everywhere", [False, True])
def test_weight_decay_is_on_matrices_unless_on_all(make: Make, everywhere: bool) -> None:
    trainer = make(weight_decay_on_all=everywhere, weight_decay=0.01)
    decay = {}
    for group in trainer.create_optimizer().param_groups:
        decay |= dict.fromkeys(map(id, group["params"]), group["weight_decay"])
    for name, value in trainer.model.named_parameters():
        spared = name.endswith(".bias") or "norm" in name.lower()
        assert decay[id(value)] == (0.01 if everywhere or not spared else 0.0), name


def test_a_budget_bounds_what_the_model_sees(make: Make) -> None:
    trainer = make(max_steps=2, per_device_train_batch_size=8, tokens_per_device=100)
    seen: list[int] = []

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch = args[0]
        seen.append(sum(len(batch[name]["input_ids"]) for name in ("mlm", "tlm")))
        seen[-1] += len(batch["xlco"]["query"]["input_ids"])

    trainer.model.register_forward_pre_hook(look, with_kwargs=True)
    trainer.train()
    logs = trainer.state.log_history[:2]
    assert logs[0]["micro_batches"] > 3 and sum(entry["micro_batches"] for entry in logs) == len(seen)
    assert max(entry["micro_batch_tokens"] for entry in logs) == max(seen) <= 100


def test_compute_loss_refuses_what_it_cannot_do(make: Make) -> None:
    trainer = make()
    with pytest.raises(ValueError, match="needs num_items_in_batch and returns the loss alone"):
        trainer.compute_loss(trainer.model, {})
    with pytest.raises(ValueError, match="exists only during train"):
        trainer.compute_loss(trainer.model, batch_of(trainer, range(2)), num_items_in_batch={})


# ---------------------------------------------------------------------------- the logs

LOGGED = {
    *("loss/mlm", "loss/tlm", "loss/xlco"),
    *("information/mlm", "information/tlm", "information/xlco"),
    *("xlco/accuracy", "xlco/in_batch_accuracy", "xlco/query_std", "xlco/key_std"),
    *("xlco/key_norm", "xlco/queue_norm", "xlco/queue_filled", "xlco/momentum"),
    *("length/mlm", "length/tlm", "length/xlco"),
    *("length/mlm_longest", "length/tlm_longest", "length/xlco_longest"),
    *("micro_batches", "micro_batch_tokens"),
    *("loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu"),
}


def test_a_log_entry_holds_everything_that_is_promised(make: Make) -> None:
    trainer = make(max_steps=4, logging_steps=2)
    trainer.step_log.peak = 1e12
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [2, 4]
    for entry in entries:
        assert entry.keys() - {"epoch", "step"} == LOGGED
        assert all(math.isfinite(entry[name]) for name in LOGGED)
    assert entries[0]["xlco/queue_filled"] == 8 / 24 and entries[1]["xlco/queue_filled"] == 16 / 24
    assert entries[0]["xlco/momentum"] == 0.9
    # 8 of 24 slots at best: information cannot exceed log 9, nor that of a token log 60.
    assert entries[0]["information/xlco"] < math.log(9) and entries[0]["information/mlm"] < math.log(60)
    assert entries[0]["loss/mlm"] + entries[0]["information/mlm"] == pytest.approx(math.log(60))
    assert 0 < entries[0]["mfu"] < 1 < entries[0]["tokens_per_second"]


def test_tokens_of_the_whole_run_are_counted(make: Make) -> None:
    trainer = make(max_steps=2, gradient_accumulation_steps=2, include_num_input_tokens_seen="all")
    trainer.train()
    assert trainer.state.num_input_tokens_seen == count_tokens(batch_of(trainer, range(8)))


def collapsed_model() -> InfoXLMForPreTraining:
    """Every token at every position embeds alike."""
    model = tiny_model()
    with torch.no_grad():
        for table in (model.roberta.embeddings.word_embeddings, model.roberta.embeddings.position_embeddings):
            table.weight.copy_(table.weight[5].expand_as(table.weight))
    return model


@pytest.mark.parametrize(("warmup_steps", "limit", "last"), [(0, 3, 3), (9, 3, 3), (0, 0, 6), (0, 9, 6)])
def test_a_collapse_is_told_once_and_a_run_that_stays_so_is_given_up(
    make: Make, caplog: pytest.LogCaptureFixture, warmup_steps: int, limit: int, last: int
) -> None:
    given = {"learning_rate": 1e-9, "warmup_steps": warmup_steps, "stop_on_collapse": limit}
    trainer = make(model=collapsed_model(), max_steps=6, **given)
    says = r"at step \d: in 3 log.*dot, false, .*true.*1e-09.*align_encoder"
    with pytest.raises(ContrastCollapsed, match=says) if last < 6 else contextlib.nullcontext():
        trainer.train()
    logged = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == list(range(1, last + 1))
    told = [record.getMessage().partition(" have")[0] for record in caplog.records]
    assert [text for text in told if text.startswith("step ")] == [
        f"step 1: the {side} vectors" for side in ("query", "key")
    ]


@pytest.mark.parametrize(("warmup_steps", "last"), [(0, 110), (105, 115)])
def test_unless_told_otherwise_a_collapse_counts_after_the_warm_up_and_a_hundred_steps(
    make: Make, warmup_steps: int, last: int
) -> None:
    trainer = make(model=collapsed_model(), max_steps=150, learning_rate=1e-9, warmup_steps=warmup_steps)
    with pytest.raises(ContrastCollapsed, match=f"at step {last}"):
        for step in range(1, 151):
            trainer.state.global_step = step
            trainer.log({"loss": 1.0, "xlco/query_std": 0.01, "xlco/key_std": 0.5})


def test_entries_that_show_a_collapse_are_counted_over_a_resumption(make: Make, tmp_path: Path) -> None:
    flags = {"model": collapsed_model(), "learning_rate": 1e-9, "warmup_steps": 0, "stop_on_collapse": 3}
    make(max_steps=2, save_steps=2, folder="run", **flags).train()
    resumed = make(max_steps=6, folder="run", **flags)
    with pytest.raises(ContrastCollapsed, match="at step 3"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


# ---------------------------------------------------------------------------- waiting for the device


class HostReads(TorchDispatchMode):
    """Records the operations that make the host wait for the values of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


class DuringThirdStep(TrainerCallback):
    """Enters a context between the end of the second step and that of the third."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.context.__enter__()
        if state.global_step == 3:
            self.context.__exit__(None, None, None)


@pytest.mark.parametrize("filtered", [False, True], ids=["default", "with transformers' filter"])
def test_a_step_reads_no_tensor_on_the_host(make: Make, filtered: bool) -> None:
    """On a GPU each such read would make the host wait for all that is under way."""
    reads = HostReads()
    values: dict[str, Any] = {"logging_nan_inf_filter": True} if filtered else {}
    callbacks = [StopOnSignal(), DuringThirdStep(reads)]
    make(max_steps=4, logging_steps=50, save_strategy="no", callbacks=callbacks, **values).train()
    assert bool(reads.found) == filtered  # the filter shows that reads are seen


def test_layers_are_recomputed_and_compiled_only_where_asked_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modeling_infoxlm.training.layers.why_not", lambda *given, **more: None)

    def state(trainer: InfoXLMTrainer) -> list[tuple[bool, bool]]:
        layers = trainer.model.roberta.encoder.layer
        return [
            (layer.gradient_checkpointing, layer.output._compiled_call_impl is not None) for layer in layers
        ]

    assert state(make()) == [(False, False)] * 3
    assert state(make(recompute_layers="1-2")) == [(True, False), (True, False), (False, False)]
    assert state(make(compile_layers=True)) == [(False, True)] * 3


def test_layers_run_uncompiled_where_nothing_can_be_compiled(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise FileNotFoundError("g++\nis not installed")

    monkeypatch.setattr(torch, "compile", fails)
    layers = make(compile_layers=True).model.roberta.encoder.layer
    assert not any(layer.output._compiled_call_impl for layer in layers)
    assert "The layers run uncompiled: a trial failed: g++ is not installed" in caplog.text


def test_compilation_is_tried_on_the_device_of_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(model: InfoXLMForPreTraining, device: torch.device) -> None:
        raise InterruptedError(str(device))

    monkeypatch.setattr("modeling_infoxlm.training.trainer.compile_layers", stop)
    monkeypatch.setattr(PretrainingArguments, "device", torch.device("meta"))  # the model is still on the CPU
    with pytest.raises(InterruptedError, match="meta"):
        make(compile_layers=True)
