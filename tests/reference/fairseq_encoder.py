"""fairseq's RoBERTa, written from its formulas."""

import math

import torch
from tiny_fairseq import HEADS, HIDDEN, LAYERS
from torch import Tensor


class Reference:
    """fairseq's encoder in plain tensor operations and float64, from the tensors of its checkpoint."""

    def __init__(self, tensors: dict[str, Tensor], start: str) -> None:
        self.tensors = {
            name.removeprefix(start): value.double()
            for name, value in tensors.items()
            if name.startswith(start)
        }

    def hidden_states(self, tokens: Tensor) -> list[Tensor]:
        """Output of the embeddings and of every layer, each (B, L, D)."""
        real = tokens != 1
        positions = torch.where(real, real.cumsum(dim=1) + 1, 1)
        words = self.tensors["sentence_encoder.embed_tokens.weight"][tokens]
        hidden = words + self.tensors["sentence_encoder.embed_positions.weight"][positions]
        states = [self._norm(hidden, "sentence_encoder.emb_layer_norm") * real[..., None]]
        for layer in range(LAYERS):
            states.append(self._layer(states[-1], f"sentence_encoder.layers.{layer}.", real))
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        features = self._norm(_gelu(self._linear(hidden, "lm_head.dense")), "lm_head.layer_norm")
        return features @ self.tensors["lm_head.weight"].T + self.tensors["lm_head.bias"]

    def _layer(self, hidden: Tensor, at: str, real: Tensor) -> Tensor:
        query, key, value = (self._heads(hidden, at, number) for number in range(3))
        scores = query @ key.transpose(-1, -2) / math.sqrt(HIDDEN // HEADS)
        weights = scores.masked_fill(~real[:, None, None, :], -math.inf).softmax(dim=-1)
        context = (weights @ value).transpose(1, 2).reshape(hidden.shape)
        hidden = hidden + self._linear(context, f"{at}self_attn.out_proj")
        hidden = self._norm(hidden, f"{at}self_attn_layer_norm")
        inner = _gelu(self._linear(hidden, f"{at}fc1"))
        return self._norm(hidden + self._linear(inner, f"{at}fc2"), f"{at}final_layer_norm")

    def _heads(self, hidden: Tensor, at: str, number: int) -> Tensor:
        fused = f"{at}self_attn.in_proj_weight" in self.tensors
        name = f"{at}self_attn." + ("in_proj_" if fused else f"{'qkv'[number]}_proj.")
        rows = slice(HIDDEN * number, HIDDEN * (number + 1)) if fused else slice(None)
        values = hidden @ self.tensors[f"{name}weight"][rows].T + self.tensors[f"{name}bias"][rows]
        return values.reshape(*hidden.shape[:2], HEADS, -1).transpose(1, 2)

    def _linear(self, hidden: Tensor, name: str) -> Tensor:
        return hidden @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        spread = hidden - hidden.mean(dim=-1, keepdim=True)
        scaled = spread / (spread.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]


def _gelu(values: Tensor) -> Tensor:
    return values * 0.5 * (1 + torch.erf(values / math.sqrt(2)))
