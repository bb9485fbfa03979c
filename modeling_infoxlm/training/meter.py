"""Running means of losses and metrics between two log entries; on the device, so no step waits for them."""

import math
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from modeling_infoxlm.objectives import LossOutput

# Below this spread of normalised vectors (1 = random
# directions, 0 = all equal) sentences can hardly be told apart.
COLLAPSED_SPREAD = 0.1
# A fresh key told from the queue by far more queries than
# from its own batch is told by something else than meaning.
SHORTCUT_GAP = 0.3
# Below this share of filled slots the queue holds too few keys to be compared with a batch.
YOUNG_QUEUE = 0.5


class LossMeter:
    """Sums losses, counts and metrics of each objective since the last log entry.

    Args:
        vocab_size: Number of candidates of the masked objectives.
    """

    def __init__(self, vocab_size: int) -> None:
        self._log_vocab = math.log(vocab_size)
        self._sums: dict[str, Tensor] = {}

    def add(self, losses: Mapping[str, LossOutput]) -> None:
        """Add the losses of one micro-batch; metrics are weighted by its number of items."""
        for name, loss in losses.items():
            self._add(f"{name}/items", loss.loss_sum.new_tensor(loss.num_items))
            self._add(f"loss/{name}", loss.loss_sum.detach())
            for metric, value in loss.metrics.items():
                self._add(f"{name}/{metric}", value * loss.num_items)

    def _add(self, key: str, value: Tensor) -> None:
        value = value.double()  # a sum over many steps must not depend on where it was saved and resumed
        self._sums[key] = self._sums[key] + value if key in self._sums else value

    def state_dict(self) -> dict[str, Tensor]:
        """Sums so far; a resumed run logs the same means as one that was never stopped."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict()`."""
        self._sums = dict(state)

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all ranks since the last call, and begin anew.

        Returns:
            `loss/<objective>` in nats, `information/<objective>` (lower bound of
            mutual information in nats: logarithm of the number of candidates less
            the loss), `xlco/accuracy` and the other metrics of the contrast.
        """
        if not self._sums:
            return {}
        keys = sorted(self._sums)
        stacked = accelerator.reduce(torch.stack([self._sums[key] for key in keys]), reduction="sum")
        sums = dict(zip(keys, stacked.tolist(), strict=True))
        self._sums = {}
        logs = {}
        for name in [key.removesuffix("/items") for key in keys if key.endswith("/items")]:
            items = sums.pop(f"{name}/items")
            for key in [key for key in sums if key == f"loss/{name}" or key.startswith(f"{name}/")]:
                logs[key] = sums[key] / max(items, 1)
            log_candidates = logs.pop(f"{name}/log_candidates", self._log_vocab)
            logs[f"information/{name}"] = log_candidates - logs[f"loss/{name}"]
        return logs


class ContrastAlarm:
    """Warns, once when it begins, of a contrast that has collapsed or is solved by a shortcut."""

    def __init__(self) -> None:
        self._active: set[str] = set()

    def check(self, logs: Mapping[str, float]) -> list[str]:
        """Return the warnings that begin with these logs; each names a fix."""
        current = _contrast_warnings(logs)
        begun = [message for name, message in current.items() if name not in self._active]
        self._active = set(current)
        return begun


def _contrast_warnings(logs: Mapping[str, float]) -> dict[str, str]:
    warnings = {}
    for side in ("query", "key"):
        spread = logs.get(f"xlco/{side}_std", 1.0)
        if spread < COLLAPSED_SPREAD:
            warnings[side] = (
                f"the {side} vectors have nearly collapsed (spread {spread:.3f} of 1): "
                "sentences can hardly be told apart. From scratch, mean pooling (--xlco_pooling mean) "
                "spreads sooner; else lower the learning rate."
            )
    gap = logs.get("xlco/accuracy", 0.0) - logs.get("xlco/in_batch_accuracy", 1.0)
    # Among the few keys of a young queue accuracy is high without any shortcut.
    if gap > SHORTCUT_GAP and logs.get("xlco/queue_filled", 1.0) >= YOUNG_QUEUE:
        warnings["shortcut"] = (
            "the contrast is being solved by a shortcut: "
            f"accuracy {logs['xlco/accuracy']:.2f} among queued keys but "
            f"{logs['xlco/in_batch_accuracy']:.2f} among the keys of the batch "
            f"(mean length {logs['xlco/key_norm']:.2f} of fresh keys, "
            f"{logs['xlco/queue_norm']:.2f} of queued ones). "
            "Try --xlco_similarity cosine, a higher --momentum or --xlco_in_batch_negatives true."
        )
    return warnings
