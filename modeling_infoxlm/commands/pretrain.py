r"""Pre-train InfoXLM with the joint MLM + TLM + XlCo loss (arXiv 2007.07834): `infoxlm pretrain`.

    infoxlm pretrain --config recipes/continue_xlmr_base.yaml --bitext_files bitext/ --output_dir out

Every entry of a recipe is a flag of the same name; flags override. Run the same command again to go on
after a kill.
"""

import math
from pathlib import Path

from accelerate.utils import broadcast_object_list

from modeling_infoxlm.data.batches import JointDataset
from modeling_infoxlm.evaluation.retrieval.heldout import (
    HeldoutRetrieval,
    describe_change,
    heldout_corpus,
    with_start,
)
from modeling_infoxlm.hub.push import push_run
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import Interrupted, UsageError
from modeling_infoxlm.runs.process import StopOnSignal, configure_process
from modeling_infoxlm.training.arguments import (
    ContrastArguments,
    DataArguments,
    ModelArguments,
    PretrainingArguments,
)
from modeling_infoxlm.training.corpus_setup import find_tokenizer, open_or_prepare
from modeling_infoxlm.training.model_setup import (
    build_model,
    check_lengths,
    evaluation_vectors,
    load_tokenizer,
)
from modeling_infoxlm.training.plan_checks import check_model, check_plan
from modeling_infoxlm.training.run_record import (
    changed_flags,
    check_corpus,
    find_checkpoint,
    hub_name,
    is_finished,
    run_identity,
    step_of,
    write_run_record,
)
from modeling_infoxlm.training.throughput import matmul_peak
from modeling_infoxlm.training.trainer import InfoXLMTrainer

HELDOUT_ITEMS = 256  # for held-out losses, at least: they are of whole global batches


def run(argv: list[str]) -> None:
    """Prepare the data, build the model, train it, and write the run's record, results and final model."""
    argument_types = (ModelArguments, DataArguments, ContrastArguments, PretrainingArguments)
    model_args, data_args, contrast_args, args = parse_args_with_config(
        argument_types, argv, program="infoxlm pretrain", about=__doc__
    )
    configure_process(distributed=True)
    output_dir = Path(args.output_dir)
    # All that can be refused is, before an earlier run is overwritten and before text is read for hours.
    check_plan(data_args, args)
    named = model_args.tokenizer_name is not None or model_args.model_name_or_path is not None
    if named:
        tokenizer = load_tokenizer(model_args)
        model = build_model(model_args, contrast_args, tokenizer, seed=args.seed)
        check_model(model, data_args, contrast_args, args)
    config = model.config if named else None
    identity = run_identity(model_args, data_args, contrast_args, args, config=config)
    # Not the first of each machine: their disk may be shared, and one process is to overwrite and to prepare.
    with args.main_process_first(local=False, desc="preparing the data"):
        # The other ranks come later: what they find is this run's already.
        overwrite = args.overwrite_output_dir and args.should_save
        finished = not overwrite and is_finished(output_dir, identity)
        checkpoint = find_checkpoint(output_dir, identity, overwrite=overwrite)
        # That of a run which goes on tells what text it was trained on.
        if args.should_save and not finished and checkpoint is None:
            write_run_record(output_dir, argv=argv, identity=identity, details={})
        if not named:
            tokenizer = find_tokenizer(model_args, data_args, output_dir)
            model = build_model(model_args, contrast_args, tokenizer, seed=args.seed)
            check_model(model, data_args, contrast_args, args)
        corpus = open_or_prepare(data_args, tokenizer, output_dir)
        if checkpoint is not None:
            check_corpus(output_dir, corpus)
    # The same for all, whatever a disk shared by machines showed them: one that goes on alone waits for ever.
    finished, checkpoint = broadcast_object_list([finished, checkpoint])
    if finished:
        print(f"{output_dir}: this run is finished; --overwrite_output_dir true starts it anew.")
        push_run(args)
        return

    check_lengths(model, corpus.max_length)
    settings = data_args.stream_settings(seed=args.seed)
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    train_dataset = JointDataset(corpus, settings, args.max_steps * batch)
    evaluator = eval_dataset = heldout_vectors = None
    if not corpus.heldout and args.eval_strategy != "no":
        raise UsageError(
            f"eval_strategy is {args.eval_strategy.value} but {corpus.folder} holds out no pair; "
            "prepare it with --heldout_fraction above 0, or give --eval_strategy no."
        )
    if corpus.heldout:
        layer, pooling = evaluation_vectors(model, args.eval_layer, args.eval_pooling)
        evaluator = HeldoutRetrieval(corpus, layer=layer, pooling=pooling, max_pairs=args.eval_max_pairs)
        heldout_vectors = {"layer": layer, "pooling": pooling}
        # The same ones however the batch is cut: a resumed run is compared with its start.
        eval_items = math.ceil(HELDOUT_ITEMS / batch) * batch
        eval_dataset = JointDataset(heldout_corpus(corpus), settings, eval_items)
    details = {
        "corpus": corpus.manifest,
        "streams": train_dataset.describe(),
        "num_parameters": model.num_parameters(),
        "base_model": hub_name(model_args.model_name_or_path),
        "heldout_vectors": heldout_vectors,
        "non_default": changed_flags(model_args, data_args, contrast_args, args),
        "resumed_at_step": None if checkpoint is None else step_of(checkpoint),
    }
    if args.should_save:
        write_run_record(output_dir, argv=argv, identity=identity, details=details)

    stop = StopOnSignal()
    trainer = InfoXLMTrainer(
        model,
        args,
        contrast=contrast_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        evaluator=evaluator,
        matmul_peak=matmul_peak(args.device, args.product_dtype),
        processing_class=tokenizer,
        callbacks=[stop],
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if stop.received is not None and trainer.state.global_step < args.max_steps:
        raise Interrupted(
            f"checkpoint-{trainer.state.global_step} is saved; run the same command again to go on."
        )
    trainer.save_model(_internal_call=True)  # what is pushed is the whole run, at its end
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    if evaluator is not None:
        results = with_start(trainer.evaluate_end(), trainer.state.log_history)
        trainer.save_metrics("eval", results)
        if args.should_log:
            print(*describe_change(results, layer=evaluator.layer, pooling=evaluator.pooling), sep="\n")
    if args.should_save:
        write_run_record(output_dir, argv=argv, identity=identity, details={**details, "finished": True})
    push_run(args)
