"""Encoder folders of every kind and inference data of made-up words, which a tiny model learns in seconds.

The label stands in the hypothesis: w50 says entailment, w51 neutral, w52 contradiction. The languages use
other words for everything else.
"""

import gzip
import json
import random
from functools import partial
from pathlib import Path

import torch
from tiny_run import tiny_model
from tiny_tokenizers import VOCAB
from tiny_tokenizers import word_tokenizer as longer_word_tokenizer
from transformers import BertConfig, BertModel

from modeling_infoxlm.hub.formats import save_as_xlm_roberta

LABELS = ("entailment", "neutral", "contradiction")
_FIRST_WORD = {"en": 4, "de": 14, "fr": 24, "sw": 34}

Row = tuple[str, str, str]
word_tokenizer = partial(longer_word_tokenizer, max_length=40)


def write_bert(folder: Path) -> Path:
    """An encoder of another architecture, whose tokens have types."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=VOCAB, max_position_embeddings=50, pad_token_id=1, **shape)
    BertModel(config).save_pretrained(folder)
    word_tokenizer(token_types=True).save_pretrained(folder)
    return folder


def write_encoders(root: Path, *, dropout: float = 0.0) -> dict[str, Path]:
    """One encoder folder of each kind: ours, its plain export, BERT, sentence-transformers."""
    model = tiny_model(hidden_size=32, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model.save_pretrained(root / "infoxlm")
    word_tokenizer().save_pretrained(root / "infoxlm")
    save_as_xlm_roberta(model, root / "plain", tokenizer=word_tokenizer())
    write_bert(root / "bert")
    write_bert(root / "st" / "0_Transformer")
    module = {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    (root / "st" / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", **module}]))
    return {name: root / name for name in ("infoxlm", "plain", "bert", "st")}


def nli_rows(language: str, count: int, *, seed: int = 1) -> list[Row]:
    """Row i has the same label in every language, and is the same words in its own letters."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.randrange(3)
        premise = [_FIRST_WORD[language] + draw.randrange(10) for _ in range(draw.randint(1, 9))]
        hypothesis = [_FIRST_WORD[language] + draw.randrange(10) for _ in range(draw.randint(0, 3))]
        hypothesis += [50 + label] * 3
        rows.append((_words(premise), _words(hypothesis), LABELS[label]))
    return rows


def write_nli(path: Path, rows: list[Row]) -> Path:
    """Write rows as TSV, compressed if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join("\t".join(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_xnli(folder: Path, *, languages: tuple[str, ...] = ("en", "de", "fr")) -> Path:
    """A folder in XTREME's layout: an English training set, dev and test sets of all languages."""
    write_nli(folder / "train-en.tsv.gz", nli_rows("en", 96, seed=1))
    for number, language in enumerate(languages):
        # Not parallel, so that the accuracies differ.
        write_nli(folder / f"dev-{language}.tsv", nli_rows(language, 30, seed=10 + number))
        write_nli(folder / f"test-{language}.tsv", nli_rows(language, 40, seed=3))
    return folder


def _words(numbers: list[int]) -> str:
    return " ".join(f"w{number}" for number in numbers)
