"""The joint step inside transformers' loop: what is averaged, enqueued, logged, evaluated, saved."""

import contextlib
import copy
import json
import logging
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import tiny_corpus, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, Trainer, TrainerCallback, XLMRobertaForMaskedLM, set_seed

import modeling_infoxlm  # noqa: F401  # registers the auto classes
from modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.data.batches import JointDataset, PretrainingCollator
from modeling_infoxlm.data.streams import StreamSettings
from modeling_infoxlm.evaluation.retrieval.heldout import HeldoutRetrieval
from modeling_infoxlm.hub.formats import save_as_xlm_roberta
from modeling_infoxlm.key_queue import KeyQueue
from modeling_infoxlm.momentum import MomentumEncoder
from modeling_infoxlm.runs.process import StopOnSignal
from modeling_infoxlm.training.arguments import ContrastArguments, PretrainingArguments
from modeling_infoxlm.training.meter import ContrastCollapsed
from modeling_infoxlm.training.throughput import Speedometer, count_tokens
from modeling_infoxlm.training.trainer import InfoXLMTrainer

ALL = ("mlm", "tlm", "xlco")
EXAMPLES = 2  # of each stream in an item


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., InfoXLMTrainer]:
    """A trainer on the tiny corpus; what is not said is the shortest run there is."""
    corpus = tiny_corpus(tmp_path)

    def build(
        *,
        objectives: tuple[str, ...] = ALL,
        model: InfoXLMForPreTraining | None = None,
        contrast: dict[str, Any] | None = None,
        evaluated: bool = False,
        folder: str = "out",
        callbacks: list[TrainerCallback] | None = None,
        **values: Any,
    ) -> InfoXLMTrainer:
        given: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
        given |= {
            "warmup_steps": 0,
            "logging_steps": 1,
            "use_cpu": True,
            "report_to": "none",
            "save_steps": 1,
        }
        given |= {"disable_tqdm": True, **values}
        args = PretrainingArguments(output_dir=str(tmp_path / folder), **given)
        settings = StreamSettings(
            objectives=objectives,
            mlm_examples=EXAMPLES,
            tlm_examples=EXAMPLES,
            xlco_examples=EXAMPLES,
            seed=5,
        )
        items = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
        return InfoXLMTrainer(
            model or tiny_model(),
            args,
            contrast=ContrastArguments(**{"queue_size": 24, "momentum": 0.9, **(contrast or {})}),
            train_dataset=JointDataset(corpus, settings, items),
            eval_dataset=JointDataset(corpus, settings, 2 * args.eval_batch_size) if evaluated else None,
            evaluator=HeldoutRetrieval(corpus, layer=2, max_pairs=20) if evaluated else None,
            callbacks=callbacks or [],
        )

    return build


class AtBegin(TrainerCallback):
    """Calls a function when training begins, before the first step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.function()


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def batch_of(trainer: InfoXLMTrainer, items: range) -> dict[str, Any]:
    return PretrainingCollator()([trainer.train_dataset.pack(items)])


# ---------------------------------------------------------------------------- momentum encoder


def scratch(folder: Path) -> InfoXLMForPreTraining:
    return tiny_model()


def own_checkpoint(folder: Path) -> InfoXLMForPreTraining:
    tiny_model().save_pretrained(folder)
    return InfoXLMForPreTraining.from_pretrained(folder)


def plain_xlm_roberta(folder: Path) -> InfoXLMForPreTraining:
    save_as_xlm_roberta(tiny_model(), folder)
    return InfoXLMForPreTraining.from_pretrained(folder, xlco_layer=2)


def half_precision(folder: Path) -> InfoXLMForPreTraining:
    tiny_model().bfloat16().save_pretrained(folder)
    return InfoXLMForPreTraining.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("load", [scratch, own_checkpoint, plain_xlm_roberta, half_precision])
def test_momentum_encoder_is_a_copy_of_whatever_is_loaded(
    make: Callable[..., InfoXLMTrainer], tmp_path: Path, load: Callable[[Path], InfoXLMForPreTraining]
) -> None:
    model = load(tmp_path / "model")
    found: list[bool] = []

    def compare() -> None:
        found.append(same(parameters(trainer.contrast.encoder), parameters(MomentumEncoder(model))))

    trainer = make(model=model, callbacks=[AtBegin(compare)])
    with torch.no_grad():  # whoever changes the model between constructor and training must be seen too
        model.roberta.embeddings.word_embeddings.weight.add_(1)
    trainer.train()
    assert found == [True]
    assert not same(parameters(trainer.contrast.encoder), parameters(MomentumEncoder(model)))


@pytest.mark.parametrize("momentum", [0.0, 0.25, 1.0])
def test_momentum_step_follows_the_optimiser_step(
    make: Callable[..., InfoXLMTrainer], momentum: float
) -> None:
    trainer = make(contrast={"momentum": momentum})
    before = parameters(MomentumEncoder(trainer.model))
    trainer.train()
    after = parameters(MomentumEncoder(trainer.model))
    assert not same(before, after)  # the optimiser did step
    moved = parameters(trainer.contrast.encoder)
    for name in before:
        expected = momentum * before[name] + (1 - momentum) * after[name]
        torch.testing.assert_close(moved[name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_momentum_moves_once_an_optimiser_step_whatever_the_accumulation(
    make: Callable[..., InfoXLMTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    momenta: list[float] = []
    monkeypatch.setattr(MomentumEncoder, "update", lambda self, model, momentum: momenta.append(momentum))
    contrast = {
        "momentum": 0.9,
        "momentum_schedule": "linear",
        "momentum_start": 0.5,
        "momentum_warmup_steps": 4,
    }
    make(contrast=contrast, max_steps=2, gradient_accumulation_steps=3).train()
    assert momenta == pytest.approx([0.6, 0.7])


def test_a_skipped_optimiser_step_moves_no_key_encoder(
    make: Callable[..., InfoXLMTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fp16 a step whose gradients overflowed is left out."""
    trainer = make(contrast={"momentum": 0.5})
    skipped = property(lambda self: True)
    monkeypatch.setattr(type(trainer.accelerator), "optimizer_step_was_skipped", skipped)
    before = parameters(MomentumEncoder(trainer.model))
    trainer.train()
    assert same(parameters(trainer.contrast.encoder), before)


# ---------------------------------------------------------------------------- the queue


def spy_on_negatives(trainer: InfoXLMTrainer) -> list[int]:
    """Number of queued keys that each forward pass of the model sees."""
    seen: list[int] = []
    trainer.model.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]["xlco"]["negatives"]))
    )
    return seen


@pytest.mark.parametrize("when, seen", [("step", [0, 0, 8, 8]), ("microbatch", [0, 4, 8, 10])])
def test_keys_enter_once_a_step_or_after_each_microbatch(
    make: Callable[..., InfoXLMTrainer], when: str, seen: list[int]
) -> None:
    # Two steps of two micro-batches of 2 items x 2 examples: 16 keys pass a queue of 10. The momentum of 1
    # keeps the key encoder what it was, so keys can be made again.
    contrast = {"xlco_enqueue": when, "queue_size": 10, "momentum": 1.0}
    trainer = make(contrast=contrast, max_steps=2, gradient_accumulation_steps=2)
    negatives = spy_on_negatives(trainer)
    encoder = MomentumEncoder(trainer.model)
    trainer.train()
    assert negatives == seen
    keys = encoder.encode(batch_of(trainer, range(8))["xlco"]["key"])
    assert len(keys) == 16
    # Keys 10 .. 15 have overwritten 0 .. 5; the cursor stands behind the last one.
    torch.testing.assert_close(trainer.contrast.queue.keys, keys[[*range(10, 16), *range(6, 10)]])
    assert (trainer.contrast.queue.cursor, trainer.contrast.queue.num_filled) == (6, 10)


def test_loss_and_gradient_do_not_see_the_keys_of_their_own_step(make: Callable[..., InfoXLMTrainer]) -> None:
    trainer = make(max_steps=3)
    negatives = spy_on_negatives(trainer)
    trainer.train()
    assert negatives == [0, 4, 8]


@pytest.mark.parametrize("batch, batches", [(2, 3), (3, 2)])
def test_prefill_takes_examples_beyond_the_run_whatever_the_batch(
    make: Callable[..., InfoXLMTrainer], monkeypatch: pytest.MonkeyPatch, batch: int, batches: int
) -> None:
    prefill = {"queue_prefill": True, "queue_size": 10, "momentum": 1.0}
    trainer = make(contrast=prefill, per_device_train_batch_size=batch)
    stream = trainer.train_dataset.streams["xlco"]
    pack, packed = stream.pack, []
    monkeypatch.setattr(stream, "pack", lambda numbers: (packed.append(numbers), pack(numbers))[1])
    at_begin: list[KeyQueue] = []
    trainer.add_callback(AtBegin(lambda: at_begin.append(copy.deepcopy(trainer.contrast.queue))))
    encoder = MomentumEncoder(trainer.model)
    trainer.train()
    # The run has one step of `batch` items of two examples; the queue takes the next ten.
    first = 2 * batch
    assert np.concatenate(packed).tolist() == [*range(first, first + batches * first), *range(first)]
    part = PretrainingCollator()([{"xlco": pack(np.arange(first, first + 10))}])["xlco"]["key"]
    torch.testing.assert_close(at_begin[0].keys, encoder.encode(part))
    assert (at_begin[0].num_filled, at_begin[0].cursor) == (10, 0)


def test_a_run_can_start_with_momentum_encoder_and_queue_of_another(
    make: Callable[..., InfoXLMTrainer], checkpoint: Path
) -> None:
    trainer = make(
        max_steps=1, contrast={"momentum_state": str(checkpoint), "momentum": 1.0, "queue_prefill": True}
    )
    trainer.train()
    saved = load_file(checkpoint / "momentum_state.safetensors")
    for name, value in trainer.contrast.encoder.state_dict().items():
        assert torch.equal(value, saved[f"momentum.{name}"])
    filled = int(saved["queue.num_filled"])
    assert torch.equal(trainer.contrast.queue.keys[:filled], saved["queue.keys"][:filled])
    assert trainer.contrast.queue.num_filled > filled


@pytest.mark.parametrize(
    ("contrast", "message"), [({"queue_size": 8}, "the saved queue is"), ({}, "of another architecture")]
)
def test_what_does_not_fit_is_not_taken_over(
    make: Callable[..., InfoXLMTrainer],
    checkpoint: Path,
    tmp_path: Path,
    contrast: dict[str, int],
    message: str,
) -> None:
    state = load_file(checkpoint / "momentum_state.safetensors")
    if not contrast:
        state["momentum.projection.weight"] = torch.zeros(3, 3)
    (tmp_path / "other").mkdir()
    save_file(state, tmp_path / "other" / "momentum_state.safetensors")
    trainer = make(max_steps=1, contrast={"momentum_state": str(tmp_path / "other"), **contrast})
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_without_prefill_the_queue_begins_empty(make: Callable[..., InfoXLMTrainer]) -> None:
    trainer = make()
    filled: list[int] = []
    trainer.add_callback(AtBegin(lambda: filled.append(trainer.contrast.queue.num_filled)))
    trainer.train()
    assert filled == [0]


# ---------------------------------------------------------------------------- the objectives


@pytest.mark.parametrize("objectives", [("mlm",), ("mlm", "tlm"), ("xlco",), ALL], ids="+".join)
def test_every_subset_trains_just_the_parameters_it_uses(
    make: Callable[..., InfoXLMTrainer], objectives: tuple[str, ...]
) -> None:
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
    assert fixed == expected
    # Switched off, too: DDP waits for the gradient of every other one.
    off = {name for name, value in trainer.model.named_parameters() if not value.requires_grad}
    assert off == expected - {"lm_head.decoder.bias"}  # the same parameter as lm_head.bias


@pytest.mark.parametrize("rule", ["per_objective", "per_item"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_logged_loss_is_the_weighted_mean_over_the_whole_batch(
    make: Callable[..., InfoXLMTrainer], rule: str, accumulation: int
) -> None:
    """Catches a second division by the accumulation steps, inside the Trainer."""
    weights = {"mlm": 0.5, "tlm": 2.0, "xlco": 3.0}
    named = {f"{name}_weight": value for name, value in weights.items()}
    trainer = make(loss_normalization=rule, gradient_accumulation_steps=accumulation, **named)
    batch = batch_of(trainer, range(2 * accumulation))
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


CUTS = {
    "sequential": {"objective_backward": "sequential"},
    "budget": {"tokens_per_device": 100},
    "one sequence each": {"tokens_per_device": 1},
    "sequential with a budget": {"objective_backward": "sequential", "tokens_per_device": 40},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "accumulated with a budget": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "tokens_per_device": 60,
    },
}
IN_BATCH = {"xlco_in_batch_negatives": True, "xlco_symmetric": True}


@pytest.mark.parametrize(
    "definition, cut",
    [*(({}, name) for name in CUTS), *((IN_BATCH, name) for name in CUTS if "accumulated" not in name)],
)
@pytest.mark.parametrize("rule", ["per_objective", "per_item"])
def test_however_a_batch_is_cut_loss_gradients_and_keys_are_the_same(
    make: Callable[..., InfoXLMTrainer], definition: dict[str, bool], cut: str, rule: str
) -> None:
    contrast = {"queue_prefill": True, "momentum": 0.5}
    runs = []
    for folder, values in (("merged", {}), ("cut", CUTS[cut])):
        gradients = Gradients()
        # Without a step of the optimiser the second batch meets the same weights: no rounding is amplified.
        given = {"per_device_train_batch_size": 8, "max_steps": 2, "learning_rate": 0.0, **values}
        trainer = make(
            # Fresh vectors are nearly equal; differences of what is nearly equal would be rounding.
            model=tiny_model(initializer_range=0.1, **definition),
            contrast=contrast,
            folder=folder,
            callbacks=[gradients],
            loss_normalization=rule,
            **given,
        )
        trainer.train()
        runs.append((trainer, gradients))
    (merged, expected), (other, found) = runs
    for one, two in zip(expected.steps, found.steps, strict=True):
        assert one.keys() == two.keys()
        norms = torch.stack([value.norm() for value in one.values()])
        errors = torch.stack([(two[name] - value).norm() for name, value in one.items()])
        assert norms.norm() > 0.1 and errors.norm() < 1e-5 * norms.norm()
        # One by one too: a small one could hide behind the others. A key's bias has rounding alone.
        assert (errors < 1e-4 * norms + 1e-6 * norms.norm()).all()
    torch.testing.assert_close(other.contrast.queue.keys, merged.contrast.queue.keys, rtol=1e-5, atol=1e-6)
    assert (other.contrast.queue.cursor, other.contrast.queue.num_filled) == (
        merged.contrast.queue.cursor,
        merged.contrast.queue.num_filled,
    )
    logs = [[e for e in trainer.state.log_history if "loss/xlco" in e] for trainer in (merged, other)]
    same_logs = {"loss", "grad_norm", "loss/mlm", "loss/tlm", "loss/xlco", "xlco/accuracy", "xlco/key_norm"}
    same_logs |= {"information/mlm", "information/tlm", "information/xlco", "xlco/queue_norm"}
    same_logs |= {"length/mlm", "length/tlm_longest", "length/xlco"}
    same_logs |= {"xlco/in_batch_accuracy", "xlco/query_std", "xlco/key_std"}
    for one, two in zip(*logs, strict=True):
        assert {n: two[n] for n in same_logs} == pytest.approx(
            {n: one[n] for n in same_logs}, rel=1e-5, abs=1e-6
        )


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05, 1e3])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_clipping_in_the_step_trains_what_clipping_before_it_does(
    make: Callable[..., InfoXLMTrainer], monkeypatch: pytest.MonkeyPatch, optim: str, max_grad_norm: float
) -> None:
    given = {"max_steps": 3, "max_grad_norm": max_grad_norm, "optim": optim}
    # Adam divides by the root of the second moment; a large epsilon keeps it from amplifying rounding.
    found = make(folder="found", adam_epsilon=1e-3, **given)
    found.train()
    monkeypatch.setattr(InfoXLMTrainer, "_clip_grad_norm", Trainer._clip_grad_norm)
    expected = make(folder="expected", adam_epsilon=1e-3, **given)
    expected.train()
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    norms = [[e["grad_norm"] for e in t.state.log_history if "loss" in e] for t in (found, expected)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[0][0] > 0.1  # before clipping, as the Trainer logs it
    assert bool(found.optimizer.optimizer.param_groups[0]["fused"]) == (optim == "adamw_torch_fused")


@pytest.mark.parametrize("everywhere", [False, True])
def test_weight_decay_is_on_matrices_unless_on_all(
    make: Callable[..., InfoXLMTrainer], everywhere: bool
) -> None:
    trainer = make(weight_decay_on_all=everywhere, weight_decay=0.01)
    decay = {}
    for group in trainer.create_optimizer().param_groups:
        decay |= dict.fromkeys(map(id, group["params"]), group["weight_decay"])
    for name, value in trainer.model.named_parameters():
        spared = name.endswith(".bias") or "norm" in name.lower()
        assert decay[id(value)] == (0.01 if everywhere or not spared else 0.0), name


def test_a_budget_bounds_what_the_model_sees(make: Callable[..., InfoXLMTrainer]) -> None:
    trainer = make(per_device_train_batch_size=8, tokens_per_device=100)
    seen: list[int] = []

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch = args[0]
        seen.append(sum(len(batch[name]["input_ids"]) for name in ("mlm", "tlm")))
        seen[-1] += len(batch["xlco"]["query"]["input_ids"])

    trainer.model.register_forward_pre_hook(look, with_kwargs=True)
    trainer.train()
    assert len(seen) > 3 and max(seen) <= 100
    logs = trainer.state.log_history[0]
    assert logs["micro_batches"] == len(seen) and logs["micro_batch_tokens"] == max(seen)


def test_speed_is_counted_alike_however_a_batch_is_cut(
    make: Callable[..., InfoXLMTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    work: list[tuple[int, float]] = []
    monkeypatch.setattr(Speedometer, "add", lambda self, tokens, flops: work.append((tokens, flops)))
    totals = []
    for values in ({}, {"objective_backward": "sequential", "tokens_per_device": 30}):
        trainer = make(per_device_train_batch_size=8, folder=f"out{len(totals)}", **values)
        trainer.train()
        totals.append((*np.sum(work, axis=0), trainer.state.total_flos))
        work.clear()
    assert totals[1] == pytest.approx(totals[0]) and totals[0][0] > 100


def test_compute_loss_refuses_what_it_cannot_do(make: Callable[..., InfoXLMTrainer]) -> None:
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


def test_a_log_entry_holds_everything_that_is_promised(make: Callable[..., InfoXLMTrainer]) -> None:
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


def test_objectives_that_are_off_are_not_logged(make: Callable[..., InfoXLMTrainer]) -> None:
    trainer = make(objectives=("tlm",))
    trainer.train()
    names = {name for name in trainer.state.log_history[0] if "/" in name}
    assert names == {"loss/tlm", "information/tlm", "length/tlm", "length/tlm_longest"}


def test_tokens_of_the_whole_run_are_counted(make: Callable[..., InfoXLMTrainer]) -> None:
    trainer = make(max_steps=2, gradient_accumulation_steps=2, include_num_input_tokens_seen="all")
    trainer.train()
    assert trainer.state.num_input_tokens_seen == count_tokens(batch_of(trainer, range(8)))


def test_a_collapse_is_told_once_with_its_step(
    make: Callable[..., InfoXLMTrainer], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="modeling_infoxlm.training.trainer"):
        make(model=collapsed_model(), max_steps=3, learning_rate=1e-9).train()
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(" have")[0] for message in messages] == [
        "step 1: the query vectors",
        "step 1: the key vectors",
    ]


def collapsed_model() -> InfoXLMForPreTraining:
    """Every token at every position embeds alike."""
    model = tiny_model()
    with torch.no_grad():
        for table in (model.roberta.embeddings.word_embeddings, model.roberta.embeddings.position_embeddings):
            table.weight.copy_(table.weight[5].expand_as(table.weight))
    return model


@pytest.mark.parametrize(
    ("warmup_steps", "limit", "last"), [(0, 3, 3), (9, 3, 3), (0, 0, 6), (0, 9, 6), (0, None, 6)]
)
def test_a_run_that_stays_collapsed_is_given_up(
    make: Callable[..., InfoXLMTrainer], warmup_steps: int, limit: int | None, last: int
) -> None:
    trainer = make(
        model=collapsed_model(),
        max_steps=6,
        learning_rate=1e-9,
        warmup_steps=warmup_steps,
        stop_on_collapse=limit,
    )
    says = r"at step \d: in 3 log.*dot, false, .*true.*1e-09.*align_encoder"
    with pytest.raises(ContrastCollapsed, match=says) if last < 6 else contextlib.nullcontext():
        trainer.train()
    logged = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == list(range(1, last + 1))


@pytest.mark.parametrize(("warmup_steps", "last"), [(0, 110), (105, 115)])
def test_unless_told_otherwise_a_collapse_counts_after_the_warm_up_and_a_hundred_steps(
    make: Callable[..., InfoXLMTrainer], warmup_steps: int, last: int
) -> None:
    trainer = make(model=collapsed_model(), max_steps=150, learning_rate=1e-9, warmup_steps=warmup_steps)
    with pytest.raises(ContrastCollapsed, match=f"at step {last}"):
        for step in range(1, 151):
            trainer.state.global_step = step
            trainer.log({"loss": 1.0, "xlco/query_std": 0.01, "xlco/key_std": 0.5})


def test_entries_that_show_a_collapse_are_counted_over_a_resumption(
    make: Callable[..., InfoXLMTrainer], tmp_path: Path
) -> None:
    flags = {"model": collapsed_model(), "learning_rate": 1e-9, "warmup_steps": 0, "stop_on_collapse": 3}
    make(max_steps=2, save_steps=2, folder="run", **flags).train()
    resumed = make(max_steps=6, folder="run", **flags)
    with pytest.raises(ContrastCollapsed, match="at step 3"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


# ---------------------------------------------------------------------------- held-out evaluation


def test_the_start_is_measured_once_by_what_means_the_same_at_the_end(
    make: Callable[..., InfoXLMTrainer], tmp_path: Path
) -> None:
    trainer = make(evaluated=True, max_steps=2, save_steps=1, folder="run")
    trainer.train()
    start = trainer.state.log_history[0]
    assert start["step"] == 0
    names = {"eval_loss/mlm", "eval_loss/tlm", "eval_retrieval/mean", "eval_xlco/in_batch_accuracy"}
    assert names <= start.keys()
    assert not {"eval_loss", "eval_loss/xlco", "eval_xlco/accuracy"} & start.keys()  # there was no queue yet
    untrained = make(evaluated=True)
    assert start["eval_retrieval/mean"] == untrained.evaluator(untrained.model)["retrieval/mean"]
    resumed = make(evaluated=True, max_steps=2, folder="run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    steps = [entry["step"] for entry in resumed.state.log_history if "eval_retrieval/mean" in entry]
    assert steps == [0]


def test_evaluation_returns_a_finite_loss_for_each_objective_and_retrieval(
    make: Callable[..., InfoXLMTrainer],
) -> None:
    trainer = make(evaluated=True, max_steps=2)
    trainer.train()
    metrics = trainer.evaluate()
    names = {f"{kind}/{objective}" for kind in ("loss", "information") for objective in ALL}
    names |= {"loss", "xlco/accuracy", "xlco/in_batch_accuracy", "retrieval/en-xx", "retrieval/mean"}
    assert metrics.keys() - {"epoch"} == {f"eval_{name}" for name in names}
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["eval_loss"] == pytest.approx(sum(metrics[f"eval_loss/{name}"] for name in ALL))
    assert 0 <= metrics["eval_retrieval/mean"] <= 1
    logged = trainer.state.log_history[-1]
    assert {**metrics, "step": 2} == logged


def test_evaluation_changes_nothing(make: Callable[..., InfoXLMTrainer]) -> None:
    trainer = make(evaluated=True, model=tiny_model(hidden_dropout_prob=0.5))
    trainer.train()
    before = [
        parameters(trainer.model),
        parameters(trainer.contrast.encoder),
        copy.deepcopy(trainer.contrast.queue.state_dict()),
    ]
    first = trainer.evaluate()
    after = [
        parameters(trainer.model),
        parameters(trainer.contrast.encoder),
        trainer.contrast.queue.state_dict(),
    ]
    assert all(same(one, other) for one, other in zip(before, after, strict=True))
    assert trainer.evaluate() == first  # no dropout, and nothing carried over
    assert trainer.model.training and set(trainer.step_log.state_dict()) == {"alarm.collapsed_logs"}
    trainer.model.eval()
    trainer.evaluate()
    assert not trainer.model.training


def test_evaluation_while_training_leaves_the_run_what_it_is(make: Callable[..., InfoXLMTrainer]) -> None:
    """It enqueues nothing, moves nothing and adds nothing to the training logs."""
    plain = make(max_steps=3, folder="plain")
    plain.train()
    steps = {"eval_strategy": "steps", "eval_steps": 1}
    evaluated = make(max_steps=3, evaluated=True, **steps)
    evaluated.train()
    assert same(parameters(plain.model), parameters(evaluated.model))
    assert same(plain.contrast.queue.state_dict(), evaluated.contrast.queue.state_dict())
    losses = [
        [entry["loss/xlco"] for entry in trainer.state.log_history if "loss/xlco" in entry]
        for trainer in (plain, evaluated)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    assert sum("eval_loss" in entry for entry in evaluated.state.log_history) == 3


def test_evaluations_share_their_workers(make: Callable[..., InfoXLMTrainer]) -> None:
    """Each evaluation once made a loader of its own, and accelerate kept them all with their processes."""
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = make(objectives=("mlm",), evaluated=True, **workers)
    processes = []
    for _ in range(3):
        trainer.evaluate()
        processes.append({process.pid for process in multiprocessing.active_children()})
    assert processes[0] == processes[1] == processes[2] and len(processes[0]) >= 1


def test_evaluation_of_masked_objectives_needs_no_training_before(
    make: Callable[..., InfoXLMTrainer],
) -> None:
    metrics = make(objectives=("mlm", "tlm"), evaluated=True).evaluate()
    assert metrics["eval_loss/mlm"] == pytest.approx(math.log(60), rel=0.05)


# ---------------------------------------------------------------------------- checkpoints


@pytest.fixture
def checkpoint(make: Callable[..., InfoXLMTrainer], tmp_path: Path) -> Path:
    make(max_steps=2, save_steps=2).train()
    return tmp_path / "out" / "checkpoint-2"


def test_a_checkpoint_is_a_model_folder_with_the_momentum_state_beside(checkpoint: Path) -> None:
    names = {path.name for path in checkpoint.iterdir()}
    model = {"config.json", "model.safetensors", "training_args.json"}
    resumption = {
        "momentum_state.safetensors",
        "optimizer.safetensors",
        "scheduler.safetensors",
        "rng_state.safetensors",
        "trainer_state.json",
    }
    assert names - {path for path in names if path.endswith(".py")} == model | resumption
    assert not (checkpoint.parent / ".saving").exists()


def test_the_model_file_holds_the_model_alone(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    expected = set(tiny_model().state_dict()) - {"lm_head.decoder.weight", "lm_head.decoder.bias"}  # tied
    assert set(weights) == expected
    beside = load_file(checkpoint / "momentum_state.safetensors")
    assert beside["queue.keys"].shape == (24, 16) and int(beside["queue.num_filled"]) == 8


def test_a_checkpoint_loads_by_the_auto_class_without_being_told(checkpoint: Path) -> None:
    model, report = AutoModel.from_pretrained(checkpoint, output_loading_info=True)
    assert type(model).__name__ == "InfoXLMModel"
    assert not report["missing_keys"] and not report["mismatched_keys"]
    stored = load_file(checkpoint / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(model.state_dict()[name], stored[f"roberta.{name}"])


def test_arguments_are_kept_as_text_without_the_token(
    make: Callable[..., InfoXLMTrainer], tmp_path: Path
) -> None:
    make(hub_token="hf_abcdefghijklmnop").train()
    text = (tmp_path / "out/checkpoint-1/training_args.json").read_text()
    assert json.loads(text)["learning_rate"] == 1e-2
    assert "hf_abcdefghijklmnop" not in text


def test_a_failure_while_saving_leaves_no_checkpoint(
    make: Callable[..., InfoXLMTrainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(self: InfoXLMTrainer, *args: Any) -> None:
        raise OSError(28, "No space left on device")

    trainer = make(max_steps=2)
    monkeypatch.setattr(InfoXLMTrainer, "_save_beside", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert list((tmp_path / "out").glob("checkpoint-*")) == []
    monkeypatch.undo()
    make(max_steps=2).train()
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]


def test_only_the_last_checkpoints_are_kept(make: Callable[..., InfoXLMTrainer], tmp_path: Path) -> None:
    make(max_steps=3, save_total_limit=2).train()
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
    ]


def test_a_folder_that_is_no_checkpoint_of_ours_is_refused(
    make: Callable[..., InfoXLMTrainer], checkpoint: Path
) -> None:
    (checkpoint / "momentum_state.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match="momentum_state.safetensors is missing: not a checkpoint of Inf"
    ):
        make(max_steps=3).train(resume_from_checkpoint=str(checkpoint))


def test_a_resumed_run_does_not_prefill_again(make: Callable[..., InfoXLMTrainer], checkpoint: Path) -> None:
    trainer = make(max_steps=3, contrast={"queue_prefill": True})
    filled: list[int] = []
    trainer.add_callback(AtBegin(lambda: filled.append(trainer.contrast.queue.num_filled)))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert filled == [8]


def test_results_of_a_resumed_run_are_those_of_the_whole(
    make: Callable[..., InfoXLMTrainer], checkpoint: Path
) -> None:
    """The Trainer's own loss, runtime and samples a second begin with the last start."""
    record = json.loads((checkpoint / "trainer_state.json").read_text())
    record["stateful_callbacks"]["_LogState"]["attributes"]["seconds"] = 1e6
    (checkpoint / "trainer_state.json").write_text(json.dumps(record))
    trainer = make(max_steps=3)
    output = trainer.train(resume_from_checkpoint=str(checkpoint))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and output.training_loss == pytest.approx(sum(losses) / 3)
    last = trainer.state.log_history[-1]
    assert last["train_loss"] == output.metrics["train_loss"] == output.training_loss
    assert output.metrics["train_runtime"] == pytest.approx(1e6, rel=1e-2)
    assert output.metrics["train_samples_per_second"] == pytest.approx(3 * 2 / 1e6, abs=1e-3)


@pytest.mark.parametrize("added_by", ["get_peft_model", "add_adapter"])
def test_an_adapter_trains_alone_and_resumes(
    make: Callable[..., InfoXLMTrainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    added_by: str,
) -> None:
    peft = pytest.importorskip("peft")
    # transformers 5.24 asks for a release of peft that is yet to come; the files are the same.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.18.0")

    def adapted() -> Any:
        model, config = tiny_model(), peft.LoraConfig(r=2)
        set_seed(4)
        if added_by == "get_peft_model":
            return peft.get_peft_model(model, config)
        model.add_adapter(config)
        return model

    straight = make(model=adapted(), max_steps=2)
    straight.train()
    resumed = make(model=adapted(), max_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    trained, start = straight.model.state_dict(), adapted().state_dict()
    assert same(trained, resumed.model.state_dict())
    changed = {name for name in trained if not torch.equal(trained[name], start[name])}
    assert len(changed) > 6 and all("lora_" in name for name in changed)
    assert set(straight.contrast.encoder.state_dict()) > {"embeddings.word_embeddings.weight"}


@pytest.mark.parametrize("name", [None, "mine"])
def test_trackers_name_the_run_after_its_folder(
    make: Callable[..., InfoXLMTrainer], name: str | None
) -> None:
    """The evaluation after the training asks for the run anew: without a name it got another one."""
    begun: list[str] = []

    class Tracker(TrainerCallback):
        def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
            begun.append(args.run_name)

        def on_evaluate(self, args: Any, *_: Any, **__: Any) -> None:
            begun.append(args.run_name)

    trainer = make(evaluated=True, callbacks=[Tracker()], folder="my-run", run_name=name)
    trainer.train()
    trainer.evaluate()
    assert len(begun) > 1 and set(begun) == {name or "my-run"}


# ---------------------------------------------------------------------------- refusals


def test_exported_weights_are_the_trained_ones(make: Callable[..., InfoXLMTrainer], tmp_path: Path) -> None:
    trainer = make()
    trainer.train()
    save_as_xlm_roberta(trainer.model, tmp_path / "plain")
    plain = XLMRobertaForMaskedLM.from_pretrained(tmp_path / "plain")
    name = "roberta.encoder.layer.1.output.dense.weight"
    assert torch.equal(plain.state_dict()[name], trainer.model.state_dict()[name])


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
def test_a_step_reads_no_tensor_on_the_host(make: Callable[..., InfoXLMTrainer], filtered: bool) -> None:
    """On a GPU each such read would make the host wait for all that is under way."""
    reads = HostReads()
    values: dict[str, Any] = {"logging_nan_inf_filter": True} if filtered else {}
    callbacks = [StopOnSignal(), DuringThirdStep(reads)]
    make(max_steps=4, logging_steps=50, save_strategy="no", callbacks=callbacks, **values).train()
    assert bool(reads.found) == filtered  # the filter shows that reads are seen


def test_layers_are_recomputed_and_compiled_only_where_asked_for(make: Callable[..., InfoXLMTrainer]) -> None:
    def state(trainer: InfoXLMTrainer) -> list[tuple[bool, bool]]:
        layers = trainer.model.roberta.encoder.layer
        return [
            (layer.gradient_checkpointing, layer.output._compiled_call_impl is not None) for layer in layers
        ]

    assert state(make()) == [(False, False)] * 3
    assert state(make(recompute_layers="1-2")) == [(True, False), (True, False), (False, False)]
    assert state(make(compile_layers=True)) == [(False, True)] * 3


def test_recomputing_layers_changes_no_step(make: Callable[..., InfoXLMTrainer]) -> None:
    plain, recomputed = make(max_steps=3), make(max_steps=3, recompute_layers="all", folder="other")
    plain.train()
    recomputed.train()
    assert same(parameters(recomputed.model), parameters(plain.model))
    assert same(parameters(recomputed.contrast.encoder), parameters(plain.contrast.encoder))
