"""What a log entry gathers of the steps since the last one: losses, lengths, speed, alarms."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from modeling_infoxlm.objectives import LossOutput
from modeling_infoxlm.training.meter import ContrastAlarm, LengthMeter, LossMeter
from modeling_infoxlm.training.throughput import Speedometer, count_tokens


class StepLog:
    """The log entry under way on this rank.

    Args:
        accelerator: Of the run; entries are over all its ranks.
        peak: Floating point operations per second of one device, to log the share of it that is used (`mfu`).

    Attributes:
        peak: See above.
        speed: To be restarted when training begins, and paused for what is no training.
        alarm: Of the contrast.
    """

    def __init__(self, accelerator: Accelerator, peak: float | None) -> None:
        self._accelerator, self.peak = accelerator, peak
        self._losses, self._lengths = LossMeter(), LengthMeter()
        self.speed, self.alarm = Speedometer(), ContrastAlarm()

    def add_batch(self, micro_batches: Sequence[Mapping[str, Any]]) -> None:
        """Count the sequences of a device's batch, and how it was cut."""
        self._lengths.add(micro_batches)

    def add(self, losses: Mapping[str, LossOutput], inputs: Mapping[str, Any], flops: float) -> None:
        """Count the losses and the work of a micro-batch."""
        self._losses.add(losses)
        self.speed.add(count_tokens(inputs), flops)

    def end_batch(self) -> None:
        """Measure contrasts over the global batch, of which all micro-batches have been added."""
        self._losses.end_batch(self._accelerator)

    def pop(self) -> dict[str, float]:
        """Return means and speeds over all ranks since the last call, and begin anew."""
        logs = self._losses.pop(self._accelerator) | self._lengths.pop(self._accelerator)
        return logs | self.speed.pop(self._accelerator, self.peak)

    def state_dict(self) -> dict[str, Tensor]:
        """Sums so far over all ranks, whose number a resumed run may change: each rank must call it."""
        sums: dict[str, LossMeter | LengthMeter] = {"meter": self._losses, "lengths": self._lengths}
        state = {
            f"{name}.{key}": value
            for name, meter in sums.items()
            for key, value in meter.state_dict(self._accelerator).items()
        }
        return state | {"alarm.collapsed_logs": torch.tensor(self.alarm.collapsed_logs)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict()`; other names are passed over.

        The sums are of all ranks, and are added up for the log: one goes on with them, the others with 0.
        """
        share = float(self._accelerator.process_index == 0)
        sums = {name: value * share for name, value in state.items()}
        device = self._accelerator.device
        losses = {name: value.to(device) for name, value in with_prefix(sums, "meter.").items()}
        self._losses.load_state_dict(losses)
        self._lengths.load_state_dict(with_prefix(sums, "lengths."))
        self.alarm.collapsed_logs = int(state["alarm.collapsed_logs"])


def with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin so, under the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
