"""What the tests of preparing ask of a corpus and its folder."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from transformers import XLMRobertaTokenizer

from modeling_infoxlm.data.shards import Corpus, TokenStore

WriteLines = Callable[[str, Iterable[str]], Path]
Run = Callable[..., Corpus]
Letters = XLMRobertaTokenizer
Texts = Callable[[TokenStore], list[str]]


def vocabulary(tokenizer: XLMRobertaTokenizer) -> list[tuple[str, float]]:
    return [
        (piece, score) for piece, score in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix} {number}" for number in range(count)]
