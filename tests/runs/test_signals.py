"""Being asked to stop: finish the step, save, end; asked twice: end now."""

import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl

from modeling_infoxlm.runs.signals import STOP_SIGNALS, StopOnSignal

ARGS = SimpleNamespace(device=torch.device("cpu"))


@pytest.fixture
def stop() -> Iterator[StopOnSignal]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    callback = StopOnSignal()
    callback.on_train_begin()
    yield callback
    for number, handler in before.items():
        signal.signal(number, handler)


def step(callback: StopOnSignal) -> tuple[bool, bool]:
    """Whether the end of a step saves, and whether it ends training."""
    control = callback.on_step_end(ARGS, None, TrainerControl())
    return control.should_save, control.should_training_stop


def test_nothing_happens_without_a_signal(stop: StopOnSignal) -> None:
    assert step(stop) == (False, False)
    assert stop.received is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_at_the_end_of_the_step(stop: StopOnSignal, number: signal.Signals) -> None:
    signal.raise_signal(number)  # no exception: the step under way goes on
    assert stop.received == number
    assert step(stop) == (True, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once(stop: StopOnSignal, number: signal.Signals) -> None:
    signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_handlers_are_handed_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    callback = StopOnSignal()
    callback.on_train_begin()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    callback.on_train_end()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_handlers_are_handed_back_after_a_signal_too(stop: StopOnSignal) -> None:
    signal.raise_signal(signal.SIGTERM)
    stop.on_train_end()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_to_another_rank_stops_this_one(stop: StopOnSignal, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(tensor: torch.Tensor, op: object) -> None:
        assert op == torch.distributed.ReduceOp.MAX
        tensor.fill_(signal.SIGTERM)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    assert step(stop) == (True, True)
    assert stop.received == signal.SIGTERM
