"""Find the translation of each sentence, in both directions, with any encoder: `infoxlm tatoeba`.

    infoxlm tatoeba --model_name_or_path out --data_dir tatoeba --languages de fr sw --output_dir results

The defaults are the paper's (arXiv 2007.07834): mean of all tokens of layer 7, cosine.
"""

from pathlib import Path

from rich.console import Console

from modeling_infoxlm.evaluation.encoders import EncoderArguments, load_encoder
from modeling_infoxlm.evaluation.results import print_result, write_result
from modeling_infoxlm.evaluation.retrieval.tatoeba import (
    TatoebaArguments,
    check_output,
    evaluate_retrieval,
    write_figure,
)
from modeling_infoxlm.hub.push import push_model
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.process import configure_process


def run(argv: list[str]) -> None:
    """Read the test sets, encode and search them, and write the results and the figure."""
    encoder_args, args = parse_args_with_config(
        (EncoderArguments, TatoebaArguments), argv, program="infoxlm tatoeba", about=__doc__
    )
    configure_process()
    check_output(args)
    if args.push_to_hub and not Path(encoder_args.model_name_or_path).is_dir():
        raise UsageError("--push_to_hub publishes a model of your own: --model_name_or_path must be a folder")
    sets, dataset = args.load_sets(encoder_args.token)
    encoder = load_encoder(encoder_args)
    result = evaluate_retrieval(encoder, sets, dataset, args)
    print_result(result, Console())
    figure = write_figure(args.output_dir, result)
    path = write_result(args.output_dir, result, command=["run_tatoeba.py", *argv])
    print("wrote", *filter(None, (figure, path)))
    if args.push_to_hub:
        folder, results = Path(encoder_args.model_name_or_path), [args.output_dir]
        push_model(folder, args.hub_model_id, results=results, token=encoder_args.token)
