r"""Pre-train InfoXLM with the joint MLM + TLM + XlCo loss (arXiv 2007.07834): `infoxlm pretrain`.

    infoxlm pretrain --config recipes/continue_xlmr_base.yaml --bitext_files bitext/ --output_dir out

Every entry of a recipe is a flag of the same name; flags override. Run the same command again to go on
after a kill.
"""

import math
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy

from modeling_infoxlm.configuration_infoxlm import InfoXLMConfig
from modeling_infoxlm.data.batches import JointDataset
from modeling_infoxlm.data.prepare import remove_prepared
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.evaluation.retrieval.heldout import (
    HeldoutRetrieval,
    describe_change,
    heldout_corpus,
    with_start,
)
from modeling_infoxlm.hub.push import push_run
from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.flags import changed_flags
from modeling_infoxlm.runs.process import StopOnSignal, configure_process
from modeling_infoxlm.runs.record import Run, open_run
from modeling_infoxlm.training.arguments import (
    ContrastArguments,
    DataArguments,
    ModelArguments,
    PretrainingArguments,
    with_objective_flags,
)
from modeling_infoxlm.training.corpus_setup import check_corpus, find_tokenizer, open_or_prepare
from modeling_infoxlm.training.model_setup import build_model, check_lengths, evaluation_vectors
from modeling_infoxlm.training.plan_checks import (
    check_model,
    check_plan,
    pretraining_identity,
    total_batch_size,
)
from modeling_infoxlm.training.throughput import matmul_peak
from modeling_infoxlm.training.trainer import InfoXLMTrainer

HELDOUT_ITEMS = 256  # for held-out losses, at least: they are of whole global batches


def run(argv: list[str]) -> None:
    """Prepare the data, build the model, train it, and write the run's record, results and final model."""
    types = (
        ModelArguments,
        with_objective_flags(DataArguments, "examples", 1, "Examples in one item"),
        ContrastArguments,
        with_objective_flags(PretrainingArguments, "weight", 1.0, "Weight of the loss"),
    )
    flags = parse_args_with_config(types, argv, program="infoxlm pretrain", about=__doc__)
    model_args, data_args, _, args = flags
    configure_process(distributed=True)

    # All that can be refused is, before an earlier run is overwritten and before text is read for hours.
    check_plan(data_args, args)
    # Without a tokenizer one is trained from the text first, in the folder of the run.
    start = _start(flags) if model_args.names_tokenizer else None
    run = _open_run(flags, argv, start[1].config if start else None)
    # Not the first of each machine: their disk may be shared, and one process is to prepare.
    with args.main_process_first(local=False, desc="preparing the data"):
        tokenizer, model = start or _start(flags)
        corpus = open_or_prepare(data_args, tokenizer, run.folder)
        if run.checkpoint is not None:
            check_corpus(run, corpus)
    if run.finished:
        print(f"{run.folder}: this run is finished; --overwrite_output_dir true starts it anew.")
        push_run(args)
        return

    check_lengths(model, corpus.max_length)
    stop = StopOnSignal()
    evaluator = _heldout_retrieval(corpus, model, args)
    trainer = _make_trainer(flags, tokenizer, model, corpus, evaluator, callbacks=[stop])
    details = {
        "corpus": corpus.manifest,
        "streams": trainer.train_dataset.describe(),
        "num_parameters": model.num_parameters(),
        "base_model": model_args.hub_name,
        "heldout_vectors": evaluator and {"layer": evaluator.layer, "pooling": evaluator.pooling},
        "non_default": changed_flags(*flags),
        "resumed_at_step": run.resumed_at_step,
    }
    if args.should_save:
        run.write_record(**details)
    result = trainer.train(resume_from_checkpoint=run.checkpoint)
    stop.raise_if_stopped(trainer.state)
    trainer.save_model(_internal_call=True)  # what is pushed is the whole run, at its end
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    _measure_end(trainer, evaluator)
    if args.should_save:
        run.write_record(**details, finished=True)
    push_run(args)


def _start(flags: tuple[Any, ...]) -> tuple[PreTrainedTokenizerBase, InfoXLMForPreTraining]:
    """Tokenizer and model that a run starts from."""
    model_args, data_args, contrast_args, args = flags
    tokenizer = find_tokenizer(model_args, data_args, Path(args.output_dir))
    model = build_model(model_args, contrast_args, tokenizer, seed=args.seed)
    check_model(model, data_args, contrast_args, args)
    return tokenizer, model


def _open_run(flags: tuple[Any, ...], argv: list[str], config: InfoXLMConfig | None) -> Run:
    """Look for this run in its folder, or begin it there; the first process does, and tells the others."""
    args = flags[-1]
    identity = pretraining_identity(*flags, config=config)
    with args.main_process_first(local=False, desc="opening the run"):
        run = open_run(
            Path(args.output_dir),
            identity,
            argv=argv,
            overwrite=args.overwrite_output_dir,
            writes=args.should_save,
            remove_corpus=remove_prepared,
        )
    # The same for all, whatever a disk shared by machines showed them: one that goes on alone waits for ever.
    shared: list[Run] = broadcast_object_list([run])
    return shared[0]


def _make_trainer(
    flags: tuple[Any, ...],
    tokenizer: PreTrainedTokenizerBase,
    model: InfoXLMForPreTraining,
    corpus: Corpus,
    evaluator: HeldoutRetrieval | None,
    callbacks: list[Any],
) -> InfoXLMTrainer:
    """The trainer, with what it trains on and what it measures on held-out pairs."""
    _, data_args, contrast_args, args = flags
    settings, batch = data_args.stream_settings(seed=args.seed), total_batch_size(args)
    # The same items however the batch is cut: a resumed run is compared with its start.
    eval_items = math.ceil(HELDOUT_ITEMS / batch) * batch
    return InfoXLMTrainer(
        model,
        args,
        contrast=contrast_args,
        train_dataset=JointDataset(corpus, settings, args.max_steps * batch),
        eval_dataset=JointDataset(heldout_corpus(corpus), settings, eval_items) if evaluator else None,
        evaluator=evaluator,
        matmul_peak=matmul_peak(args.device, args.product_dtype),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def _measure_end(trainer: InfoXLMTrainer, evaluator: HeldoutRetrieval | None) -> None:
    """Write what the held-out pairs say at the end, beside what they said at the start."""
    if evaluator is None:
        return
    results = with_start(trainer.evaluate_end(), trainer.state.log_history)
    trainer.save_metrics("eval", results)
    if trainer.args.should_log:
        print(*describe_change(results, layer=evaluator.layer, pooling=evaluator.pooling), sep="\n")


def _heldout_retrieval(
    corpus: Corpus, model: InfoXLMForPreTraining, args: PretrainingArguments
) -> HeldoutRetrieval | None:
    """What is measured on the held-out pairs; None without any, if no evaluation is asked for."""
    if corpus.heldout:
        layer, pooling = evaluation_vectors(model, args.eval_layer, args.eval_pooling)
        return HeldoutRetrieval(corpus, layer=layer, pooling=pooling, max_pairs=args.eval_max_pairs)
    if args.eval_strategy != "no":
        asked = IntervalStrategy(args.eval_strategy).value
        raise UsageError(
            f"eval_strategy is {asked} but {corpus.folder} holds out no pair; "
            "prepare it with --heldout_fraction above 0, or give --eval_strategy no."
        )
    return None
