"""A Hub of one's own for a test."""

from collections.abc import Iterator

import pytest
from hub.server import LoopbackHub
from huggingface_hub import constants


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A new, empty Hub; the client of this process uploads to it without Xet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with LoopbackHub() as running:
        yield running
