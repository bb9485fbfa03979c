"""A small release with nothing wrong."""

from pathlib import Path

from tiny_run import tiny_model
from tiny_text import sentence_pairs, write_pairs

from modeling_infoxlm.data.sources import parse_bitext_sources
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.hub.formats import save_as_xlm_roberta

CARD = "---\nlicense: mit\nlanguage: [en, xx]\nbase_model: org/base\n---\n# Title\n"
CHECKS = ["pickles", "weights", "card", "config", "code", "tokenizer", "keys", "vectors"]


def write_release(folder: Path) -> Path:
    """Write plain XLM-R, with a tokenizer of 60 tokens and a card, under this folder."""
    text = write_pairs(folder / "text" / "en-xx.tsv", sentence_pairs(20))
    tokenizer = train_tokenizer(parse_bitext_sources([str(text)]), folder / "tokenizer", vocab_size=60)
    save_as_xlm_roberta(tiny_model(), folder / "model", tokenizer=tokenizer)
    (folder / "model" / "README.md").write_text(CARD, encoding="utf-8")
    return folder / "model"
