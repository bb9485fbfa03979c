"""Fixtures shared by the tests of the data package."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import tiny_tokenizers
from transformers import XLMRobertaTokenizer


@pytest.fixture(scope="session")
def letter_tokenizer() -> XLMRobertaTokenizer:
    """A tokenizer that makes a token of `▁` and of every letter, digit and mark: lengths can be counted."""
    return tiny_tokenizers.letter_tokenizer("0123456789äöüßéà.,!?-<>/")


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[[str, Iterable[str]], Path]:
    """Write lines to a file of this name in the test's folder."""

    def write(name: str, lines: Iterable[str]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        return path

    return write
