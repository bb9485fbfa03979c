"""SafeTrainer: whole checkpoints without pickles, logs that outlast a break, pushes of whole releases."""

import logging
import random
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    HubStrategy,
    TrainOutput,
    rotate_checkpoints,
    speed_metrics,
)
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME
from transformers.utils.hub import PushInProgress

from modeling_infoxlm.hub.publish import TrainingPublisher
from modeling_infoxlm.runs.files import give_name
from modeling_infoxlm.runs.record import TRAINER_STATE
from modeling_infoxlm.training.state_files import load_state, save_state

logger = logging.getLogger(__name__)

TRAINING_ARGS_JSON = "training_args.json"
OPTIMIZER_STATE = "optimizer.safetensors"
SCHEDULER_STATE = "scheduler.safetensors"
SCALER_STATE = "scaler.safetensors"


class SafeTrainer(Trainer):
    """transformers' Trainer, with four things done otherwise.

    Checkpoints: written under another name, made durable and then renamed: a kill leaves no half of one.

    Files: arguments are JSON; optimiser, schedule and generators are safetensors. The Trainer would write
    pickles, and upload them.

    Logs: a checkpoint holds the log entry under way. Losses of a resumed run, its `train_loss` and its speed
    are those of the whole run; the Trainer's are since the last start.

    Pushes: each is one commit of a release that loads, with its card, in the format `args.hub_format`; the
    Trainer's come in several commits, without the model's code and card. The repository holds the last whole
    release at every moment.

    Sharded and TPU runs, which the Trainer saves in ways of their own, are not supported.
    """

    # The Trainer says that they may be None; while it trains they are not.
    optimizer: Any
    lr_scheduler: Any
    push_in_progress: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.run_name is None:
            # Trackers draw a name otherwise, and the evaluation after the training becomes a run of its own.
            self.args.run_name = Path(str(self.args.output_dir)).resolve().name
        self._log_state = _LogState(self)
        # The first: other callbacks find everything restored when training begins.
        self.callback_handler.callbacks.insert(0, self._log_state)
        self._began = 0.0  # when the run would have begun without its breaks
        self._resumed_from: Path | None = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model, the tokenizer and the arguments; push them where a user calls this."""
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            self._plain_model().save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            (folder / TRAINING_ARGS_JSON).write_text(self.args.to_json_string(), encoding="utf-8")
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _plain_model(self) -> Any:
        """The model without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        """Load the weights now, and the rest of the state when the optimiser is there: `restore`."""
        self._resumed_from = checkpoint = Path(resume_from_checkpoint)
        if self._load_added_adapter(checkpoint):
            return
        if (checkpoint / ADAPTER_SAFE_WEIGHTS_NAME).is_file():  # peft's own wrapper
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        else:
            _load_weights(self._plain_model(), checkpoint)

    def _load_best_model(self) -> None:
        if not self._load_added_adapter(Path(str(self.state.best_model_checkpoint))):
            super()._load_best_model()

    def _load_added_adapter(self, checkpoint: Path) -> bool:
        """Load the weights of an adapter that `model.add_adapter` has put in, if there is one.

        A checkpoint of such a model holds its adapter alone; the Trainer knows only peft's own wrappers.
        """
        model = self._plain_model()
        if not getattr(model, "_hf_peft_config_loaded", False):
            return False
        from peft import set_peft_model_state_dict

        # transformers writes the names that they have in peft's wrapper.
        stored = load_file(checkpoint / ADAPTER_SAFE_WEIGHTS_NAME)
        weights = {name.removeprefix("base_model.model."): value for name, value in stored.items()}
        report: Any = set_peft_model_state_dict(model, weights, model.active_adapters()[0])
        if report.unexpected_keys:
            raise ValueError(
                f"{checkpoint} holds another adapter than the model has: {', '.join(report.unexpected_keys)}."
            )
        return True

    # --- checkpoints ----------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint under `.saving/`, and rename it when all ranks have written their part."""
        self.store_flos()
        run_dir = Path(str(self.args.output_dir))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged = run_dir / ".saving" / name
        if self.args.should_save:
            shutil.rmtree(staged.parent, ignore_errors=True)  # left by a kill
        self.accelerator.wait_for_everyone()
        self.save_model(str(staged), _internal_call=True)
        if not self.args.save_only_model:
            self._save_training_state(staged)
        self._save_beside(staged)
        self._save_trainer_state(staged, run_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            _publish(staged, run_dir / name)
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_saved(run_dir / name)

    def _save_beside(self, folder: Path) -> None:
        """Write what else belongs to a checkpoint; called on every rank."""

    def _save_trainer_state(self, staged: Path, run_dir: Path) -> None:
        """Write `trainer_state.json`, with the log entry under way and the state of callbacks."""
        self._log_state.values = {
            "loss": self.accelerator.reduce(self._tr_loss.double(), reduction="mean").item(),
            "total_loss": self._total_loss_scalar,
            "last_step": self._globalstep_last_logged,
            "seconds": time.time() - self._began,
        }
        if not self.args.should_save:
            return
        best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_global_step == self.state.global_step or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        kept: Any = self.state.stateful_callbacks  # a mapping by now
        for one in [*self.callback_handler.callbacks, self.control]:
            if isinstance(one, ExportableState):
                name, state = type(one).__name__, one.state()
                if isinstance(kept[name], list):
                    kept[name].append(state)
                else:
                    kept[name] = state
        self.state.save_to_json(str(staged / TRAINER_STATE))

    # --- state ----------------------------------------------------------------------------------------------

    def restore(self, checkpoint: Path | None) -> None:
        """Load what a checkpoint holds beside the weights; called when training begins, None at the start."""
        if checkpoint is not None:
            for name, owner in self._stateful().items():
                # On the host: a GPU that holds the model may not have room for two copies of the moments.
                owner.load_state_dict(load_state(checkpoint / name))

    def _stateful(self) -> dict[str, Any]:
        """What has a state, by the name of its file."""
        owners = {OPTIMIZER_STATE: self.optimizer, SCHEDULER_STATE: self.lr_scheduler}
        if self.accelerator.scaler is not None:
            owners[SCALER_STATE] = self.accelerator.scaler
        return owners

    def _save_training_state(self, folder: Path) -> None:
        """Write optimiser, schedule and loss scale, and the generators of each rank."""
        if self.args.should_save:
            for name, owner in self._stateful().items():
                save_state(owner.state_dict(), folder / name)
        state = {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "cpu": torch.random.get_rng_state(),
        }
        if self.args.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.args.device)
        folder.mkdir(parents=True, exist_ok=True)  # rank 0 may not have come so far
        save_state(state, self._rng_file(str(folder)))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        path = self._rng_file(checkpoint)
        if not path.is_file():  # another number of processes
            logger.warning("%s is missing: random numbers go on otherwise than before.", path)
            return
        state = load_state(path)
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.random.set_rng_state(state["cpu"])
        if self.args.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.args.device)

    def _rng_file(self, folder: str) -> Path:
        rank = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return Path(folder) / f"rng_state{rank}.safetensors"

    # --- logs -----------------------------------------------------------------------------------------------

    def restore_log_state(self, saved: Mapping[str, float]) -> None:
        """Go on with the log entry of a checkpoint; called when the Trainer has reset its own sums."""
        self._began = time.time() - saved.get("seconds", 0.0)
        self._tr_loss += saved.get("loss", 0.0)
        self._total_loss_scalar = saved.get("total_loss", 0.0)
        self._globalstep_last_logged = int(saved.get("last_step", self.state.global_step))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; at the end of training the loss and the speed since step 1."""
        if "train_loss" in logs:
            steps = self.state.global_step
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            logs.update(speed_metrics("train", self._began, num_samples=steps * batch, num_steps=steps))
            # Of the steps after the last entry each rank has its own sum.
            total = torch.tensor(self._total_loss_scalar, dtype=torch.float64, device=self.args.device)
            logs["train_loss"] = self.accelerator.reduce(total, reduction="mean").item() / max(steps, 1)
        super().log(logs, *args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; see the Trainer. Loss and speed are those of the whole run, however often it was resumed."""
        self._resumed_from = None
        output = super().train(*args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    # --- the Hub --------------------------------------------------------------------------------------------

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Make the repository before the first step, and remove what a killed push has left here."""
        super().init_hf_repo(*args, **kwargs)
        if self.is_world_process_zero():
            self._publisher.prepare()

    def _push_saved(self, checkpoint: Path) -> None:
        """Push a saved checkpoint as a release, in the background; `args.hub_strategy` says what and when."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        pushing = self.push_in_progress
        if pushing is not None and not pushing.is_done() and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        beside = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: checkpoint.name,
        }.get(HubStrategy(self.args.hub_strategy))
        job = self._publisher.push_checkpoint(
            checkpoint,
            message=f"Training in progress, step {self.state.global_step}",
            checkpoint_in_repo=beside,
        )
        if pushing is None or pushing.is_done():
            self.push_in_progress = PushInProgress([job])  # type: ignore[arg-type]  # a list, whatever its annotation says
        else:
            pushing.jobs.append(job)

    def push_to_hub(  # type: ignore[override]  # the address, or its future, in place of the client's record
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> str | Future[str] | None:
        """Push the model as it is now, with its card and all results in the output folder.

        Args:
            commit_message: Message of the commit.
            blocking: Wait for the end of the upload.
            token: Of the Hub; None for `args.hub_token` or the stored login.
            revision: Branch; None for `args.hub_revision`.
            private: Make a new repository private.
            kwargs: Not used; `Trainer.push_to_hub` takes fields of its card here.

        Returns:
            Address of the commit, or its future; None on other ranks than 0.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        publisher = self._make_publisher(token, revision) if token or revision else self._publisher
        job = publisher.push_checkpoint(
            Path(str(self.args.output_dir)), message=commit_message or "End of training", tag=True
        )
        return job.result() if blocking else job

    @cached_property
    def _publisher(self) -> TrainingPublisher:
        """One for the whole run: its pushes come one after the other, in their order."""
        return self._make_publisher()

    def _make_publisher(self, token: str | None = None, revision: str | None = None) -> TrainingPublisher:
        return TrainingPublisher(
            str(self.hub_model_id),
            output_dir=Path(str(self.args.output_dir)),
            format=getattr(self.args, "hub_format", "infoxlm"),
            license=getattr(self.args, "hub_license", None),
            private=bool(self.args.hub_private_repo),
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
        )


class _LogState(TrainerCallback, ExportableState):
    """Has trainer_state.json hold the log entry under way, and a resumed run go on with it.

    Attributes:
        values: Sum of the loss in this entry, and in those before; step of the last one; seconds so far.
    """

    def __init__(self, trainer: SafeTrainer) -> None:
        self.trainer = trainer
        self.values: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": self.values}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.restore(self.trainer._resumed_from)
        saved: Any = state.stateful_callbacks  # a mapping by now
        resumed = saved.get(type(self).__name__, {}) if state.global_step else {}
        self.trainer.restore_log_state(resumed.get("attributes", {}))


def _load_weights(model: Any, checkpoint: Path) -> None:
    """Load the weights of a checkpoint's model folder; tied ones are stored under one of their names.

    Raises:
        ValueError: If it has other weights than the model.
    """
    stored: dict[str, torch.Tensor] = {}
    for path in sorted(checkpoint.glob("model*.safetensors")):
        stored |= load_file(path)
    found = model.load_state_dict(stored, strict=False)
    missing = set(found.missing_keys) - set(model.all_tied_weights_keys)
    if missing or found.unexpected_keys:
        raise ValueError(
            f"{checkpoint} is of another model: it lacks {sorted(missing)[:3]} and has "
            f"{found.unexpected_keys[:3]} too many; start a new run from it, or give its model."
        )


def _publish(staged: Path, final: Path) -> None:
    """Make all files durable, then give the checkpoint its name."""
    if final.exists():  # the same step saved once more: set aside, so that a kill leaves one of them
        final.rename(staged.with_name("replaced"))
    give_name(staged, final)
    shutil.rmtree(staged.parent)
