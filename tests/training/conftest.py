"""Trainers on a tiny corpus."""

from pathlib import Path

import pytest
from tiny_trainer import Make, trainer_maker


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return trainer_maker(tmp_path)


@pytest.fixture
def checkpoint(make: Make, tmp_path: Path) -> Path:
    """Of a run of two steps, to which a token was given."""
    make(max_steps=2, save_steps=2, hub_token="hf_abcdefghijklmnop").train()
    return tmp_path / "out" / "checkpoint-2"
