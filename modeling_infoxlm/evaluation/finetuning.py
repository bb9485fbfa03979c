"""Fine-tuning of any encoder for a task with a head: what `run_xnli.py` and `run_mlqa.py` share.

A script reads its data, then

    head = load_head_model(model_args, AutoModelForSequenceClassification, seed=args.seed, num_labels=3)
    run = open_fine_tuning(head.record, task_args, args, files, argv=argv)
    rows = cached_rows(encode, key=(tokenizer_hash(head.tokenizer), *texts), cache_dir=model_args.cache_dir)
    fine_tune(head, args, rows=rows, label_names=("labels",), selection=..., checkpoint=run.checkpoint)
    forward_batches(head.model, test_rows, head.tokenizer, take, bf16=args.bf16)
    finish_run(run, args, task_args)

Batches hold rows of like length in training as in evaluation, so hardly any padding is computed. A run that
was killed goes on from its last checkpoint with the weights that it would have had without the kill.

Shapes: N rows, B rows of a batch, T tokens of the longest.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_infoxlm.data.prepare import remove_prepared
from modeling_infoxlm.evaluation.batching import check_finite, progress_bar, run_batches
from modeling_infoxlm.evaluation.encoders import (
    EncoderArguments,
    check_tokenizer,
    describe_model,
    transformer_folder,
)
from modeling_infoxlm.evaluation.encoding import longest_sequence
from modeling_infoxlm.evaluation.results import ModelRecord
from modeling_infoxlm.hub.loading import check_encoder, load, load_whole_model
from modeling_infoxlm.hub.push import push_run
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.flags import changed_flags
from modeling_infoxlm.runs.process import StopOnSignal
from modeling_infoxlm.runs.record import TRAINER_STATE, Run, open_run, run_identity
from modeling_infoxlm.training.arguments import ReleaseArguments
from modeling_infoxlm.training.bypassed import BYPASSED, refuse_bypassed, settle_precision
from modeling_infoxlm.training.safe_trainer import SafeTrainer

logger = logging.getLogger(__name__)

LENGTH = "length"  # the column of a row's number of tokens
TEXTS_PER_CALL = 1000  # the tokenizer's own records of a text are far larger than its ids

SAMPLES = "drawn by genre or article"  # what `draw` does, for result files

_STEPS_SORTED_TOGETHER = 50
_DRAW_SEED = 0  # not the run's: runs with other seeds are scored on the same rows
# Training arguments that change what is computed; others (logging, saving, workers) may differ on resumption.
_COMPUTED = (
    "seed data_seed learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps num_train_epochs "
    "max_steps optim optim_args adam_beta1 adam_beta2 adam_epsilon weight_decay max_grad_norm bf16 fp16 "
    "label_smoothing_factor eval_strategy eval_steps eval_delay eval_on_start load_best_model_at_end "
    "metric_for_best_model greater_is_better neftune_noise_alpha do_train do_predict"
).split()


_BY_TOKENS = "prediction takes batches of so many tokens, which no score depends on"
_OWN_SCORES = "dev and test sets are scored by the task's own metrics"
_IN_ORDER = "rows of like length are batched together, in an order that --seed or --data_seed defines"
_ONE_DEVICE = "fine-tuning runs on one device"
# Arguments of transformers that fine-tuning goes around; see `BYPASSED` for those that no program has.
_BYPASSED = {
    name: BYPASSED[name]
    for name in (
        "bf16_full_eval fp16_full_eval use_liger_kernel liger_kernel_config use_cache optim_target_modules "
        "save_only_model enable_jit_checkpoint ignore_data_skip restore_callback_states_from_checkpoint "
        "resume_from_checkpoint"
    ).split()
} | {
    "per_device_eval_batch_size": _BY_TOKENS,
    "auto_find_batch_size": "the batch defines the run; give a smaller one and --gradient_accumulation_steps",
    "prediction_loss_only": _OWN_SCORES,
    "eval_do_concat_batches": _OWN_SCORES,
    "eval_use_gather_object": _OWN_SCORES,
    "eval_accumulation_steps": _OWN_SCORES,
    "include_for_metrics": _OWN_SCORES,
    "batch_eval_metrics": _OWN_SCORES,
    "do_eval": "dev sets are scored as --eval_strategy says",
    "label_names": "the task knows its labels",
    "remove_unused_columns": "batches hold what the model takes",
    "dataloader_drop_last": "every row is learnt from once in an epoch",
    "dataloader_in_order": _IN_ORDER,
    "dataloader_persistent_workers": "the rows are at hand",
    "dataloader_prefetch_factor": "the rows are at hand",
    "dataloader_multiprocessing_context": "the rows are at hand",
    "train_sampling_strategy": _IN_ORDER,
    "length_column_name": _IN_ORDER,
    "average_tokens_across_devices": _ONE_DEVICE,
    "parallelism_config": _ONE_DEVICE,
    "fsdp": _ONE_DEVICE,
    "fsdp_config": _ONE_DEVICE,
    "deepspeed": _ONE_DEVICE,
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

    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows of a batch (paper: 32)."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps of linear warm-up; below 1 a share of all steps."}
    )
    eval_strategy: str = field(
        default="steps",
        metadata={
            "help": "When the dev set is scored: steps (eval_steps), epoch, or no: the last step wins."
        },
    )
    eval_steps: float | None = field(
        default=5000,
        metadata={
            "help": "Steps between two scores on the dev set (paper: 5,000); below 1 a share of all steps. "
            "The last step is always scored."
        },
    )
    save_strategy: str = field(
        default="",
        metadata={
            "help": "When checkpoints are written. Unset: as eval_strategy. no: only at steps that are the "
            "best so far, if one is chosen."
        },
    )
    save_steps: float = field(
        default=0, metadata={"help": "Steps between checkpoints, a multiple of eval_steps. 0: eval_steps."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints kept: the best and the newest. At least 2."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Take the checkpoint with the best dev score (paper), not the last."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two entries of the log."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: batches hold what the model takes."}
    )
    do_train: bool = field(
        default=True, metadata={"help": "Fine-tune. false: the model already is, only predict."}
    )
    do_predict: bool = field(default=True, metadata={"help": "Predict and score the test sets."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew in an output_dir that holds a run, which is lost."}
    )

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


# ------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class HeadModel:
    """A model with a task's head, and its tokenizer.

    Attributes:
        model: In fp32, on the CPU; the head is new unless the checkpoint has one.
        tokenizer: Fits the model's vocabulary.
        record: The checkpoint that it was loaded from.
        new_weights: Names of the parameters that the checkpoint does not have.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    record: ModelRecord
    new_weights: tuple[str, ...]

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence, special tokens included."""
        return longest_sequence(self.model.config, self.tokenizer)

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.model.to(device)  # type: ignore[arg-type]  # the library's own annotation is wrong

    def check_length(self, max_seq_length: int) -> None:
        """Refuse a length that the model has no positions for.

        Raises:
            UsageError: With both numbers.
        """
        if max_seq_length > self.max_length:
            raise UsageError(
                f"max_seq_length is {max_seq_length}, but {self.record.name_or_path} takes at most "
                f"{self.max_length} tokens; give --max_seq_length {self.max_length} or less."
            )

    def check_trained(self) -> None:
        """Refuse a model whose head was never trained.

        Raises:
            UsageError: If the checkpoint has no head.
        """
        if self.new_weights:
            raise UsageError(
                f"{self.record.name_or_path} has no trained head ({self.new_weights[0]} is missing); "
                "fine-tune it first: --do_train true."
            )


def load_head_model(
    arguments: HeadModelArguments, auto_class: Any, *, seed: int, **overrides: Any
) -> HeadModel:
    """Load a model with a task's head from any checkpoint of its encoder, with or without a head.

    Dropout and everything else is as the checkpoint's configuration says, apart from `overrides`.

    Args:
        arguments: Which one.
        auto_class: Such as `AutoModelForSequenceClassification`.
        seed: Of the head, where the checkpoint has none.
        overrides: Fields of the configuration, such as `num_labels`.

    Raises:
        UsageError: If none is named, it cannot be loaded, lacks weights of the encoder, or the tokenizer does
            not fit the model.
    """
    if arguments.model_name_or_path is None:
        raise UsageError("no model: give --model_name_or_path, a Hub name or a folder.")
    name = transformer_folder(arguments.model_name_or_path)
    options = arguments.hub_options()
    set_seed(seed)
    config = load(AutoConfig.from_pretrained, name, part="config", **overrides, **options)
    tokenizer: PreTrainedTokenizerBase = load(
        AutoTokenizer.from_pretrained, arguments.tokenizer_name or name, part="tokenizer", **options
    )
    check_tokenizer(tokenizer, config)
    model, loading = load_whole_model(auto_class, name, config=config, dtype=torch.float32, **options)
    missing = tuple(sorted(loading["missing_keys"]))
    check_encoder(arguments.model_name_or_path, model, missing)
    record = describe_model(arguments, model, tokenizer, model_type=config.model_type)
    return HeadModel(model, tokenizer, record, missing)


# -------------------------------------------------------------------------------------------- tokenised rows


def cached_rows(
    encode: Callable[[], Iterator[Mapping[str, Any]]], *, key: Iterable[object], cache_dir: str | None
) -> Dataset:
    """Tokenised rows, read from the disk if the same were made before.

    Args:
        encode: Yields the rows; each has `input_ids`, all have the same names.
        key: Everything that decides what it yields: the tokenizer's hash, settings, every text.
        cache_dir: Folder of the cache. None: that of the `datasets` library.

    Returns:
        The rows in order, on disk, with one more column, `length`.
    """
    digest = hashlib.sha256()
    for part in key:
        text = str(part).encode("utf-8", errors="surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)

    def rows() -> Iterator[dict[str, Any]]:
        for row in encode():
            yield {**row, LENGTH: len(row["input_ids"])}

    made: Dataset = Dataset.from_generator(rows, cache_dir=cache_dir, fingerprint=digest.hexdigest()[:32])
    return made


def draw(groups: Sequence[str], count: int | None) -> list[int]:
    """Numbers of rows that stand for all, ascending, the same in every run; None takes all.

    Each group has its share: files are sorted by genre or article, so that the first rows are of one.

    Args:
        groups: Genre or article of each row.
        count: Rows wanted.
    """
    if count is None or count >= len(groups):
        return list(range(len(groups)))
    rng = np.random.default_rng(_DRAW_SEED)
    # By place, not by name, so that translations of a file are drawn from alike.
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    order = rng.permutation(len(groups))
    order = order[np.argsort([places[groups[row]] for row in order], kind="stable")]
    steps = ((rng.random() + np.arange(count)) * len(groups) / count).astype(int)
    return sorted(order[np.minimum(steps, len(groups) - 1)].tolist())


def collate(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Pad rows to the longest: `input_ids` and the like (B, T), and `labels`, (B, K) for K label names."""
    inputs = [{name: row[name] for name in tokenizer.model_input_names if name in row} for row in rows]
    # At their ends, whatever the tokenizer is set to: the first state is that of `<s>`, and words of answers
    # are counted from there.
    padded = tokenizer.pad(
        {name: [row[name] for row in inputs] for name in inputs[0]},
        padding_side="right",
        return_attention_mask=True,
        return_tensors="pt",
    )
    batch: dict[str, Tensor] = dict(padded)
    if label_names:
        batch["labels"] = torch.tensor([[row[name] for name in label_names] for row in rows])
    return batch


def batch_loss(
    output: Any, labels: Tensor, mask: Tensor, *, num_items: Tensor | int, smoothing: float = 0.0
) -> Tensor:
    """A micro-batch's share of the mean cross entropy over all labels of a step.

    Not left to the models: the heads of transformers know nothing of the other micro-batches of a step, and
    the Trainer adds up the means of those that say that they do. Their span heads also take padding for a
    place where an answer might be, so that a loss would depend on the rows beside it.

    Args:
        output: Of a model with a class or a span head.
        labels: Numbers of classes, (B, 1), or first and last token of an answer, (B, 2).
        mask: 1 for tokens, 0 for padding, (B, T).
        num_items: Labels of all micro-batches.
        smoothing: Share of each label that is spread over all classes.
    """
    if "logits" in output:
        logits = [output.logits.float()]
    else:
        padding = mask == 0
        logits = [
            part.float().masked_fill(padding, -torch.inf) for part in (output.start_logits, output.end_logits)
        ]
    losses = [
        cross_entropy(part, column, reduction="sum", label_smoothing=smoothing)
        for part, column in zip(logits, labels.unbind(dim=1), strict=True)
    ]
    return torch.stack(losses).sum() / num_items


class LengthBuckets(BatchSampler):
    """Batches of rows of like length, in an order that is a function of seed and epoch alone.

    Rows are shuffled, sorted by length within 50 steps' worth of them, and the steps are shuffled. As no
    generator with a state is drawn from, a resumed run meets the batches of an uninterrupted one. The rows of
    a step do not depend on how many batches it is cut into.

    Args:
        lengths: Tokens of each row, (N,).
        batch_size: Rows of a batch; the last of an epoch may have fewer.
        accumulated: Batches of a step.
        seed: Of the order.
    """

    drop_last = False

    def __init__(self, lengths: np.ndarray, batch_size: int, *, accumulated: int = 1, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0
        self.step_size = batch_size * accumulated

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Row numbers of each batch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        window = self.step_size * _STEPS_SORTED_TOGETHER
        steps = []
        for start in range(0, len(order), window):
            rows = order[start : start + window]
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            steps += _cut(rows, self.step_size)
        # A short step comes last: the Trainer counts batches, and would add some of the next step to it.
        numbers = rng.permutation(len(steps))
        for number in sorted(numbers, key=lambda number: len(steps[number]) < self.step_size):
            yield from (batch.tolist() for batch in _cut(steps[number], self.batch_size))


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def forward_batches(
    model: PreTrainedModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    take: Callable[[np.ndarray, Any], None],
    *,
    bf16: bool = False,
    description: str = "predicting",
) -> None:
    """Run the model over all rows in eval mode, those of like length together, the longest first.

    Args:
        model: Any, on its device.
        rows: From `cached_rows`.
        tokenizer: Pads.
        take: Called with the numbers of the rows of a batch, (B,), and the model's output for them.
        bf16: Run products in bf16.
        description: Of the progress bar, which shows after two seconds.

    Raises:
        UsageError: If logits are not finite.
    """

    def run(members: np.ndarray) -> None:
        batch = collate(rows.__getitems__(members.tolist()), tokenizer)
        output = model(**{name: part.to(model.device) for name, part in batch.items()})
        logits = [output.logits] if "logits" in output else [output.start_logits, output.end_logits]
        for part in logits:
            check_finite(part, model, lambda number: f"row {number + 1:,}", members)
        take(members, output)

    with progress_bar(len(rows), description, " rows") as bar:
        run_batches(model, np.asarray(rows[LENGTH][:]), run, bf16=bf16, bar=bar)


# -------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Selection:
    """What the best checkpoint is chosen by.

    Attributes:
        rows: The dev set.
        score: Takes the model and the rows to metrics by name; one of them is
            `args.metric_for_best_model`, the higher the better.
    """

    rows: Dataset
    score: Callable[[PreTrainedModel, Dataset], dict[str, float]]


@dataclass(frozen=True)
class TrainingRecord:
    """How fine-tuning went.

    Attributes:
        steps: Optimiser steps.
        selected_step: The step whose weights were taken.
        history: Step and metrics of each score on the dev set.
    """

    steps: int
    selected_step: int
    history: list[dict[str, float]]


class FineTuner(SafeTrainer):
    """Trainer with length buckets and our own dev scores.

    Args:
        head: Model to train, and its tokenizer.
        args: Training arguments.
        rows: Training set, from `cached_rows`.
        label_names: Columns of the rows that the model takes as labels.
        selection: What the best checkpoint is chosen by; None takes the last one.
        kwargs: Further arguments of `transformers.Trainer`.
    """

    loss_is_scaled_for_ga = True
    # The Trainer says that they may be None; here both are always given.
    model: Any
    processing_class: Any

    def __init__(
        self,
        head: HeadModel,
        args: FineTuningArguments,
        *,
        rows: Dataset,
        label_names: Sequence[str],
        selection: Selection | None,
        **kwargs: Any,
    ) -> None:
        self.selection = selection
        super().__init__(
            head.model,
            args,
            train_dataset=rows,
            eval_dataset=None if selection is None else selection.rows,
            data_collator=partial(collate, tokenizer=head.tokenizer, label_names=label_names),
            processing_class=head.tokenizer,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # so that the labels of all micro-batches are counted

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """See `batch_loss`."""
        labels = inputs.pop("labels")
        return batch_loss(
            model(**inputs),
            labels,
            inputs["attention_mask"],
            num_items=num_items_in_batch,
            smoothing=self.args.label_smoothing_factor,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Batches of rows of like length, the same ones after a resumption."""
        rows: Any = self.train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        loader = DataLoader(
            rows,
            batch_sampler=LengthBuckets(
                np.asarray(rows[LENGTH][:]),
                self.args.train_batch_size,
                accumulated=self.args.gradient_accumulation_steps,
                seed=seed,
            ),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )
        prepared: DataLoader = self.accelerator.prepare(loader)
        return prepared

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the dev set; the metrics are logged with `eval_` before their names."""
        if self.selection is None:
            raise ValueError("there is no dev set to score; give a selection.")
        metrics = self.selection.score(self.model, self.selection.rows)
        metrics = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Save a step that is the best so far, whatever `save_steps` says: else another would be taken."""
        is_best = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= is_best and self.args.load_best_model_at_end
        return is_best

    @property
    def selected_step(self) -> int:
        """The step whose weights are the result."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return best or self.state.global_step

    def restore(self, state: TrainerState) -> None:
        """Take over the state of a completed training, and the weights that it selected."""
        self.state = state
        self._load_from_checkpoint(f"{self.args.output_dir}/{PREFIX_CHECKPOINT_DIR}-{self.selected_step}")


def fine_tune(
    head: HeadModel,
    args: FineTuningArguments,
    *,
    rows: Dataset,
    label_names: Sequence[str],
    selection: Selection | None,
    checkpoint: str | None,
) -> TrainingRecord:
    """Fine-tune, and save the chosen weights in `args.output_dir`; they are in `head.model` afterwards.

    Args:
        head: Model to train, and its tokenizer.
        args: Training arguments.
        rows: Training set, from `cached_rows`.
        label_names: Columns of the rows that the model takes as labels.
        selection: What the best checkpoint is chosen by; None takes the last one.
        checkpoint: To go on from; None starts anew.

    Raises:
        Interrupted: If a signal came; a checkpoint is saved.
    """
    stop = StopOnSignal()
    trainer = FineTuner(head, args, rows=rows, label_names=label_names, selection=selection, callbacks=[stop])
    completed = None if checkpoint is None else _completed_state(Path(checkpoint))
    if completed is None:
        trainer.train(resume_from_checkpoint=checkpoint)
    else:  # the Trainer would do one more step
        trainer.restore(completed)
    state = trainer.state
    stop.raise_if_stopped(state)
    trainer.save_model(_internal_call=True)  # what is pushed is the whole run, at its end
    trainer.save_state()
    history = [
        {"step": entry["step"]} | {name[5:]: entry[name] for name in entry if name.startswith("eval_")}
        for entry in state.log_history
        if any(name.startswith("eval_") for name in entry)
    ]
    return TrainingRecord(state.global_step, trainer.selected_step, history)


def _completed_state(checkpoint: Path) -> TrainerState | None:
    """State of a checkpoint of the last step, None of an earlier one."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
    return state if state.global_step >= state.max_steps else None


# --------------------------------------------------------------------------------------------------- the run


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

    Args:
        model: What is fine-tuned.
        task_args: The task's dataclass of arguments.
        args: Training arguments.
        files: Hash of each data file by its name.
        argv: Arguments of the command, for `run.json`.
        outputs: Names of files and folders that an earlier run may have left, for `--overwrite_output_dir`.

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
