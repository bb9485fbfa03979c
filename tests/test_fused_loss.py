"""The fused linear + cross entropy against torch's own, and proof that it never holds all logits."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_infoxlm import fused_loss as fused_loss_module
from modeling_infoxlm.fused_loss import linear_cross_entropy

ROWS, HIDDEN, VOCAB = 23, 8, 37
COLUMN = 8 * ROWS  # bytes of fp64 logits
BLOCKS = {"one column": 1, "five columns": 5 * COLUMN, "all but one": 36 * COLUMN, "one block": 1 << 30}
KEPT = {"logits kept": 1 << 30, "logits computed again": 0}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def inputs(dtype: torch.dtype = torch.float64, rows: int = ROWS, bias: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows)
    return {
        "rows": torch.randn(rows, HIDDEN, generator=generator, dtype=dtype).requires_grad_(),
        "weight": torch.randn(VOCAB, HIDDEN, generator=generator, dtype=dtype).requires_grad_(),
        "bias": torch.randn(VOCAB, generator=generator, dtype=dtype).requires_grad_() if bias else None,
        "targets": torch.randint(0, VOCAB, (rows,), generator=generator),
    }


def torch_losses(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(rows, weight, bias), targets, reduction="none")


def torch_loss(**given: Any) -> Tensor:
    return torch_losses(**given).sum()


def fused_losses(
    given: dict[str, Any], block_bytes: int = BLOCKS["five columns"], kept_bytes: int = 1 << 30
) -> Tensor:
    return linear_cross_entropy(**given, block_bytes=block_bytes, kept_bytes=kept_bytes)


def fused_loss(given: dict[str, Any], *args: int) -> Tensor:
    return fused_losses(given, *args).sum()


def gradients(loss: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
    wanted = {n: t for n, t in given.items() if isinstance(t, Tensor) and t.requires_grad}
    return dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values()), retain_graph=True), strict=True))


def assert_same(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=tolerance * scale, msg=lambda text: f"{name}: {text}"
    )


def assert_equals_torch(given: dict[str, Any], losses: Tensor, tolerance: float) -> None:
    """Losses and gradients, with a weight for each row as MLM and TLM have it, also of a second pass back."""
    expected = torch_losses(**given)
    assert losses.dtype == expected.dtype and losses.shape == expected.shape
    assert_same(losses.detach(), expected.detach(), tolerance, "losses")
    weights = torch.linspace(-1, 2, len(losses), dtype=losses.dtype)
    wanted = gradients((expected * weights).sum(), given)
    for _ in range(2):
        actual = gradients((losses * weights).sum(), given)
        for name, gradient in wanted.items():
            assert float(gradient.abs().max()) > 1e-2, name
            assert_same(actual[name], gradient, tolerance, name)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_losses_and_gradients_equal_torch(dtype: torch.dtype, bias: bool, block: str, kept: str) -> None:
    given = inputs(dtype, bias=bias)
    assert_equals_torch(given, fused_losses(given, BLOCKS[block], KEPT[kept]), TOLERANCE[dtype])


def test_the_compiled_kernels_of_cuda_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a CPU can show it: they are captured whole, for any shape, and give the same numbers."""
    torch.compiler.reset()
    kernels = fused_loss_module.compile_kernels(backend="aot_eager")
    monkeypatch.setattr(fused_loss_module, "_kernels", lambda device: kernels)
    for rows, bias in ((ROWS, True), (5, True), (ROWS, False)):
        given = inputs(rows=rows, bias=bias)
        assert_equals_torch(given, fused_losses(given), 1e-12)


def test_logits_far_from_zero_do_not_overflow() -> None:
    given = inputs(torch.float32)
    given["bias"] = (given["bias"].detach() + 1e4).requires_grad_()
    loss = fused_loss(given)
    assert_same(loss.detach(), torch_loss(**given).detach(), 1e-3, "loss")
    assert all(gradient.isfinite().all() for gradient in gradients(loss, given).values())


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_no_rows_give_zero_loss_and_zero_gradients(bias: bool) -> None:
    given = inputs(rows=0, bias=bias)
    loss = fused_loss(given)
    assert float(loss.detach()) == 0.0
    for name, gradient in gradients(loss, given).items():
        assert gradient.shape == given[name].shape and not gradient.any(), name


@pytest.mark.parametrize("frozen", ["weight", "rows", "bias", "rows weight", "weight bias"])
def test_frozen_inputs_get_no_gradient_and_the_others_keep_theirs(frozen: str) -> None:
    given = inputs()
    for name in frozen.split():
        given[name].requires_grad_(False)
    assert_equals_torch(given, fused_losses(given), 1e-12)
    fused_loss(given).backward()
    assert all(given[name].grad is None for name in frozen.split())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16 inputs", "autocast"])
def test_half_precision_gives_an_fp32_loss_and_gradients_of_the_inputs_dtype(dtype: torch.dtype) -> None:
    given = inputs(dtype)
    exact = {n: t.detach().double().requires_grad_() for n, t in given.items() if n != "targets"}
    expected = torch_loss(**exact, targets=given["targets"])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        loss = fused_loss(given)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-2)
    wanted = gradients(expected, exact)
    for name, gradient in gradients(loss, given).items():
        assert gradient.dtype == dtype, name
        assert_same(gradient.double(), wanted[name], 5e-2, name)


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


MANY_ROWS, COLUMNS = 1024, 4
BLOCK_BYTES = MANY_ROWS * COLUMNS * 4
ALL_LOGITS = MANY_ROWS * VOCAB * 4
VECTORS = 20 * MANY_ROWS * 8  # a number for each row, at a time: maxima, sums, targets


def peak_memory(given: dict[str, Any], loss: Callable[[], Tensor]) -> int:
    with LiveMemory(given) as memory:
        loss().backward()
    return memory.peak


def test_logits_are_held_once_within_the_budget_and_a_few_blocks_of_them_beyond_it() -> None:
    """Beside the gradients, which exist anyway; the plain loss shows that the meter sees logits at all."""
    given = inputs(torch.float32, rows=MANY_ROWS)
    assert peak_memory(given, lambda: torch_loss(**given)) >= ALL_LOGITS
    kept, computed_again = (
        peak_memory(given, lambda budget=budget: fused_loss(given, BLOCK_BYTES, budget))  # type: ignore[misc]
        for budget in (ALL_LOGITS, ALL_LOGITS - 1)
    )
    assert 0.8 * ALL_LOGITS <= kept - computed_again <= 1.1 * ALL_LOGITS
    gradient_bytes = sum(given[name].numel() * 4 for name in ("rows", "weight", "bias"))
    copies_of_rows = 3 * given["rows"].numel() * 4
    assert computed_again <= gradient_bytes + copies_of_rows + 4 * BLOCK_BYTES + VECTORS


def test_without_gradients_only_a_few_blocks_are_alive() -> None:
    """Evaluation must not pay for gradients that nobody asked for."""
    given = inputs(torch.float32, rows=MANY_ROWS)
    with torch.no_grad(), LiveMemory(given) as memory:
        losses = fused_losses(given, BLOCK_BYTES, ALL_LOGITS)
    assert not losses.requires_grad
    assert_same(losses, torch_losses(**given).detach(), 1e-5, "losses")
    assert memory.peak <= 4 * BLOCK_BYTES + VECTORS


def test_the_one_kernel_gradient_is_the_same() -> None:
    for targets in (torch.tensor([0, 3, 6]), torch.tensor([-4, 99, 2])):  # in this block and in others
        given = torch.randn(3, 7), torch.randn(7), targets, torch.randn(3) + 3, torch.rand(3), torch.float32
        gradient = fused_loss_module._gradient_of_logits
        torch.testing.assert_close(gradient(*given, one_kernel=True), gradient(*given))


def test_a_share_of_the_free_memory_is_for_kept_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 900)  # of which torch can give 200
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 700)
    assert fused_loss_module._kept_bytes(torch.device("cuda")) == 200
    assert fused_loss_module._kept_bytes(torch.device("cpu")) == 2**30


class NoCompiler(Exception):
    """A class that no one would think of catching."""


@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_kernels_that_fail_on_a_device_are_replaced_and_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    eager = fused_loss_module._EAGER

    def wrong(*given: Any) -> tuple[Tensor, Tensor]:
        if fault == "raises":
            raise NoCompiler("gcc: not found\nin /usr/bin")
        return tuple(part + 1 for part in eager[0](*given))

    monkeypatch.setattr(fused_loss_module, "_compiled", lambda: (wrong, eager[1]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    find_out = fused_loss_module.why_not_compiled
    monkeypatch.setattr(fused_loss_module, "why_not_compiled", lambda device: find_out.__wrapped__("cpu"))
    assert fused_loss_module._kernels.__wrapped__("cuda") == eager
    assert "gcc: not found in /usr/bin" in caplog.text or "in a trial it was wrong" in caplog.text
    monkeypatch.setattr(fused_loss_module, "_compiled", lambda: eager)
    assert fused_loss_module.why_not_compiled("cuda") is None
