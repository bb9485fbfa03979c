"""Training of a model with a head: length buckets, dev scores of the task's own, and the step that is taken.

Shapes: B rows of a batch, T tokens of the longest, K labels of a row.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_infoxlm.evaluation.finetuning.arguments import FineTuningArguments
from modeling_infoxlm.evaluation.finetuning.heads import HeadModel
from modeling_infoxlm.evaluation.finetuning.rows import LENGTH, LengthBuckets, collate
from modeling_infoxlm.runs.process import StopOnSignal
from modeling_infoxlm.runs.record import TRAINER_STATE
from modeling_infoxlm.training.safe_trainer import SafeTrainer

Score = Callable[[], dict[str, float]]


def batch_loss(
    output: Any, labels: Tensor, mask: Tensor, *, num_items: Tensor | int, smoothing: float = 0.0
) -> Tensor:
    """A micro-batch's share of the mean cross entropy over all labels of a step, `num_items` of them.

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
        # padding is no place of an answer
        outputs = output.start_logits, output.end_logits
        logits = [part.float().masked_fill(mask == 0, -torch.inf) for part in outputs]
    losses = [
        cross_entropy(part, column, reduction="sum", label_smoothing=smoothing)
        for part, column in zip(logits, labels.unbind(dim=1), strict=True)
    ]
    return torch.stack(losses).sum() / num_items


class FineTuner(SafeTrainer):
    """Trainer with length buckets and our own dev scores.

    `score` scores the model on the dev set: metrics by name, one of which is `metric_for_best_model`, the
    higher the better. None takes the last step. `label_names` are the columns of the rows that are labels.
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
        score: Score | None,
    ) -> None:
        self.score, self.stop = score, StopOnSignal()
        super().__init__(
            head.model,
            args,
            train_dataset=rows,
            eval_dataset=None if score is None else rows,  # the Trainer asks for one, `evaluate` does not
            data_collator=partial(collate, tokenizer=head.tokenizer, label_names=label_names),
            processing_class=head.tokenizer,
            callbacks=[self.stop],
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
        args, lengths = self.args, np.asarray(rows[LENGTH][:])
        loader = DataLoader(
            rows,
            batch_sampler=LengthBuckets(
                lengths,
                args.train_batch_size,
                accumulated=args.gradient_accumulation_steps,
                seed=args.seed if args.data_seed is None else args.data_seed,
            ),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )
        prepared: DataLoader = self.accelerator.prepare(loader)
        return prepared

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the dev set; the metrics are logged with `eval_` before their names."""
        if self.score is None:
            raise ValueError("there is no dev set to score; give a score.")
        metrics = {f"eval_{name}": value for name, value in self.score().items()}
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

    def fine_tune(self, checkpoint: str | None) -> dict[str, Any]:
        """Train, from a checkpoint on if there is one, and save the chosen weights, which the model has then.

        Returns:
            `steps`, `selected_step` and `history`, the step and the metrics of each score on the dev set.

        Raises:
            Interrupted: If a signal came; a checkpoint is saved.
        """
        found = None if checkpoint is None else TrainerState.load_from_json(f"{checkpoint}/{TRAINER_STATE}")
        if found is None or found.global_step < found.max_steps:
            self.train(resume_from_checkpoint=checkpoint)
        else:  # training is complete: the Trainer would do one more step
            self.state = found
            step = f"{PREFIX_CHECKPOINT_DIR}-{self.selected_step}"
            self._load_from_checkpoint(f"{self.args.output_dir}/{step}")
        self.stop.raise_if_stopped(self.state)
        self.save_model(_internal_call=True)  # what is pushed is the whole run, at its end
        self.save_state()
        history = [
            {"step": entry["step"]} | {name[5:]: entry[name] for name in entry if name.startswith("eval_")}
            for entry in self.state.log_history
            if any(name.startswith("eval_") for name in entry)
        ]
        return {"steps": self.state.global_step, "selected_step": self.selected_step, "history": history}
