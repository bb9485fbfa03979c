"""Stop at the next step boundary, with a checkpoint, when the process is asked to stop."""

import signal
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what Slurm and container runtimes send


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and ends training after the step under way.

    A second signal ends the process at once.

    Attributes:
        received: Number of the signal received, None so far.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Listen from now on."""
        self._previous = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Hand the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Save and stop if a signal has come to any rank: all must agree on the step."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            received = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
            # A signal that came to this rank meanwhile is met at the next step.
            self.received = int(received) or self.received
        if self.received is not None:
            control.should_save = control.should_training_stop = True
        return control

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.default_int_handler)
