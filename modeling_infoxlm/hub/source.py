"""What a release is made of: a checkpoint, loaded with nothing drawn at random in silence."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file, extract_commit_hash

from modeling_infoxlm.hub.file_checks import MODEL_TYPES
from modeling_infoxlm.hub.formats import PLAIN_CLASSES
from modeling_infoxlm.hub.loading import check_name, explain, load, load_whole_model
from modeling_infoxlm.modeling_infoxlm import (
    InfoXLMForMaskedLM,
    InfoXLMForPreTraining,
    InfoXLMModel,
    InfoXLMPreTrainedModel,
)
from modeling_infoxlm.runs.errors import UsageError, some
from modeling_infoxlm.runs.provenance import hash_weights

logger = logging.getLogger(__name__)

PROJECTION = "objectives.xlco.projection.weight"

_TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model", "tokenizer_config.json")
_CLASSES: dict[str, type[InfoXLMPreTrainedModel]] = {
    **{plain.__name__: ours for ours, plain in PLAIN_CLASSES.items() if ours is not InfoXLMForPreTraining},
    **{ours.__name__: ours for ours in PLAIN_CLASSES},
}


@dataclass(frozen=True)
class Source:
    """A loaded checkpoint."""

    model: InfoXLMPreTrainedModel  # in fp32 and eval mode, of the class that its config.json names
    tokenizer: PreTrainedTokenizerBase | None
    name: str  # on the Hub, or the last part of the folder's path
    revision: str | None  # commit on the Hub; None for a folder
    sha256: str | None  # of a folder's weights, see `hash_weights`; on the Hub the commit says it
    new: tuple[str, ...]  # parameters that it lacks; they were drawn, the same in every process


def load_source(
    name_or_path: str | Path,
    *,
    with_objectives: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> Source:
    """Load a checkpoint of XLM-R or InfoXLM and its tokenizer; runs no code that comes with it.

    Args:
        name_or_path: Folder, or a name on the Hub.
        with_objectives: Load a masked language model of plain XLM-R as a model of pre-training, whose
            projection is then new.
        revision: Branch, tag or commit on the Hub.
        token: Hub access token; None uses the one that is stored.

    Raises:
        UsageError: If there is no such checkpoint, it is of another architecture, it is damaged, its weights
            are not all those of its architecture, or the tokenizer does not fit.
    """
    check_name(name_or_path)
    folder = Path(name_or_path)
    options = {"revision": revision or "main", "token": token}
    commit = None if folder.is_dir() else hub_commit(name_or_path, options)
    if commit is not None:
        options["revision"] = commit  # all files are of one state, whatever is pushed meanwhile
    config, _ = load(PreTrainedConfig.get_config_dict, name_or_path, part="config", **options)
    model_class = _model_class(name_or_path, config)
    gets_projection = with_objectives and config["model_type"] == "xlm-roberta"
    if gets_projection and model_class is InfoXLMForMaskedLM:
        model_class = InfoXLMForPreTraining
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # what is new is the same in every process
        with _all_reported():
            model, report = load_whole_model(model_class, name_or_path, dtype=torch.float32, **options)
    return Source(
        model=model,
        tokenizer=_load_tokenizer(name_or_path, model.config.vocab_size, options),
        name=folder.resolve().name if folder.is_dir() else str(name_or_path),
        revision=commit,
        sha256=hash_weights(folder) if folder.is_dir() else None,
        new=_new_parameters(name_or_path, model_class, report, [PROJECTION] if gets_projection else []),
    )


@contextmanager
def _all_reported() -> Iterator[None]:
    """Loading tells of the heads of objectives too, no news to whoever trains: a release is to be whole."""
    base: Any = InfoXLMPreTrainedModel  # whose lists its parts inherit, and are joined from
    kept = base._keys_to_ignore_on_load_missing, base._keys_to_ignore_on_load_unexpected
    base._keys_to_ignore_on_load_missing, base._keys_to_ignore_on_load_unexpected = [], [r"pooler\."]
    try:
        yield
    finally:
        base._keys_to_ignore_on_load_missing, base._keys_to_ignore_on_load_unexpected = kept


def hub_commit(name: str | Path, options: Mapping[str, Any]) -> str | None:
    """Commit that a revision on the Hub stands for; a loaded configuration does not always know it.

    Args:
        name: Of the repository; `UsageError` if it, or the revision, cannot be had.
        options: `revision`, `token`, `cache_dir`, as `from_pretrained` takes them.
    """
    try:
        return extract_commit_hash(cached_file(name, "config.json", **options), None)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} cannot be loaded: {explain(error)}") from error


def _model_class(name_or_path: str | Path, config: dict[str, Any]) -> type[InfoXLMPreTrainedModel]:
    """Our class for the architecture that config.json names; `UsageError` if it is not XLM-R's or ours."""
    model_type, architectures = config.get("model_type"), config.get("architectures") or []
    if model_type not in MODEL_TYPES:
        raise UsageError(
            f"{name_or_path} is of model type {model_type!r}; expected one of {', '.join(MODEL_TYPES)}."
        )
    if not architectures or architectures[0] not in _CLASSES:
        raise UsageError(
            f"config.json of {name_or_path} names the architectures {architectures}; "
            f"expected one of {', '.join(_CLASSES)}."
        )
    return _CLASSES[architectures[0]]


def _new_parameters(
    name_or_path: str | Path,
    model_class: type[InfoXLMPreTrainedModel],
    report: Mapping[str, Any],
    may_be_new: Sequence[str],
) -> tuple[str, ...]:
    """What is new; `UsageError` if the weights are not those of the architecture."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    # Heads of objectives from outside the package, and of pre-training where only the encoder is wanted.
    extra = ("objectives.", "lm_head.") if model_class is InfoXLMModel else ("objectives.",)
    left_out = [name for name in unexpected if name.startswith(extra)]
    unexpected = [name for name in unexpected if name not in left_out]
    if left_out:
        what = f"{some(left_out)}, which are no part of a {model_class.__name__}"
        logger.warning("%s: left out are %s.", name_or_path, what)
    lacking = [name for name in missing if name not in may_be_new]
    if lacking or unexpected:
        raise UsageError(
            f"the weights of {name_or_path} are not those of a {model_class.__name__}: missing "
            f"{some(lacking)}; unexpected {some(unexpected)}. What is missing would be released at random; "
            "correct the architectures in its config.json, or give a complete checkpoint."
        )
    return tuple(missing)


def _load_tokenizer(
    name_or_path: str | Path, vocab_size: int, options: dict[str, Any]
) -> PreTrainedTokenizerBase | None:
    """The checkpoint's tokenizer, None if it has none; `UsageError` if the model's table is too small."""
    found = (
        cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False, **options)
        for file in _TOKENIZER_FILES
    )
    if not any(found):  # transformers would make an empty one
        return None
    loader: Callable[..., PreTrainedTokenizerBase] = AutoTokenizer.from_pretrained
    tokenizer = load(loader, name_or_path, part="tokenizer", **options)
    if len(tokenizer) > vocab_size:
        raise UsageError(
            f"the tokenizer of {name_or_path} has {len(tokenizer):,} tokens, "
            f"the model's table {vocab_size:,}; put the tokenizer that belongs to the model beside it."
        )
    return tokenizer
