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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase, XLMRobertaTokenizer

from benchmarks.measure import Samples, make_console, run_in_turn, write_result
from benchmarks.workload import synthetic_corpus
from modeling_infoxlm.data.batches import JointDataset, PretrainingCollator, StreamSettings
from modeling_infoxlm.data.masking import mask_tokens
from modeling_infoxlm.data.prepare import prepare
from modeling_infoxlm.data.readers import read_pairs, read_sentences
from modeling_infoxlm.data.sampling import hash64
from modeling_infoxlm.data.shards import Corpus, SpecialTokens
from modeling_infoxlm.data.sources import BitextSource, MonoSource, parse_bitext_sources, parse_mono_sources
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.runs.process import configure_process

EXAMPLES = Path(__file__).parents[1] / "examples" / "data"
BATCH_TOKENS = (2000, 64_000, 500_000)
MIDDLE = 64_000  # the size at which masking and collating stand alone
STEP_TOKENS_PER_SECOND = 700_000  # one H200, on paper
VOCABULARY, PIECES = 250_002, 16_000  # of the synthetic batches; of a tokenizer trained here
PAIRS = 20_000  # of the synthetic corpus
LANGUAGES = ("ar", "de", "hi", "ru", "zh")  # five scripts, one of them without spaces
LINES = 5000  # of each text file: some 2.5 M tokens


# --- text and tokenizer -------------------------------------------------------------------------------------


def default_text() -> list[Path]:
    """Bitext and monolingual files of INFOXLM_DATA in a few languages, or the examples."""
    data = os.environ.get("INFOXLM_DATA")
    if data and (Path(data) / "parallel").is_dir():
        bitext = [Path(data) / "parallel" / f"en-{language}.tsv.xz" for language in LANGUAGES]
        return [*bitext, *(Path(data) / "mono" / f"{language}.txt.xz" for language in ("en", *LANGUAGES))]
    return sorted(EXAMPLES.glob("*.tsv.xz"))


def copy_text(files: Sequence[Path], folder: Path, lines: int) -> list[Path]:
    """Write the first lines of each file uncompressed, bitext as .tsv and monolingual text as .txt."""
    copies: list[Path] = []
    for source in [parse_source(path) for path in files]:
        name, texts = _read(source)
        copy = folder / f"{len(copies)}.{name}"
        copy.write_text("".join(f"{text}\n" for text in itertools.islice(texts, lines)), encoding="utf-8")
        copies.append(copy)
    return copies


def _read(source: BitextSource | MonoSource) -> tuple[str, Iterator[str]]:
    if isinstance(source, BitextSource):
        return f"{source.pair}.tsv", map("\t".join, read_pairs(source))
    return f"{source.language}.txt", read_sentences(source)


def parse_source(path: Path) -> BitextSource | MonoSource:
    """A file with .tsv in its name is bitext, any other monolingual."""
    parse = parse_bitext_sources if ".tsv" in path.suffixes else parse_mono_sources
    (source,) = parse([str(path)])
    return source


def make_tokenizer(texts: Sequence[Path], folder: Path, pieces: int) -> None:
    """Train a tokenizer of XLM-R's kind on these files."""
    train_tokenizer([parse_source(path) for path in texts], folder, vocab_size=pieces)


# --- prepare ------------------------------------------------------------------------------------------------


def measure_prepare(
    texts: Sequence[Path], tokenizer: PreTrainedTokenizerBase, work: Path, repeats: int
) -> dict[str, Any]:
    """Tokens/s of `prepare`.

    Args:
        texts: Prepared files.
        tokenizer: Of any kind.
        work: Empty folder for all that is written.
        repeats: Counted runs.
    """
    line = work / "start-up.de.txt"
    line.write_text("Guten Tag\n", encoding="utf-8")
    # No warm-up: the first start-up is one for all that follows, and the median of three leaves it out.
    start_up = _time_prepare([line], tokenizer, work / "start-up", repeats)
    whole = _time_prepare(texts, tokenizer, work / "whole", repeats)
    tokens = _count_tokens(Corpus.open(work / "whole"))
    return {
        "files": len(texts),
        "tokens": tokens,
        "tokens_per_second": tokens / (whole.median - start_up.median),
        "with_start_up_tokens_per_second": tokens / whole.median,
        "start_up_s": start_up.median,
        "samples": whole.summary(),
        "start_up_samples": start_up.summary(),
    }


def _time_prepare(
    texts: Sequence[Path], tokenizer: PreTrainedTokenizerBase, folder: Path, repeats: int
) -> Samples:
    sources = [parse_source(path) for path in texts]

    def run() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        prepare(sources, tokenizer=tokenizer, output_dir=folder)

    return run_in_turn({"prepare": run}, repeats=repeats, warmup=0)["prepare"]


def _count_tokens(corpus: Corpus) -> int:
    return sum(entry["num_tokens"] for kind in ("mono", "bitext") for entry in corpus.manifest[kind].values())


# --- masking ------------------------------------------------------------------------------------------------


def measure_masking(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, batch_tokens: int, repeats: int
) -> dict[str, Any]:
    """Tokens/s of `mask_tokens` and of transformers' collator on the same MLM sequences.

    Args:
        corpus: A synthetic one; its ids stay below the size of `tokenizer`.
        tokenizer: What transformers' collator pads with and takes `<mask>` from.
        batch_tokens: At least this many tokens.
        repeats: Counted runs of each.
    """
    (store,) = corpus.mono.values()
    order = np.arange(1 + batch_tokens // int(0.9 * corpus.max_length)) % len(store)
    tokens, lengths = store.gather(order)
    keys = hash64("benchmark", np.arange(len(lengths)))
    collator = DataCollatorForLanguageModeling(tokenizer)
    sequences = np.split(tokens, np.cumsum(lengths)[:-1])
    features = [{"input_ids": ids.tolist(), "special_tokens_mask": [0] * len(ids)} for ids in sequences]
    samples = run_in_turn(
        {
            "mask_tokens": lambda: mask_tokens(tokens, lengths, keys, special=corpus.special),
            "transformers": lambda: collator(features),
        },
        repeats=repeats,
    )
    rates = {name: len(tokens) / taken.median for name, taken in samples.items()}
    return {
        "tokens": len(tokens),
        "tokens_per_second": rates,
        "ratio": rates["mask_tokens"] / rates["transformers"],
        "samples": {name: taken.summary() for name, taken in samples.items()},
    }


# --- joint batches ------------------------------------------------------------------------------------------


def count_tokens(batch: dict[str, Any]) -> int:
    """Tokens of all parts of a joint batch, both views of XlCo included."""
    parts = [batch[name] for name in ("mlm", "tlm")] + list(batch["xlco"].values())
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
    mean = float(np.mean(tokens[1:]))
    return {
        "items": items,
        "tokens": mean,
        "tokens_per_second": mean / samples.median,
        "samples": samples.summary(),
    }


def measure_collating(corpus: Corpus, batch_tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens/s of masking every part of a joint batch and collating it: no reading, no choice of examples."""
    joint = measure_joint(corpus, batch_tokens, repeats=1)
    packed = JointDataset(corpus, StreamSettings(), num_items=joint["items"]).pack(range(joint["items"]))
    tokens = count_tokens(packed)

    def run() -> None:
        masked = {name: _mask(packed[name], corpus.special) for name in ("mlm", "tlm")}
        views = {view: _mask(part, corpus.special) for view, part in packed["xlco"].items()}
        unlabelled = {
            view: {name: part[name] for name in ("input_ids", "lengths")} for view, part in views.items()
        }
        PretrainingCollator()([{**masked, "xlco": unlabelled}])

    samples = run_in_turn({"collate": run}, repeats=repeats)["collate"]
    return {"tokens": tokens, "tokens_per_second": tokens / samples.median, "samples": samples.summary()}


def _mask(part: dict[str, np.ndarray], special: SpecialTokens) -> dict[str, np.ndarray]:
    keys = hash64("benchmark", np.arange(len(part["lengths"])))
    masked = mask_tokens(part["input_ids"], part["lengths"], keys, special=special)
    return {
        "input_ids": masked.input_ids,
        "lengths": part["lengths"],
        "masked_rows": masked.rows,
        "masked_lengths": masked.counts,
        "labels": masked.labels,
    }


# --- all of it ----------------------------------------------------------------------------------------------


def measure_batches(
    tokenizer: PreTrainedTokenizerBase, sizes: Sequence[int], middle: int, pairs: int, repeats: int
) -> dict[str, Any]:
    """Masking and joint batches of each size, and masking with collating at one size."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = synthetic_corpus(Path(folder), vocab_size=len(tokenizer), max_length=512, num_pairs=pairs)
        return {
            "masking": {str(size): measure_masking(corpus, tokenizer, size, repeats) for size in sizes},
            "joint": {str(size): measure_joint(corpus, size, repeats) for size in sizes},
            "collate_and_mask": measure_collating(corpus, middle, repeats),
        }


def share_of_step(batches: Mapping[str, Any], tokens_per_second: float) -> dict[str, Any]:
    """Cores that one GPU of this speed keeps busy: with masking and collating, and with whole batches."""
    joint = {size: tokens_per_second / found["tokens_per_second"] for size, found in batches["joint"].items()}
    collating = tokens_per_second / batches["collate_and_mask"]["tokens_per_second"]
    return {"collate_and_mask": collating, "joint": joint}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole result."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        texts = copy_text(options.text, work, options.lines)
        if not options.tokenizer:
            make_tokenizer(texts, work / "tokenizer", PIECES)
        tokenizer_folder = options.tokenizer or work / "tokenizer"
        tokenizer = XLMRobertaTokenizer.from_pretrained(tokenizer_folder)
        preparation = measure_prepare(texts, tokenizer, work, options.repeats)
        batches = measure_batches(tokenizer, BATCH_TOKENS, MIDDLE, PAIRS, 3 * options.repeats)
    rates = {size: found["tokens_per_second"] for size, found in batches["joint"].items()}
    name = options.tokenizer.name if options.tokenizer else "trained on the text"
    return {
        "tokenizer": f"{name}, {len(tokenizer):,} ids",
        "text": sorted({path.parent.name for path in options.text}),
        "prepare_tokens_per_second": preparation["tokens_per_second"],
        "mask_tokens_per_second": {
            name: found["tokens_per_second"]["mask_tokens"] for name, found in batches["masking"].items()
        },
        "joint_tokens_per_second": rates,
        "collate_and_mask_tokens_per_second": batches["collate_and_mask"]["tokens_per_second"],
        "step_tokens_per_second": options.step_tokens_per_second,
        "share_of_step": share_of_step(batches, options.step_tokens_per_second),
        "prepare": preparation,
        **batches,
    }


def print_result(console: Console, result: dict[str, Any]) -> None:
    """Three tables and the shares."""
    found = result["prepare"]
    console.print(
        f"{found['files']} files, {found['tokens']:,} tokens, one core; tokenizer: {result['tokenizer']}",
        highlight=False,
    )
    console.print(
        f"prepare: {found['tokens_per_second'] / 1e6:.2f} M tokens/s; with {found['start_up_s']:.1f} s of "
        f"start-up {found['with_start_up_tokens_per_second'] / 1e6:.2f}",
        highlight=False,
    )
    table = Table(
        "tokens a batch", "mask, M tokens/s", "transformers", "ratio", "joint batch, M tokens/s", "cores"
    )
    for size, masking in result["masking"].items():
        masks = [f"{rate / 1e6:.2f}" for rate in masking["tokens_per_second"].values()]
        joint = f"{result['joint_tokens_per_second'][size] / 1e6:.2f}"
        cores = f"{result['share_of_step']['joint'][size]:.3f}"
        table.add_row(f"{int(size):,}", *masks, f"{masking['ratio']:.0f}", joint, cores)
    console.print(table)
    console.print(
        f"masking and collating alone: {result['collate_and_mask_tokens_per_second'] / 1e6:.2f} M tokens/s, "
        f"{result['share_of_step']['collate_and_mask']:.3f} of a core at "
        f"{result['step_tokens_per_second']:,.0f} tokens/s a GPU",
        highlight=False,
    )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("INFOXLM_DATA")
    xlmr = Path(data) / "tokenizer_xlmr" if data else None
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=xlmr if xlmr and xlmr.is_dir() else None,
        help="folder with a tokenizer of XLM-R's kind",
    )
    parser.add_argument("--text", type=Path, nargs="+", default=default_text(), help="bitext and text files")
    parser.add_argument("--lines", type=int, default=LINES, help="lines taken of each file")
    parser.add_argument("--repeats", type=int, default=3, help="three times as many for batches")
    parser.add_argument("--step_tokens_per_second", type=float, default=STEP_TOKENS_PER_SECOND)
    parser.add_argument("--output", type=Path, help="result file, JSON")
    return parser.parse_args(argv)


def main() -> None:
    """Measure, print and write."""
    options = parse_arguments()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    configure_process()
    logging.getLogger("modeling_infoxlm").setLevel(logging.ERROR)
    result = measure(options)
    console = make_console()
    print_result(console, result)
    write_result(options.output, result, console)


if __name__ == "__main__":
    main()
