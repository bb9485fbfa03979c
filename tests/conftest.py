"""A Hub and registers of one's own for a test, and names of tests."""

from collections.abc import Iterator

import pytest
from hub.server import LoopbackHub
from huggingface_hub import constants

from modeling_infoxlm import objectives
from modeling_infoxlm.data import streams


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are not spelled out in a test's name: compressed ones may hold the second they were made in."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A new, empty Hub; the client of this process uploads to it without Xet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with LoopbackHub() as running:
        yield running


@pytest.fixture
def own_registers() -> Iterator[None]:
    """What a test registers is forgotten when it is over."""
    registers: list[dict] = [objectives.OBJECTIVES, streams.STREAMS, streams.PART_FIELDS]
    before = [dict(register) for register in registers]
    yield
    for register, content in zip(registers, before, strict=True):
        register.clear()
        register.update(content)
