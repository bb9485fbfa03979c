"""The story of a fine-tuning program: flags, data, model, run folder, training, test, finish."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from modeling_infoxlm.evaluation.finetuning.arguments import HeadModelArguments
from modeling_infoxlm.evaluation.finetuning.heads import load_head_model
from modeling_infoxlm.evaluation.finetuning.run import HeadRun, finish_run, open_fine_tuning
from modeling_infoxlm.evaluation.results import print_result, write_result
from modeling_infoxlm.hub.push import push_run
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.process import configure_process


def fine_tune(
    name: str,
    about: str | None,
    arguments: tuple[type, type],
    load_data: Callable[[Any, Any, HeadModelArguments], Any],
    run_class: type[HeadRun],
    argv: list[str],
) -> None:
    """Fine-tune a model on a task, test it in all languages, and write the model, predictions and scores.

    Args:
        name: Of the command, `infoxlm NAME`, and of the program, `run_NAME.py`.
        about: Help of the command.
        arguments: Dataclasses of the task's flags and of its training's.
        load_data: From the flags of the task, the training and the model to all data of the run; it has
            `files`, the hash of each, and `outputs`, the names of what is written beside the model.
        run_class: Trains and tests.
        argv: Words of the command line.
    """
    model_args, task, args = parse_args_with_config(
        (HeadModelArguments, *arguments), argv, program=f"infoxlm {name}", about=about
    )
    configure_process()
    data = load_data(task, args, model_args)
    config = run_class.config if args.do_train else {}
    head = load_head_model(model_args, run_class.auto_class, seed=args.seed, **config)
    work = run_class(head, data, task=task, args=args, cache_dir=model_args.cache_dir)

    run = open_fine_tuning(head.record, task, args, data.files, argv=argv, outputs=data.outputs)
    if run.finished:
        print(f"{run.folder}: this run is finished; --overwrite_output_dir true starts it anew.")
        push_run(args)
        return
    training = work.train(run.checkpoint) if args.do_train else None
    if args.do_predict:
        head.model.to(args.device)
        for result in work.test(training, run.folder):
            write_result(run.folder, result, command=[f"run_{name}.py", *argv], identity=run.identity)
            print_result(result, Console())
    finish_run(run, args, task)
