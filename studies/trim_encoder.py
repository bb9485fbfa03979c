"""A smaller encoder out of an XLM-R: its lower layers, and of its tokens those that a text needs.

    python studies/trim_encoder.py outputs/multilingual-e5-small outputs/e5_trimmed --text data/mono/*.xz

Tokens are chosen by how often the tokenizer gives them for the text, all columns of a line; the single
characters of those that the text has are kept, so that other words can still be spelled. Scores stay, ids are
counted anew, `<mask>` is the last as in XLM-R.
"""

import argparse
import json
import lzma
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

_SPECIAL, _MASK = ("<s>", "<pad>", "</s>", "<unk>"), "<mask>"


def count_tokens(tokenizer: Any, files: Sequence[str], lines: int) -> Counter[int]:
    """How often the first lines of .xz files have each token id."""
    counts: Counter[int] = Counter()
    for file in files:
        with lzma.open(file, "rt", encoding="utf-8") as text:
            texts = [column for line in islice(text, lines) for column in line.rstrip("\n").split("\t")]
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            counts.update(ids)
    return counts


def choose_ids(pieces: Sequence[str], counts: Counter[int], size: int) -> list[int]:
    """Old ids in their new order: special tokens, single characters, the most frequent, `<mask>` last."""
    special = [pieces.index(piece) for piece in (*_SPECIAL, _MASK)]
    ordinary = [number for number, _ in counts.most_common() if number not in special]
    letters = {letter for number in ordinary for letter in pieces[number]}
    spelling = [number for number, piece in enumerate(pieces) if piece in letters]
    kept = list(dict.fromkeys([*spelling, *ordinary]))[: size - len(special)]
    return [*special[:-1], *sorted(kept), special[-1]]


def trim(source: str, output: str, *, layers: int, size: int, files: Sequence[str], lines: int) -> None:
    """Write the smaller encoder with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tables = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tables["model"]["vocab"]
    ids = choose_ids([piece for piece, _ in vocabulary], count_tokens(tokenizer, files, lines), size)
    tables["model"]["vocab"] = [vocabulary[number] for number in ids]
    for token in tables["added_tokens"]:
        token["id"] = ids.index(token["id"])

    model = AutoModel.from_pretrained(source, add_pooling_layer=False)
    model.encoder.layer = model.encoder.layer[:layers]
    model.config.num_hidden_layers, model.config.vocab_size = layers, len(ids)
    rows = model.get_input_embeddings().weight.data[torch.tensor(ids)]
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows, padding_idx=ids.index(1)))
    model.save_pretrained(output)
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": tokenizer.model_max_length}
    for name, content in {"tokenizer.json": tables, "tokenizer_config.json": settings}.items():
        Path(output, name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("output")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--size", type=int, default=30_000, help="tokens of the new vocabulary")
    parser.add_argument("--text", nargs="+", required=True, dest="files")
    parser.add_argument("--lines", type=int, default=20_000, help="of each file")
    trim(**vars(parser.parse_args()))
