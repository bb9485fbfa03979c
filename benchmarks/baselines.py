"""The joint step as one writes it today with plain transformers, to measure ours against (N1).

`XLMRobertaForMaskedLM` with logits at every position, padded batches, a backward pass for each objective, a
deep copy as momentum encoder, a Python loop for its average, torch's AdamW as it comes. The mathematics is
that of our step: same losses, same gradients.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM
from transformers.trainer_pt_utils import get_parameter_names

from modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.objectives import IGNORE_INDEX
from modeling_infoxlm.training.arguments import ContrastArguments, PretrainingArguments


def synchronize() -> None:
    """Wait for what a GPU was asked to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Padded:
    """Sequences padded to the longest.

    Attributes:
        input_ids: (B, L).
        attention_mask: 1 for tokens, (B, L).
        labels: True tokens at masked positions, `IGNORE_INDEX` elsewhere, (B, L); None without masks.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None

    @classmethod
    def of(cls, part: Mapping[str, Any], pad: int) -> "Padded":
        """Pad a packed part."""
        tokens, lengths = part["input_ids"], list(part["lengths"])
        labels = torch.full_like(tokens, IGNORE_INDEX)
        if "labels" in part:
            labels[part["masked_rows"]] = part["labels"]
        ids, labels, mask = (
            nn.utils.rnn.pad_sequence(rows.split(lengths), batch_first=True, padding_value=value)
            for rows, value in ((tokens, pad), (labels, IGNORE_INDEX), (torch.ones_like(tokens), 0))
        )
        return cls(ids, mask, labels if "labels" in part else None)


class PlainTransformers:
    """The whole joint step in plain transformers: losses, gradients, clipping, AdamW, momentum, queue.

    Args:
        model: Starts from these weights, which are copied.
        args: Learning rate, betas, decay and clipping are taken from here.
        contrast: Momentum is taken from here.
        queue: Keys at the start, (Q, D), which are copied; full.
        autocast: Type of the products, or None for fp32.
    """

    def __init__(
        self,
        model: InfoXLMForPreTraining,
        args: PretrainingArguments,
        contrast: ContrastArguments,
        queue: Tensor,
        autocast: torch.dtype | None = None,
    ) -> None:
        config: Any = model.config
        self.config, self.args, self.autocast = config, args, autocast
        self.temperature, self.layer = config.xlco_temperature, config.resolved_xlco_layer()
        self.momentum = contrast.momentum
        self.device = next(model.parameters()).device
        plain = XLMRobertaConfig(**{**config.to_dict(), "model_type": "xlm-roberta"})
        self.model = XLMRobertaForMaskedLM(plain)
        nn.Module.to(self.model, self.device)
        weights = {name: value for name, value in model.state_dict().items() if "objectives" not in name}
        self.model.load_state_dict(weights)
        self.model.train()
        contrast_head: Any = model.objectives["xlco"]
        self.projection: nn.Module = copy.deepcopy(contrast_head.projection)
        self.key_encoder = copy.deepcopy(self.model.roberta).eval()
        self.key_projection = copy.deepcopy(self.projection)
        self.queue, self.cursor = queue.clone(), 0
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
        )
        self.seconds: dict[str, float] = {}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Decay as transformers' Trainer sets it: not on biases and norms."""
        decayed = set(get_parameter_names(self.model, [nn.LayerNorm], [r"bias"]))
        groups: dict[float, list[nn.Parameter]] = {self.args.weight_decay: [], 0.0: []}
        for name, parameter in self.model.named_parameters():
            groups[self.args.weight_decay if name in decayed else 0.0].append(parameter)
        groups[self.args.weight_decay] += list(self.projection.parameters())
        return [{"params": params, "weight_decay": decay} for decay, params in groups.items()]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters under the names that ours have."""
        # The decoder's are tied to others, and here they come first.
        own = self.model.named_parameters(remove_duplicate=False)
        parameters = {name: value for name, value in own if not name.startswith("lm_head.decoder.")}
        for name, value in self.projection.named_parameters():
            parameters[f"objectives.xlco.projection.{name}"] = value
        return parameters

    def pad(self, batch: Mapping[str, Any]) -> dict[str, Padded]:
        """Pad a packed joint batch; not part of the step."""
        parts = {"mlm": batch["mlm"], "tlm": batch["tlm"], **batch["xlco"]}
        return {name: Padded.of(part, self.config.pad_token_id) for name, part in parts.items()}

    def timed_step(self, batch: Mapping[str, Any]) -> tuple[float, dict[str, float], dict[str, float]]:
        """One whole optimiser step.

        Returns:
            Its seconds without padding the batch, those of each phase, and the mean losses in nats.
        """
        padded = self.pad(batch)
        synchronize()
        begun = perf_counter()
        losses = self.backward(padded)
        self.update()
        means = {name: float(loss) for name, loss in losses.items()}
        return perf_counter() - begun, dict(self.seconds), means

    def backward(self, batch: Mapping[str, Padded]) -> dict[str, Tensor]:
        """Losses and gradients, one objective after the other."""
        self.seconds = {}
        losses = {}
        for name in ("mlm", "tlm"):
            with self._timed(f"{name} forward"), self._precision():
                losses[name] = self._masked_lm(batch[name])
            with self._timed(f"{name} backward"):
                losses[name].backward()
        with self._timed("xlco key"), self._precision(), torch.no_grad():
            self.new_keys = self._vectors(self.key_encoder, self.key_projection, batch["key"]).float()
        with self._timed("xlco forward"), self._precision():
            query = self._vectors(self.model.roberta, self.projection, batch["query"])
            losses["xlco"] = self._contrast(query, self.new_keys)
        with self._timed("xlco backward"):
            losses["xlco"].backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def update(self) -> None:
        """Clip, AdamW, momentum and queue."""
        with self._timed("clip"):
            if self.args.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(self.parameters().values(), self.args.max_grad_norm)
        with self._timed("optimizer"):
            self.optimizer.step()
        with self._timed("zero grad"):
            self.optimizer.zero_grad()
        with self._timed("momentum"):
            self._update_key_encoder()
        with self._timed("queue"):
            self._enqueue(self.new_keys)

    def _masked_lm(self, batch: Padded) -> Any:
        return self.model(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss

    def _vectors(self, encoder: nn.Module, projection: nn.Module, batch: Padded) -> Any:
        output = encoder(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        return projection(output.hidden_states[self.layer][:, 0])

    def _contrast(self, query: Tensor, key: Tensor) -> Tensor:
        """As in MoCo's public code: positive first, then the queue, which is cloned."""
        with torch.autocast(self.device.type, enabled=False):
            query = query.float()
            positive = torch.einsum("nc,nc->n", query, key).unsqueeze(-1)
            negative = torch.einsum("nc,kc->nk", query, self.queue.clone().detach())
            logits = torch.cat([positive, negative], dim=1) / self.temperature
            labels = torch.zeros(len(logits), dtype=torch.long, device=self.device)
            return F.cross_entropy(logits, labels)

    @torch.no_grad()
    def _update_key_encoder(self) -> None:
        pairs = [(self.key_encoder, self.model.roberta), (self.key_projection, self.projection)]
        for key_module, query_module in pairs:
            for key, query in zip(key_module.parameters(), query_module.parameters(), strict=True):
                key.data = key.data * self.momentum + query.data * (1 - self.momentum)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        rows = (self.cursor + torch.arange(len(keys), device=self.device)) % len(self.queue)
        self.queue[rows] = keys
        self.cursor = (self.cursor + len(keys)) % len(self.queue)

    def _precision(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None
        )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begun = perf_counter()
        yield
        synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + perf_counter() - begun
