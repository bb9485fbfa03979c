"""Evaluation of the held-out pairs changes nothing and costs what it must."""

import copy
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_model
from tiny_trainer import ALL, Make, parameters, same
from transformers import TrainerCallback


def test_the_start_is_measured_once_by_what_means_the_same_at_the_end(make: Make, tmp_path: Path) -> None:
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


def test_evaluation_measures_every_objective_and_retrieval_and_changes_nothing(make: Make) -> None:
    trainer = make(evaluated=True, max_steps=2, model=tiny_model(hidden_dropout_prob=0.5))
    trainer.train()

    def state() -> list[dict[str, torch.Tensor]]:
        queue = copy.deepcopy(trainer.contrast.queue.state_dict())
        return [parameters(trainer.model), parameters(trainer.contrast.encoder), queue]

    before, metrics = state(), trainer.evaluate()
    assert all(same(one, other) for one, other in zip(before, state(), strict=True))
    assert {**metrics, "step": 2} == trainer.state.log_history[-1]
    assert trainer.evaluate() == metrics  # no dropout, and nothing carried over
    assert trainer.model.training and set(trainer.step_log.state_dict()) == {"alarm.collapsed_logs"}
    trainer.model.eval()
    trainer.evaluate()
    assert not trainer.model.training
    names = {f"{kind}/{objective}" for kind in ("loss", "information") for objective in ALL}
    names |= {"loss", "xlco/accuracy", "xlco/in_batch_accuracy", "retrieval/en-xx", "retrieval/mean"}
    assert metrics.keys() - {"epoch"} == {f"eval_{name}" for name in names}
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["eval_loss"] == pytest.approx(sum(metrics[f"eval_loss/{name}"] for name in ALL))
    assert 0 <= metrics["eval_retrieval/mean"] <= 1


def test_evaluation_while_training_leaves_the_run_what_it_is(make: Make) -> None:
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


def test_evaluations_share_their_workers_and_need_no_training_before(make: Make) -> None:
    """Each evaluation once made a loader of its own, and accelerate kept them all with their processes."""
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = make(objectives=("mlm", "tlm"), evaluated=True, **workers)
    processes = []
    for _ in range(3):
        assert trainer.evaluate()["eval_loss/mlm"] == pytest.approx(math.log(60), rel=0.05)
        processes.append({process.pid for process in multiprocessing.active_children()})
    assert processes[0] == processes[1] == processes[2] and len(processes[0]) >= 1


@pytest.mark.parametrize("name", [None, "mine"])
def test_trackers_name_the_run_after_its_folder(make: Make, name: str | None) -> None:
    """The evaluation after the training asks for the run anew: without a name it got another one."""
    begun: list[str] = []

    class Tracker(TrainerCallback):
        def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
            begun.append(args.run_name)

        on_evaluate = on_train_begin

    trainer = make(evaluated=True, callbacks=[Tracker()], folder="my-run", run_name=name)
    trainer.train()
    trainer.evaluate()
    assert len(begun) > 1 and set(begun) == {name or "my-run"}
