"""`infoxlm`: one command for all there is to do; `infoxlm COMMAND --help` lists the flags of each.

infoxlm train-tokenizer --bitext_files bitext/ --tokenizer_vocab_size 32000 --output_dir tokenizer
infoxlm prepare --tokenizer_name tokenizer --bitext_files bitext/ --output_dir corpus
infoxlm pretrain --config recipes/continue_xlmr_base.yaml --prepared_data corpus --output_dir out
infoxlm export out --output_dir release
infoxlm tatoeba --model_name_or_path out --data_dir tatoeba --output_dir results
infoxlm xnli --model_name_or_path out --data_dir XNLI --output_dir results/xnli
infoxlm mlqa --model_name_or_path out --train_file train.json --test_files MLQA --output_dir results/mlqa
infoxlm report results --output_dir tables
infoxlm mine en.txt de.txt --model_name_or_path out --output en-de.tsv
infoxlm information --model_name_or_path out --bitext_files heldout/en-de.tsv --output_dir results
infoxlm align-words --model_name_or_path out --text_file en-de.txt --output_dir alignment
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoTokenizer

import run_pretraining
from modeling_infoxlm.data.prepare import prepare, prepare_part
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.hub.export import save_as_xlm_roberta
from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.training.arguments import ModelArguments, PrepareArguments
from modeling_infoxlm.training.config_file import parse_args_with_config
from modeling_infoxlm.training.corpus_setup import num_workers, parse_sources
from modeling_infoxlm.training.model_setup import load_tokenizer
from modeling_infoxlm.training.process import USAGE, run_main


@dataclass
class OutputArguments:
    """Where the result goes, and which share of the work this job does."""

    _argument_group_name = "output"

    output_dir: str = field(default="corpus", metadata={"help": "Folder that is written."})
    shard_index: int = field(default=0, metadata={"help": "Number of this job among num_shards, from 0."})
    num_shards: int = field(
        default=1, metadata={"help": "Jobs that prepare one folder together, each every num_shards-th file."}
    )


@dataclass
class ExportArguments:
    """A trained model and the folder of its release."""

    _argument_group_name = "export"

    model_name_or_path: str = field(
        default="", metadata={"help": "Trained model: a checkpoint folder or a Hub name."}
    )
    output_dir: str = field(default="release", metadata={"help": "Folder of the release."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Type of the stored weights."}
    )


def prepare_command(argv: list[str]) -> None:
    """Tokenise text once to shards that training reads: `infoxlm prepare`."""
    model, data, output = parse_args_with_config((ModelArguments, PrepareArguments, OutputArguments), argv)
    sources = parse_sources(data)
    work = {
        "tokenizer": load_tokenizer(model),
        "output_dir": output.output_dir,
        "settings": data.prepare_settings(),
        "num_workers": num_workers(data, sources),
    }
    if output.num_shards == 1:
        prepare(sources, **work)
    else:
        job = {"shard_index": output.shard_index, "num_shards": output.num_shards}
        if prepare_part(sources, **work, **job) is None:
            print(f"{output.output_dir}: this job is done, others are not yet.")
            return
    print(describe_corpus(Corpus.open(output.output_dir)))


def describe_corpus(corpus: Corpus) -> str:
    """What was kept and what was dropped, a line for each language and pair."""
    lines = [f"{corpus.folder}:"]
    for kind in ("mono", "bitext"):
        for name, entry in sorted(corpus.manifest[kind].items()):
            dropped = ", ".join(f"{reason} {count:,}" for reason, count in entry["dropped"].items() if count)
            examples, tokens = entry["num_examples"], entry["num_tokens"]
            kept = f"  {kind:6}  {name:8} {examples:>12,} examples {tokens:>14,} tokens"
            lines.append(kept + (f"   dropped: {dropped}" if dropped else ""))
    return "\n".join(lines)


def train_tokenizer_command(argv: list[str]) -> None:
    """Make a Unigram tokenizer in XLM-R's layout from text: `infoxlm train-tokenizer`."""
    data, output = parse_args_with_config((PrepareArguments, OutputArguments), argv)
    train_tokenizer(
        parse_sources(data),
        output.output_dir,
        vocab_size=data.tokenizer_vocab_size,
        max_length=data.max_seq_length,
        bitext_columns=data.prepare_settings().bitext_columns,
    )
    print(f"{output.output_dir}: load it with AutoTokenizer.from_pretrained, or give it as --tokenizer_name.")


def export_command(argv: list[str]) -> None:
    """Write a trained model as plain XLM-R: `infoxlm export`."""
    if argv and not argv[0].startswith("-"):
        argv = ["--model_name_or_path", *argv]
    (arguments,) = parse_args_with_config((ExportArguments,), argv)
    if not arguments.model_name_or_path:
        raise ValueError(
            "infoxlm export needs a model: infoxlm export out/checkpoint-500 --output_dir release."
        )
    name = arguments.model_name_or_path
    if not Path(name).is_dir() and (name.startswith((".", "/")) or name.count("/") > 1):
        raise ValueError(
            f"there is no folder {name}; give a checkpoint such as out/checkpoint-500, or a Hub name."
        )
    model = InfoXLMForPreTraining.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    save_as_xlm_roberta(
        model, arguments.output_dir, tokenizer=tokenizer, dtype=getattr(torch, arguments.dtype)
    )
    print(
        f"{Path(arguments.output_dir)}: plain XLM-R; AutoModel.from_pretrained loads it without this package."
    )


def _imported(module: str, function: str) -> Callable[[list[str]], None]:
    """A command whose module is imported when it is run: the benchmarks' libraries take seconds to load."""

    def command(argv: list[str]) -> None:
        getattr(importlib.import_module(module), function)(argv)

    return command


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "prepare": prepare_command,
    "train-tokenizer": train_tokenizer_command,
    "pretrain": run_pretraining.pretrain,
    "export": export_command,
    "tatoeba": _imported("run_tatoeba", "evaluate"),
    "xnli": _imported("run_xnli", "fine_tune_and_test"),
    "mlqa": _imported("run_mlqa", "fine_tune_and_answer"),
    "report": _imported("modeling_infoxlm.evaluation.report", "report_command"),
    "mine": _imported("modeling_infoxlm.evaluation.mine", "mine_command"),
    "information": _imported("modeling_infoxlm.evaluation.information", "information_command"),
    "align-words": _imported("modeling_infoxlm.evaluation.word_alignment", "align_words_command"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; see `run_main` for the exit codes."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: unknown command {argv[0]!r}; expected one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return USAGE
    return run_main(COMMANDS[argv[0]], argv[1:])


if __name__ == "__main__":
    sys.exit(main())
