"""`infoxlm`: one command for all there is to do; `infoxlm COMMAND --help` lists the flags of each.

infoxlm train-tokenizer --bitext_files bitext/ --tokenizer_vocab_size 32000 --output_dir tokenizer
infoxlm prepare --tokenizer_name tokenizer --bitext_files bitext/ --output_dir corpus
infoxlm pretrain --config recipes/continue_xlmr_base.yaml --prepared_data corpus --output_dir out
infoxlm export out --output_dir release
infoxlm push out ORG/NAME
infoxlm doctor out
infoxlm convert-fairseq model.pt out
infoxlm tatoeba --model_name_or_path out --data_dir tatoeba --output_dir results
infoxlm xnli --model_name_or_path out --data_dir XNLI --output_dir results/xnli
infoxlm mlqa --model_name_or_path out --train_file train.json --test_files MLQA --output_dir results/mlqa
infoxlm report results --output_dir tables
infoxlm mine en.txt de.txt --model_name_or_path out --output en-de.tsv
infoxlm information --model_name_or_path out --bitext_files heldout/en-de.tsv --output_dir results
infoxlm align-words --model_name_or_path out --pairs_file en-de.txt --output_dir alignment
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import run_pretraining
from modeling_infoxlm.config_file import parse_args_with_config
from modeling_infoxlm.data.prepare import prepare, prepare_part
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.process import USAGE, run_main
from modeling_infoxlm.provenance import blot_secrets
from modeling_infoxlm.training.arguments import ModelArguments, PrepareArguments
from modeling_infoxlm.training.corpus_setup import num_workers, parse_sources
from modeling_infoxlm.training.model_setup import load_tokenizer


@dataclass
class OutputArguments:
    """Where the result goes, and which share of the work this job does."""

    _argument_group_name = "output"

    output_dir: str = field(default="corpus", metadata={"help": "Folder that is written."})
    shard_index: int = field(default=0, metadata={"help": "Number of this job among num_shards, from 0."})
    num_shards: int = field(
        default=1, metadata={"help": "Jobs that prepare one folder together, each every num_shards-th file."}
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


def _imported(module: str, function: str) -> Callable[[list[str]], None]:
    """A command whose module is imported when it is run: the benchmarks' libraries take seconds to load."""

    def command(argv: list[str]) -> None:
        getattr(importlib.import_module(module), function)(argv)

    return command


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "prepare": prepare_command,
    "train-tokenizer": train_tokenizer_command,
    "pretrain": run_pretraining.pretrain,
    "export": _imported("modeling_infoxlm.hub.export", "export_command"),
    "push": _imported("modeling_infoxlm.hub.push", "push_command"),
    "doctor": _imported("modeling_infoxlm.doctor", "doctor_command"),
    "convert-fairseq": _imported("modeling_infoxlm.fairseq.checkpoint", "convert_fairseq_command"),
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
        command = blot_secrets(argv[0])
        print(f"error: unknown command {command!r}; expected one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return USAGE
    return run_main(COMMANDS[argv[0]], argv[1:])


if __name__ == "__main__":
    sys.exit(main())
