"""Momentum encoder and queue beside the step: what is averaged and enqueued, and when."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import tiny_model
from tiny_trainer import AtBegin, Make, batch_of, parameters, same

from modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.data.batches import PretrainingCollator
from modeling_infoxlm.hub.formats import save_as_xlm_roberta
from modeling_infoxlm.key_queue import KeyQueue
from modeling_infoxlm.momentum import MomentumEncoder
from modeling_infoxlm.training.trainer import InfoXLMTrainer


def plain_xlm_roberta(folder: Path) -> InfoXLMForPreTraining:
    save_as_xlm_roberta(tiny_model(), folder)
    return InfoXLMForPreTraining.from_pretrained(folder, xlco_layer=2)


def half_precision(folder: Path) -> InfoXLMForPreTraining:
    tiny_model().bfloat16().save_pretrained(folder)
    return InfoXLMForPreTraining.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("load", [plain_xlm_roberta, half_precision])
def test_momentum_encoder_is_a_copy_of_whatever_is_loaded(
    make: Make, tmp_path: Path, load: Callable[[Path], InfoXLMForPreTraining]
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


def test_momentum_step_follows_the_optimiser_step(make: Make) -> None:
    trainer = make(contrast={"momentum": 0.25})
    before = parameters(MomentumEncoder(trainer.model))
    trainer.train()
    after = parameters(MomentumEncoder(trainer.model))
    assert not same(before, after)  # the optimiser did step
    moved = parameters(trainer.contrast.encoder)
    for name in before:
        expected = 0.25 * before[name] + 0.75 * after[name]
        torch.testing.assert_close(moved[name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_momentum_moves_once_a_step_however_accumulated(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    momenta: list[float] = []
    monkeypatch.setattr(MomentumEncoder, "update", lambda self, model, momentum: momenta.append(momentum))
    rising = {"momentum_schedule": "linear", "momentum_start": 0.5, "momentum_warmup_steps": 4}
    make(contrast={"momentum": 0.9, **rising}, max_steps=2, gradient_accumulation_steps=3).train()
    assert momenta == pytest.approx([0.6, 0.7])


def test_a_skipped_optimiser_step_moves_no_key_encoder(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fp16 a step whose gradients overflowed is left out."""
    trainer = make(contrast={"momentum": 0.5})
    skipped = property(lambda self: True)
    monkeypatch.setattr(type(trainer.accelerator), "optimizer_step_was_skipped", skipped)
    before = parameters(MomentumEncoder(trainer.model))
    trainer.train()
    assert same(parameters(trainer.contrast.encoder), before)


def spy_on_negatives(trainer: InfoXLMTrainer) -> list[int]:
    """Number of queued keys that each forward pass of the model sees."""
    seen: list[int] = []
    trainer.model.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]["xlco"]["negatives"]))
    )
    return seen


@pytest.mark.parametrize("when, seen", [("step", [0, 0, 8, 8]), ("microbatch", [0, 4, 8, 10])])
def test_keys_enter_once_a_step_or_after_each_microbatch(make: Make, when: str, seen: list[int]) -> None:
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


@pytest.mark.parametrize("batch, batches", [(2, 3), (3, 2)])
def test_prefill_takes_examples_beyond_the_run_whatever_the_batch(
    make: Make, monkeypatch: pytest.MonkeyPatch, batch: int, batches: int
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


def test_a_run_can_start_with_the_momentum_state_of_another(
    make: Make, checkpoint: Path, tmp_path: Path
) -> None:
    given = {"momentum_state": str(checkpoint), "momentum": 1.0, "queue_prefill": True}
    trainer = make(max_steps=1, contrast=given)
    trainer.train()
    saved = load_file(checkpoint / "momentum_state.safetensors")
    for name, value in trainer.contrast.encoder.state_dict().items():
        assert torch.equal(value, saved[f"momentum.{name}"])
    filled = int(saved["queue.num_filled"])
    assert torch.equal(trainer.contrast.queue.keys[:filled], saved["queue.keys"][:filled])
    assert trainer.contrast.queue.num_filled > filled
    with pytest.raises(ValueError, match="the saved queue is"):
        make(contrast={**given, "queue_size": 8}).train()
    saved["momentum.projection.weight"] = torch.zeros(3, 3)
    save_file(saved, tmp_path / "momentum_state.safetensors")
    with pytest.raises(ValueError, match="of another architecture"):
        make(contrast={"momentum_state": str(tmp_path)}).train()
