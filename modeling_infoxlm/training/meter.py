"""Running means of losses and metrics between two log entries; on the device, so no step waits for them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from modeling_infoxlm.configuration_infoxlm import InfoXLMConfig
from modeling_infoxlm.objectives import LossOutput, batch_metrics
from modeling_infoxlm.training.micro_batches import kept_lengths

# Below this spread of normalised vectors (1 = random
# directions, 0 = all equal) sentences can hardly be told apart.
COLLAPSED_SPREAD = 0.1
# A fresh key told from the queue by far more queries than
# from its own batch is told by something else than meaning.
SHORTCUT_GAP = 0.3
# Below this share of filled slots the queue holds too few keys to be compared with a batch.
YOUNG_QUEUE = 0.5


class LossMeter:
    """Sums losses, counts and metrics of each objective since the last log entry."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._vectors: dict[str, list[tuple[Tensor, Tensor]]] = {}  # queries and keys of the batch under way

    def add(self, losses: Mapping[str, LossOutput]) -> None:
        """Add the losses of one micro-batch; metrics are weighted by its number of items."""
        for name, loss in losses.items():
            # Filled on the device: a number that is copied there would make the host wait.
            items = loss.num_items
            if not isinstance(items, Tensor):
                items = loss.loss_sum.new_full((), items)
            self._add(f"{name}/items", items)
            self._add(f"loss/{name}", loss.loss_sum.detach())
            for metric, value in loss.metrics.items():
                self._add(f"{name}/{metric}", value * loss.num_items)
            if loss.vectors is not None:
                self._vectors.setdefault(name, []).append(loss.vectors)

    def end_batch(self, accelerator: Accelerator) -> None:
        """Measure contrasts over the global batch; all its micro-batches have been added, on all ranks."""
        for name in sorted(self._vectors):
            query, key = (torch.cat(side) for side in zip(*self._vectors.pop(name), strict=True))
            queries, keys = accelerator.gather((query, key))
            first = accelerator.process_index * len(query)
            for metric, value in batch_metrics(query, queries, keys, first).items():
                self._add(f"{name}/{metric}", value * len(query))

    def _add(self, key: str, value: Tensor) -> None:
        value = value.double()  # a sum over many steps must not depend on where it was saved and resumed
        self._sums[key] = self._sums[key] + value if key in self._sums else value

    def state_dict(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Sums so far of all ranks; a resumed run logs the same means as one that was never stopped."""
        return self._reduced(accelerator)

    def _reduced(self, accelerator: Accelerator) -> dict[str, Tensor]:
        if not self._sums:
            return {}
        keys = sorted(self._sums)
        sums = accelerator.reduce(torch.stack([self._sums[key] for key in keys]), reduction="sum")
        return {key: sums[i].clone() for i, key in enumerate(keys)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict()`: on one rank, since it holds the sums of all."""
        self._sums = dict(state)

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all ranks since the last call, and begin anew.

        Returns:
            `loss/<objective>` in nats; `information/<objective>`, where the objective has such a bound (lower
            bound of mutual information in nats: logarithm of the number of candidates less the loss);
            `<objective>/accuracy` and other metrics.
        """
        reduced = self._reduced(accelerator)
        if not reduced:
            return {}
        sums = dict(zip(reduced, torch.stack(list(reduced.values())).tolist(), strict=True))
        self._sums = {}
        logs = {}
        for name in [key.removesuffix("/items") for key in reduced if key.endswith("/items")]:
            items = sums.pop(f"{name}/items")
            for key in [key for key in sums if key == f"loss/{name}" or key.startswith(f"{name}/")]:
                logs[key] = sums[key] / max(items, 1)
            if f"{name}/log_candidates" in logs:
                logs[f"information/{name}"] = logs.pop(f"{name}/log_candidates") - logs[f"loss/{name}"]
        return logs


class LengthMeter:
    """How long sequences were and how batches were cut since the last log entry; counted on the host."""

    def __init__(self) -> None:
        self._sums = Counter[str]()
        self._largest: dict[str, int] = {}

    def add(self, micro_batches: Sequence[Mapping[str, Any]]) -> None:
        """Count the micro-batches that one batch of this device was cut into."""
        self._sums.update(batches=1, micro_batches=len(micro_batches))
        for micro_batch in micro_batches:
            lengths = {name: kept_lengths(part) for name, part in micro_batch.items()}
            for name, values in lengths.items():
                self._sums.update({f"{name}/sequences": len(values), f"{name}/tokens": sum(values)})
                self._raise(f"length/{name}_longest", max(values))
            self._raise("micro_batch_tokens", sum(map(sum, lengths.values())))

    def _raise(self, key: str, value: int) -> None:
        self._largest[key] = max(self._largest.get(key, 0), value)

    def state_dict(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Counts so far of all ranks, for a resumed run."""
        sums, largest = self._of_all_ranks(accelerator)
        counts = {f"sum.{key}": value for key, value in sums.items()}
        counts |= {f"largest.{key}": value for key, value in largest.items()}
        return {key: torch.tensor(value, dtype=torch.float64) for key, value in counts.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict()`: on one rank, since it holds the counts of all."""
        values = {key: int(value) for key, value in state.items()}
        self._sums = Counter({key[4:]: value for key, value in values.items() if key.startswith("sum.")})
        self._largest = {key[8:]: value for key, value in values.items() if key.startswith("largest.")}

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the statistics of all ranks since the last call, and begin anew.

        Returns:
            `length/<objective>` and `length/<objective>_longest`, mean and longest sequence in tokens (of the
            query side for the contrast); `micro_batches`, the mean number that a batch was cut into;
            `micro_batch_tokens`, the tokens of the largest one, keys not counted.
        """
        if not self._sums:
            return {}
        totals, logs = self._of_all_ranks(accelerator)
        for name in [key.removesuffix("/tokens") for key in totals if key.endswith("/tokens")]:
            logs[f"length/{name}"] = totals[f"{name}/tokens"] / totals[f"{name}/sequences"]
        logs["micro_batches"] = totals["micro_batches"] / totals["batches"]
        self._sums, self._largest = Counter(), {}
        return logs

    def _of_all_ranks(self, accelerator: Accelerator) -> tuple[dict[str, float], dict[str, float]]:
        """Sums, and largest values."""
        sums, largest = sorted(self._sums), sorted(self._largest)
        values = [self._sums[key] for key in sums] + [self._largest[key] for key in largest]
        ranks = accelerator.gather(torch.tensor([values], dtype=torch.float64, device=accelerator.device))
        totals = dict(zip(sums, ranks.sum(dim=0).tolist(), strict=False))
        return totals, dict(zip(largest, ranks.amax(dim=0).tolist()[len(sums) :], strict=True))


class ContrastCollapsed(ValueError):
    """The vectors of the contrast have been nearly the same for too long; going on would ruin the encoder."""


class ContrastAlarm:
    """Warns, once when it begins, of a contrast that has collapsed or is solved by a shortcut.

    Attributes:
        collapsed_logs: Entries in a row, up to the last one checked, that show a collapse.
    """

    def __init__(self) -> None:
        self._active: set[str] = set()
        self.collapsed_logs = 0

    def check(self, logs: Mapping[str, float]) -> list[str]:
        """Return the warnings that begin with these logs; each names a fix."""
        current = _contrast_warnings(logs)
        begun = [message for name, message in current.items() if name not in self._active]
        self._active = set(current)
        self.collapsed_logs = self.collapsed_logs + 1 if self._active & {"query", "key"} else 0
        return begun


def describe_collapse(config: InfoXLMConfig, *, step: int, entries: int, learning_rate: float) -> str:
    """What a run given up after so many log entries says: what is known to cause it, and what to do."""
    return (
        f"given up at step {step}: in {entries} log entries in a row the vectors of the contrast have been "
        "nearly the same, and going on would ruin the encoder. Known to cause it, where the encoder gave "
        "sentence vectors before: xlco_similarity dot, xlco_in_batch_negatives false, a new projection, a "
        f"high learning rate; this run has {config.xlco_similarity}, "
        f"{str(config.xlco_in_batch_negatives).lower()}, xlco_use_projection "
        f"{str(config.xlco_use_projection).lower()} and learning_rate {learning_rate:g}. "
        "The settings of recipes/align_encoder.yaml do not collapse. From scratch take --xlco_pooling mean, "
        "or wait longer by --stop_on_collapse."
    )


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
