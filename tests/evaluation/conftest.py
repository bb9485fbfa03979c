"""Encoder folders that tests only read."""

from pathlib import Path

import pytest
from tiny_nli import write_encoders


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, see `write_encoders`; two of them have dropout in their configuration."""
    return write_encoders(tmp_path_factory.mktemp("encoders"), dropout=0.2)
