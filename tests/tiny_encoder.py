"""A tiny random encoder as a folder that AutoModel loads."""

from pathlib import Path

from tiny_run import tiny_model
from tiny_tokenizers import word_tokenizer

from modeling_infoxlm.hub.formats import save_as_xlm_roberta


def save_tiny_encoder(folder: Path, **overrides: object) -> Path:
    """Write a plain XLM-R of three layers, or as `overrides` say."""
    save_as_xlm_roberta(tiny_model(**overrides), folder, tokenizer=word_tokenizer())
    return folder
