"""A trainer on a tiny corpus, and ways to look at what it does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_run import tiny_corpus, tiny_model
from transformers import TrainerCallback

from modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.data.batches import JointDataset, PretrainingCollator
from modeling_infoxlm.data.streams import StreamSettings
from modeling_infoxlm.evaluation.retrieval.heldout import HeldoutRetrieval
from modeling_infoxlm.training.arguments import ContrastArguments, PretrainingArguments
from modeling_infoxlm.training.trainer import InfoXLMTrainer

ALL = ("mlm", "tlm", "xlco")
EXAMPLES = {f"{name}_examples": 2 for name in ALL}  # of each stream in an item
SHORTEST = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 0}
SHORTEST |= {"logging_steps": 1, "save_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
Make = Callable[..., InfoXLMTrainer]


def trainer_maker(root: Path) -> Make:
    """A function that makes trainers; what is not said is the shortest run there is."""
    corpus = tiny_corpus(root)

    def build(
        *,
        objectives: tuple[str, ...] = ALL,
        model: InfoXLMForPreTraining | None = None,
        contrast: dict[str, Any] | None = None,
        evaluated: bool = False,
        folder: str = "out",
        callbacks: list[TrainerCallback] | None = None,
        **values: Any,
    ) -> InfoXLMTrainer:
        args = PretrainingArguments(output_dir=str(root / folder), **{**SHORTEST, **values})
        settings = StreamSettings(objectives=objectives, **EXAMPLES, seed=5)
        items = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
        return InfoXLMTrainer(
            model or tiny_model(),
            args,
            contrast=ContrastArguments(**{"queue_size": 24, "momentum": 0.9, **(contrast or {})}),
            train_dataset=JointDataset(corpus, settings, items),
            eval_dataset=JointDataset(corpus, settings, 2 * args.eval_batch_size) if evaluated else None,
            evaluator=HeldoutRetrieval(corpus, layer=2, max_pairs=20) if evaluated else None,
            callbacks=callbacks or [],
        )

    return build


class AtBegin(TrainerCallback):
    """Calls a function when training begins, before the first step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.function()


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def batch_of(trainer: InfoXLMTrainer, items: range) -> dict[str, Any]:
    return PretrainingCollator()([trainer.train_dataset.pack(items)])
