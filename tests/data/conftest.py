"""Fixtures shared by the tests of the data package."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from transformers import XLMRobertaTokenizer


@pytest.fixture(scope="session")
def letter_tokenizer() -> XLMRobertaTokenizer:
    """A tokenizer that makes a token of `▁` and of every letter, digit and mark: lengths can be counted."""
    pieces = ["▁", *string.ascii_letters, *string.digits, *"äöüßéà.,!?-<>/"]
    vocabulary = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary += [(piece, -1.0 - 0.01 * rank) for rank, piece in enumerate(pieces)]
    return XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)], model_max_length=512)


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[[str, Iterable[str]], Path]:
    """Write lines to a file of this name in the test's folder."""

    def write(name: str, lines: Iterable[str]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        return path

    return write
