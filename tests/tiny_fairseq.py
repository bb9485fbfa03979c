"""Files as fairseq and the released code write them: checkpoints, dictionaries and token files, all tiny."""

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCAB = 60  # w4 to w58 and <mask>
LAYERS, HIDDEN, HEADS, INNER, POSITIONS = 12, 24, 12, 96, 32  # the base model's, scaled down
CONTRAST_LAYER, QUEUE = 8, 10


def write_dictionary(path: Path, pieces: Iterable[str] | None = None) -> Path:
    """A dict.txt: the words between the first symbols and `<mask>`."""
    pieces = (f"w{i}" for i in range(4, VOCAB - 1)) if pieces is None else pieces
    path.write_text("".join(f"{piece} {100 + i}\n" for i, piece in enumerate(pieces)), encoding="utf-8")
    return path


def encoder_tensors(seed: int, *, fused: bool, start: str) -> dict[str, Tensor]:
    """One RoBERTa by fairseq's names, such as `decoder.sentence_encoder.layers.0.fc1.weight`."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return 0.4 * torch.randn(*shape, generator=draw)

    inner, head = f"{start}sentence_encoder.", f"{start}lm_head."
    tensors = {
        f"{inner}embed_tokens.weight": random(VOCAB, HIDDEN),
        f"{inner}embed_positions.weight": random(POSITIONS + 2, HIDDEN),
    }
    modules = {f"{inner}emb_layer_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        at = f"{inner}layers.{layer}."
        projections = ("in_proj_",) if fused else ("q_proj.", "k_proj.", "v_proj.")
        for name in projections:
            rows = 3 * HIDDEN if fused else HIDDEN
            tensors[f"{at}self_attn.{name}weight"] = random(rows, HIDDEN)
            tensors[f"{at}self_attn.{name}bias"] = random(rows)
        modules |= {f"{at}self_attn.out_proj": (HIDDEN, HIDDEN), f"{at}self_attn_layer_norm": (HIDDEN,)}
        modules |= {f"{at}fc1": (INNER, HIDDEN), f"{at}fc2": (HIDDEN, INNER)}
        modules[f"{at}final_layer_norm"] = (HIDDEN,)
    modules |= {f"{head}dense": (HIDDEN, HIDDEN), f"{head}layer_norm": (HIDDEN,)}
    for name, shape in modules.items():
        tensors[f"{name}.weight"] = 1 + random(*shape) if len(shape) == 1 else random(*shape)
        tensors[f"{name}.bias"] = random(shape[0])
    tensors[f"{head}weight"] = tensors[f"{inner}embed_tokens.weight"]
    tensors[f"{head}bias"] = random(VOCAB)
    return tensors


def released_tensors(*, fused: bool = True, projection: bool = True, enqueued: int = 7) -> dict[str, Tensor]:
    """All tensors of a model of the released code; the two encoders differ."""
    tensors = {
        **encoder_tensors(2, fused=fused, start="model_slow.decoder."),
        **encoder_tensors(1, fused=fused, start="model_fast.decoder."),
    }
    draw = torch.Generator().manual_seed(3)
    tensors["queue"] = torch.randn(QUEUE, HIDDEN, generator=draw)
    tensors["enqueue_cnt"] = torch.tensor([enqueued])
    tensors["queue_ptr"] = torch.tensor([enqueued % QUEUE])
    if projection:
        for part in ("fast", "slow"):
            tensors[f"proj_matrix_{part}"] = 0.4 * torch.randn(1, HIDDEN, HIDDEN, generator=draw)
    return tensors


def flags(**changed: Any) -> argparse.Namespace:
    """fairseq's flags of such a model."""
    values = {
        "arch": "infoxlm_base",
        "activation_fn": "gelu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "encoder_attention_heads": HEADS,
        "encoder_embed_dim": HIDDEN,
        "encoder_ffn_embed_dim": INNER,
        "encoder_layers": LAYERS,
        "max_positions": POSITIONS,
        "data": "/home/someone/data",
        "use_proj": True,
        "xlco_layer": CONTRAST_LAYER,
        "xlco_softmax_tau": 0.2,
        "xlco_momentum": "constant,0.9999",
    }
    return argparse.Namespace(**{**values, **changed})


def write_checkpoint(path: Path, tensors: dict[str, Tensor], args: Any = None, **other: Any) -> Path:
    """A checkpoint with an optimiser's state, as fairseq saves it."""
    content = {
        "args": flags() if args is None else args,
        "model": tensors,
        "optimizer_history": [{"optimizer_name": "FP16Optimizer", "num_updates": 5}],
        "last_optimizer_state": {"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}},
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    torch.save({**content, **other}, path)
    return path


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In half precision, as `model.half()` leaves them: whole numbers stay."""
    halved = {id(value): value.half() if value.is_floating_point() else value for value in tensors.values()}
    return {name: halved[id(value)] for name, value in tensors.items()}


class Trap:
    """Stored as a call that would make a folder where it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)
