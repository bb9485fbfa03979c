"""The story of a fine-tuning program: flags, data, model, run folder, training, test, finish."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from modeling_infoxlm.evaluation.finetuning.arguments import HeadModelArguments
from modeling_infoxlm.evaluation.finetuning.heads import load_head_model
from modeling_infoxlm.evaluation.finetuning.run import HeadRun, finish_run, open_fine_tuning
from modeling_infoxlm.evaluation.results import print_result, write_result
from modeling_infoxlm.hub.push import push_run
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.process import configure_process


@dataclass(frozen=True)
class FineTuning:
    """A task that models are fine-tuned for."""

    name: str  # of the command, `infoxlm NAME`, and of the program, `run_NAME.py`
    about: str  # help of the command
    arguments: tuple[type, type]  # dataclasses of the task's flags and of its training's
    # from the flags of the task, the training and the model to all data of the run; it has `files`, the hash
    # of each, and `outputs`, the names of what is written beside the model
    load_data: Callable[[Any, Any, HeadModelArguments], Any]
    auto_class: Any  # of the model
    run_class: type[HeadRun]  # trains and tests
    # fields of the configuration of a model that is trained
    config: Mapping[str, Any] = field(default_factory=dict)


def fine_tune(program: FineTuning, argv: list[str]) -> None:
    """Fine-tune a model on a task, test it in all languages, and write the model, predictions and scores."""
    model_args, task, args = parse_args_with_config(
        (HeadModelArguments, *program.arguments), argv, program=f"infoxlm {program.name}", about=program.about
    )
    configure_process()
    data = program.load_data(task, args, model_args)
    config = program.config if args.do_train else {}
    head = load_head_model(model_args, program.auto_class, seed=args.seed, **config)
    work = program.run_class(head, data, task=task, args=args, cache_dir=model_args.cache_dir)

    run = open_fine_tuning(head.record, task, args, data.files, argv=argv, outputs=data.outputs)
    if run.finished:
        print(f"{run.folder}: this run is finished; --overwrite_output_dir true starts it anew.")
        push_run(args)
        return
    training = work.train(run.checkpoint) if args.do_train else None
    if args.do_predict:
        head.to(args.device)
        for result in work.test(training, run.folder):
            command = [f"run_{program.name}.py", *argv]
            write_result(run.folder, result, command=command, identity=run.identity)
            print_result(result, Console())
    finish_run(run, args, task)
