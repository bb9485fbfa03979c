"""Flags of fine-tuning."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from modeling_infoxlm.evaluation.encoders import EncoderArguments
from modeling_infoxlm.runs.flags import flag
from modeling_infoxlm.training.arguments import ReleaseArguments
from modeling_infoxlm.training.bypassed import BYPASSED, refuse_bypassed, settle_precision

# Arguments of transformers that fine-tuning goes around, by the reason; those of `BYPASSED` for that of every
# program.
_BYPASSED = {
    name: BYPASSED[name]
    for name in (
        "bf16_full_eval fp16_full_eval use_liger_kernel liger_kernel_config use_cache optim_target_modules "
        "save_only_model enable_jit_checkpoint ignore_data_skip restore_callback_states_from_checkpoint "
        "resume_from_checkpoint"
    ).split()
} | {
    name: reason
    for reason, names in {
        "prediction takes batches of so many tokens, which no score depends on": "per_device_eval_batch_size",
        "the batch defines the run; give a smaller one and --gradient_accumulation_steps": (
            "auto_find_batch_size"
        ),
        "dev and test sets are scored by the task's own metrics": (
            "prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps "
            "include_for_metrics batch_eval_metrics"
        ),
        "dev sets are scored as --eval_strategy says": "do_eval",
        "the task knows its labels": "label_names",
        "batches hold what the model takes": "remove_unused_columns",
        "every row is learnt from once in an epoch": "dataloader_drop_last",
        "rows of like length are batched together, in an order that --seed or --data_seed defines": (
            "dataloader_in_order train_sampling_strategy length_column_name"
        ),
        "the rows are at hand": (
            "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context"
        ),
        "fine-tuning runs on one device": (
            "average_tokens_across_devices parallelism_config fsdp fsdp_config deepspeed"
        ),
    }.items()
    for name in names.split()
}


@dataclass
class HeadModelArguments(EncoderArguments):
    """Which encoder is fine-tuned."""

    _argument_group_name = "model"
    bf16: bool = field(init=False, default=False)  # the training arguments have the flag


@dataclass
class FineTuningArguments(TrainingArguments, ReleaseArguments):
    """transformers' training arguments with defaults for fine-tuning; a task sets its own ahead of these."""

    _argument_group_name = "training"
    per_device_train_batch_size: int = flag(32, "Rows of a batch (paper: 32).")
    warmup_steps: float = flag(0.1, "Steps of linear warm-up; below 1 a share of all steps.")
    eval_strategy: str = flag("steps", "When the dev set is scored: steps, epoch, or no: the last step wins.")
    eval_steps: float | None = flag(
        5000,
        "Steps between two scores on the dev set (paper: 5,000); below 1 a share of all steps. The last "
        "step is always scored.",
    )
    save_strategy: str = flag(
        "",
        "When checkpoints are written. Unset: as eval_strategy. no: only at steps that are the best so far, "
        "if one is chosen.",
    )
    save_steps: float = flag(0, "Steps between checkpoints, a multiple of eval_steps. 0: eval_steps.")
    save_total_limit: int | None = flag(2, "Checkpoints kept: the best and the newest. At least 2.")
    load_best_model_at_end: bool = flag(True, "Take the checkpoint of the best dev score, not the last.")
    logging_steps: float = flag(50, "Steps between two entries of the log.")
    remove_unused_columns: bool = flag(False, "Must stay off: batches hold what the model takes.")
    do_train: bool = flag(True, "Fine-tune. false: the model already is, only predict.")
    do_predict: bool = flag(True, "Predict and score the test sets.")
    overwrite_output_dir: bool = flag(False, "Start anew in an output_dir that holds a run, which is lost.")

    def __post_init__(self) -> None:
        """Settle what follows from other arguments."""
        refuse_bypassed(self, _BYPASSED)
        if not self.do_train:
            self.eval_strategy = "no"
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False
        self._settle_saving()
        if not self.save_steps:
            self.save_steps = self.eval_steps or 5000
        # With 1 the Trainer removes the newest checkpoint when it stops, and there is nothing to go on from.
        if self.save_total_limit is not None and self.save_total_limit < 2:
            raise ValueError(f"save_total_limit must be at least 2, found {self.save_total_limit}.")
        settle_precision(self)
        super().__post_init__()

    def _settle_saving(self) -> None:
        """Which step is taken must not depend on what is saved: the best one always is."""
        if not self.load_best_model_at_end:
            self.save_strategy = self.save_strategy or "steps"
        elif self.save_strategy in ("", self.eval_strategy):
            self.save_strategy = self.eval_strategy
        elif self.save_strategy in ("no", "best"):
            self.save_strategy = "best"
        else:
            raise ValueError(
                f"save_strategy is {self.save_strategy} and eval_strategy {self.eval_strategy}; make them "
                "the same, or give --load_best_model_at_end false."
            )
