"""Flags of pre-training: defaults of the paper, checks that name the value, and recipes that parse."""

import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from modeling_infoxlm import InfoXLMConfig
from modeling_infoxlm.configuration_infoxlm import LAST_LAYER
from modeling_infoxlm.data.plan import PrepareSettings
from modeling_infoxlm.data.streams import StreamSettings
from modeling_infoxlm.objectives import LOWEST_TEMPERATURE
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.training.arguments import (
    BYPASSED,
    ContrastArguments,
    DataArguments,
    ModelArguments,
    ObjectiveArguments,
    PretrainingArguments,
    ReleaseArguments,
)

ALL = [ModelArguments, DataArguments, ContrastArguments, PretrainingArguments]


@pytest.fixture
def pretraining(tmp_path: Path) -> Callable[..., PretrainingArguments]:
    def build(**values: Any) -> PretrainingArguments:
        return PretrainingArguments(output_dir=str(tmp_path), use_cpu=True, **values)

    return build


def test_defaults_are_the_papers(pretraining):
    args = pretraining()
    assert (args.learning_rate, args.warmup_steps, args.max_steps) == (2e-4, 10000, 150000)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.98, 1e-6)
    assert (args.weight_decay, args.max_grad_norm, args.lr_scheduler_type) == (0.01, 1.0, "linear")
    assert (args.mlm_weight, args.tlm_weight, args.xlco_weight) == (1, 1, 1)
    assert args.loss_normalization == "per_objective"
    # What the joint batch needs.
    assert not args.remove_unused_columns and not args.ddp_find_unused_parameters
    assert args.dataloader_drop_last
    contrast = ContrastArguments()
    assert (contrast.queue_size, contrast.momentum) == (131072, 0.9999)
    config = InfoXLMConfig()
    assert (config.xlco_pooling, config.xlco_similarity, config.xlco_temperature) == ("cls", "dot", 0.25)


def test_defaults_let_the_host_run_ahead_of_the_device(pretraining, monkeypatch):
    assert pretraining().logging_nan_inf_filter is False
    # Nothing is pinned on a CPU: a copy that does not wait would gain nothing, and transformers would warn.
    assert pretraining().accelerator_config.non_blocking is False

    def on_a_gpu(self):
        vars(self).update(asked, accelerator_config=AcceleratorConfig(**(self.accelerator_config or {})))

    asked: dict[str, Any] = {"dataloader_pin_memory": True, "activation_checkpointing": False}
    monkeypatch.setattr(TrainingArguments, "__post_init__", on_a_gpu)
    assert pretraining().accelerator_config.non_blocking is True
    assert pretraining(accelerator_config={"even_batches": False}).accelerator_config.non_blocking is False


def test_every_field_of_ours_is_explained():
    ours = {field.name for field in fields(PretrainingArguments)} - {
        field.name for field in fields(TrainingArguments)
    }
    assert ours == {field.name for part in (ObjectiveArguments, ReleaseArguments) for field in fields(part)}
    for part in (ModelArguments, DataArguments, ContrastArguments, ObjectiveArguments, ReleaseArguments):
        assert [
            field.name
            for field in fields(part)
            if field.init and not field.metadata.get("help", "").endswith(".")
        ] == []


def test_settings_of_the_streams_take_the_seed_of_the_run_and_carry_every_value():
    data = DataArguments(objectives="mlm, tlm", mlm_examples=2, sampling_alpha=0.5, concatenate_pairs="none")
    settings = data.stream_settings(seed=7)
    assert (settings.seed, settings.mlm_examples, settings.sampling_alpha) == (7, 2, 0.5)
    assert settings.streams == {"mlm": "mlm", "tlm": "tlm"} and data.seed == 1
    plain = DataArguments().stream_settings(seed=1)
    assert all(getattr(plain, one.name) == one.default for one in fields(StreamSettings))


def test_overrides_of_the_configuration_are_what_was_given():
    """A flag that is not given must not change the contrast of the checkpoint that a run goes on with."""
    assert ContrastArguments().config_overrides() == {}
    given = {"xlco_layer": 3, "xlco_pooling": "mean", "xlco_similarity": "cosine", "xlco_temperature": 0.1}
    given |= {"xlco_use_projection": False, "xlco_in_batch_negatives": True, "xlco_symmetric": True}
    assert ContrastArguments(**given).config_overrides() == given
    assert given.keys() == {name for name in InfoXLMConfig().to_dict() if name.startswith("xlco_")}
    assert ModelArguments().shape_overrides() == {}
    shape = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 4, "intermediate_size": 16}
    shape |= {"max_position_embeddings": 34}
    assert ModelArguments(**shape).shape_overrides() == shape
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}
    assert ModelArguments().dropout_overrides() == dict.fromkeys(dropout, 0.0)
    assert ModelArguments(**dropout).dropout_overrides() == dropout


def test_manifests_name_the_settings_as_they_always_have():
    """A corpus that was prepared before is the same one."""
    data = DataArguments(max_seq_length=64, prepare_seed=5, bitext_columns=[2, 1], on_bad_line="skip")
    expected = {"max_length": 64, "max_side_length": 30, "min_length": 1, "max_length_ratio": 9.0}
    expected |= {"deduplicate": True, "mono_from_bitext": False, "heldout_fraction": 0.0}
    expected |= {"heldout_language": "en", "heldout_max_pairs": 1000, "seed": 5, "on_bad_line": "skip"}
    assert data.describe() == {**expected, "bitext_columns": (2, 1)}
    assert DataArguments().describe() == PrepareSettings().describe()
    assert PrepareSettings().describe()["bitext_columns"] is None


@pytest.mark.parametrize(
    "kind, values, message",
    [
        (ContrastArguments, {"queue_size": 0}, "queue_size must be at least 1, found 0."),
        (ContrastArguments, {"momentum": 1.5}, "momentum must be at most 1, found 1.5."),
        (ContrastArguments, {"xlco_layer": 0}, "xlco_layer must be at least 1, found 0."),
        (ContrastArguments, {"momentum": 0.9, "momentum_schedule": "linear"}, "momentum_start is 0.99, ab"),
        (DataArguments, {"objectives": "mlm,xlcoo"}, "xlcoo"),
        (DataArguments, {"objectives": ""}, "objectives must name one or more"),
        (DataArguments, {"mlm_examples": 0}, "mlm_examples must be at least 1"),
        (DataArguments, {"mask_probability": 1.5}, "mask_probability must be at most 1"),
        (DataArguments, {"heldout_fraction": 1.0}, "heldout_fraction must be at least 0 and below 1"),
        (ModelArguments, {"hidden_dropout_prob": 1}, "hidden_dropout_prob must be at least 0 and below 1"),
        (ModelArguments, {"model_name_or_path": "x/y", "hidden_size": 64}, "model_name_or_path is x/y"),
        (ModelArguments, {"hidden_size": 10, "num_attention_heads": 3}, "hidden_size is 10 and num_atten"),
        (PretrainingArguments, {f"{n}_weight": 0 for n in ("mlm", "tlm", "xlco")}, "all weights are 0"),
        (PretrainingArguments, {"eval_max_pairs": 0}, "eval_max_pairs must be at least 1, found 0."),
        (PretrainingArguments, {"remove_unused_columns": True}, "remove_unused_columns True is not"),
        (PretrainingArguments, {"recompute_layers": "0"}, "must be a range such as 1-6, one layer such as 6"),
        (PretrainingArguments, {"recompute_layers": "6-1"}, "counted from 1; found '6-1'."),
        *(
            (PretrainingArguments, {"recompute_layers": "1-6", other: True}, "give one or the other")
            for other in ("activation_checkpointing", "gradient_checkpointing")
        ),
        (PretrainingArguments, {"save_strategy": "best"}, "save_strategy best is not supported"),
        (PretrainingArguments, {"dataloader_prefetch_factor": 2}, "needs --dataloader_num_workers above 0"),
        (PretrainingArguments, {"activation_checkpointing_kwargs": {"a": 1}}, "needs --activation_checkpoin"),
        (PretrainingArguments, {"accelerator_config": {"split_batches": True}}, "splits or dispatches"),
        (PretrainingArguments, {"fp16": True}, "there is none; on a CPU give --bf16 true"),
    ],
)
def test_bad_value_is_named(pretraining, kind, values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        (pretraining if kind is PretrainingArguments else kind)(**values)


def test_values_at_either_end_are_valid():
    assert ContrastArguments(momentum=0).momentum == 0
    assert ContrastArguments(momentum=1, xlco_layer=LAST_LAYER).momentum == 1
    assert ContrastArguments(xlco_temperature=LOWEST_TEMPERATURE).xlco_temperature == LOWEST_TEMPERATURE
    with pytest.raises(ValueError, match="xlco_temperature must be at least"):
        ContrastArguments(xlco_temperature=0.99 * LOWEST_TEMPERATURE)


def test_warmup_longer_than_the_run_warns_and_shares_do_not(pretraining, recwarn):
    pretraining(max_steps=300, warmup_steps=0.05)
    pretraining(max_steps=300, warmup_steps=299)
    assert not [warning for warning in recwarn if "warmup_steps" in str(warning.message)]
    with pytest.warns(UserWarning, match="warmup_steps is 10000 but the run has 300 steps"):
        pretraining(max_steps=300)


# ---------------------------------------------------------------------------- every argument of transformers

ACTING = """
do_train output_dir per_device_train_batch_size max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs
warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon gradient_accumulation_steps
max_grad_norm bf16 fp16 tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
gradient_checkpointing_kwargs torch_empty_cache_steps logging_strategy logging_steps logging_first_step
log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica
disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start save_strategy save_steps
save_on_each_node save_total_limit push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
hub_always_push hub_revision full_determinism seed use_cpu accelerator_config dataloader_num_workers
dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
dataloader_multiprocessing_context ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
ddp_backend ddp_timeout debug skip_memory_metrics local_rank
""".split()


def test_every_argument_of_transformers_acts_or_is_refused():
    """One that a new release brings is neither: look whether our step honours it, and put it in its place."""
    names = {field.name for field in fields(TrainingArguments)}
    assert names - BYPASSED.keys() == set(ACTING)
    # Those that another release of transformers lacks do no harm.
    assert not BYPASSED.keys() & set(ACTING)


OTHER_VALUES: dict[str, Any] = {bool: True, int: 3, float: 0.5, str: "x"}


@pytest.mark.parametrize("name", sorted(BYPASSED))
def test_an_argument_that_would_do_nothing_is_refused(pretraining, name):
    (flag,) = [field for field in fields(PretrainingArguments) if field.name == name]
    default = flag.default_factory() if flag.default is MISSING else flag.default
    value = not default if isinstance(default, bool) else OTHER_VALUES.get(type(default), "x")
    with pytest.raises(ValueError, match=f"^{name} {re.escape(str(value))} is not supported: .*[.]$"):
        pretraining(**{name: value})


@pytest.mark.parametrize(
    "variable, value, message",
    [
        ("ACCELERATE_USE_FSDP", "true", "the launcher asks for ACCELERATE_USE_FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "start them with torchrun"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "give --compile_layers true"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "mixed_precision is fp8; expected no, bf16 or fp16"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "fp16 needs a GPU"),
    ],
)
def test_what_a_launcher_asks_for_is_refused_as_a_flag_is(pretraining, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        pretraining()
    monkeypatch.delenv(variable)
    monkeypatch.setattr(PretrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="one process would use 2 GPUs.*`torchrun --nproc_per_node 2"):
        pretraining()


def test_the_precision_is_that_of_flag_or_launcher(pretraining, monkeypatch):
    """accelerate would compute with it, and run.json, the identity and the card would say fp32."""
    args = pretraining()
    assert args.product_dtype == torch.float32
    args.fp16 = True  # refused here for want of a GPU
    assert args.product_dtype == torch.float16
    assert pretraining(bf16=True).product_dtype == torch.bfloat16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert pretraining().bf16 is True
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert pretraining().bf16 is False


# ---------------------------------------------------------------------------- every number of every program


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("save_steps", "0", "save_steps must be above 0, found 0."),
        ("max_grad_norm", "nan", "max_grad_norm must be a finite number, found nan."),
        ("adam_beta2", "1", "adam_beta2 must be at least 0 and below 1, found 1."),
        ("per_device_train_batch_size", "0", "per_device_train_batch_size must be at least 1, found 0."),
        ("seed", "4294967296", "seed must be at most 4,294,967,295, found 4.29497e+09."),
    ],
)
@pytest.mark.parametrize("in_recipe", [False, True])
def test_a_number_out_of_range_is_named_with_its_place(tmp_path, capsys, flag, value, message, in_recipe):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(f"{flag}: {value}\n" if in_recipe else "seed: 1\n")
    argv = [str(recipe), "--use_cpu", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit) as error:
        parse_args_with_config(ALL, argv if in_recipe else [*argv, f"--{flag}", value])
    assert error.value.code == 2
    where = f"recipe {recipe}: " if in_recipe else ""
    assert capsys.readouterr().err.partition("error: ")[2] == f"{where}{message}\n"
