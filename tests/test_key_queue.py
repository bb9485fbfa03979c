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


def numbers(queue: KeyQueue) -> list[int]:
    return [int(key[0]) for key in queue.keys]


def test_enqueue_three_at_cursor_four_of_five() -> None:
    queue = KeyQueue(5, 2)
    queue.enqueue(numbered(10, 4))
    assert (queue.cursor, queue.num_filled) == (4, 4)
    queue.enqueue(numbered(20, 3))
    assert torch.equal(queue.keys, torch.stack([numbered(n, 1)[0] for n in (21, 22, 12, 13, 20)]))
    assert (queue.cursor, queue.num_filled) == (2, 5)


def test_filling_to_the_brim_moves_the_cursor_home() -> None:
    queue = KeyQueue(4, 2)
    queue.enqueue(numbered(1, 4))
    assert numbers(queue) == [1, 2, 3, 4]
    assert (queue.cursor, queue.num_filled) == (0, 4)
    queue.enqueue(numbered(5, 1))
    assert numbers(queue) == [5, 2, 3, 4]


@pytest.mark.parametrize("count", [5, 6, 7, 10, 13])
def test_of_more_keys_than_slots_the_last_remain(count: int) -> None:
    queue, slow = KeyQueue(5, 2), SlowQueue(5)
    for batch in (numbered(100, 2), numbered(0, count)):
        queue.enqueue(batch)
        slow.enqueue(batch.tolist())
    assert sorted(numbers(queue)) == list(range(count - 5, count))
    assert torch.equal(queue.negatives(), slow.negatives())
    assert (queue.cursor, queue.num_filled) == (slow.cursor, 5)


def test_empty_slots_are_no_negatives() -> None:
    queue = KeyQueue(5, 3)
    assert queue.negatives().shape == (0, 3)
    queue.enqueue(numbered(7, 2, dim=3))
    assert torch.equal(queue.negatives(), numbered(7, 2, dim=3))


def test_negatives_are_a_view() -> None:
    """A copy of 131,072 keys at each micro-batch is one of the released code's costs."""
    queue = KeyQueue(5, 2)
    queue.enqueue(numbered(0, 3))
    assert queue.negatives().data_ptr() == queue.keys.data_ptr()


def test_no_keys_change_nothing() -> None:
    queue = KeyQueue(5, 2)
    queue.enqueue(numbered(1, 3))
    before = queue.keys.clone()
    queue.enqueue(numbered(0, 0))
    assert torch.equal(queue.keys, before)
    assert (queue.cursor, queue.num_filled) == (3, 3)


def test_keys_are_kept_in_fp32_without_gradient() -> None:
    queue = KeyQueue(3, 2)
    keys = numbered(1, 2).bfloat16().requires_grad_()
    queue.enqueue(keys)
    assert queue.keys.dtype == torch.float32 and not queue.keys.requires_grad
    assert numbers(queue)[:2] == [1, 2]


def test_the_queue_keeps_its_own_copy() -> None:
    queue, keys = KeyQueue(3, 2), numbered(1, 3)
    queue.enqueue(keys)
    keys.zero_()
    assert numbers(queue) == [1, 2, 3]


def test_state_survives_saving() -> None:
    queue = KeyQueue(5, 2)
    queue.enqueue(numbered(0, 4))
    queue.enqueue(numbered(4, 3))
    saved = {name: value.clone() for name, value in queue.state_dict().items()}
    restored = KeyQueue(5, 2)
    restored.load_state_dict(saved)
    for each in (queue, restored):
        each.enqueue(numbered(7, 2))
    assert torch.equal(restored.keys, queue.keys)
    assert (restored.cursor, restored.num_filled) == (queue.cursor, queue.num_filled) == (4, 5)


def test_a_half_filled_queue_is_restored_half_filled() -> None:
    queue, restored = KeyQueue(5, 2), KeyQueue(5, 2)
    queue.enqueue(numbered(0, 2))
    restored.enqueue(numbered(50, 5))
    restored.load_state_dict(queue.state_dict())
    assert torch.equal(restored.negatives(), numbered(0, 2))
    assert restored.cursor == 2


def test_loading_does_not_share_memory() -> None:
    queue, restored = KeyQueue(3, 2), KeyQueue(3, 2)
    queue.enqueue(numbered(0, 3))
    restored.load_state_dict(queue.state_dict())
    queue.enqueue(numbered(9, 1))
    assert numbers(restored) == [0, 1, 2]


def test_a_state_of_another_size_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"4.*5|5.*4"):
        KeyQueue(5, 2).load_state_dict(KeyQueue(4, 2).state_dict())


@pytest.mark.parametrize("size", [0, -1])
def test_a_queue_without_slots_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        KeyQueue(size, 2)


@pytest.mark.parametrize("shape", [(2, 3), (2,), (1, 2, 2)], ids=str)
def test_keys_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
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
