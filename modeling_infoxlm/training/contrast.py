"""What the contrast keeps from step to step: momentum encoder, queue, keys under way (paper, section 4.3)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from modeling_infoxlm.hub.loading import check_state_file
from modeling_infoxlm.key_queue import KeyQueue
from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.momentum import MomentumEncoder, momentum_schedule
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.training.arguments import ContrastArguments
from modeling_infoxlm.training.step_log import with_prefix

MOMENTUM_STATE_NAME = "momentum_state.safetensors"


class ContrastState:
    """Momentum encoder and queue of a run, and the keys that are on their way from the one to the other.

    A step: `keys` of each micro-batch, which are compared with `negatives`; after the backward pass
    `end_batch`, then `enqueue`; after the optimiser's step `update`. The loss keeps a view of the queue, so
    nothing is written into it before the backward pass; keys enter in the order of the batch, so how it was
    cut into micro-batches leaves no trace.

    Args:
        model: Model that is trained, as it was loaded.
        settings: Queue and momentum.
        accelerator: Its device, its autocast, its other ranks.

    Attributes:
        encoder: Momentum encoder.
        queue: The same on all ranks.
    """

    def __init__(
        self, model: InfoXLMForPreTraining, settings: ContrastArguments, accelerator: Accelerator
    ) -> None:
        self.encoder = MomentumEncoder(model)
        self.queue = KeyQueue(settings.queue_size, model.config.hidden_size, device=accelerator.device)
        self.momentum_at = momentum_schedule(
            settings.momentum_schedule,
            momentum=settings.momentum,
            start=settings.momentum_start,
            warmup_steps=settings.momentum_warmup_steps,
            exponent=settings.momentum_exponent,
        )
        self._accelerator = accelerator
        self._batch: list[Tensor] = []  # keys of the batch under way, one tensor a micro-batch
        self._waiting: list[Tensor] = []  # to be enqueued, one tensor a batch

    def encode(self, part: Mapping[str, Any]) -> Tensor:
        """Keys of a key side, (B, D), without gradient."""
        with self._accelerator.autocast():
            return self.encoder.encode(part)

    def keys(self, part: Mapping[str, Any]) -> Tensor:
        """Keys of a micro-batch, (B, D), which `enqueue` will put into the queue."""
        keys = self.encode(part)
        self._batch.append(keys)
        return keys

    def negatives(self) -> Tensor:
        """The keys in the queue, (num_filled, D): a view."""
        return self.queue.negatives()

    def end_batch(self) -> None:
        """Take the keys of the micro-batches since the last call for one batch."""
        if self._batch:
            self._waiting.append(torch.cat(self._batch))
            self._batch.clear()

    def enqueue(self) -> None:
        """Put the batches that wait, of all ranks, into the queue, in the order of one process with all."""
        for keys in self._waiting:
            self.queue.enqueue(self._accelerator.gather(keys))
        self._waiting.clear()

    def update(self, model: InfoXLMForPreTraining, step: int) -> None:
        """Move the momentum encoder towards the model, after optimiser step 1, 2, ..."""
        self.encoder.update(model, self.momentum_at(step))

    def prefill(self, parts: Iterable[Mapping[str, Any]], *, show_progress: bool) -> None:
        """Fill the queue before step 1, as the released code does.

        Args:
            parts: Key sides of examples that the run does not meet; as many are taken as are needed.
            show_progress: Show a bar.
        """
        size = self.queue.size
        with tqdm(
            total=size, desc="filling the queue", unit="key", delay=2, disable=not show_progress
        ) as bar:
            for part in parts:
                before = self.queue.num_filled
                # Cut, so that the queue holds the same keys whatever the batch size.
                self.queue.enqueue(self._accelerator.gather(self.encode(part))[: size - before])
                bar.update(self.queue.num_filled - before)
                if self.queue.num_filled == size:
                    return

    def state_dict(self) -> dict[str, Tensor]:
        """Momentum encoder and queue, as tensors: what a checkpoint holds between two steps."""
        return {
            **{f"momentum.{name}": value for name, value in self.encoder.state_dict().items()},
            **{f"queue.{name}": value for name, value in self.queue.state_dict().items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict()`; other names are passed over.

        Raises:
            RuntimeError: If the momentum encoder is of another architecture.
            ValueError: If the queue is of another size.
        """
        _restore(state, self.encoder, self.queue)


def take_over_contrast(folder: Path, encoder: MomentumEncoder, queue: KeyQueue) -> None:
    """Load the momentum encoder and the queue that another run has left in a folder.

    Raises:
        UsageError: If they are not there, or are of another architecture or queue size.
    """
    path = folder / MOMENTUM_STATE_NAME
    if not path.is_file():
        raise UsageError(f"{path} is missing; --momentum_state needs a folder that holds it.")
    check_state_file(path)
    try:
        _restore(load_file(path), encoder, queue)
    except RuntimeError as error:  # other names or shapes
        raise UsageError(f"{path} is of another architecture than the model: {error}") from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def _restore(state: Mapping[str, Tensor], encoder: MomentumEncoder, queue: KeyQueue) -> None:
    encoder.load_state_dict(with_prefix(state, "momentum."))
    queue.load_state_dict(with_prefix(state, "queue."))
