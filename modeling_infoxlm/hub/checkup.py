"""Checks of a checkpoint: does it load as it is, with nothing missing, damaged, or able to run?

Nothing of the checkpoint is executed or unpickled: pickles are named and not read, code is parsed only.
"""

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_infoxlm import modeling_infoxlm
from modeling_infoxlm.backbones import max_sequence_length
from modeling_infoxlm.hub.file_checks import MODEL_TYPES, file_problems, index_problems, safetensors_problems
from modeling_infoxlm.hub.loading import explain, quiet_transformers
from modeling_infoxlm.runs.errors import some

PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")

# Metadata of a card that is text or a list of texts: `language: no` is false in YAML.
_CARD_TEXTS = "license language tags datasets metrics base_model library_name pipeline_tag".split()
_WORDS = 6  # of each of the two made-up sentences
_LEAST_DIFFERENCE = 1e-3  # of their vectors, as a share of the length
Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str  # what was looked at, one word
    level: Level  # `fail`: something must be done; `warn`: it may have to be
    text: str  # what was found and, unless it is `ok`, what to do about it; one line


class _Found(ValueError):
    """Something that a check found; where nothing is, it returns what is in order."""

    def __init__(self, text: str, level: Level = "fail") -> None:
        super().__init__(text)
        self.level = level


def check_checkpoint(folder: Path, names: Sequence[str]) -> Iterator[Finding]:
    """Check a checkpoint; what needs something that already failed is left out.

    Args:
        folder: Its files; those that no check reads may be absent.
        names: Paths of all its files, relative to the folder.
    """
    yield _finding("pickles", lambda: _look_for_pickles(names))
    weights = _finding("weights", lambda: _look_at_weights(folder, names))
    yield weights
    yield check_card(folder)
    config = _finding("config", lambda: _describe_config(_load_config(folder)))
    yield config
    if config.level != "ok":
        return
    loaded = _load_config(folder)
    yield _finding("code", lambda: _look_at_code(folder))
    yield _finding("tokenizer", lambda: _look_at_tokenizer(folder, loaded))
    if weights.level == "ok":
        yield _finding("keys", lambda: _look_at_keys(folder, loaded))
        yield _finding("vectors", lambda: _look_at_vectors(folder, loaded))


def _finding(check: str, look: Callable[[], str]) -> Finding:
    """What a check came to, whatever the files hold that it reads."""
    try:
        with quiet_transformers():
            return Finding(check, "ok", look())
    except _Found as found:
        return Finding(check, found.level, str(found))
    except Exception as error:  # whatever is wrong with a file that may hold anything
        return Finding(check, "fail", f"it cannot be loaded: {explain(error)}")


# --- files --------------------------------------------------------------------------------------------------


def _look_for_pickles(names: Sequence[str]) -> str:
    """No file may be a pickle: to read one is to run what it says."""
    found = sorted(name for name in names if name.lower().endswith(PICKLES))
    if found:
        danger = "a pickle can run code where it is read"
        raise _Found(f"{some(found)}: {danger}; delete it (`infoxlm export` writes safetensors).")
    return f"none among {len(names)} files"


def _look_at_weights(folder: Path, names: Sequence[str]) -> str:
    """Every safetensors file is as long as its header says, and every part of split weights is there."""
    files = [name for name in names if name.endswith(".safetensors")]
    problems = [problem for name in files for problem in safetensors_problems(folder / name)]
    for index in sorted(folder.glob("*.safetensors.index.json")):
        problems += [problem for problem in index_problems(index) if problem not in problems]
    if problems:
        raise _Found(f"{some(problems)}.")
    if any(name.startswith("model") and "/" not in name for name in files):
        size = sum((folder / name).stat().st_size for name in files)
        return f"safetensors, {size / 1e6:,.1f} MB, whole (files: {len(files)})"
    if any(name.endswith(".onnx") for name in names):
        raise _Found("ONNX alone: weights and vectors are not checked.", "warn")
    raise _Found("there is no model.safetensors; `infoxlm export MODEL --output_dir FOLDER` writes one.")


def check_card(folder: Path) -> Finding:
    """There is a model card, and its metadata is what the Hub accepts; asks no server."""
    return _finding("card", lambda: _look_at_card(folder / "README.md"))


def _look_at_card(path: Path) -> str:
    if not path.is_file():
        raise _Found("there is no README.md yet; `infoxlm push` writes one.", "warn")
    try:
        data = ModelCard.load(path, ignore_metadata_errors=False).data.to_dict()
    except Exception as error:  # YAML, text that is no UTF-8, or a model-index of another form
        raise _Found(f"the metadata of README.md cannot be read: {explain(error)}") from error
    if not data:
        raise _Found("README.md has no metadata; begin it with a block of YAML between two lines of ---.")
    problems = [
        f"{name} must be text or a list of texts, found {data[name]!r} (use quotes)"
        for name in _CARD_TEXTS
        if not all(isinstance(item, str) for item in _as_list(data.get(name, [])))
    ]
    for name in _as_list(data.get("base_model", [])):
        try:
            validate_repo_id(str(name))
        except HFValidationError:
            problems.append(f"base_model {name!r} is no name on the Hub")
    if problems:
        raise _Found(f"README.md: {some(problems)}; correct the block at its beginning.")
    return f"README.md with {len(data)} fields of metadata"


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# --- code ---------------------------------------------------------------------------------------------------


def _look_at_code(folder: Path) -> str:
    """Code that config.json names is in the folder, with all that it imports from there; nothing is run."""
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map") or {}
    if not auto_map:
        return "none needed"
    if not isinstance(auto_map, dict):
        raise _Found(f"auto_map in config.json must be a mapping, found {auto_map!r}.")
    problems: list[str] = []
    files: dict[Path, ast.Module] = {}
    for name, reference in auto_map.items():
        module, _, class_name = str(reference).rpartition(".")
        path = folder / f"{module}.py"
        if not module.isidentifier():
            problems.append(f"{name} is {reference!r}, which is no class of this folder")
            continue
        try:
            for file in (path, *map(Path, get_relative_import_files(path))):
                files[file] = ast.parse(file.read_text(encoding="utf-8"), str(file))
        except (OSError, SyntaxError, ValueError) as error:
            problems.append(f"{Path(getattr(error, 'filename', path)).name} is missing or no Python")
            continue
        if class_name not in [node.name for node in files[path].body if isinstance(node, ast.ClassDef)]:
            problems.append(f"{path.name} has no class {class_name}")
    if problems:
        raise _Found(f"{some(problems)}; `infoxlm export --format infoxlm` writes all code files.")
    return f"{len(auto_map)} classes in {len(files)} files, complete; not run"


# --- configuration, tokenizer, model ------------------------------------------------------------------------


def _load_config(folder: Path) -> Any:
    problems = file_problems(folder, "config")
    if problems:
        raise _Found(f"it cannot be loaded: {some(problems)}.")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type not in MODEL_TYPES:
        raise _Found(f"model type {config.model_type!r}; expected one of {', '.join(MODEL_TYPES)}.")
    return config


def _describe_config(config: Any) -> str:
    shape = f"{config.num_hidden_layers} layers of {config.hidden_size}, vocabulary {config.vocab_size:,}"
    return f"{config.model_type}, {shape}"


def _look_at_tokenizer(folder: Path, config: Any) -> str:
    """The tokenizer loads, and speaks of the same tokens as the model."""
    damaged = file_problems(folder, "tokenizer")
    if damaged:
        raise _Found(f"it cannot be loaded: {some(damaged)}.")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    problems = _token_problems(tokenizer, config)
    if problems:
        raise _Found(f"{some(problems)}; put the tokenizer there that the model was trained with.")
    longest = max_sequence_length(config)
    if tokenizer.model_max_length > longest:
        advice = f"set model_max_length to {longest} in tokenizer_config.json"
        raise _Found(f"it does not cut at the model's {longest} positions; {advice}.", "warn")
    return f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens"


def _token_problems(tokenizer: PreTrainedTokenizerBase, config: Any) -> list[str]:
    problems = [
        f"its {name} is {getattr(tokenizer, name)}, the model's {getattr(config, name)}"
        for name in ("bos_token_id", "pad_token_id", "eos_token_id")
        if getattr(tokenizer, name) != getattr(config, name)
    ]
    highest = max([len(tokenizer) - 1, *tokenizer.get_vocab().values()])
    if highest >= config.vocab_size:
        problems.append(f"its ids go up to {highest:,}, the model's table has {config.vocab_size:,} rows")
    has_head = any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in config.architectures or [])
    if has_head and tokenizer.mask_token_id is None:
        problems.append("it has no mask token")
    ids = tokenizer("a")["input_ids"]
    if (ids[0], ids[-1]) != (config.bos_token_id, config.eos_token_id):
        problems.append(f"it makes {ids} of a word, without <s> at the beginning or </s> at the end")
    return problems


def _look_at_keys(folder: Path, config: Any) -> str:
    """Every parameter of the class that config.json names has its tensor, and every tensor its parameter."""
    module = modeling_infoxlm if config.model_type == "infoxlm" else transformers
    model_class = getattr(module, (config.architectures or [""])[0], None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise _Found(f"config.json names the architectures {config.architectures}, unknown here.")
    loaded: Any = model_class.from_pretrained(folder, output_loading_info=True)
    # XLM-R's class has a pooler, which no checkpoint of XLM-R or InfoXLM trained.
    missing = sorted(name for name in loaded[1]["missing_keys"] if not name.startswith("pooler."))
    unexpected = sorted(loaded[1]["unexpected_keys"])
    if missing or unexpected:
        text = f"missing: {some(missing)}; unexpected: {some(unexpected)}; what is missing would be random"
        raise _Found(f"{text}. Correct the architectures in config.json, or the weights.")
    return f"all of {model_class.__name__}, and no others"


@torch.no_grad()
def _look_at_vectors(folder: Path, config: Any) -> str:
    """`AutoModel` loads without code of the folder; the vectors of two sentences are finite and differ."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    hidden = model(input_ids=_two_sentences(config)).last_hidden_state
    broken = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if broken or not hidden.isfinite().all():
        where = some(broken) if broken else "the vectors, although all weights are finite"
        raise _Found(f"NaN or infinite values in {where}; take an earlier checkpoint.")
    first, second = hidden.mean(dim=1)
    difference = float((first - second).norm() / first.norm())
    if not difference > _LEAST_DIFFERENCE:
        raise _Found(
            f"two sentences differ by {difference:.1e}: the encoder has collapsed; take an earlier one."
        )
    return f"{type(model).__name__}, {len(first)} values, finite; two sentences differ by {difference:.0%}"


def _two_sentences(config: Any) -> torch.Tensor:
    """Tokens of two sentences without a common word, (2, L); needs no tokenizer."""
    special = {config.bos_token_id, config.pad_token_id, config.eos_token_id}
    words = [token for token in range(config.vocab_size) if token not in special]
    sentences = (words[:_WORDS], words[-_WORDS:])
    return torch.tensor([[config.bos_token_id, *words, config.eos_token_id] for words in sentences])
