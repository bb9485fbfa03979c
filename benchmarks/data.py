"""The data path on one core: preparing text, masking, and making joint batches.

    python -m benchmarks.data [--output FILE] [--tokenizer FOLDER] [--text FILE ...]

- prepare: the whole of `prepare`, from text to shards. `start-up` is `prepare` of a single line; the rate
  leaves it out unless it is said. The text is distinct lines, uncompressed, and each run starts with an empty
  memory of words; the more lines of a language, the more of its words are known.
- masking: `mask_tokens` beside transformers' `DataCollatorForLanguageModeling` on the same sequences, which
  are given to it with the special_tokens_mask that it would else work out.
- joint batches: what a loader process does, `JointDataset.pack` and `PretrainingCollator`; and masking and
  collating alone.

Text and tokenizer are those of the folder INFOXLM_DATA, if there is one, else `examples/data` and a tokenizer
trained on it.
"""

import argparse
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase, XLMRobertaTokenizer

from benchmarks.measure import Samples, make_parser, run_benchmark, run_in_turn
from benchmarks.workload import synthetic_corpus
from modeling_infoxlm.data.batches import JointDataset, PretrainingCollator
from modeling_infoxlm.data.masking import mask_tokens
from modeling_infoxlm.data.prepare import prepare
from modeling_infoxlm.data.ragged import SpecialTokens
from modeling_infoxlm.data.readers import read_rows
from modeling_infoxlm.data.sampling import hash64
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.data.sources import Source, parse_bitext_sources, parse_mono_sources
from modeling_infoxlm.data.streams import StreamSettings
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.runs.process import configure_process

EXAMPLES = Path(__file__).parents[1] / "examples" / "data"
BATCH_TOKENS = (2000, 64_000, 500_000)
MIDDLE = 64_000  # the size at which masking and collating stand alone
PIECES = 16_000  # of a tokenizer trained here
PAIRS = 20_000  # of the synthetic corpus
LANGUAGES = ("ar", "de", "hi", "ru", "zh")  # five scripts, one of them without spaces
LINES = 5000  # of each text file: some 2.5 M tokens


def default_text() -> list[Path]:
    """Bitext and monolingual files of INFOXLM_DATA in a few languages, or the examples."""
    data = Path(os.environ.get("INFOXLM_DATA") or "-")
    if (data / "parallel").is_dir():
        bitext = [data / "parallel" / f"en-{language}.tsv.xz" for language in LANGUAGES]
        return [*bitext, *(data / "mono" / f"{language}.txt.xz" for language in ("en", *LANGUAGES))]
    return sorted(EXAMPLES.glob("*.tsv.xz"))


def parse_source(path: Path) -> Source:
    """A file with .tsv in its name is bitext, any other monolingual."""
    parse = parse_bitext_sources if ".tsv" in path.suffixes else parse_mono_sources
    (source,) = parse([str(path)])
    return source


def copy_text(files: Sequence[Path], folder: Path, lines: int) -> list[Path]:
    """Write the first lines of each file uncompressed, bitext as .tsv and monolingual text as .txt."""
    copies: list[Path] = []
    for source in map(parse_source, files):
        copies.append(folder / f"{len(copies)}.{source.name}.{'tsv' if source.is_bitext else 'txt'}")
        text = "".join("\t".join(row) + "\n" for row in itertools.islice(read_rows(source), lines))
        copies[-1].write_text(text, encoding="utf-8")
    return copies


def rated(tokens: float, samples: Samples) -> dict[str, Any]:
    """Tokens, tokens per second and the samples that say so."""
    rate = tokens / samples.median
    return {"tokens": tokens, "tokens_per_second": rate, "samples": samples.summary()}


def measure_prepare(
    texts: Sequence[Path], tokenizer: PreTrainedTokenizerBase, work: Path, repeats: int
) -> dict[str, Any]:
    """Tokens/s of `prepare` of text files, which writes into an empty folder, with any tokenizer."""
    line = work / "start-up.de.txt"
    line.write_text("Guten Tag\n", encoding="utf-8")

    def run(files: Sequence[Path], folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        prepare(list(map(parse_source, files)), tokenizer=tokenizer, output_dir=folder)

    # No warm-up: the first start-up is one for all that follows, and the median of three leaves it out.
    runs = {name: partial(run, files, work / name) for name, files in (("one", [line]), ("whole", texts))}
    start_up, whole = run_in_turn(runs, repeats=repeats, warmup=0).values()
    manifest = Corpus.open(work / "whole").manifest
    tokens = sum(entry["num_tokens"] for kind in ("mono", "bitext") for entry in manifest[kind].values())
    return {
        "files": len(texts),
        **rated(tokens, whole),
        "tokens_per_second": tokens / (whole.median - start_up.median),
        "with_start_up_tokens_per_second": tokens / whole.median,
        "start_up_s": start_up.median,
        "start_up_samples": start_up.summary(),
    }


def measure_masking(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, batch_tokens: int, repeats: int
) -> dict[str, Any]:
    """Tokens/s of `mask_tokens` and of transformers' collator on the same synthetic sequences."""
    (store,) = corpus.mono.values()
    tokens, lengths = store.gather(np.arange(1 + batch_tokens // int(0.9 * corpus.max_length)) % len(store))
    keys = hash64("benchmark", np.arange(len(lengths)))
    collator = DataCollatorForLanguageModeling(tokenizer)
    sequences = np.split(tokens, np.cumsum(lengths)[:-1])
    features = [{"input_ids": ids.tolist(), "special_tokens_mask": [0] * len(ids)} for ids in sequences]
    sides = {
        "mask_tokens": lambda: mask_tokens(tokens, lengths, keys, special=corpus.special),
        "transformers": lambda: collator(features),
    }
    samples = run_in_turn(sides, repeats=repeats)
    rates = {name: len(tokens) / taken.median for name, taken in samples.items()}
    return {
        "tokens": len(tokens),
        "tokens_per_second": rates,
        "ratio": rates["mask_tokens"] / rates["transformers"],
        "samples": {name: taken.summary() for name, taken in samples.items()},
    }


def count_tokens(batch: dict[str, Any]) -> int:
    """Tokens of all parts of a joint batch, both views of XlCo included."""
    parts = [batch["mlm"], batch["tlm"], *batch["xlco"].values()]
    return sum(len(part["input_ids"]) for part in parts)


def measure_joint(corpus: Corpus, batch_tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens/s of whole joint batches, a different one each time."""
    sample = 64
    probe = JointDataset(corpus, StreamSettings(), num_items=sample).pack(range(sample))
    items = max(1, round(batch_tokens * sample / count_tokens(probe)))
    dataset = JointDataset(corpus, StreamSettings(), num_items=items * (repeats + 1))
    firsts, tokens = iter(range(0, len(dataset), items)), []

    def run() -> None:
        first = next(firsts)
        tokens.append(count_tokens(PretrainingCollator()([dataset.pack(range(first, first + items))])))

    samples = run_in_turn({"joint": run}, repeats=repeats)["joint"]
    return {"items": items, **rated(float(np.mean(tokens[1:])), samples)}


def measure_collating(corpus: Corpus, items: int, repeats: int) -> dict[str, Any]:
    """Tokens/s of masking every part of a joint batch and collating it: no reading, no choice of examples."""
    packed = JointDataset(corpus, StreamSettings(), num_items=items).pack(range(items))

    def run() -> None:
        masked = {name: _mask(packed[name], corpus.special) for name in ("mlm", "tlm")}
        views = {view: _mask(part, corpus.special) for view, part in packed["xlco"].items()}
        bare = {view: {name: part[name] for name in ("input_ids", "lengths")} for view, part in views.items()}
        PretrainingCollator()([{**masked, "xlco": bare}])

    return rated(count_tokens(packed), run_in_turn({"collate": run}, repeats=repeats)["collate"])


def _mask(part: dict[str, np.ndarray], special: SpecialTokens) -> dict[str, np.ndarray]:
    keys = hash64("benchmark", np.arange(len(part["lengths"])))
    masked = mask_tokens(part["input_ids"], part["lengths"], keys, special=special)
    rows = {"masked_rows": masked.rows, "masked_lengths": masked.counts, "labels": masked.labels}
    return {"input_ids": masked.input_ids, "lengths": part["lengths"], **rows}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole result."""
    repeats = 3 * options.repeats
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        texts = copy_text(options.text, work, options.lines)
        if not options.tokenizer:
            train_tokenizer(list(map(parse_source, texts)), work / "tokenizer", vocab_size=PIECES)
        tokenizer = XLMRobertaTokenizer.from_pretrained(options.tokenizer or work / "tokenizer")
        preparation = measure_prepare(texts, tokenizer, work, options.repeats)
        sizes = {"vocab_size": len(tokenizer), "max_length": 512, "num_pairs": PAIRS}
        corpus = synthetic_corpus(work / "synthetic", **sizes)
        masking = {str(size): measure_masking(corpus, tokenizer, size, repeats) for size in BATCH_TOKENS}
        joint = {str(size): measure_joint(corpus, size, repeats) for size in BATCH_TOKENS}
        middle = joint.get(str(MIDDLE)) or measure_joint(corpus, MIDDLE, 1)
        collating = measure_collating(corpus, middle["items"], repeats)
    name = options.tokenizer.name if options.tokenizer else "trained on the text"
    return {
        "tokenizer": f"{name}, {len(tokenizer):,} ids",
        "text": sorted({path.parent.name for path in options.text}),
        "prepare": preparation,
        **{"masking": masking, "joint": joint, "collate_and_mask": collating},
    }


def show(console: Console, result: Mapping[str, Any]) -> None:
    """The rates of `prepare`, and a table of batches."""
    found = result["prepare"]
    console.print(
        f"{found['files']} files, {found['tokens']:,} tokens, one core; tokenizer: {result['tokenizer']}\n"
        f"prepare: {found['tokens_per_second'] / 1e6:.2f} M tokens/s; with {found['start_up_s']:.1f} s of "
        f"start-up {found['with_start_up_tokens_per_second'] / 1e6:.2f}"
    )
    rates = ("mask, M tokens/s", "transformers", "ratio", "joint batch, M tokens/s")
    table = Table("tokens a batch", *rates)
    for size, masking in result["masking"].items():
        masks = [f"{rate / 1e6:.2f}" for rate in masking["tokens_per_second"].values()]
        joint = f"{result['joint'][size]['tokens_per_second'] / 1e6:.2f}"
        table.add_row(f"{int(size):,}", *masks, f"{masking['ratio']:.0f}", joint)
    console.print(table)
    alone = result["collate_and_mask"]["tokens_per_second"]
    console.print(f"masking and collating alone: {alone / 1e6:.2f} M tokens/s")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program."""
    parser = make_parser(__doc__)
    xlmr = Path(os.environ.get("INFOXLM_DATA") or "-") / "tokenizer_xlmr"
    given, kind = xlmr if xlmr.is_dir() else None, "folder with a tokenizer of XLM-R's kind"
    parser.add_argument("--tokenizer", type=Path, default=given, help=kind)
    parser.add_argument("--text", type=Path, nargs="+", default=default_text(), help="bitext and text files")
    parser.add_argument("--lines", type=int, default=LINES, help="lines taken of each file")
    parser.add_argument("--repeats", type=int, default=3, help="three times as many for batches")
    return parser.parse_args(argv)


def one_core() -> None:
    """Settings of the process, with one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    configure_process()
    logging.getLogger("modeling_infoxlm").setLevel(logging.ERROR)


if __name__ == "__main__":
    run_benchmark(parse_arguments(), measure, show, configure=one_core)
