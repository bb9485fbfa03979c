"""InfoXLMTrainer: the joint MLM + TLM + XlCo step (arXiv 2007.07834) on top of transformers' Trainer."""

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import TrainerCallback

from modeling_infoxlm.data.batches import JointDataset, PretrainingCollator
from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.objectives import combine_losses
from modeling_infoxlm.training.arguments import ContrastArguments, PretrainingArguments
from modeling_infoxlm.training.contrast import MOMENTUM_STATE_NAME, ContrastState, take_over_contrast
from modeling_infoxlm.training.layers import compile_layers, freeze_encoder, recompute_layers
from modeling_infoxlm.training.loaders import consecutive_loader
from modeling_infoxlm.training.meter import ContrastCollapsed, LossMeter, describe_collapse
from modeling_infoxlm.training.micro_batches import split_batch
from modeling_infoxlm.training.optimizer import (
    clip_in_step,
    divides_gradients,
    gradient_norm,
    low_memory_adamw,
)
from modeling_infoxlm.training.safe_trainer import SafeTrainer
from modeling_infoxlm.training.step_log import StepLog
from modeling_infoxlm.training.throughput import Speedometer, count_tokens

logger = logging.getLogger(__name__)

_AGAINST_QUEUE = ("loss/xlco", "information/xlco", "xlco/accuracy")


class InfoXLMTrainer(SafeTrainer):
    """Trains `InfoXLMForPreTraining` jointly; owns the momentum encoder and the queue of keys.

    The loop is the Trainer's. This class adds, in the order of a step: keys by the momentum encoder, one
    forward pass for all losses, their combination over the global batch, enqueueing after the backward pass,
    the momentum step after the optimiser's. A checkpoint is a model folder that the auto classes load.

    Args:
        model: Model to train.
        args: Training arguments.
        contrast: Queue and momentum.
        train_dataset: Joint examples by number; nothing is shuffled here, example i already is a random one.
        eval_dataset: The same of held-out text, for losses in `evaluate()`.
        evaluator: Called with the model in `evaluate()`; returns metrics by name, such as retrieval accuracy.
        matmul_peak: Floating point operations per second of one
            device, to log the share of it that a step uses (`mfu`).
        kwargs: Further arguments of `transformers.Trainer`.

    Raises:
        ValueError: If layers are to be recomputed that the model does not have, or nothing would be trained.
    """

    args: PretrainingArguments
    train_dataset: JointDataset

    # The loss is normalised over the whole accumulated batch here; the Trainer must not divide once more.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: InfoXLMForPreTraining,
        args: PretrainingArguments,
        *,
        contrast: ContrastArguments,
        train_dataset: JointDataset,
        eval_dataset: JointDataset | None = None,
        evaluator: Callable[[InfoXLMForPreTraining], dict[str, float]] | None = None,
        matmul_peak: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.streams = train_dataset.objectives
        model.freeze_unused(self.streams)
        if args.freeze_encoder:
            freeze_encoder(model)
        if args.recompute_layers is not None:
            recompute_layers(model, args.recompute_layers)
        if args.compile_layers:
            compile_layers(model, args.device)
        kwargs.setdefault("data_collator", PretrainingCollator())
        if args.moments_dtype == "bfloat16":
            kwargs.setdefault("optimizer_cls_and_kwargs", low_memory_adamw(args))
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.contrast_arguments = contrast
        self.contrast: ContrastState | None = None  # from the start of train(), if there is such an objective
        self.evaluator = evaluator
        self.step_log = StepLog(self.accelerator, matmul_peak)
        self._num_negatives = 0  # queued keys that the batch under way meets
        self._eval_loader: DataLoader | None = None
        self._tokens = 0  # of this rank, not yet in the Trainer's state
        self.add_callback(_AfterOptimizerStep(self))

    @property
    def joint_weights(self) -> dict[str, float]:
        """Weight of each objective."""
        return self.args.objective_weights(self.streams)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train, and measure held-out text before the first step: the difference is what the run has done.

        A resumed run has its start in the log history of the checkpoint.
        """
        self.args.eval_on_start = self.eval_dataset is not None and not resume_from_checkpoint
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # --- the step -------------------------------------------------------------------------------------------

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Joint loss of one micro-batch: its share of the mean over the global batch.

        Args:
            model: The (wrapped) model.
            inputs: Joint batch.
            return_outputs: Not supported; the Trainer's own evaluation loop is not used.
            num_items_in_batch: Items of each objective over all ranks and accumulation steps.
        """
        if return_outputs or num_items_in_batch is None:
            raise ValueError(
                "InfoXLMTrainer.compute_loss needs num_items_in_batch and returns the loss alone."
            )
        if "xlco" in inputs:
            contrast = self._contrast_state()
            inputs = _with_keys(inputs, contrast.keys(inputs["xlco"]["key"]), contrast.negatives())
        losses = model(inputs, streams=self.streams)
        self.step_log.add(losses, inputs, self.floating_point_ops(inputs))
        loss = combine_losses(losses, num_items_in_batch, self.joint_weights, self.args.loss_normalization)
        # DDP averages gradients over ranks; the loss is a sum over them.
        return loss * self.accelerator.num_processes + self._touch_the_rest(losses)

    def _touch_the_rest(self, losses: Collection[str]) -> float | Tensor:
        """0 with a gradient for what objectives have of their own that are not in the micro-batch.

        DDP exchanges gradients in one backward pass and waits for every parameter in it. The encoder and the
        head are reached by the masked objectives, which the last micro-batch always has.
        """
        if not self.accelerator.use_distributed:
            return 0.0
        model = self._plain_model()
        absent = {model.objective(name) for name in self.streams if name not in losses}
        absent -= {model.objective(name) for name in losses}
        return sum((0.0 * value.sum() for module in absent for value in module.parameters()), 0.0)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of each micro-batch, then enqueue.

        The loss keeps a view of the queue, so no write comes before. The keys of the batch enter together, in
        its order: how it was cut leaves no trace.
        """
        micro_batches = self._micro_batches(inputs)
        self._num_negatives = 0 if self.contrast is None else self.contrast.queue.num_filled
        losses = []
        for i, micro_batch in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, micro_batch, num_items_in_batch))
        if self.contrast is not None:
            self.contrast.end_batch()
            if self.contrast_arguments.xlco_enqueue == "microbatch" or self.accelerator.sync_gradients:
                self.contrast.enqueue()
        if self.accelerator.sync_gradients:
            self.step_log.end_batch()
        return torch.stack(losses).sum()

    def _micro_batches(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        model = self._plain_model()
        micro_batches = split_batch(
            inputs,
            tokens_per_device=self.args.tokens_per_device,
            by_objective=self.args.objective_backward == "sequential",
            whole={stream for name, stream in self.streams.items() if model.objective(name).whole_batch},
        )
        self.step_log.add_batch(micro_batches)
        return micro_batches

    def update_momentum(self) -> None:
        """Move the momentum encoder towards the model, after each optimiser step that was not skipped."""
        if self.contrast is not None and not self.accelerator.optimizer_step_was_skipped:
            self.contrast.update(self._plain_model(), self.state.global_step + 1)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Norm of all gradients; the fused optimiser is told to clip, others get clipped gradients."""
        optimizer = cast(Any, self.optimizer).optimizer  # what accelerate has wrapped
        if self.accelerator.scaler is not None or not divides_gradients(optimizer):
            clipped: Tensor = super()._clip_grad_norm(model)
            return clipped
        norm = gradient_norm(model.parameters())
        clip_in_step(optimizer, norm, self.args.max_grad_norm)
        return norm

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights that decay: not biases and norms, unless all are asked for."""
        if self.args.weight_decay_on_all:
            return [name for name, _ in model.named_parameters()]
        names: list[str] = super().get_decay_parameter_names(model)
        return names

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Batches of this update, as objectives have prepared them, and the items of each over all ranks."""
        model, batches = self._plain_model(), list(islice(epoch_iterator, num_batches))
        counts = dict.fromkeys(self.streams, torch.zeros((), dtype=torch.float64, device=device))
        for i, batch in enumerate(batches):
            batches[i] = batch = self._prepared(model, batch)
            for name, stream in self.streams.items():
                counts[name] = counts[name] + model.objective(name).num_items(batch[stream])
        total = self.accelerator.reduce(torch.stack(list(counts.values())), reduction="sum")
        return batches, dict(zip(counts, total.float(), strict=True))

    def _prepared(self, model: InfoXLMForPreTraining, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch on the device, with what objectives make of it before it is counted and cut."""
        batch = cast(dict[str, Any], self._prepare_inputs(batch))
        with self.accelerator.autocast():
            model.prepare(batch, self.streams)
        return batch

    # --- momentum encoder and queue -------------------------------------------------------------------------

    def restore(self, checkpoint: Path | None) -> None:
        """Build the momentum encoder from the model as loaded, on its device, and restore a saved one."""
        super().restore(checkpoint)
        if "xlco" in self.streams:
            self.contrast = ContrastState(self._plain_model(), self.contrast_arguments, self.accelerator)
        if checkpoint is not None:
            self._load_momentum_state(checkpoint / MOMENTUM_STATE_NAME)
        elif self.contrast is not None and self.contrast_arguments.momentum_state is not None:
            folder = Path(self.contrast_arguments.momentum_state)
            take_over_contrast(folder, self.contrast.encoder, self.contrast.queue)
        elif self.contrast is not None and self.contrast_arguments.queue_prefill:
            self.contrast.prefill(self._unmet_keys(), show_progress=self.args.should_log)
        self.step_log.speed = Speedometer()  # measure from now on

    def _unmet_keys(self) -> Iterator[Mapping[str, Any]]:
        """Key sides of examples that the run does not meet, a device's batch at a time."""
        stream = self.train_dataset.streams["xlco"]
        count = self.args.per_device_train_batch_size * stream.examples_per_item
        first = len(self.train_dataset) * stream.examples_per_item + self.args.process_index * count
        while True:
            batch = self.data_collator([{"xlco": stream.pack(np.arange(first, first + count))}])
            yield cast(Any, self._prepare_inputs(batch))["xlco"]["key"]
            first += count * self.args.world_size

    def _contrast_state(self) -> ContrastState:
        if self.contrast is None:
            raise ValueError(
                "the momentum encoder exists only during train(); a batch with an xlco part came before."
            )
        return self.contrast

    def _plain_model(self) -> InfoXLMForPreTraining:
        model: InfoXLMForPreTraining = self.accelerator.unwrap_model(self.model)
        return model

    # --- data -----------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Batches of consecutive numbers.

        Ranks take them in turn, and a resumed run skips to its own in O(1) memory.
        """
        return self._dataloader(self.train_dataset, self._train_batch_size)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of the held-out dataset, in order."""
        dataset = cast(JointDataset, eval_dataset or self.eval_dataset)
        # One for all evaluations: accelerate keeps every loader, and a loader its persistent workers.
        if self._eval_loader is None or self._eval_loader.dataset is not dataset:
            self._eval_loader = self._dataloader(dataset, self._eval_batch_size)
        return self._eval_loader

    @property
    def _eval_batch_size(self) -> int:
        """Examples that a rank evaluates at a time: at most as asked for, and some make up a global batch."""
        return math.gcd(self.args.eval_batch_size, self._batch_of_rank)

    @property
    def _batch_of_rank(self) -> int:
        """Examples of a global batch that are one rank's."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps

    def _dataloader(self, dataset: JointDataset, batch_size: int) -> DataLoader:
        loader = consecutive_loader(dataset, batch_size, collate=self.data_collator, args=self.args)
        prepared: DataLoader = self.accelerator.prepare(loader)
        return prepared

    # --- logs -----------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the losses, metrics and speed since the last entry to the Trainer's own training logs."""
        alarm = self.step_log.alarm
        if "loss" in logs:
            logs.update(self.step_log.pop())
            if self.contrast is not None:
                queue = self.contrast.queue
                logs["xlco/queue_filled"] = queue.num_filled / queue.size
                logs["xlco/momentum"] = self.contrast.momentum_at(self.state.global_step)
            for warning in alarm.check(logs):
                if self.args.should_log:
                    logger.warning("step %d: %s", self.state.global_step, warning)
            if self._may_yet_spread():
                alarm.collapsed_logs = 0
        super().log(logs, *args, **kwargs)
        limit = 10 if self.args.stop_on_collapse is None else self.args.stop_on_collapse
        if 0 < limit <= alarm.collapsed_logs:
            raise ContrastCollapsed(
                describe_collapse(
                    self._plain_model().config,
                    step=self.state.global_step,
                    entries=alarm.collapsed_logs,
                    learning_rate=self.args.learning_rate,
                )
            )

    def _may_yet_spread(self) -> bool:
        """Whether a healthy run may begin with such vectors, and no flag says how long to wait."""
        warm = max(100, self.args.get_warmup_steps(self.args.max_steps))
        return self.args.stop_on_collapse is None and self.state.global_step <= warm

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:  # type: ignore[override]
        """Useful floating point operations of a micro-batch, the momentum encoder's included."""
        model = self._plain_model()
        if "xlco" in inputs and self.contrast is not None:
            inputs = _with_keys(inputs, None, self.contrast.queue.keys[: self._num_negatives])
        return model.flops(inputs, self.streams)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Count real tokens; the Trainer would look for a padded `input_ids`."""
        self._tokens += count_tokens(inputs)

    def store_flos(self) -> None:
        """Add the operations and tokens of all ranks to the Trainer's state, before it is logged or saved."""
        super().store_flos()
        tokens = torch.tensor(self._tokens, device=self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.reduce(tokens, reduction="sum"))
        self._tokens = 0

    # --- held-out evaluation --------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out loss of each objective, and whatever `evaluator` measures.

        Before the first key is queued the contrast is measured by `xlco/in_batch_accuracy` alone.

        Args:
            eval_dataset: Other held-out examples than those of the constructor.
            ignore_keys: Not used; kept for the Trainer.
            metric_key_prefix: Put before each name: `eval_loss`, `eval_loss/mlm`, `eval_retrieval/mean`.
        """
        model = self._plain_model()
        was_training = model.training
        model.eval()
        with self.step_log.speed.paused():
            metrics = self._heldout_losses(model, self.get_eval_dataloader(eval_dataset))
            if self.evaluator is not None:
                metrics.update(self.evaluator(model))
        model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluate_end(self) -> dict[str, float]:
        """`evaluate()` of the model as trained; from the log if the last step was evaluated."""
        for entry in reversed(self.state.log_history):
            if entry["step"] == self.state.global_step and "eval_loss" in entry:
                return {name: value for name, value in entry.items() if name != "step"}
        return self.evaluate()

    def _heldout_losses(
        self, model: InfoXLMForPreTraining, batches: Iterator[dict[str, Any]] | DataLoader
    ) -> dict[str, float]:
        meter = LossMeter()
        hidden = not self.args.should_log
        passes = self._batch_of_rank // self._eval_batch_size  # of a global batch, as in training
        progress = tqdm(batches, "held-out losses", delay=2, leave=False, disable=hidden)
        for number, batch in enumerate(progress, start=1):
            batch = self._prepared(model, batch)
            with self.accelerator.autocast():
                if "xlco" in batch:
                    contrast = self._contrast_state()
                    batch = _with_keys(batch, contrast.encode(batch["xlco"]["key"]), contrast.negatives())
                meter.add(model(batch, streams=self.streams))
            if number % passes == 0:
                meter.end_batch(self.accelerator)
        meter.end_batch(self.accelerator)  # of what is left over
        logs = meter.pop(self.accelerator)
        kept = ("loss", "information", "accuracy", "in_batch_accuracy")
        logs = {name: value for name, value in logs.items() if set(name.split("/")) & set(kept)}
        if self.contrast is not None and self.contrast.queue.num_filled == 0:
            # At the start: a loss against no queue is another measure than one against a queue.
            return {name: value for name, value in logs.items() if name not in _AGAINST_QUEUE}
        logs["loss"] = sum(self.joint_weights[name] * logs[f"loss/{name}"] for name in self.streams)
        return logs

    # --- checkpoints ----------------------------------------------------------------------------------------

    def _save_beside(self, folder: Path) -> None:
        """Momentum encoder, queue and the sums of the open log entry: beside the model, never in it."""
        state = self.step_log.state_dict()
        if self.contrast is not None:
            state |= self.contrast.state_dict()
        if self.args.should_save:
            state = {name: value.contiguous() for name, value in state.items()}
            save_file(state, folder / MOMENTUM_STATE_NAME)

    def _load_momentum_state(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: not a checkpoint of InfoXLMTrainer. Start a new run from its model."
            )
        state = load_file(path)
        if self.contrast is not None:
            self.contrast.load_state_dict(state)
        self.step_log.load_state_dict(state)


def _with_keys(batch: Mapping[str, Any], keys: Tensor | None, negatives: Tensor) -> dict[str, Any]:
    """The batch with what the contrast compares its queries with."""
    return {**batch, "xlco": {**batch["xlco"], "keys": keys, "negatives": negatives}}


class _AfterOptimizerStep(TrainerCallback):
    """Tells the trainer when the optimiser has stepped."""

    def __init__(self, trainer: InfoXLMTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.update_momentum()
