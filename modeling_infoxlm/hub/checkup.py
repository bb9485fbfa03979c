"""Checks of a checkpoint: does it load as it is, with nothing missing, damaged, or able to run?

Nothing of the checkpoint is executed or unpickled: pickles are named and not read, code is parsed only.
"""

import ast
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from modeling_infoxlm import modeling_infoxlm
from modeling_infoxlm.backbones import max_sequence_length
from modeling_infoxlm.hub.file_checks import MODEL_TYPES, file_problems, index_problems, safetensors_problems
from modeling_infoxlm.hub.loading import explain, quiet_transformers
from modeling_infoxlm.runs.errors import some

PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model")

# Metadata of a card that is text or a list of texts: `language: no` is false in YAML.
_CARD_TEXTS = "license language tags datasets metrics base_model library_name pipeline_tag".split()
_WORDS = 6  # of each of the two made-up sentences
_LEAST_DIFFERENCE = 1e-3  # of their vectors, as a share of the length
Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: What was looked at, one word.
        level: `fail` means that something must be done, `warn` that it may have to be.
        text: What was found and, unless it is `ok`, what to do about it; one line.
    """

    check: str
    level: Level
    text: str


class _Found(ValueError):
    """Something that a check found; where nothing is, it returns what is in order."""

    level: Level = "fail"


class _Doubtful(_Found):
    level = "warn"


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
    yield _finding("tokenizer", lambda: _look_at_tokenizer(folder, names, loaded))
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
        advice = "a pickle can run code where it is read; delete it (`infoxlm export` writes safetensors)"
        raise _Found(f"{some(found)}: {advice}.")
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
        raise _Doubtful("ONNX alone: weights and vectors are not checked.")
    advice = "`infoxlm export MODEL --output_dir FOLDER` writes one"
    raise _Found(f"there is no model.safetensors; {advice}.")


def check_card(folder: Path) -> Finding:
    """There is a model card, and its metadata is what the Hub accepts; asks no server."""
    return _finding("card", lambda: _look_at_card(folder / "README.md"))


def _look_at_card(path: Path) -> str:
    if not path.is_file():
        raise _Doubtful("there is no README.md yet; `infoxlm push` writes one.")
    try:
        data = ModelCard.load(path, ignore_metadata_errors=False).data.to_dict()
    except Exception as error:  # YAML, text that is no UTF-8, or a model-index of another form
        raise _Found(f"the metadata of README.md cannot be read: {explain(error)}") from error
    if not data:
        raise _Found("README.md has no metadata; begin it with a block of YAML between two lines of ---.")
    problems = [
        f"{name} must be text or a list of texts, found {data[name]!r} (use quotes)"
        for name in _CARD_TEXTS
        if not all(isinstance(item, str) for item in _as_list(data.get(name)))
    ]
    for name in _as_list(data.get("base_model")):
        try:
            validate_repo_id(str(name))
        except HFValidationError:
            problems.append(f"base_model {name!r} is no name on the Hub")
    if problems:
        raise _Found(f"README.md: {some(problems)}; correct the block at its beginning.")
    return f"README.md with {len(data)} fields of metadata"


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


# --- code ---------------------------------------------------------------------------------------------------


def _look_at_code(folder: Path) -> str:
    """Code that config.json names is in the folder, with all that it imports from there; nothing is run."""
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map") or {}
    if not auto_map:
        return "none needed"
    if not isinstance(auto_map, dict):
        raise _Found(f"auto_map in config.json must be a mapping, found {auto_map!r}.")
    named = {name: str(reference).rpartition(".") for name, reference in auto_map.items()}
    foreign = [name for name, (module, _, _) in named.items() if not module.isidentifier()]
    own = [(module, a_class) for name, (module, _, a_class) in named.items() if name not in foreign]
    files = _imported_modules(folder, {module for module, _ in own})
    problems = [f"{name} is {auto_map[name]!r}, which is no class of this folder" for name in foreign]
    problems += [f"{module}.py is missing or no Python" for module, tree in files.items() if tree is None]
    problems += [f"{module}.py has no class {name}" for module, name in own if _lacks(files[module], name)]
    if problems:
        raise _Found(f"{some(problems)}; `infoxlm export --format infoxlm` writes all code files.")
    return f"{len(auto_map)} classes in {len(files)} files, complete; not run"


def _lacks(tree: ast.Module | None, name: str) -> bool:
    """Whether a module that could be read has no class of this name."""
    classes = [] if tree is None else [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return tree is not None and name not in classes


def _imported_modules(folder: Path, start: Iterable[str]) -> dict[str, ast.Module | None]:
    """These modules and all that they import from their folder; None for what is not there or no Python."""
    trees: dict[str, ast.Module | None] = {}
    waiting = sorted(start)
    while waiting:
        module = waiting.pop()
        if module in trees:
            continue
        try:
            tree = ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            trees[module] = None
            continue
        trees[module] = tree
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
        waiting += [node.module for node in imports if node.module]
    return trees


# --- configuration, tokenizer, model ------------------------------------------------------------------------


def _load_config(folder: Path) -> Any:
    problems = file_problems(folder, "config")
    if problems:
        raise _Found(f"the folder cannot be loaded: {some(problems)}.")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever is wrong with a file that may hold anything
        raise _Found(f"config.json cannot be loaded: {explain(error)}") from error
    if config.model_type not in MODEL_TYPES:
        raise _Found(f"model type {config.model_type!r}; expected one of {', '.join(MODEL_TYPES)}.")
    return config


def _describe_config(config: Any) -> str:
    shape = f"{config.num_hidden_layers} layers of {config.hidden_size}, vocabulary {config.vocab_size:,}"
    return f"{config.model_type}, {shape}"


def _look_at_tokenizer(folder: Path, names: Sequence[str], config: Any) -> str:
    """The tokenizer loads, and speaks of the same tokens as the model."""
    if not set(TOKENIZER_FILES) & set(names):  # transformers would make an empty one
        raise _Found(f"there is none of {', '.join(TOKENIZER_FILES)}; put the model's tokenizer there.")
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
        raise _Doubtful(f"it does not cut at the model's {longest} positions; {advice}.")
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
        raise _Found(
            f"config.json names the architectures {config.architectures}, none of which is known here."
        )
    try:
        loaded: Any = model_class.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # whatever is wrong with a file that may hold anything
        raise _Found(f"{model_class.__name__} cannot be loaded: {explain(error)}") from error
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
    try:
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
        hidden = model(input_ids=_two_sentences(config)).last_hidden_state
    except Exception as error:  # whatever is wrong with a file that may hold anything
        raise _Found(f"AutoModel cannot be used: {explain(error)}") from error
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
