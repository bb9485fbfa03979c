r"""Fine-tune an encoder on XNLI and test it in every language: `infoxlm xnli`.

    infoxlm xnli --model_name_or_path out --data_dir XNLI --mixed_languages true --output_dir xnli

Run the same command again to go on after a kill.
"""

from rich.console import Console
from transformers import AutoModelForSequenceClassification

from modeling_infoxlm.evaluation.finetuning import (
    HeadModelArguments,
    finish_run,
    load_head_model,
    open_fine_tuning,
)
from modeling_infoxlm.evaluation.inference.xnli import (
    OUTPUTS,
    XNLIArguments,
    XNLIRun,
    XNLITrainingArguments,
    label_config,
    load_data,
    print_result,
    score,
    write_predictions,
)
from modeling_infoxlm.evaluation.results import write_result
from modeling_infoxlm.hub.push import push_run
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.process import configure_process


def run(argv: list[str]) -> None:
    """Fine-tune on XNLI, test in all languages, and write the model, predictions and scores."""
    argument_types = (HeadModelArguments, XNLIArguments, XNLITrainingArguments)
    model_args, task, args = parse_args_with_config(
        argument_types, argv, program="infoxlm xnli", about=__doc__
    )
    configure_process()
    data = load_data(task, args, model_args)
    labels = label_config() if args.do_train else {}
    head = load_head_model(model_args, AutoModelForSequenceClassification, seed=args.seed, **labels)
    work = XNLIRun(head, data, task=task, args=args, cache_dir=model_args.cache_dir)

    run = open_fine_tuning(head.record, task, args, data.files, argv=argv, outputs=OUTPUTS)
    if run.finished:
        print(f"{run.folder}: this run is finished; --overwrite_output_dir true starts it anew.")
        push_run(args)
        return
    training = work.train(run.checkpoint) if args.do_train else None
    if args.do_predict:
        probabilities = work.predict()
        mixed = work.predict_mixed() if task.mixed_languages else None
        result = score(work, probabilities, mixed, training)
        write_predictions(run.folder, task.test_split, data.test, probabilities)
        write_result(run.folder, result, command=["run_xnli.py", *argv], identity=run.identity)
        print_result(result, Console())
    finish_run(run, args, task)
