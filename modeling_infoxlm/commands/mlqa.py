r"""Fine-tune an encoder to answer questions, and score it in every language: `infoxlm mlqa`.

    infoxlm mlqa --model_name_or_path out --train_file train-v1.1.json --test_files MLQA_V1/test xquad \
        --output_dir qa

Run the same command again to go on after a kill.
"""

from rich.console import Console
from transformers import AutoModelForQuestionAnswering

from modeling_infoxlm.evaluation.finetuning import (
    HeadModelArguments,
    finish_run,
    load_head_model,
    open_fine_tuning,
)
from modeling_infoxlm.evaluation.questions.mlqa import (
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
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.process import configure_process


def run(argv: list[str]) -> None:
    """Fine-tune on questions, answer those of all languages, and write the model, predictions and scores."""
    argument_types = (HeadModelArguments, MLQAArguments, MLQATrainingArguments)
    model_args, task, args = parse_args_with_config(
        argument_types, argv, program="infoxlm mlqa", about=__doc__
    )
    configure_process()
    data = load_data(task, args, model_args)
    head = load_head_model(model_args, AutoModelForQuestionAnswering, seed=args.seed)
    work = MLQARun(head, data, task=task, args=args, cache_dir=model_args.cache_dir)

    run = open_fine_tuning(head.record, task, args, data.files, argv=argv, outputs=outputs(data))
    if run.finished:
        print(f"{run.folder}: this run is finished; --overwrite_output_dir true starts it anew.")
        push_run(args)
        return
    training = work.train(run.checkpoint) if args.do_train else None
    for name, answered in work.answer().items():
        result = make_result(work, name, answered, training)
        for item in answered:
            write_predictions(run.folder, name, item, n_best=task.save_n_best)
        write_result(run.folder, result, command=["run_mlqa.py", *argv], identity=run.identity)
        print_result(result, Console())
    finish_run(run, args, task)
