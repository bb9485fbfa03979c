"""The flags of pre-training, in four dataclasses by reason to change: model, data, contrast, training.

Where nothing else is said a default is the paper's (InfoXLM, arXiv 2007.07834). "Released code" means the
folder infoxlm/ of microsoft/unilm; "README" the commands given there. Every check raises ValueError with what
was expected, what was found and what to do.
"""

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate.utils import str_to_bool as strtobool
from transformers import TrainingArguments

from modeling_infoxlm.configuration_infoxlm import LAST_LAYER
from modeling_infoxlm.data.batches import ConcatenatePairs, StreamSettings
from modeling_infoxlm.data.plan import PrepareSettings
from modeling_infoxlm.hub.export import Format
from modeling_infoxlm.momentum import MomentumSchedule
from modeling_infoxlm.objectives import LOWEST_TEMPERATURE
from modeling_infoxlm.runs.config_file import default_of


def _flag(default: Any, text: str, **metadata: Any) -> Any:
    """A dataclass field whose help is `text`; argparse formats helps with %, so a literal one is doubled."""
    return field(default=default, metadata={"help": text.replace("%", "%%"), **metadata})


def _files(text: str) -> Any:
    return field(default_factory=list, metadata={"help": text.replace("%", "%%")})


def _at_least(low: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value >= low:  # NaN is not
            raise ValueError(f"{name} must be at least {low:g}, found {value:g}.")


def _in_range(low: float, high: float, **values: float) -> None:
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be in {low:g}..{high:g}, found {value:g}.")


# Arguments of transformers that the joint step goes around or that would break it, and what there is instead.
BYPASSED = {
    "num_train_epochs": "a run is as long as max_steps",
    "optim_target_modules": "it is for optimisers with projected gradients, which are not supported",
    "average_tokens_across_devices": "losses are always means over the items of all devices",
    "label_smoothing_factor": "the losses are the paper's",
    "bf16_full_eval": "evaluation computes as training does; give --bf16 true",
    "fp16_full_eval": "evaluation computes as training does; give --fp16 true",
    "torch_compile": "packed rows cannot be compiled as a whole; give --compile_layers true",
    "torch_compile_backend": "packed rows cannot be compiled as a whole; give --compile_layers true",
    "torch_compile_mode": "packed rows cannot be compiled as a whole; give --compile_layers true",
    "use_liger_kernel": "there are no such kernels for this model",
    "liger_kernel_config": "there are no such kernels for this model",
    "use_cache": "an encoder has no cache",
    "neftune_noise_alpha": "the packed pass does not add noise to embeddings",
    "auto_find_batch_size": "the batch defines the run; to bound memory give --tokens_per_device",
    "prediction_loss_only": "evaluation measures held-out losses and retrieval",
    "eval_do_concat_batches": "evaluation measures held-out losses and retrieval",
    "eval_use_gather_object": "evaluation measures held-out losses and retrieval",
    "eval_accumulation_steps": "evaluation keeps no outputs",
    "include_for_metrics": "evaluation keeps no outputs",
    "batch_eval_metrics": "evaluation keeps no outputs",
    "label_names": "a joint batch has its labels in its parts",
    "save_only_model": "nothing could go on from such a checkpoint; `infoxlm export` makes a release of one",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C always save a checkpoint",
    "load_best_model_at_end": "pre-training ends with its last step",
    "metric_for_best_model": "pre-training ends with its last step",
    "greater_is_better": "pre-training ends with its last step",
    "ignore_data_skip": "a resumed run would meet the same examples again",
    "restore_callback_states_from_checkpoint": "a resumed run goes on as it was without it",
    "data_seed": "order and masks follow --seed",
    "parallelism_config": "runs are on one device or under DDP",
    "dataloader_drop_last": "ranks must gather equally many keys",
    "dataloader_in_order": "batches must come in their order",
    "remove_unused_columns": "it would drop every part of a joint batch",
    "train_sampling_strategy": "which example comes when is defined by --sampling_alpha and --seed",
    "length_column_name": "which example comes when is defined by --sampling_alpha and --seed",
    "ddp_static_graph": "micro-batches differ in what they reach",
    "fsdp": "runs are on one device or under DDP; start them with torchrun",
    "fsdp_config": "runs are on one device or under DDP; start them with torchrun",
    "deepspeed": "runs are on one device or under DDP; start them with torchrun",
    "do_eval": "this program trains, and evaluates as --eval_strategy says",
    "do_predict": "this program trains, and evaluates as --eval_strategy says",
    "resume_from_checkpoint": "the same command goes on by itself from the last checkpoint; "
    "to start from other weights give --model_name_or_path",
}
# What `accelerate launch` switches on by an environment variable, whatever the flags say.
_LAUNCHED = {
    "ACCELERATE_USE_FSDP": "fsdp",
    "ACCELERATE_USE_DEEPSPEED": "deepspeed",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
    "ACCELERATE_USE_MEGATRON_LM": "parallelism_config",
}


def refuse_bypassed(args: TrainingArguments, reasons: Mapping[str, str]) -> None:
    """Refuse arguments that would change nothing, or break what they meet; call it before `__post_init__`.

    Args:
        args: As they were given.
        reasons: For each such argument, why, and what to do instead.

    Raises:
        ValueError: If one of them does not have its default.
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


def parse_layers(text: str) -> tuple[int, int | None]:
    """First and last layer of `1-6`, `6` or `all`, counted from 1; the last of `all` is None.

    Raises:
        ValueError: If the text is none of these.
    """
    if text == "all":
        return 1, None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(
            f"recompute_layers must be a range such as 1-6, one layer such as 6, or all, counted from 1; "
            f"found {text!r}."
        )
    return first, last


@dataclass
class ModelArguments:
    """Which model is trained: a checkpoint, or a new one of a given shape."""

    _argument_group_name = "model"

    model_name_or_path: str | None = _flag(
        None,
        "Checkpoint to start from, a Hub name or a folder: XLM-R, InfoXLM or our own. Unset: random weights.",
    )
    config_name: str | None = _flag(
        None, "Configuration of a model from scratch, a Hub name or a folder. Unset: XLM-R base's shape."
    )
    tokenizer_name: str | None = _flag(
        None, "Fast tokenizer, a Hub name or a folder. Unset: that of model_name_or_path."
    )
    cache_dir: str | None = _flag(None, "Folder for files from the Hub. Unset: the Hub client's own.")
    model_revision: str = _flag("main", "Branch, tag or commit of model_name_or_path on the Hub.")
    # repr=False: a printed or logged instance must not show the secret.
    token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "Hub access token. Unset: the one stored by `hf auth login`."},
    )
    num_hidden_layers: int | None = _flag(
        None, "Layers of a model from scratch. Unset: the configuration's (base 12)."
    )
    hidden_size: int | None = _flag(
        None, "Width of a model from scratch. Unset: the configuration's (base 768)."
    )
    num_attention_heads: int | None = _flag(
        None, "Heads of a model from scratch. Unset: the configuration's (base 12)."
    )
    intermediate_size: int | None = _flag(
        None, "Feed-forward width of a model from scratch. Unset: the configuration's (base 3072)."
    )
    max_position_embeddings: int | None = _flag(
        None,
        "Positions of a model from scratch, two more than its longest sequence. "
        "Unset: the configuration's (514).",
    )

    hidden_dropout_prob: float = _flag(0.0, "Dropout of hidden states while training (README: 0).")
    attention_probs_dropout_prob: float = _flag(
        0.0, "Dropout of attention weights while training (README: 0)."
    )

    def __post_init__(self) -> None:
        """Refuse a shape that cannot be, and one for a checkpoint that has its own."""
        shape = self.shape_overrides()
        _at_least(1, **shape)
        for name, value in self.dropout_overrides().items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, found {value:g}.")
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
        return {
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "attention_probs_dropout_prob": self.attention_probs_dropout_prob,
        }

    def shape_overrides(self) -> dict[str, int]:
        """Return the configuration fields that were given, for a model from scratch."""
        shape = {
            "num_hidden_layers": self.num_hidden_layers,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
        }
        return {name: value for name, value in shape.items() if value is not None}


@dataclass
class PrepareArguments:
    """Which text is read, and how it is checked, tokenised and held out: what `infoxlm prepare` does."""

    _argument_group_name = "data"

    bitext_files: list[str] = _files(
        "Translated text for TLM and XlCo: files (en-de.tsv.xz), two files with a comma (x.en,x.de), "
        "folders, globs or Hub datasets (hub:NAME:CONFIG:SPLIT); "
        "en-de=PATH if the name does not say the languages."
    )
    mono_files: list[str] = _files(
        "Text for MLM, one sentence a line: files (de.txt.xz), folders, globs or Hub datasets "
        "(hub:NAME:CONFIG:SPLIT); de=PATH if the name does not say the language."
    )
    bitext_columns: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Two columns of TSV bitext, counted from 0: source and target. Unset: the last two."
        },
    )
    prepared_data: str | None = _flag(
        None,
        "Folder of token shards: read if it is there, else written from the files. "
        "Unset: `data` in output_dir.",
    )
    preprocessing_num_workers: int | None = _flag(None, "Processes that tokenise. Unset: one a core.")
    max_seq_length: int = _flag(
        512, "Longest sequence in tokens, for MLM blocks and for joined pairs (README: 512)."
    )
    max_side_length: int | None = _flag(
        None,
        "Longest side of a pair in tokens without special ones; longer pairs are dropped. "
        "Unset: half a sequence, 254 of 512.",
    )
    min_length: int = _flag(
        1, "Shortest side of a pair and shortest sentence in tokens; shorter ones are dropped (ours)."
    )
    max_length_ratio: float = _flag(
        9.0, "A pair is dropped if one side has this many times the other's tokens (ours)."
    )
    deduplicate: bool = _flag(
        True, "Drop repeated sentences and pairs: as negatives they would be false ones (ours)."
    )
    mono_from_bitext: bool = _flag(False, "Use the sides of the bitext as MLM text too (ours).")
    heldout_fraction: float = _flag(
        0.0,
        "Share of the sentences of heldout_language whose pairs are kept out of training, "
        "in all languages at once.",
    )
    heldout_language: str = _flag("en", "Language whose sentences decide, by hash, which pairs are held out.")
    heldout_max_pairs: int = _flag(
        1000, "Most held-out pairs kept for evaluation, for each language pair; the rest is unused."
    )
    prepare_seed: int = _flag(
        0,
        "Seed of the preparation (what is held out). "
        "Apart from --seed, so that runs with other seeds share one corpus.",
    )
    on_bad_line: Literal["fail", "skip"] = _flag(
        "fail", "What to do with a line that cannot be read: fail, or skip and count it."
    )
    tokenizer_vocab_size: int = _flag(
        8000, "Tokens of the tokenizer trained from the text when none is named (ours; XLM-R: 250,002)."
    )

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        _at_least(5, max_seq_length=self.max_seq_length)  # the smallest joined pair: `<s> a </s> b </s>`
        _at_least(1, preprocessing_num_workers=self.preprocessing_num_workers)
        if len(self.bitext_columns) not in (0, 2):
            raise ValueError(
                f"bitext_columns names {len(self.bitext_columns)} columns; name two, of source and target."
            )
        self.prepare_settings()  # makes its own checks

    def prepare_settings(self) -> PrepareSettings:
        """Return what `prepare` needs."""
        return PrepareSettings(
            max_length=self.max_seq_length,
            max_side_length=self.max_side_length,
            min_length=self.min_length,
            max_length_ratio=self.max_length_ratio,
            deduplicate=self.deduplicate,
            mono_from_bitext=self.mono_from_bitext,
            heldout_fraction=self.heldout_fraction,
            heldout_language=self.heldout_language,
            heldout_max_pairs=self.heldout_max_pairs,
            seed=self.prepare_seed,
            on_bad_line=self.on_bad_line,
            bitext_columns=(self.bitext_columns[0], self.bitext_columns[1]) if self.bitext_columns else None,
        )


@dataclass
class DataArguments(PrepareArguments):
    """What is read, how it is prepared, and what a batch is made of."""

    _argument_group_name = "data"

    objectives: str = _flag(
        "mlm,tlm,xlco", "Objectives to train, separated by commas: any of mlm, tlm, xlco."
    )
    mlm_examples: int = _flag(1, "MLM blocks in one item of a batch (README: as many of each objective).")
    tlm_examples: int = _flag(1, "TLM pairs in one item of a batch (README: as many of each objective).")
    xlco_examples: int = _flag(1, "XlCo examples in one item of a batch (README: as many of each objective).")
    sampling_alpha: float = _flag(
        0.7, "Exponent of the language probabilities, p ~ n^alpha; 1 is as they come, 0 all alike."
    )
    pair_sampling_alpha: float = _flag(
        0.7, "The same for language pairs (the paper gives the formula, but no exponent for pairs)."
    )
    mask_probability: float = _flag(
        0.15, "Share of the tokens that are masked: 80% <mask>, 10% random, 10% kept."
    )
    mask_special_tokens: bool = _flag(
        False, "Mask <s> and </s> like other tokens, as the released code does."
    )
    xlco_masking: bool = _flag(True, "Mask the inputs of XlCo too, as the released code does.")
    concatenate_pairs: ConcatenatePairs = _flag(
        "random",
        "Second pair that is joined to each XlCo example: a random one, the adjacent one (released code), "
        "a random one with both languages on each side (the paper's text), or none.",
    )

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        super().__post_init__()
        self.stream_settings(seed=0)  # makes its own checks

    def objective_names(self) -> tuple[Any, ...]:
        """Return the objectives in the order in which they were given, such as ("mlm", "tlm", "xlco")."""
        return tuple(name.strip() for name in self.objectives.split(","))

    def stream_settings(self, *, seed: int) -> StreamSettings:
        """Return what `JointDataset` needs, with the seed of order and masks."""
        return StreamSettings(
            objectives=self.objective_names(),
            mlm_examples=self.mlm_examples,
            tlm_examples=self.tlm_examples,
            xlco_examples=self.xlco_examples,
            sampling_alpha=self.sampling_alpha,
            pair_sampling_alpha=self.pair_sampling_alpha,
            mask_probability=self.mask_probability,
            mask_special_tokens=self.mask_special_tokens,
            xlco_masking=self.xlco_masking,
            concatenate_pairs=self.concatenate_pairs,
            seed=seed,
        )


@dataclass
class ContrastArguments:
    """The cross-lingual contrast: which vectors, against which negatives, and how keys are made."""

    _argument_group_name = "contrast"

    xlco_layer: int | None = _flag(
        None,
        "Layer whose sentence vector is contrasted, from 1 to the number of layers; -1 is the last. "
        "Unset: 8 of 12 layers (README), 12 of 24.",
    )
    # Unset fields are the checkpoint's, so that a run goes on with the contrast its model was trained with.
    xlco_pooling: Literal["cls", "mean"] | None = _flag(
        None,
        "Sentence vector: that of <s>, or the mean over all tokens. "
        "Unset: the checkpoint's, else cls (paper).",
    )
    xlco_similarity: Literal["dot", "cosine"] | None = _flag(
        None,
        "Score of two vectors: dot product or cosine. Unset: the checkpoint's, else dot (released code).",
    )
    xlco_temperature: float | None = _flag(
        None, "Divides the scores. Unset: the checkpoint's, else 0.25 (released code; the paper has none)."
    )
    xlco_use_projection: bool | None = _flag(
        None,
        "Project vectors by one bias-free matrix. Unset: the checkpoint's, else true (paper: linear head).",
    )
    xlco_in_batch_negatives: bool | None = _flag(
        None,
        "Contrast with the other keys of the batch too. "
        "Unset: the checkpoint's, else false (paper: the queue alone).",
    )
    xlco_symmetric: bool | None = _flag(
        None,
        "Contrast each key with the batch's queries too. "
        "Unset: the checkpoint's, else false (paper: one direction).",
    )
    queue_size: int = _flag(
        131072, "Keys of earlier batches that serve as negatives (paper). Empty slots are left out."
    )
    queue_prefill: bool = _flag(False, "Fill the queue before the first step, as the released code does.")
    momentum_state: str | None = _flag(
        None,
        "Folder with the momentum encoder and queue to start from: a checkpoint, or what "
        "`infoxlm convert-fairseq` wrote. Unset: a copy of the model, and an empty queue.",
    )
    momentum: float = _flag(
        0.9999,
        "Share of itself that the key encoder keeps at each optimiser step "
        "(paper: base 0.9999, large 0.999).",
    )
    momentum_schedule: MomentumSchedule = _flag(
        "constant",
        "How momentum is reached: constant, linear from momentum_start, or exponential, 1 - step^-exponent.",
    )
    momentum_start: float = _flag(
        0.99,
        "First momentum of the linear schedule, smallest of the exponential one "
        "(ours; released examples: 0.999, 0).",
    )
    momentum_warmup_steps: int = _flag(
        10000, "Optimiser steps of the linear schedule (ours: those of the learning rate)."
    )
    momentum_exponent: float = _flag(
        0.51, "Exponent of the exponential schedule (example in the released code)."
    )
    xlco_enqueue: Literal["step", "microbatch"] = _flag(
        "step",
        "When keys enter the queue: once an optimiser step, "
        "or after each micro-batch as in the released code.",
    )

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.xlco_layer != LAST_LAYER:
            _at_least(1, xlco_layer=self.xlco_layer)
        _at_least(1, queue_size=self.queue_size)
        _at_least(1, momentum_warmup_steps=self.momentum_warmup_steps)
        _in_range(0, 1, momentum=self.momentum, momentum_start=self.momentum_start)
        _at_least(LOWEST_TEMPERATURE, xlco_temperature=self.xlco_temperature)
        if not self.momentum_exponent > 0:
            raise ValueError(f"momentum_exponent must be above 0, found {self.momentum_exponent:g}.")
        if self.momentum_schedule != "constant" and self.momentum_start > self.momentum:
            raise ValueError(
                f"momentum_start is {self.momentum_start:g}, above momentum {self.momentum:g}; "
                f"the {self.momentum_schedule} schedule rises from the one to the other."
            )

    def config_overrides(self) -> dict[str, Any]:
        """Return the given fields of `InfoXLMConfig` that define the contrast."""
        fields = {
            "xlco_layer": self.xlco_layer,
            "xlco_pooling": self.xlco_pooling,
            "xlco_similarity": self.xlco_similarity,
            "xlco_temperature": self.xlco_temperature,
            "xlco_use_projection": self.xlco_use_projection,
            "xlco_in_batch_negatives": self.xlco_in_batch_negatives,
            "xlco_symmetric": self.xlco_symmetric,
        }
        return {name: value for name, value in fields.items() if value is not None}


@dataclass
class ReleaseArguments:
    """What `--push_to_hub true` publishes."""

    hub_format: Format = _flag(
        "xlm-roberta",
        "Form of what is pushed, see `infoxlm export`: xlm-roberta loads everywhere, infoxlm comes with its "
        "code and the projection, to go on with the pre-training.",
    )
    hub_license: str | None = _flag(None, "Licence of the model for its card, such as apache-2.0.")


@dataclass
class ObjectiveArguments:
    """Our part of the training arguments: how losses are summed, and what is evaluated while training."""

    mlm_weight: float = _flag(1.0, "Weight of the MLM loss (paper: plain sum).")
    tlm_weight: float = _flag(1.0, "Weight of the TLM loss (paper: plain sum).")
    xlco_weight: float = _flag(1.0, "Weight of the XlCo loss (paper: plain sum; README: lambda 1).")
    loss_normalization: Literal["per_objective", "per_item"] = _flag(
        "per_objective",
        "What a loss is divided by: its own number of items (the paper's sum of means), or the items "
        "of all objectives together (released code: XlCo is then about 1% of the whole).",
    )
    weight_decay_on_all: bool = _flag(
        False, "Let biases and norms decay too, as the released code does (ours: they do not)."
    )
    moments_dtype: Literal["float32", "bfloat16"] = _flag(
        "float32",
        "Type in which AdamW keeps its moments. bfloat16 takes 4 bytes less for each parameter, 1.1 GB for "
        "XLM-R base, and is made for adam_beta2 up to 0.98 (ours).",
    )
    objective_backward: Literal["merged", "sequential"] = _flag(
        "merged",
        "One forward and backward pass for all objectives of a batch (fastest), "
        "or one objective after another (least memory). The gradients are the same.",
    )
    tokens_per_device: int | None = _flag(
        None,
        "Tokens that a device holds at a time: a larger batch is cut between sequences into micro-batches "
        "of at most so many (keys not counted). The gradients are those of the whole batch. Unset: not cut.",
    )
    recompute_layers: str | None = _flag(
        None,
        "Layers that keep their input alone and run once more in the backward pass: a range (1-6), one (6) "
        "or all, counted from 1. Trades time, a forward pass of these layers, for memory. Unset: none.",
    )
    compile_layers: bool = _flag(
        False,
        "Compile what each layer does apart from attention (torch.compile). For GPUs; "
        "measured no faster on CPUs.",
    )
    overwrite_output_dir: bool = _flag(False, "Start anew in an output_dir that holds a run, which is lost.")
    eval_layer: int | None = _flag(
        None,
        "Layer whose vectors are compared in held-out retrieval; 0 is the embeddings, -1 the last. "
        "Unset: that of the contrast, of which the model gives sentence vectors.",
    )
    eval_pooling: Literal["cls", "mean"] | None = _flag(
        None,
        "Sentence vector in held-out retrieval: that of <s>, "
        "or the mean over all tokens (the paper's Tatoeba). Unset: that of the contrast.",
    )
    eval_max_pairs: int = _flag(300, "Candidates in held-out retrieval, for each language pair (ours).")
    stop_on_collapse: int | None = _flag(
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

    learning_rate: float = _flag(2e-4, "Peak learning rate (paper: base 2e-4, large 1e-4).")
    warmup_steps: float = _flag(10000, "Steps of linear warm-up (paper); below 1 a share of all steps.")
    max_steps: int = _flag(150000, "Optimiser steps (paper: base 150k, large 200k).")
    lr_scheduler_type: str = _flag("linear", "Schedule after the warm-up: linear decay to 0 (paper).")
    adam_beta1: float = _flag(0.9, "Adam's first decay rate (README).")
    adam_beta2: float = _flag(0.98, "Adam's second decay rate (README).")
    adam_epsilon: float = _flag(1e-6, "Adam's epsilon (README).")
    weight_decay: float = _flag(0.01, "Decoupled weight decay, see weight_decay_on_all (README: 0.01).")
    max_grad_norm: float = _flag(1.0, "Norm to which gradients are clipped (README).")
    save_steps: float = _flag(
        5000, "Optimiser steps between checkpoints (README); below 1 a share of all steps."
    )
    dataloader_drop_last: bool = _flag(
        True, "Drop an incomplete last batch: ranks must gather equally many keys."
    )
    logging_nan_inf_filter: bool = _flag(
        False,
        "Leave losses that are no numbers out of the logged mean. Off: the check would make the host wait "
        "for the device at every step, and hide that a run has diverged.",
    )
    remove_unused_columns: bool = _flag(
        False, "Must stay off: the parts of a joint batch are no arguments of forward."
    )
    ddp_find_unused_parameters: bool | None = _flag(
        False, "Search for parameters without gradient on several GPUs; the joint forward uses every one."
    )

    def __post_init__(self) -> None:
        """Check our own fields before transformers sets up devices, and warn of a warm-up that never ends."""
        weights = {
            "mlm_weight": self.mlm_weight,
            "tlm_weight": self.tlm_weight,
            "xlco_weight": self.xlco_weight,
        }
        _at_least(0, **weights)
        _at_least(0, stop_on_collapse=self.stop_on_collapse)
        if self.eval_layer != LAST_LAYER:
            _at_least(0, eval_layer=self.eval_layer)
        _at_least(1, eval_max_pairs=self.eval_max_pairs, max_steps=self.max_steps)
        _at_least(1, tokens_per_device=self.tokens_per_device)
        self._check_moments()
        if not any(weights.values()):
            raise ValueError(
                f"all weights are 0 ({', '.join(weights)}), so nothing would be learnt; raise one."
            )
        refuse_bypassed(self, BYPASSED)
        for variable, name in _LAUNCHED.items():
            if strtobool(os.environ.get(variable, "false")):
                raise ValueError(f"the launcher asks for {variable}, not supported: {BYPASSED[name]}.")
        if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
            raise ValueError(f"the launcher's dynamo_backend is not supported: {BYPASSED['torch_compile']}.")
        if self.save_strategy == "best":
            raise ValueError(f"save_strategy best is not supported: {BYPASSED['load_best_model_at_end']}.")
        for name in ("persistent_workers", "prefetch_factor", "multiprocessing_context"):
            if getattr(self, f"dataloader_{name}") and not self.dataloader_num_workers:
                raise ValueError(f"dataloader_{name} needs --dataloader_num_workers above 0.")
        if self.recompute_layers is not None:
            parse_layers(self.recompute_layers)
        copies_as_asked = self.accelerator_config is not None
        settle_precision(self)
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
