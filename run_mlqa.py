r"""Fine-tune an encoder to answer questions in English, and score it in every language: MLQA, XQuAD, TyDiQA.

    python run_mlqa.py --model_name_or_path microsoft/infoxlm-base --bf16 true \
        --train_file hub:rajpurkar/squad --test_files MLQA_V1/test xquad --output_dir qa
    python run_mlqa.py --model_name_or_path qa --do_train false --test_files xquad --all_pairs true \
        --output_dir mixed

It writes the fine-tuned model, `<task>_results.json` for each benchmark and `predictions/` into the output
folder. Run the same command again to go on after a kill.
"""

import sys
from pathlib import Path

from rich.console import Console
from transformers import AutoModelForQuestionAnswering

from modeling_infoxlm.config_file import parse_args_with_config
from modeling_infoxlm.evaluation.finetuning import (
    HeadModelArguments,
    finish_run,
    load_head_model,
    open_run,
    run_identity,
)
from modeling_infoxlm.evaluation.mlqa import (
    MLQAArguments,
    MLQARun,
    MLQATrainingArguments,
    load_data,
    make_result,
    outputs,
    print_result,
    write_predictions,
)
from modeling_infoxlm.evaluation.results import write_result
from modeling_infoxlm.hub.push import push_run
from modeling_infoxlm.process import configure_process, run_main


def fine_tune_and_answer(argv: list[str]) -> None:
    """Fine-tune on questions, answer those of all languages, and write the model, predictions and scores."""
    argument_types = (HeadModelArguments, MLQAArguments, MLQATrainingArguments)
    model_args, task, args = parse_args_with_config(argument_types, argv)
    configure_process()
    folder = Path(args.output_dir)
    data = load_data(task, args, model_args)
    head = load_head_model(model_args, AutoModelForQuestionAnswering, seed=args.seed)
    run = MLQARun(head, data, task=task, args=args, cache_dir=model_args.cache_dir)

    identity = run_identity(head.record, task, args, data.files)
    opened = open_run(args, identity=identity, argv=argv, outputs=outputs(data))
    if opened.finished:
        print(f"{folder}: this run is finished; --overwrite_output_dir true starts it anew.")
        push_run(args)
        return
    training = run.train(opened.checkpoint) if args.do_train else None
    for name, answered in run.answer().items():
        result = make_result(run, name, answered, training)
        for item in answered:
            write_predictions(folder, name, item, n_best=task.save_n_best)
        write_result(folder, result, command=["run_mlqa.py", *argv], identity=identity)
        print_result(result, Console())
    finish_run(args, task, opened, identity=identity, argv=argv)
    push_run(args)


def main(argv: list[str] | None = None) -> int:
    """Run the script; see `run_main` for the exit codes."""
    return run_main(fine_tune_and_answer, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
