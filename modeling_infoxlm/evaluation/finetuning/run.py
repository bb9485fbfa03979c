"""A run of fine-tuning: what it is, what its folder holds, and the contract of a task."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset

from modeling_infoxlm.data.prepare import remove_prepared
from modeling_infoxlm.evaluation.finetuning.arguments import FineTuningArguments
from modeling_infoxlm.evaluation.finetuning.heads import HeadModel
from modeling_infoxlm.evaluation.finetuning.trainer import FineTuner, Score
from modeling_infoxlm.evaluation.results import ModelRecord, TaskResult
from modeling_infoxlm.hub.push import push_run
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.flags import changed_flags
from modeling_infoxlm.runs.record import Run, open_run, run_identity

# Training arguments that change what is computed; others (logging, saving, workers) may differ on resumption.
_COMPUTED = (
    "seed data_seed learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps num_train_epochs "
    "max_steps optim optim_args adam_beta1 adam_beta2 adam_epsilon weight_decay max_grad_norm bf16 fp16 "
    "label_smoothing_factor eval_strategy eval_steps eval_delay eval_on_start load_best_model_at_end "
    "metric_for_best_model greater_is_better neftune_noise_alpha do_train do_predict"
).split()


class HeadRun(ABC):
    """A model with a head on the data of a task: fine-tunes, predicts and scores.

    `task` is the task's dataclass of arguments, which has a `max_seq_length`; `cache_dir` is the folder of
    the cache of tokenised rows, None the `datasets` library's own. See `HeadModel.check` for what is refused.
    """

    auto_class: ClassVar[Any]  # of the model
    config: ClassVar[Mapping[str, Any]] = {}  # fields of the configuration of a model that is trained
    label_names: ClassVar[tuple[str, ...]]  # columns of rows that the model takes as labels

    def __init__(
        self, head: HeadModel, data: Any, *, task: Any, args: FineTuningArguments, cache_dir: str | None
    ) -> None:
        head.check(max_seq_length=task.max_seq_length, trained=not args.do_train)
        self.head, self.data, self.task, self.args, self.cache_dir = head, data, task, args, cache_dir

    @abstractmethod
    def training_rows(self) -> Dataset:
        """Rows to learn from, from `cached_rows`."""

    def dev_score(self) -> Score | None:
        """What the best step is chosen by; None takes the last one."""
        return None

    @abstractmethod
    def test(self, training: Mapping[str, Any] | None, folder: Path) -> Iterator[TaskResult]:
        """Predict, write the predictions into the run's folder, and score; `training` is from `train`."""

    def train(self, checkpoint: str | None) -> dict[str, Any]:
        """Fine-tune, from a checkpoint on if there is one; how it went. The model has the chosen weights."""
        rows, score = self.training_rows(), self.dev_score()
        trainer = FineTuner(self.head, self.args, rows=rows, label_names=self.label_names, score=score)
        return trainer.fine_tune(checkpoint)

    def training_settings(self) -> dict[str, Any]:
        """Of the training, for the result file; empty if there is none."""
        args = self.args
        if not args.do_train:
            return {}
        names = ("learning_rate", "num_train_epochs", "max_steps", "warmup_steps", "weight_decay")
        batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return {"batch_size": batch_size} | {name: getattr(args, name) for name in names}


def open_fine_tuning(
    model: ModelRecord,
    task_args: Any,
    args: FineTuningArguments,
    files: Mapping[str, str],
    *,
    argv: Sequence[str],
    outputs: Sequence[str] = (),
) -> Run:
    """Look for this run in `args.output_dir`, and begin it there if it is new.

    `files` has the hash of each data file by its name, `outputs` the names of what an earlier run may have
    left.

    Raises:
        UsageError: If the folder holds a different run, or files of something else; or there are several
            devices.
    """
    if args.world_size > 1 or args.n_gpu > 1:
        raise UsageError(
            f"fine-tuning runs on one device, found {max(args.world_size, args.n_gpu)}; "
            "start it without torchrun, with CUDA_VISIBLE_DEVICES=0."
        )
    return open_run(
        Path(str(args.output_dir)),
        fine_tuning_identity(model, task_args, args, files),
        argv=argv,
        overwrite=args.overwrite_output_dir,
        outputs=outputs,
        remove_corpus=remove_prepared,
    )


def fine_tuning_identity(
    model: ModelRecord, task_args: Any, args: FineTuningArguments, files: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that changes what a run computes, see `run_identity`."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    inputs = {"model": asdict(model), "files": dict(files), "batch_size": batch}
    return run_identity(task_args, args=args, computed=_COMPUTED, **inputs)


def finish_run(run: Run, args: FineTuningArguments, task_args: Any) -> None:
    """Note in `run.json` that everything is there, then push what `args` say; call it last."""
    model = run.identity["model"]
    run.write_record(
        base_model=None if model["sha256"] else model["name_or_path"],
        non_default=changed_flags(args, task_args),
        resumed_at_step=run.resumed_at_step,
        finished=True,
    )
    push_run(args)
