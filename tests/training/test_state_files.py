"""State in safetensors: what is saved comes back, to the bit and to the type."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from modeling_infoxlm.training.state_files import load_state, save_state

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


@given(tree=TREES)
def test_plain_values_come_back(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    save_state(tree, path)
    assert same(load_state(path), tree)


def test_tensors_and_arrays_keep_type_and_bits(tmp_path: Path) -> None:
    state = {
        0: {"step": torch.tensor(3.0), "mean": torch.randn(4, 3).t()},  # not contiguous
        "half": torch.randn(5).bfloat16(),
        "random": np.random.default_rng(0).integers(0, 2**32, 7, dtype=np.uint32),
        "none": torch.zeros(0),
        "infinite": math.inf,
    }
    save_state(state, tmp_path / "x.safetensors")
    assert same(load_state(tmp_path / "x.safetensors"), state)


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.a\.1 is a set"):
        save_state({"a": [1, {2}]}, tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_state(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="holds no nested state"):
        load_state(tmp_path / "weights.safetensors")
