"""Which attention a device gets; and torch's varlen attention, emulated on the CPU, is the grouped one."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modeling_infoxlm import packed_attention
from modeling_infoxlm.packed_attention import GroupedAttention, VarlenAttention, why_not_flash

HEADS, HEAD_SIZE = 2, 8
Kind = type[VarlenAttention] | type[GroupedAttention]


def emulated(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """`varlen_attn` by its documentation: (T, H, D / H), boundaries of each sequence."""
    assert cu_q.dtype == cu_k.dtype == torch.int32 and len(cu_q) == len(cu_k)
    assert int(cu_k.diff().max()) <= max_k and int(cu_q.diff().max()) <= max_q
    contexts = []
    for (q0, q1), (k0, k1) in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1]) * scale
        if window_size != (-1, -1):
            distance = torch.arange(q1 - q0)[:, None] - torch.arange(k1 - k0)
            scores = scores.masked_fill(
                (distance > window_size[0]) | (-distance > window_size[1]), -torch.inf
            )
        contexts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[k0:k1]))
    return torch.cat(contexts)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What was found out about a device is forgotten."""
    why_not_flash.cache_clear()
    yield
    why_not_flash.cache_clear()


def values_and_gradients(
    kind: Kind, lengths: np.ndarray, rows: Tensor | None, parts: Tensor, window: int | None = None
) -> list[Tensor]:
    leaves = [part.clone().requires_grad_() for part in parts]
    query = leaves[0] if rows is None else leaves[0][rows]
    attend = kind(lengths, rows, torch.device("cpu"))
    context = attend(query, *leaves[1:], heads=HEADS, scaling=0.3, dropout=0.0, window=window)
    weights = torch.linspace(-1, 1, context.numel(), dtype=context.dtype).view_as(context)
    return [context, *torch.autograd.grad((context * weights).sum(), leaves)]


@pytest.mark.parametrize("seed", range(12))
def test_varlen_attention_computes_what_grouped_attention_does(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(packed_attention, "_varlen_attn", lambda: emulated)
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, size=rng.integers(1, 9))
    total = int(lengths.sum())
    parts = torch.randn(3, total, HEADS * HEAD_SIZE, dtype=torch.float64)
    for count in {None, 1, (total + 1) // 2, total}:  # one row: all sequences but one have no query
        rows = None if count is None else torch.from_numpy(np.sort(rng.permutation(total)[:count]))
        window = 3 if rows is None else None
        for given in {None, window}:
            found = values_and_gradients(VarlenAttention, lengths, rows, parts, given)
            expected = values_and_gradients(GroupedAttention, lengths, rows, parts, given)
            torch.testing.assert_close(found, expected)


# --- the choice ---------------------------------------------------------------------------------------------

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Card:
    """What torch says of a card; a trial on it ends as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.says(capability=(9, 0), hip=None, flash=True, varlen=emulated, trial=None)

    def says(self, **said: Any) -> None:
        trial = said.pop("trial", None)
        places: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
            "capability": (torch.cuda, "get_device_capability", lambda value: lambda device: value),
            "hip": (torch.version, "hip", lambda value: value),
            "flash": (torch.backends.cuda, "is_flash_attention_available", lambda value: lambda: value),
            "varlen": (packed_attention, "_varlen_attn", lambda value: lambda: value),
        }
        for name, value in said.items():
            holder, attribute, wrap = places[name]
            self.patch.setattr(holder, attribute, wrap(value))
        self.patch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
        self.patch.setattr(packed_attention, "_try_flash", lambda *given: trial)


def without_scale(query: Tensor, key: Tensor, value: Tensor) -> None:
    """`varlen_attn` of torch 2.10."""


@pytest.mark.parametrize(
    ("said", "dtype", "head_size", "reason"),
    [
        ({}, BF16, 64, None),
        ({}, FP16, 256, None),
        ({"capability": (8, 0)}, BF16, 64, None),  # A100
        (
            {"capability": (7, 5)},
            FP16,
            64,
            "A card has compute capability 7.5, flash attention needs 8.0",
        ),  # T4
        ({"capability": (7, 0)}, FP16, 64, "compute capability 7.0"),  # V100
        ({"hip": "7.0", "capability": (9, 4)}, BF16, 64, "not used on ROCm"),  # MI300
        ({}, FP32, 64, "needs fp16 or bf16, the pass runs in float32"),
        ({}, BF16, 60, "a multiple of 8 and at most 256, found 60"),
        ({}, BF16, 264, "a multiple of 8 and at most 256, found 264"),
        ({"flash": False}, BF16, 64, "was built without flash attention"),
        ({"varlen": None}, BF16, 64, "has no varlen_attn with a scale"),
        ({"varlen": without_scale}, BF16, 64, "has no varlen_attn with a scale, 2.11 has"),
        ({"trial": "in a trial it was wrong"}, BF16, 64, "in a trial it was wrong"),
    ],
)
def test_the_device_decides(
    monkeypatch: pytest.MonkeyPatch,
    said: dict[str, Any],
    dtype: torch.dtype,
    head_size: int,
    reason: str | None,
) -> None:
    Card(monkeypatch).says(**said)
    found = why_not_flash(torch.device("cuda"), dtype, head_size)
    assert found is None if reason is None else reason in str(found)


def broken(kind: str) -> Callable[..., Tensor]:
    def attend(query: Tensor, *args: Any, **options: Any) -> Tensor:
        if kind == "raises":
            raise RuntimeError("no kernel\nimage is available")
        context = emulated(query, *args, **options)
        if kind == "nan":  # in the gradients alone
            context.register_hook(lambda gradient: gradient * torch.nan)
            return context
        return context * 1.1

    return attend


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("raises", "a trial failed: no kernel image is available"),
        ("nan", ", nan"),
        ("wrong", "was wrong, relative errors"),
    ],
)
def test_a_trial_finds_what_no_property_tells(
    monkeypatch: pytest.MonkeyPatch, kind: str, reason: str
) -> None:
    trial = (torch.device("cpu"), BF16, HEAD_SIZE)
    monkeypatch.setattr(packed_attention, "_varlen_attn", lambda: emulated)
    with torch.inference_mode():  # as where sentences are encoded
        assert packed_attention._try_flash(*trial) is None
    monkeypatch.setattr(packed_attention, "_varlen_attn", lambda: broken(kind))
    assert reason in str(packed_attention._try_flash(*trial))
