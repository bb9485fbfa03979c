"""The momentum encoder that makes the keys of the cross-lingual contrast (arXiv 2007.07834, section 4.3)."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .modeling_infoxlm import InfoXLMForPreTraining, pooled_vectors

MomentumSchedule = Literal["constant", "linear", "exponential"]


class MomentumEncoder(nn.Module):
    """Exponential moving average of the query encoder: fp32, frozen, in eval mode whatever `train()` says.

    It is always a copy of a loaded model and holds only what makes a key: embeddings, the layers up to the
    contrast's, and the projection.

    Args:
        model: Model that is trained; copied as it is now.
    """

    def __init__(self, model: InfoXLMForPreTraining) -> None:
        super().__init__()
        self.config = model.config
        self.layer, self.pooling = model.xlco_layer, model.config.xlco_pooling
        self.encoder = nn.Module()
        self.embeddings = copy.deepcopy(model.roberta.embeddings)
        self.encoder.layer = nn.ModuleList([copy.deepcopy(layer) for layer in self._query_layers(model)])
        contrast: Any = model.objectives["xlco"]
        self.projection = copy.deepcopy(contrast.projection)
        self.float().requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> "MomentumEncoder":
        """Stay in eval mode: dropout would make a key depend on more than its sentence."""
        super().train(False)
        return self

    @torch.no_grad()
    def encode(self, part: Mapping[str, Any]) -> Tensor:
        """Keys (B, D), fp32, of packed sequences: `input_ids` (T,) and `lengths` (B numbers)."""
        vectors = pooled_vectors(self, part["input_ids"], part["lengths"], self.layer, self.pooling)
        keys: Tensor = self.projection(vectors)
        return keys.float()

    @torch.no_grad()
    def update(self, model: InfoXLMForPreTraining, momentum: float) -> None:
        """Move towards the query encoder, once per optimiser step.

        Each parameter becomes `momentum * key + (1 - momentum) * query`. In fp32, because in bf16 a 1e-4 step
        rounds away and the key encoder would never move.

        Raises:
            ValueError: If `momentum` is outside 0..1.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in 0..1, found {momentum}.")
        own = dict(self.named_parameters())
        query = self._query_parameters(model)
        torch._foreach_lerp_(
            [parameter.data for parameter in own.values()],
            [query[name].detach().to(torch.float32) for name in own],
            1 - momentum,
        )

    def _query_layers(self, model: InfoXLMForPreTraining) -> nn.ModuleList:
        return model.roberta.encoder.layer[: self.layer]

    def _query_parameters(self, model: InfoXLMForPreTraining) -> dict[str, nn.Parameter]:
        """The model's parameters under the names of `self.named_parameters()`."""
        contrast: Any = model.objectives["xlco"]
        modules = {
            "encoder.layer": self._query_layers(model),
            "embeddings": model.roberta.embeddings,
            "projection": contrast.projection,
        }
        return {
            f"{place}.{name}": parameter
            for place, module in modules.items()
            for name, parameter in module.named_parameters()
        }


def momentum_schedule(
    kind: MomentumSchedule,
    *,
    momentum: float,
    start: float = 0.0,
    warmup_steps: int = 0,
    exponent: float = 1.0,
) -> Callable[[int], float]:
    """Momentum of the update after optimiser step t = 1, 2, ... (schedules of the released code).

    Args:
        kind: `"constant"`: `momentum`. `"linear"`: from `start` at step 0 to `momentum` at `warmup_steps`,
            then constant. `"exponential"`: `1 - t ** -exponent`, kept within `start` and `momentum`.
        momentum: Final value.
        start: First value of `"linear"`, smallest of `"exponential"`.
        warmup_steps: Steps of `"linear"`.
        exponent: Of `"exponential"`.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind == "constant":
        return lambda step: momentum
    if kind == "linear":
        return lambda step: start + (momentum - start) * min(1.0, step / max(1, warmup_steps))
    if kind == "exponential":
        return lambda step: min(momentum, max(start, 1 - float(step) ** -exponent))
    raise ValueError(f"momentum schedule must be constant, linear or exponential, found {kind!r}.")
