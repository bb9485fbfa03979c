"""The fused linear + cross entropy against torch's own, and proof that it never holds all logits."""

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.masked_lm import masked_lm as slow_masked_lm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_infoxlm.fused_loss import linear_cross_entropy

ROWS, HIDDEN, VOCAB = 23, 8, 37
BYTES_PER_ROW = 4 * VOCAB
CHUNKS = {"one row": 1, "three rows": 3 * BYTES_PER_ROW, "one chunk": 1 << 30}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def inputs(dtype: torch.dtype = torch.float64, rows: int = ROWS, bias: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows)
    return {
        "rows": torch.randn(rows, HIDDEN, generator=generator, dtype=dtype).requires_grad_(),
        "weight": torch.randn(VOCAB, HIDDEN, generator=generator, dtype=dtype).requires_grad_(),
        "bias": torch.randn(VOCAB, generator=generator, dtype=dtype).requires_grad_() if bias else None,
        "targets": torch.randint(0, VOCAB, (rows,), generator=generator),
    }


def torch_loss(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(rows, weight, bias), targets, reduction="sum")


def fused_loss(given: dict[str, Any], chunk_bytes: int = 3 * BYTES_PER_ROW) -> Tensor:
    return linear_cross_entropy(
        given["rows"], given["weight"], given["bias"], given["targets"], chunk_bytes=chunk_bytes
    )


def gradients(loss: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
    wanted = {n: t for n, t in given.items() if isinstance(t, Tensor) and t.requires_grad}
    return dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))


def assert_same(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=tolerance * scale, msg=lambda text: f"{name}: {text}"
    )


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_loss_and_gradients_equal_torch(dtype: torch.dtype, bias: bool, chunk: str) -> None:
    given = inputs(dtype, bias=bias)
    loss, expected = fused_loss(given, CHUNKS[chunk]), torch_loss(**given)
    assert loss.dtype == dtype and loss.shape == ()
    assert_same(loss.detach(), expected.detach(), TOLERANCE[dtype], "loss")
    actual = gradients(loss, given)
    for name, gradient in gradients(expected, given).items():
        assert float(gradient.abs().max()) > 1e-2, name
        assert_same(actual[name], gradient, TOLERANCE[dtype], name)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7])
def test_a_last_chunk_of_any_size_counts(rows: int) -> None:
    given = inputs(rows=rows)
    assert_same(fused_loss(given).detach(), torch_loss(**given).detach(), 1e-12, "loss")


def test_loss_equals_the_slow_loop() -> None:
    given = inputs(rows=4)
    slow = slow_masked_lm(given["rows"], given["weight"], given["bias"], given["targets"].tolist())
    assert float(fused_loss(given).detach()) == pytest.approx(float(slow.detach()), rel=1e-12)


def test_the_gradient_from_above_scales_every_gradient() -> None:
    given = inputs()
    plain = gradients(fused_loss(given), given)
    scaled = gradients(fused_loss(given) * -2.5, given)
    for name in plain:
        assert_same(scaled[name], plain[name] * -2.5, 1e-12, name)


def test_a_second_backward_is_refused() -> None:
    """The prepared gradients are scaled in place, to save a copy of the output table: good for one use."""
    given = inputs()
    loss = fused_loss(given) * 3
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second"):
        loss.backward()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_no_rows_give_zero_loss_and_zero_gradients(bias: bool) -> None:
    given = inputs(rows=0, bias=bias)
    loss = fused_loss(given)
    assert float(loss.detach()) == 0.0
    for name, gradient in gradients(loss, given).items():
        assert gradient.shape == given[name].shape and not gradient.any(), name


@pytest.mark.parametrize(
    "frozen", [("weight",), ("rows",), ("bias",), ("rows", "weight"), ("weight", "bias")], ids=str
)
def test_frozen_inputs_get_no_gradient_and_the_others_keep_theirs(frozen: tuple[str, ...]) -> None:
    given = inputs()
    for name in frozen:
        given[name].requires_grad_(False)
    fused_loss(given).backward()
    for name, gradient in gradients(torch_loss(**given), given).items():
        assert_same(given[name].grad, gradient, 1e-12, name)
    assert all(given[name].grad is None for name in frozen)


def test_a_weight_shared_with_the_embedding_gets_both_gradients() -> None:
    given = inputs()
    tokens = torch.tensor([0, 3, 3, 36])

    def total(loss: Tensor) -> Tensor:
        return loss + F.embedding(tokens, given["weight"]).pow(2).sum()

    actual, expected = (
        gradients(total(fused_loss(given)), given),
        gradients(total(torch_loss(**given)), given),
    )
    assert_same(actual["weight"], expected["weight"], 1e-12, "weight")


def test_bf16_inputs_give_an_fp32_loss_and_bf16_gradients() -> None:
    given = inputs(torch.bfloat16)
    loss = fused_loss(given)
    exact = {n: t.detach().double() if n != "targets" else t for n, t in given.items()}
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(torch_loss(**exact)), rel=1e-2)
    assert all(g.dtype == torch.bfloat16 for g in gradients(loss, given).values())


def test_autocast_keeps_an_fp32_loss_and_the_parameters_dtype() -> None:
    given = inputs(torch.float32)
    expected = gradients(torch_loss(**given), given)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_loss(given)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(torch_loss(**given).detach()), rel=1e-2)
    for name, gradient in gradients(loss, given).items():
        assert gradient.dtype == torch.float32, name
        assert_same(gradient, expected[name], 5e-2, name)


class LiveMemory(TorchDispatchMode):
    """Adds up the bytes of the tensors made under it that are still alive, and remembers the peak."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.known = {t.untyped_storage().data_ptr() for t in given.values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        pointer, size = storage.data_ptr(), storage.nbytes()
        if size == 0 or pointer in self.known:
            return
        self.known.add(pointer)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.free, pointer, size)

    def free(self, pointer: int, size: int) -> None:
        self.known.discard(pointer)
        self.live -= size


def test_the_memory_meter_sees_all_logits_of_the_plain_loss() -> None:
    given = inputs(torch.float32, rows=512)
    with LiveMemory(given) as memory:
        torch_loss(**given)
    assert memory.peak >= 512 * VOCAB * 4


@pytest.mark.parametrize("chunk_rows", [1, 16, 64])
def test_never_holds_all_logits(chunk_rows: int) -> None:
    """Beyond the gradients, which exist anyway, only a few chunks are alive at any moment."""
    rows, chunk_bytes = 1024, chunk_rows * BYTES_PER_ROW
    given = inputs(torch.float32, rows=rows)
    gradient_bytes = sum(given[name].numel() * 4 for name in ("rows", "weight", "bias"))
    with LiveMemory(given) as memory:
        fused_loss(given, chunk_bytes).backward()
    assert gradient_bytes <= memory.peak, "the meter must see the gradients at least"
    assert memory.peak <= gradient_bytes + given["weight"].numel() * 4 + 4 * chunk_bytes + 1000


def test_without_gradients_only_a_few_chunks_are_alive() -> None:
    """Evaluation must not pay for gradients that nobody asked for."""
    given = inputs(torch.float32, rows=1024)
    with torch.no_grad(), LiveMemory(given) as memory:
        loss = fused_loss(given, BYTES_PER_ROW)
    assert not loss.requires_grad
    assert_same(loss, torch_loss(**given).detach(), 1e-5, "loss")
    assert memory.peak <= 4 * BYTES_PER_ROW + 1000
