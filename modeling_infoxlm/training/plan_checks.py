"""What a run is, and all that would fail hours later: before it touches its folder or reads its text."""

from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from transformers import get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy

from modeling_infoxlm.configuration_infoxlm import InfoXLMConfig
from modeling_infoxlm.data.streams import STREAMS
from modeling_infoxlm.key_queue import KeyQueue
from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.momentum import MomentumEncoder
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.record import run_identity
from modeling_infoxlm.training.arguments import (
    ContrastArguments,
    DataArguments,
    ModelArguments,
    PretrainingArguments,
)
from modeling_infoxlm.training.contrast import take_over_contrast
from modeling_infoxlm.training.corpus_setup import parse_sources
from modeling_infoxlm.training.layers import check_layers
from modeling_infoxlm.training.model_setup import check_lengths, evaluation_vectors
from modeling_infoxlm.training.trainer import InfoXLMTrainer

# Training arguments that change what is computed, or what its end is compared with; others
# (workers, logging, where to push) may differ on resumption.
_COMPUTED = (
    "seed learning_rate lr_scheduler_type warmup_steps max_steps "
    "optim adam_beta1 adam_beta2 adam_epsilon weight_decay weight_decay_on_all max_grad_norm "
    "moments_dtype lr_scheduler_kwargs optim_args bf16 fp16 "
    "loss_normalization eval_layer eval_pooling eval_max_pairs"
).split()


# Raised when a step comes to round otherwise: a run that goes on is bit for bit the one that was not stopped.
# 2: a layer that goes on with selected rows projects keys and values in two products.
_ARITHMETIC = "2 (a run of an earlier version is finished by that version)"


def pretraining_identity(
    model: ModelArguments,
    data: DataArguments,
    contrast: ContrastArguments,
    args: PretrainingArguments,
    *,
    config: InfoXLMConfig | None = None,
) -> dict[str, Any]:
    """Everything that changes what a run computes, see `run_identity`.

    Flags that are unset are as the configuration of the model says, where it is known already.
    """
    inputs = {"arithmetic": _ARITHMETIC, "total_train_batch_size": total_batch_size(args)}
    if args.freeze_encoder:
        inputs["freeze_encoder"] = True
    if "xlco" in data.objective_names() and _depends_on_pass(contrast, config or InfoXLMConfig()):
        inputs["pairs_together"] = args.per_device_train_batch_size * args.world_size
    weights = [one.name for one in fields(args) if one.name.endswith("_weight")]
    return run_identity(model, data, contrast, args=args, computed=[*_COMPUTED, *weights], **inputs)


def total_batch_size(args: PretrainingArguments) -> int:
    """Items of one step, of all devices and micro-batches."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def _depends_on_pass(contrast: ContrastArguments, config: InfoXLMConfig) -> bool:
    """Whether a pair's loss depends on the others of its pass, so that accumulating is another contrast."""
    names = ("xlco_in_batch_negatives", "xlco_symmetric")
    flags = {name: getattr(contrast, name) for name in names}
    together = any(getattr(config, name) if flag is None else flag for name, flag in flags.items())
    return together or contrast.xlco_enqueue == "microbatch"


def check_plan(data: DataArguments, args: PretrainingArguments) -> None:
    """Refuse what needs no model to be seen: text, objectives, evaluation, optimiser, schedule, reports.

    Raises:
        DataError: If a named text is missing.
        UsageError: If anything else cannot be.
    """
    if parse_sources(data):  # else a prepared corpus says what it has, as soon as it is opened
        _check_text(data)
        if args.eval_strategy != "no" and not data.heldout_fraction:
            raise UsageError(
                f"eval_strategy is {IntervalStrategy(args.eval_strategy).value} but heldout_fraction is 0, "
                "so no pair would be held out; give --heldout_fraction above 0, or --eval_strategy no."
            )
    missing = sorted(set(args.report_to or ()) - set(get_available_reporting_integrations()))
    if missing:
        raise UsageError(f"report_to names {missing[0]}, which is not installed: pip install {missing[0]}.")
    try:
        InfoXLMTrainer.get_optimizer_cls_and_kwargs(args)
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(args.max_steps),
            num_training_steps=args.max_steps,
            scheduler_specific_kwargs=cast(dict[str, Any] | None, args.lr_scheduler_kwargs),
        )
    except (ImportError, ValueError, TypeError, KeyError) as error:  # whatever a library makes of its options
        raise UsageError(
            f"optim {args.optim} or lr_scheduler_type {args.lr_scheduler_type} cannot be: {error}"
        ) from error


def check_model(
    model: InfoXLMForPreTraining, data: DataArguments, contrast: ContrastArguments, args: PretrainingArguments
) -> None:
    """Refuse what does not fit the model: lengths, layers, the state that another run has left.

    Raises:
        UsageError: If it has too few positions or layers, or the state is of another architecture.
    """
    if parse_sources(data):
        check_lengths(model, data.max_seq_length)
    evaluation_vectors(model, args.eval_layer, args.eval_pooling)
    if args.recompute_layers is not None:
        check_layers(model, args.recompute_layers)
    if contrast.momentum_state is not None and "xlco" in data.objective_names():
        queue = KeyQueue(contrast.queue_size, model.config.hidden_size)
        take_over_contrast(Path(contrast.momentum_state), MomentumEncoder(model), queue)


def _check_text(data: DataArguments) -> None:
    for name in data.objective_names():
        mono = STREAMS[name][1].text == "mono"
        if mono and not (data.mono_files or data.mono_from_bitext):
            kind, flags = "monolingual", "--mono_files or --mono_from_bitext true"
        elif not mono and not data.bitext_files:
            kind, flags = "translated", "--bitext_files"
        else:
            continue
        raise UsageError(
            f"objective {name} needs {kind} text, but there is none; give {flags}, "
            f"or leave {name} out of --objectives."
        )
