r"""Find translation pairs in two monolingual texts by margin scores: `infoxlm mine`.

    infoxlm mine news.de.txt.gz news.en.txt.gz --model_name_or_path out --output pairs.tsv --threshold 1.05

A line of the output is `score TAB source TAB target`, the best pair first. The method is that of Artetxe and
Schwenk (arXiv 1811.01136).

Memory: the sentences themselves; their vectors, in files beside the output which are mapped into memory; and
for the approximate search beyond `EXACT_LIMIT` sentences the index of one side. There vectors are in fp16, so
each sentence has 2 x D bytes on the disk, and in memory 2 x D + 8 while its side is searched.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from modeling_infoxlm.data.readers import BadLineHandler, SkipBadLines, fail_on_bad_line, read_rows
from modeling_infoxlm.data.sources import Source, parse_mono_sources
from modeling_infoxlm.evaluation.batching import PROGRESS_DELAY
from modeling_infoxlm.evaluation.encoders import Encoder, EncoderArguments, load_encoder
from modeling_infoxlm.evaluation.encoding import Pooling
from modeling_infoxlm.evaluation.retrieval.mining import (
    Margin,
    Search,
    best_pairs,
    choose_search,
    match,
    one_to_one,
)
from modeling_infoxlm.evaluation.retrieval.tatoeba import SearchArguments, resolve_layer
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import whole_file, writing
from modeling_infoxlm.runs.flags import flag
from modeling_infoxlm.runs.process import configure_process

# The index of the approximate search is in fp16 anyway.
DTYPES: dict[Search, type[np.floating]] = {"exact": np.float32, "approximate": np.float16}
_BREAKS = str.maketrans("\t\r\n", "   ")


@dataclass
class MiningArguments(SearchArguments):
    """Two texts, and which pairs of their sentences are written."""

    _argument_group_name = "mining"
    margin: Margin = flag("ratio", "Compare a cosine with those of nearest neighbours (arXiv 1811.01136).")
    source: str | None = flag(None, "Text of one language: a file, a folder, or de=PATH. Or the 1st word.")
    target: str | None = flag(None, "Text of the other language. Or the 2nd word.")
    output: str = flag("pairs.tsv", "File of the pairs: score, source, target.")
    overwrite: bool = flag(False, "Replace the output if it exists.")
    threshold: float | None = flag(None, "Lowest score written. Unset: all. With ratio 1.04 to 1.1 is usual.")
    one_to_one: bool = flag(True, "Write a sentence in its best pair only; false: every one's best match.")
    search: Literal["auto", "exact", "approximate"] = flag(
        "auto", "auto: exact up to 100,000 sentences a side, approximate (faiss) beyond."
    )
    on_bad_line: Literal["fail", "skip"] = flag("fail", "What happens at a line that cannot be used.")

    def __post_init__(self) -> None:
        """Check that there are two texts."""
        if not self.source or not self.target:
            raise ValueError("two texts are needed: infoxlm mine SOURCE TARGET --output pairs.tsv")


def run(argv: list[str]) -> None:
    """Find translation pairs in two texts."""
    encoder_args, args = parse_args_with_config(
        (EncoderArguments, MiningArguments), _name_texts(argv), program="infoxlm mine", about=__doc__
    )
    configure_process()
    output, texts = Path(args.output), (args.source, args.target)
    if output.exists() and not args.overwrite:
        raise UsageError(f"{output} exists; give another --output, or --overwrite true.")
    if output.exists() and any(Path(text).exists() and output.samefile(text) for text in texts):
        raise UsageError(f"{output} is one of the texts that are read; give another --output.")
    source, target = (read_distinct(text, args.on_bad_line) for text in texts)
    search = choose_search(len(source), len(target)) if args.search == "auto" else args.search
    encoder = load_encoder(encoder_args)
    layer = resolve_layer(encoder, args.layer)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Not in the system's folder for temporary files, which often lies in memory.
    with tempfile.TemporaryDirectory(prefix=".mine-", dir=output.parent) as folder:
        vectors = [
            encode_to_file(
                encoder, side, Path(folder) / name, layer=layer, pooling=args.pooling, dtype=DTYPES[search]
            )
            for name, side in (("source", source), ("target", target))
        ]
        pairs = mine(*vectors, margin=args.margin, k=args.margin_neighbours, search=search)
    if args.one_to_one:
        pairs = one_to_one(pairs)
    if args.threshold is not None:
        pairs = pairs[pairs["score"] >= args.threshold]
    write_pairs(output, pairs, source, target)
    note = "" if search == "exact" else "; the search was approximate, some pairs may be missed"
    print(f"{output}: {len(pairs):,} pairs of {len(source):,} and {len(target):,} distinct sentences{note}")


def _name_texts(argv: list[str]) -> list[str]:
    """`SOURCE TARGET ...` as flags."""
    if len(argv) > 1 and not any(word.startswith("-") for word in argv[:2]):
        return ["--source", argv[0], "--target", argv[1], *argv[2:]]
    return argv


def read_distinct(spec: str, on_bad_line: Literal["fail", "skip"] = "fail") -> list[str]:
    """Read sentences of a file or of what `parse_mono_sources` takes, in order, each once, no empty ones."""
    handler: BadLineHandler = fail_on_bad_line if on_bad_line == "fail" else SkipBadLines()
    # The language does not matter here, so a file's name need not carry it.
    sources = [Source(("und",), (spec,))] if Path(spec).is_file() else parse_mono_sources([spec])
    texts = (text for source in sources for (text,) in read_rows(source, on_bad_line=handler))
    distinct = list(dict.fromkeys(text.strip().translate(_BREAKS) for text in texts))
    sentences = [text for text in distinct if text]
    if not sentences:
        raise UsageError(f"{spec} holds no sentence.")
    return sentences


def encode_to_file(
    encoder: Encoder, texts: list[str], path: Path, *, layer: int, pooling: Pooling, dtype: type[np.floating]
) -> Tensor:
    """Vectors of N sentences, of length 1, (N, D), which stay in a file that is mapped into memory."""
    width = int(encoder.model.config.hidden_size)
    with writing(path), open(path, "wb") as file:
        size = len(texts) * width * np.dtype(dtype).itemsize
        if sys.platform == "linux":  # a full disk would end the process where a mapped page finds no room
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)
    stored = np.memmap(path, dtype=dtype, mode="r+", shape=(len(texts), width))
    vectors = torch.from_numpy(stored)
    return encoder.encode(texts, layer=layer, pooling=pooling, normalize=True, out=vectors)


def mine(source: Tensor, target: Tensor, *, margin: Margin, k: int, search: Search) -> pd.DataFrame:
    """The pairs of `best_pairs` for vectors of length 1, (N, D) and (M, D); for the others see `match`."""
    if search == "exact" and torch.cuda.is_available():
        source, target = source.cuda(), target.cuda()
    matches = match(source, target, margin=margin, k=k, similarity="dot", search=search, progress=True)
    return best_pairs(*matches)


def write_pairs(path: Path, pairs: pd.DataFrame, source: list[str], target: list[str]) -> None:
    """Write `score TAB source TAB target` lines, whole or not at all; pairs are numbers of sentences."""
    rows = pairs.itertuples(index=False, name=None)
    shown = tqdm(rows, "writing", total=len(pairs), unit=" pairs", delay=PROGRESS_DELAY)
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{score:.6f}\t{source[i]}\t{target[j]}\n" for score, i, j in shown)
