"""The joint step as one writes it today with plain transformers, to measure ours against (N1).

`XLMRobertaForMaskedLM` with logits at every position, padded batches, a backward pass for each objective, a
deep copy as momentum encoder, a Python loop for its average, torch's AdamW as it comes. The mathematics is
that of our step: same losses, same gradients.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

Batch = Mapping[str, dict[str, Tensor]]


def synchronize() -> None:
    """Wait for what a GPU was asked to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def padded(part: Mapping[str, Any], pad: int) -> dict[str, Tensor]:
    """Pad a packed part to its longest sequence.

    Returns:
        `input_ids`, `attention_mask` (1 for tokens), and of a part with masks `labels`: true tokens at masked
        positions, `IGNORE_INDEX` elsewhere. (B, L) each.
    """
    tokens, lengths = part["input_ids"], list(part["lengths"])
    rows = {"input_ids": (tokens, pad), "attention_mask": (torch.ones_like(tokens), 0)}
    if "labels" in part:
        labels = torch.full_like(tokens, IGNORE_INDEX)
        labels[part["masked_rows"]] = part["labels"]
        rows["labels"] = (labels, IGNORE_INDEX)
    pad_sequence = nn.utils.rnn.pad_sequence
    return {
        name: pad_sequence(values.split(lengths), batch_first=True, padding_value=padding)
        for name, (values, padding) in rows.items()
    }


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
        how: dict[str, Any] = {"lr": args.learning_rate, "eps": args.adam_epsilon}
        betas = (args.adam_beta1, args.adam_beta2)
        self.optimizer = torch.optim.AdamW(self._parameter_groups(), betas=betas, **how)
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

    def pad(self, batch: Mapping[str, Any]) -> Batch:
        """Pad a packed joint batch; not part of the step."""
        parts = {"mlm": batch["mlm"], "tlm": batch["tlm"], **batch["xlco"]}
        return {name: padded(part, self.config.pad_token_id) for name, part in parts.items()}

    def timed_step(self, batch: Mapping[str, Any]) -> tuple[float, dict[str, float], dict[str, float]]:
        """One whole optimiser step.

        Returns:
            Its seconds without padding the batch, those of each phase, and the mean losses in nats.
        """
        given = self.pad(batch)
        synchronize()
        begun = perf_counter()
        losses = self.backward(given)
        self.update()
        means = {name: float(loss) for name, loss in losses.items()}
        return perf_counter() - begun, dict(self.seconds), means

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses and gradients, one objective after the other."""
        self.seconds = {}
        losses = {}
        for name in ("mlm", "tlm"):
            with self._timed(f"{name} forward"), self._precision():
                losses[name] = self.model(**batch[name]).loss
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

    def _vectors(self, encoder: nn.Module, projection: nn.Module, part: dict[str, Tensor]) -> Any:
        return projection(encoder(**part, output_hidden_states=True).hidden_states[self.layer][:, 0])

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
