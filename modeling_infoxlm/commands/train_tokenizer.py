"""Make a Unigram tokenizer in XLM-R's layout from text: `infoxlm train-tokenizer`.

infoxlm train-tokenizer --bitext_files bitext/ --tokenizer_vocab_size 32000 --output_dir tokenizer
"""

from modeling_infoxlm.commands.prepare import OutputArguments
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.training.arguments import PrepareArguments
from modeling_infoxlm.training.corpus_setup import parse_sources


def run(argv: list[str]) -> None:
    """Make a Unigram tokenizer in XLM-R's layout from text."""
    data, output = parse_args_with_config(
        (PrepareArguments, OutputArguments), argv, program="infoxlm train-tokenizer", about=__doc__
    )
    train_tokenizer(
        parse_sources(data),
        output.output_dir,
        vocab_size=data.tokenizer_vocab_size,
        max_length=data.max_seq_length,
        bitext_columns=data.columns,
    )
    print(f"{output.output_dir}: load it with AutoTokenizer.from_pretrained, or give it as --tokenizer_name.")
