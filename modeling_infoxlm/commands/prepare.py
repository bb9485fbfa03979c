"""Tokenise text once to shards that training reads: `infoxlm prepare`.

infoxlm prepare --tokenizer_name tokenizer --bitext_files bitext/ --heldout_fraction 0.01 --output_dir corpus
"""

from dataclasses import dataclass, field

from modeling_infoxlm.data.prepare import prepare, prepare_part
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.runs.config_file import parse_args_with_config
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


def run(argv: list[str]) -> None:
    """Tokenise text once to shards that training reads."""
    model, data, output = parse_args_with_config(
        (ModelArguments, PrepareArguments, OutputArguments), argv, program="infoxlm prepare", about=__doc__
    )
    sources = parse_sources(data)
    work = {
        "tokenizer": load_tokenizer(model),
        "output_dir": output.output_dir,
        "settings": data,
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
