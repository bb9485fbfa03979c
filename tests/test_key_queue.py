"""The ring of keys: exact slots, cursor and count, against a deque."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.momentum import SlowQueue
from torch import Tensor

from modeling_infoxlm.key_queue import KeyQueue


def numbered(first: int, count: int, dim: int = 2) -> Tensor:
    """Keys that carry their own number: row n is (n, n + 0.5, ...)."""
    return torch.arange(first, first + count).float()[:, None] + 0.5 * torch.arange(dim)


def test_keys_are_kept_as_copies_in_fp32_without_gradient_and_shown_as_a_view() -> None:
    """A copy of 131,072 keys at each micro-batch is one of the released code's costs."""
    queue = KeyQueue(3, 2)
    assert queue.negatives().shape == (0, 2)
    keys = numbered(1, 2).bfloat16().requires_grad_()
    queue.enqueue(keys)
    keys.detach().zero_()
    assert queue.keys.dtype == torch.float32 and not queue.keys.requires_grad
    assert queue.keys[:2, 0].tolist() == [1, 2]
    assert queue.negatives().data_ptr() == queue.keys.data_ptr()


@pytest.mark.parametrize("count", [2, 7])
def test_state_survives_saving_half_filled_or_full_and_shares_no_memory(count: int) -> None:
    queue, restored = KeyQueue(5, 2), KeyQueue(5, 2)
    for number in range(count):
        queue.enqueue(numbered(number, 1))
    restored.enqueue(numbered(50, 5))
    restored.load_state_dict(queue.state_dict())
    negatives = queue.negatives().clone()
    queue.enqueue(numbered(7, 2))
    assert torch.equal(restored.negatives(), negatives)
    restored.enqueue(numbered(7, 2))
    assert torch.equal(restored.keys[: queue.num_filled], queue.negatives())
    assert (restored.cursor, restored.num_filled) == (queue.cursor, queue.num_filled)


def test_other_sizes_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4.*5|5.*4"):
        KeyQueue(5, 2).load_state_dict(KeyQueue(4, 2).state_dict())
    for size in (0, -1):
        with pytest.raises(ValueError, match=str(size)):
            KeyQueue(size, 2)
    for shape in ((2, 3), (2,), (1, 2, 2)):
        with pytest.raises(ValueError, match=r"\(B, 2\)"):
            KeyQueue(5, 2).enqueue(torch.zeros(shape))


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 9), batches=st.lists(st.integers(0, 20), max_size=8))
def test_queue_equals_a_deque(size: int, batches: list[int]) -> None:
    queue, slow = KeyQueue(size, 2), SlowQueue(size)
    for count in batches:
        keys = numbered(slow.count, count)
        queue.enqueue(keys)
        slow.enqueue(keys.tolist())
        assert (queue.cursor, queue.num_filled) == (slow.cursor, min(slow.count, size))
        assert queue.negatives().tolist() == slow.negatives().tolist()
