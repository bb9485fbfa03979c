"""Arguments of transformers and of launchers that our steps go around: refused with what there is instead."""

import os
from collections.abc import Mapping
from dataclasses import fields

import torch
from accelerate.utils import str_to_bool
from transformers import TrainingArguments

from modeling_infoxlm.runs.flags import default_of

# Arguments of transformers that the joint step goes around or that would break it, and what there is instead.
_REASONS = {
    "a run is as long as max_steps": "num_train_epochs",
    "it is for optimisers with projected gradients, which are not supported": "optim_target_modules",
    "losses are always means over the items of all devices": "average_tokens_across_devices",
    "the losses are the paper's": "label_smoothing_factor",
    "evaluation computes as training does; give --bf16 true": "bf16_full_eval",
    "evaluation computes as training does; give --fp16 true": "fp16_full_eval",
    "packed rows cannot be compiled as a whole; give --compile_layers true": (
        "torch_compile torch_compile_backend torch_compile_mode"
    ),
    "there are no such kernels for this model": "use_liger_kernel liger_kernel_config",
    "an encoder has no cache": "use_cache",
    "the packed pass does not add noise to embeddings": "neftune_noise_alpha",
    "the batch defines the run; to bound memory give --tokens_per_device": "auto_find_batch_size",
    "evaluation measures held-out losses and retrieval": (
        "prediction_loss_only eval_do_concat_batches eval_use_gather_object"
    ),
    "evaluation keeps no outputs": "eval_accumulation_steps include_for_metrics batch_eval_metrics",
    "a joint batch has its labels in its parts": "label_names",
    "nothing could go on from such a checkpoint; `infoxlm export` makes a release of one": "save_only_model",
    "SIGTERM and Ctrl-C always save a checkpoint": "enable_jit_checkpoint",
    "pre-training ends with its last step": "load_best_model_at_end metric_for_best_model greater_is_better",
    "a resumed run would meet the same examples again": "ignore_data_skip",
    "a resumed run goes on as it was without it": "restore_callback_states_from_checkpoint",
    "order and masks follow --seed": "data_seed",
    "runs are on one device or under DDP": "parallelism_config",
    "ranks must gather equally many keys": "dataloader_drop_last",
    "batches must come in their order": "dataloader_in_order",
    "it would drop every part of a joint batch": "remove_unused_columns",
    "which example comes when is defined by --sampling_alpha and --seed": (
        "train_sampling_strategy length_column_name"
    ),
    "micro-batches differ in what they reach": "ddp_static_graph",
    "runs are on one device or under DDP; start them with torchrun": "fsdp fsdp_config deepspeed",
    "this program trains, and evaluates as --eval_strategy says": "do_eval do_predict",
    "the same command goes on by itself from the last checkpoint; "
    "to start from other weights give --model_name_or_path": "resume_from_checkpoint",
}
BYPASSED = {name: reason for reason, names in _REASONS.items() for name in names.split()}
# What `accelerate launch` switches on by an environment variable, whatever the flags say.
_LAUNCHED = {
    "ACCELERATE_USE_FSDP": "fsdp",
    "ACCELERATE_USE_DEEPSPEED": "deepspeed",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
    "ACCELERATE_USE_MEGATRON_LM": "parallelism_config",
}


def refuse_bypassed(args: TrainingArguments, reasons: Mapping[str, str]) -> None:
    """Refuse arguments that would change nothing, or break what they meet; call it before `__post_init__`.

    Raises:
        ValueError: If one of those in `reasons` does not have its default; with why and what to do instead.
    """
    for flag in fields(args):
        value = getattr(args, flag.name)
        if flag.name in reasons and value != default_of(flag):
            raise ValueError(f"{flag.name} {value} is not supported: {reasons[flag.name]}.")


def settle_precision(args: TrainingArguments) -> None:
    """Take over the precision of the launcher where no flag gives one, so that it is recorded as it is.

    Call it before `__post_init__`: accelerate would use it all the same.

    Raises:
        ValueError: If the precision is neither bf16 nor fp16, or fp16 is asked for without a GPU.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if not (args.bf16 or args.fp16) and launched != "no":
        if launched not in ("bf16", "fp16"):
            raise ValueError(f"the launcher's mixed_precision is {launched}; expected no, bf16 or fp16.")
        setattr(args, launched, True)
    on_cpu = args.use_cpu or not torch.accelerator.is_available()
    if args.fp16 and on_cpu:
        raise ValueError("fp16 needs a GPU and there is none; on a CPU give --bf16 true, or neither.")
    if args.bf16 and on_cpu:
        args.use_cpu = True  # else the base class refuses bf16, which CPUs have too


def refuse_launcher() -> None:
    """Refuse what `accelerate launch` switches on, whatever the flags say.

    Raises:
        ValueError: With the variable, and what there is instead.
    """
    for variable, name in _LAUNCHED.items():
        if str_to_bool(os.environ.get(variable, "false")):
            raise ValueError(f"the launcher asks for {variable}, not supported: {BYPASSED[name]}.")
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise ValueError(f"the launcher's dynamo_backend is not supported: {BYPASSED['torch_compile']}.")
