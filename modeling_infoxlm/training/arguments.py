"""The flags of pre-training, in four dataclasses by reason to change: model, data, contrast, training.

Where nothing else is said a default is the paper's (InfoXLM, arXiv 2007.07834). "Released code" means the
folder infoxlm/ of microsoft/unilm; "README" the commands given there. Every check raises ValueError with what
was expected, what was found and what to do.
"""

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import TrainingArguments

from modeling_infoxlm.data.plan import PrepareSettings
from modeling_infoxlm.data.streams import STREAMS, StreamSettings
from modeling_infoxlm.hub.export import Format
from modeling_infoxlm.momentum import MomentumSchedule
from modeling_infoxlm.runs.flags import check_numbers, flag
from modeling_infoxlm.training.bypassed import BYPASSED, refuse_bypassed, refuse_launcher, settle_precision
from modeling_infoxlm.training.layers import parse_layers


def with_objective_flags(kind: type, suffix: str, default: Any, text: str) -> type:
    """A dataclass of arguments with one more field, `NAME_suffix`, for each objective from outside."""
    known = {one.name for one in fields(kind)}
    added = [
        (f"{name}_{suffix}", type(default), flag(default, f"{text} of {name}."))
        for name in STREAMS
        if f"{name}_{suffix}" not in known and (suffix == "weight" or STREAMS[name][0] == name)
    ]
    if not added:
        return kind
    made = make_dataclass(kind.__name__, added, bases=(kind,), frozen=kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]
    made.__doc__ = kind.__doc__
    return made


def _given(arguments: Any, names: str) -> dict[str, Any]:
    """Those of some fields that are not None."""
    values = {name: getattr(arguments, name) for name in names.split()}
    return {name: value for name, value in values.items() if value is not None}


@dataclass
class ModelArguments:
    """Which model is trained: a checkpoint, or a new one of a given shape."""

    _argument_group_name = "model"

    model_name_or_path: str | None = flag(
        None,
        "Checkpoint to start from, a Hub name or a folder: XLM-R, InfoXLM or our own. Unset: random weights.",
    )
    config_name: str | None = flag(
        None, "Configuration of a model from scratch, a Hub name or a folder. Unset: XLM-R base's shape."
    )
    tokenizer_name: str | None = flag(
        None, "Fast tokenizer, a Hub name or a folder. Unset: that of model_name_or_path."
    )
    cache_dir: str | None = flag(None, "Folder for files from the Hub. Unset: the Hub client's own.")
    model_revision: str = flag("main", "Branch, tag or commit of model_name_or_path on the Hub.")
    # repr=False: a printed or logged instance must not show the secret.
    token: str | None = flag(None, "Hub access token. Unset: the one stored by `hf auth login`.", repr=False)
    # Of a model from scratch.
    num_hidden_layers: int | None = flag(None, "Layers, from scratch. Unset: the configuration's (base: 12).")
    hidden_size: int | None = flag(None, "Width, from scratch. Unset: the configuration's (base: 768).")
    num_attention_heads: int | None = flag(
        None, "Heads, from scratch. Unset: the configuration's (base: 12)."
    )
    intermediate_size: int | None = flag(None, "Feed-forward width. Unset: the configuration's (base: 3072).")
    max_position_embeddings: int | None = flag(
        None, "Positions, from scratch: two more than the longest sequence. Unset: the configuration's (514)."
    )
    hidden_dropout_prob: float = flag(0.0, "Dropout of hidden states while training (README: 0).")
    attention_probs_dropout_prob: float = flag(0.0, "Dropout of attention weights in training (README: 0).")

    def __post_init__(self) -> None:
        """Refuse a shape that cannot be, and one for a checkpoint that has its own."""
        check_numbers(self)
        shape = self.shape_overrides()
        if shape and self.model_name_or_path is not None:
            raise ValueError(
                f"{', '.join(shape)} describe a model from scratch, but model_name_or_path is "
                f"{self.model_name_or_path}, which has its own shape; give one or the other."
            )
        if self.hidden_size and self.num_attention_heads and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size} and num_attention_heads {self.num_attention_heads}; "
                "the width must be a multiple of the number of heads."
            )

    @property
    def names_tokenizer(self) -> bool:
        """Whether a tokenizer is there; else one is trained from the text."""
        return self.tokenizer_name is not None or self.model_name_or_path is not None

    @property
    def hub_name(self) -> str | None:
        """Name of the checkpoint on the Hub; None for a folder, and for none."""
        name = self.model_name_or_path
        return None if name is None or Path(name).is_dir() else name

    def dropout_overrides(self) -> dict[str, float]:
        """Return the configuration fields of dropout, for any model: checkpoints of XLM-R come with 0.1."""
        names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        return {name: getattr(self, name) for name in names}

    def shape_overrides(self) -> dict[str, int]:
        """Return the configuration fields that were given, for a model from scratch."""
        return _given(
            self,
            "num_hidden_layers hidden_size num_attention_heads intermediate_size max_position_embeddings",
        )


@dataclass(frozen=True)
class TextArguments:
    """Which text is read, where its tokens go, and who makes them."""

    bitext_files: list[str] = flag(
        [],
        "Translated text for TLM and XlCo: files (en-de.tsv.xz), two files with a comma (x.en,x.de), "
        "folders, globs or Hub datasets (hub:NAME:CONFIG:SPLIT); "
        "en-de=PATH if the name does not say the languages.",
    )
    mono_files: list[str] = flag(
        [],
        "Text for MLM, one sentence a line: files (de.txt.xz), folders, globs or Hub datasets "
        "(hub:NAME:CONFIG:SPLIT); de=PATH if the name does not say the language.",
    )
    prepared_data: str | None = flag(
        None,
        "Folder of token shards: read if it is there, else written from the files. "
        "Unset: `data` in output_dir.",
    )
    preprocessing_num_workers: int | None = flag(None, "Processes that tokenise. Unset: one a core.")
    tokenizer_vocab_size: int = flag(
        8000, "Tokens of the tokenizer trained from the text when none is named (ours; XLM-R: 250,002)."
    )


# The second base makes the text the first in --help: dataclass fields are collected from the last base on.
@dataclass(frozen=True)
class PrepareArguments(PrepareSettings, TextArguments):
    """Which text is read, and how it is checked, tokenised and held out: what `infoxlm prepare` does."""

    _argument_group_name = "data"


# The second base makes reading and preparing the first in --help.
@dataclass(frozen=True)
class DataArguments(StreamSettings, PrepareArguments):
    """What is read, how it is prepared, and what a batch is made of."""

    _argument_group_name = "data"

    seed: int = field(default=1, init=False)  # the flag is one of the training arguments

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        PrepareArguments.__post_init__(self)
        super().__post_init__()

    def stream_settings(self, *, seed: int) -> StreamSettings:
        """The same with the seed of order and masks, for `JointDataset`."""
        settings = copy.copy(self)
        object.__setattr__(settings, "seed", seed)
        return settings


@dataclass
class ContrastArguments:
    """The cross-lingual contrast: which vectors, against which negatives, and how keys are made."""

    _argument_group_name = "contrast"

    xlco_layer: int | None = flag(
        None,
        "Layer whose sentence vector is contrasted, from 1 to the number of layers; -1 is the last. "
        "Unset: 8 of 12 layers (README), 12 of 24.",
    )
    # Unset fields are the checkpoint's, so that a run goes on with the contrast its model was trained with.
    xlco_pooling: Literal["cls", "mean"] | None = flag(
        None,
        "Sentence vector: that of <s>, or the mean of all tokens. Unset: the checkpoint's, else cls (paper).",
    )
    xlco_similarity: Literal["dot", "cosine"] | None = flag(
        None, "Score of two vectors. Unset: the checkpoint's, else dot, the product (released code)."
    )
    xlco_temperature: float | None = flag(
        None, "Divides the scores. Unset: the checkpoint's, else 0.25 (released code; the paper has none)."
    )
    xlco_use_projection: bool | None = flag(
        None,
        "Project vectors by one bias-free matrix. Unset: the checkpoint's, else true (paper: linear head).",
    )
    xlco_in_batch_negatives: bool | None = flag(
        None,
        "Contrast with the batch's other keys too. Unset: the checkpoint's, else false (paper: the queue).",
    )
    xlco_symmetric: bool | None = flag(
        None, "Contrast each key with the batch's queries too. Unset: the checkpoint's, else false (paper)."
    )
    queue_size: int = flag(
        131072, "Keys of earlier batches that serve as negatives (paper). Empty slots are left out."
    )
    queue_prefill: bool = flag(False, "Fill the queue before the first step, as the released code does.")
    momentum_state: str | None = flag(
        None,
        "Folder with the momentum encoder and queue to start from: a checkpoint, or what "
        "`infoxlm convert-fairseq` wrote. Unset: a copy of the model, and an empty queue.",
    )
    momentum: float = flag(
        0.9999, "Share of itself that the key encoder keeps at each step (paper: base 0.9999, large 0.999)."
    )
    momentum_schedule: MomentumSchedule = flag(
        "constant",
        "How momentum is reached: constant, linear from momentum_start, or exponential, 1 - step^-exponent.",
    )
    momentum_start: float = flag(
        0.99, "First momentum of the linear schedule, least of the exponential one (released: 0.999, 0)."
    )
    momentum_warmup_steps: int = flag(
        10000, "Optimiser steps of the linear schedule (ours: those of the learning rate)."
    )
    momentum_exponent: float = flag(
        0.51, "Exponent of the exponential schedule (example in the released code)."
    )
    xlco_enqueue: Literal["step", "microbatch"] = flag(
        "step", "When keys enter the queue: once a step, or after each accumulated batch (released code)."
    )

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        check_numbers(self)
        if self.xlco_layer == 0:
            raise ValueError("xlco_layer must be at least 1, found 0.")
        if self.momentum_schedule != "constant" and self.momentum_start > self.momentum:
            raise ValueError(
                f"momentum_start is {self.momentum_start:g}, above momentum {self.momentum:g}; "
                f"the {self.momentum_schedule} schedule rises from the one to the other."
            )

    def config_overrides(self) -> dict[str, Any]:
        """Return the given fields of `InfoXLMConfig` that define the contrast."""
        return _given(
            self,
            "xlco_layer xlco_pooling xlco_similarity xlco_temperature xlco_use_projection "
            "xlco_in_batch_negatives xlco_symmetric",
        )


@dataclass
class ReleaseArguments:
    """What `--push_to_hub true` publishes."""

    hub_format: Format = flag(
        "xlm-roberta",
        "Form of what is pushed, see `infoxlm export`: xlm-roberta loads everywhere, infoxlm comes with its "
        "code and the projection, to go on with the pre-training.",
    )
    hub_license: str | None = flag(None, "Licence of the model for its card, such as apache-2.0.")


@dataclass
class ObjectiveArguments:
    """Our part of the training arguments: how losses are summed, and what is evaluated while training."""

    mlm_weight: float = flag(1.0, "Weight of the MLM loss (paper: plain sum).")
    tlm_weight: float = flag(1.0, "Weight of the TLM loss (paper: plain sum).")
    xlco_weight: float = flag(1.0, "Weight of the XlCo loss (paper: plain sum; README: lambda 1).")
    loss_normalization: Literal["per_objective", "per_item"] = flag(
        "per_objective",
        "What a loss is divided by: its own number of items (the paper's sum of means), or the items "
        "of all objectives together (released code: XlCo is then about 1% of the whole).",
    )
    freeze_encoder: bool = flag(
        False,
        "Train what objectives have of their own alone: the language model head that an encoder of sentence "
        "vectors has lost, before MLM and TLM are trained with it (ours).",
    )
    weight_decay_on_all: bool = flag(
        False, "Let biases and norms decay too, as the released code does (ours: they do not)."
    )
    moments_dtype: Literal["float32", "bfloat16"] = flag(
        "float32",
        "Type in which AdamW keeps its moments. bfloat16 takes 4 bytes less for each parameter, 1.1 GB for "
        "XLM-R base, and is made for adam_beta2 up to 0.98 (ours).",
    )
    objective_backward: Literal["merged", "sequential"] = flag(
        "merged",
        "One forward and backward pass for all objectives of a batch (fastest), "
        "or one objective after another (least memory). The gradients are the same.",
    )
    tokens_per_device: int | None = flag(
        None,
        "Tokens that a device holds at a time: a larger batch is cut between sequences into micro-batches "
        "of at most so many (keys not counted). The gradients are those of the whole batch. Unset: not cut.",
    )
    recompute_layers: str | None = flag(
        None,
        "Layers that keep their input alone and run once more in the backward pass: a range (1-6), one (6) "
        "or all, counted from 1. Trades time, a forward pass of these layers, for memory. Unset: none.",
    )
    compile_layers: bool = flag(
        False,
        "Compile what each layer does apart from attention (torch.compile). For GPUs; "
        "measured no faster on CPUs.",
    )
    overwrite_output_dir: bool = flag(False, "Start anew in an output_dir that holds a run, which is lost.")
    eval_layer: int | None = flag(
        None,
        "Layer whose vectors are compared in held-out retrieval; 0 is the embeddings, -1 the last. "
        "Unset: that of the contrast, of which the model gives sentence vectors.",
    )
    eval_pooling: Literal["cls", "mean"] | None = flag(
        None,
        "Sentence vector in held-out retrieval: that of <s>, "
        "or the mean over all tokens (the paper's Tatoeba). Unset: that of the contrast.",
    )
    eval_max_pairs: int = flag(300, "Candidates in held-out retrieval, for each language pair (ours).")
    stop_on_collapse: int | None = flag(
        None,
        "Log entries in a row that show the vectors of the contrast collapsed, before the run is given up; "
        "0: never. Unset: 10, from the end of the warm-up on and not among the first 100 steps, since a "
        "healthy run may begin so (ours).",
    )


# The second base makes our fields the first in --help: dataclass fields are collected from the last base on.
@dataclass
class PretrainingArguments(TrainingArguments, ReleaseArguments, ObjectiveArguments):
    """transformers' training arguments with the paper's defaults, and our own ahead of them."""

    _argument_group_name = "training"

    learning_rate: float = flag(2e-4, "Peak learning rate (paper: base 2e-4, large 1e-4).")
    warmup_steps: float = flag(10000, "Steps of linear warm-up (paper); below 1 a share of all steps.")
    max_steps: int = flag(150000, "Optimiser steps (paper: base 150k, large 200k).")
    lr_scheduler_type: str = flag("linear", "Schedule after the warm-up: linear decay to 0 (paper).")
    adam_beta1: float = flag(0.9, "Adam's first decay rate (README).")
    adam_beta2: float = flag(0.98, "Adam's second decay rate (README).")
    adam_epsilon: float = flag(1e-6, "Adam's epsilon (README).")
    weight_decay: float = flag(0.01, "Decoupled weight decay, see weight_decay_on_all (README: 0.01).")
    max_grad_norm: float = flag(1.0, "Norm to which gradients are clipped (README).")
    save_steps: float = flag(
        5000, "Optimiser steps between checkpoints (README); below 1 a share of all steps."
    )
    dataloader_drop_last: bool = flag(
        True, "Drop an incomplete last batch: ranks must gather equally many keys."
    )
    logging_nan_inf_filter: bool = flag(
        False,
        "Leave losses that are no numbers out of the logged mean. Off: the check would make the host wait "
        "for the device at every step, and hide that a run has diverged.",
    )
    remove_unused_columns: bool = flag(
        False, "Must stay off: the parts of a joint batch are no arguments of forward."
    )
    ddp_find_unused_parameters: bool | None = flag(
        False, "Search for parameters without gradient on several GPUs; the joint forward uses every one."
    )

    def __post_init__(self) -> None:
        """Check our own fields before transformers sets up devices, and warn of a warm-up that never ends."""
        check_numbers(self)
        weights = [one.name for one in fields(self) if one.name.endswith("_weight")]
        self._check_moments()
        if not any(getattr(self, name) for name in weights):
            raise ValueError(
                f"all weights are 0 ({', '.join(weights)}), so nothing would be learnt; raise one."
            )
        refuse_bypassed(self, BYPASSED)
        refuse_launcher()
        if self.save_strategy == "best":
            raise ValueError(f"save_strategy best is not supported: {BYPASSED['load_best_model_at_end']}.")
        for name in ("persistent_workers", "prefetch_factor", "multiprocessing_context"):
            if getattr(self, f"dataloader_{name}") and not self.dataloader_num_workers:
                raise ValueError(f"dataloader_{name} needs --dataloader_num_workers above 0.")
        if self.recompute_layers is not None:
            parse_layers(self.recompute_layers)
        copies_as_asked = self.accelerator_config is not None
        settle_precision(self)
        if self.fp16 and str(getattr(self.optim, "value", self.optim)) == "adamw_torch_fused":
            # On overflow the fused kernel is called, leaves the weights, and nobody hears of it: the schedule
            # and the momentum encoder would go on. The plain one is not called.
            self.optim = "adamw_torch"
        super().__post_init__()
        if self.n_gpu > 1:
            raise ValueError(
                f"one process would use {self.n_gpu} GPUs, which is not supported; start one for each: "
                f"`torchrun --nproc_per_node {self.n_gpu} run_pretraining.py ...`, "
                "or set CUDA_VISIBLE_DEVICES=0."
            )
        config = cast(Any, self.accelerator_config)
        if config.split_batches or config.dispatch_batches:
            raise ValueError(
                "accelerator_config splits or dispatches batches, but each process makes its own; leave it."
            )
        if not copies_as_asked:
            # Else the host would wait for each batch to arrive, though it is copied from pinned memory.
            config.non_blocking = self.dataloader_pin_memory
        # Known only now: transformers has an older name for it, before 5.23 that one alone.
        recomputes = getattr(self, "activation_checkpointing", self.gradient_checkpointing)
        if getattr(self, "activation_checkpointing_kwargs", None) and not recomputes:
            raise ValueError("activation_checkpointing_kwargs needs --activation_checkpointing true.")
        if self.recompute_layers is not None and recomputes:
            raise ValueError(
                f"recompute_layers is {self.recompute_layers} and activation_checkpointing (or its older "
                "name, gradient_checkpointing) is on, which recomputes all layers; give one or the other."
            )
        self._warn_of_endless_warmup()

    def objective_weights(self, objectives: Iterable[str]) -> dict[str, float]:
        """Weight of each objective; one that has no field is not weighted."""
        return {name: float(vars(self).get(f"{name}_weight", 1.0)) for name in objectives}

    @property
    def product_dtype(self) -> torch.dtype:
        """Type in which matrix products are made."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32

    def _check_moments(self) -> None:
        optimizer = str(getattr(self.optim, "value", self.optim))
        if self.moments_dtype == "bfloat16" and (
            self.fp16 or optimizer not in ("adamw_torch", "adamw_torch_fused")
        ):
            raise ValueError(
                f"moments_dtype bfloat16 is AdamW's without fp16, but optim is {optimizer} and fp16 is "
                f"{self.fp16}; leave both as they are, or moments_dtype float32."
            )

    def _warn_of_endless_warmup(self) -> None:
        if self.max_steps > 0 and self.warmup_steps >= max(1, self.max_steps):
            warnings.warn(
                f"warmup_steps is {self.warmup_steps:g} but the run has {self.max_steps} steps, "
                "so the learning rate never reaches its peak; "
                "lower --warmup_steps (a value below 1 is a share of all steps).",
                stacklevel=3,
            )
