"""Fields of dataclasses of arguments, each of which is a flag, and the numbers that they may have."""

import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, field, fields
from itertools import takewhile
from typing import Any

LARGEST_SEED = 2**32 - 1  # numpy's
LARGEST_INT = 2**53  # up to here an int is the same number as a float
# What a number may be, of our flags and of those of transformers; else it is 0 or more.
_AT_LEAST_1 = (
    "max_steps per_device_train_batch_size per_device_eval_batch_size batch_size "
    "gradient_accumulation_steps save_total_limit eval_accumulation_steps torch_empty_cache_steps "
    "ddp_timeout ddp_bucket_cap_mb dataloader_prefetch_factor num_hidden_layers hidden_size "
    "num_attention_heads "
    "intermediate_size preprocessing_num_workers max_side_length min_length max_length_ratio "
    "heldout_max_pairs tokenizer_vocab_size queue_size "
    "momentum_warmup_steps tokens_per_device eval_max_pairs max_train_samples max_eval_samples "
    "max_predict_samples mixed_max_samples doc_stride max_query_length max_answer_length n_best_size "
    "margin_neighbours max_pairs num_candidates num_shards"
).split()
_ABOVE_0 = "num_train_epochs save_steps logging_steps eval_steps adam_epsilon momentum_exponent".split()
_BELOW_1 = (
    "adam_beta1 adam_beta2 hidden_dropout_prob attention_probs_dropout_prob heldout_fraction "
    "label_smoothing_factor"
).split()
# 5: the smallest joined pair, `<s> a </s> b </s>`. 1e-3: `LOWEST_TEMPERATURE` of the objectives.
_LOWEST = {"xlco_layer": -1, "eval_layer": -1, "max_seq_length": 5, "xlco_temperature": 1e-3}
_OF_ANY_SIGN = "null_score_diff_threshold threshold".split()
_AT_MOST = {
    # Deeper or wider ones than anybody has trained would only fill the memory for minutes.
    "num_hidden_layers": 1000,
    "hidden_size": 2**16,
    "num_attention_heads": 2**12,
    "intermediate_size": 2**18,
    "max_position_embeddings": 2**20,
    "max_seq_length": 2**20,
    **dict.fromkeys(("seed", "data_seed", "prepare_seed"), LARGEST_SEED),
    **dict.fromkeys(
        ("momentum", "momentum_start", "mask_probability", "sampling_alpha", "pair_sampling_alpha"), 1
    ),
}


def flag(default: Any, text: str, **options: Any) -> Any:
    """A field whose help is `text`; argparse formats helps with %, so a literal one is doubled.

    Args:
        default: Its value where the flag is not given; a list is copied.
        text: What the flag says or does.
        options: More of `dataclasses.field`, such as `repr`.
    """
    metadata = {"help": text.replace("%", "%%")}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata, **options)
    return field(default=default, metadata=metadata, **options)


def default_of(flag: Field[Any]) -> Any:
    """Default value of a dataclass field."""
    return flag.default if flag.default_factory is MISSING else flag.default_factory()


def changed_flags(*arguments: Any) -> list[str]:
    """Names of the flags that do not have their default value, of instances of dataclasses of arguments."""
    return [
        flag.name
        for instance in arguments
        for flag in fields(instance)
        if flag.init and getattr(instance, flag.name) != default_of(flag)
    ]


def check_numbers(arguments: Any) -> None:
    """Refuse numbers of a dataclass of arguments that its flags cannot mean.

    A default, which may be a sign for something else, is always allowed.

    Raises:
        ValueError: With the field, what it must be, and what was found.
    """
    for one in fields(arguments):
        value = getattr(arguments, one.name, None)
        if isinstance(value, int | float) and not isinstance(value, bool) and value != default_of(one):
            try:
                check_number(one.name, value)
            except ValueError as error:
                raise ValueError(f"{one.name} {error}") from error


def check_number(name: str, value: float) -> None:
    """Refuse a value that no flag of this name can mean.

    Raises:
        ValueError: If it is not finite, or outside the flag's range; the message goes on from the name.
    """
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, found {value}.")
    if name in _ABOVE_0 and value <= 0:
        raise ValueError(f"must be above 0, found {value:g}.")
    if name in _BELOW_1 and not 0 <= value < 1:
        raise ValueError(f"must be at least 0 and below 1, found {value:g}.")
    lowest = _LOWEST.get(name, 1 if name in _AT_LEAST_1 or name.endswith("_examples") else 0)
    if name not in _OF_ANY_SIGN and value < lowest:
        raise ValueError(f"must be at least {lowest:g}, found {value:g}.")
    if value > _AT_MOST.get(name, LARGEST_INT):
        raise ValueError(f"must be at most {_AT_MOST.get(name, LARGEST_INT):,}, found {value:g}.")


def name_leading(argv: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Put flags before leading arguments that were typed without them."""
    bare = list(takewhile(lambda argument: not argument.startswith("-"), argv))[: len(flags)]
    named = [part for flag, value in zip(flags, bare, strict=False) for part in (flag, value)]
    return [*named, *argv[len(bare) :]]
