"""Fixtures shared by the tests of the data package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
from tiny_prepare import Letters, Run, Texts, WriteLines, numbered
from tiny_sentences import numbered_corpus
from transformers import XLMRobertaTokenizer

from modeling_infoxlm.data.prepare import PrepareSettings, prepare
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.data.sources import parse_bitext_sources, parse_mono_sources


@pytest.fixture(scope="session")
def letter_tokenizer() -> XLMRobertaTokenizer:
    """A tokenizer that makes a token of `▁` and of every letter, digit and mark: lengths can be counted."""
    return tiny_tokenizers.letter_tokenizer("0123456789äöüßéà.,!?-<>/")


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """Write lines to a file of this name in the test's folder."""

    def write(name: str, lines: Iterable[str]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        return path

    return write


@pytest.fixture
def run(tmp_path: Path, letter_tokenizer: Letters) -> Run:
    """Prepare `tmp_path/out` from specs; keywords that are no settings go to `prepare`."""

    def run(
        bitext: Iterable[str | Path] = (),
        mono: Iterable[str | Path] = (),
        *,
        output_dir: Path = tmp_path / "out",
        tokenizer: XLMRobertaTokenizer = letter_tokenizer,
        num_workers: int = 1,
        **settings: Any,
    ) -> Corpus:
        return prepare(
            [*parse_bitext_sources(map(str, bitext)), *parse_mono_sources(map(str, mono))],
            tokenizer=tokenizer,
            output_dir=output_dir,
            settings=PrepareSettings(**settings),
            num_workers=num_workers,
        )

    return run


@pytest.fixture
def texts(letter_tokenizer: Letters) -> Texts:
    """The text of each sequence of a store."""
    return lambda store: [str(letter_tokenizer.decode(store[i].tolist())) for i in range(len(store))]


@pytest.fixture
def multiway(write_lines: WriteLines) -> list[Path]:
    """The same 200 English sentences in three pairs, and one pair without English."""
    english = numbered("word", 200)
    paths = [
        write_lines(f"en-{language}.tsv", (f"{text}\t{language} {text}" for text in english))
        for language in ("de", "fr", "sw")
    ]
    return [*paths, write_lines("fr-de.tsv", (f"fr {text}\tde {text}" for text in english))]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three languages and three language pairs, of unequal sizes."""
    return numbered_corpus(tmp_path_factory.mktemp("corpus"))
