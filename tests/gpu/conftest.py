"""The device of these tests; `INFOXLM_TEST_DEVICE=cpu` tries the tests themselves where there is no GPU."""

import os

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """A CUDA device, with fp32 products as they are written."""
    name = os.environ.get("INFOXLM_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, torch finds none")
    torch.set_float32_matmul_precision("highest")
    return torch.device(name)
