"""Checks of a checkpoint: does it load as it is, with nothing missing, damaged, or able to run?

Nothing of the checkpoint is executed or unpickled: pickles are named and not read, code is parsed only.
"""

import ast
import json
from collections.abc import Iterable, Iterator, Sequence
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
from modeling_infoxlm.hub.loading import (
    MODEL_TYPES,
    explain,
    file_problems,
    index_problems,
    quiet_transformers,
    safetensors_problems,
    some,
)

PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model")

# Metadata of a card that is text or a list of texts: `language: no` is false in YAML.
_CARD_TEXTS = (
    "license",
    "language",
    "tags",
    "datasets",
    "metrics",
    "base_model",
    "library_name",
    "pipeline_tag",
)
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


def check_checkpoint(folder: Path, names: Sequence[str]) -> Iterator[Finding]:
    """Check a checkpoint; what needs something that already failed is left out.

    Args:
        folder: Its files; those that no check reads may be absent.
        names: Paths of all its files, relative to the folder.
    """
    yield check_pickles(names)
    weights = check_weight_files(folder, names)
    yield weights
    yield check_card(folder)
    config_finding, config = load_config(folder)
    yield config_finding
    if config is None:
        return
    yield check_code(folder)
    yield check_tokenizer(folder, names, config)
    if weights.level == "ok":
        yield check_keys(folder, config)
        yield check_vectors(folder, config)


# --- files --------------------------------------------------------------------------------------------------


def check_pickles(names: Sequence[str]) -> Finding:
    """No file may be a pickle: to read one is to run what it says."""
    found = sorted(name for name in names if name.lower().endswith(PICKLES))
    if found:
        advice = "a pickle can run code where it is read; delete it (`infoxlm export` writes safetensors)"
        return Finding("pickles", "fail", f"{some(found)}: {advice}.")
    return Finding("pickles", "ok", f"none among {len(names)} files")


def check_weight_files(folder: Path, names: Sequence[str]) -> Finding:
    """Every safetensors file is as long as its header says, and every part of split weights is there."""
    files = [name for name in names if name.endswith(".safetensors")]
    problems = [problem for name in files for problem in safetensors_problems(folder / name)]
    for index in sorted(folder.glob("*.safetensors.index.json")):
        problems += [problem for problem in index_problems(index) if problem not in problems]
    if problems:
        return Finding("weights", "fail", f"{some(problems)}.")
    if any(name.startswith("model") and "/" not in name for name in files):
        size = sum((folder / name).stat().st_size for name in files)
        return Finding("weights", "ok", f"safetensors, {size / 1e6:,.1f} MB, whole (files: {len(files)})")
    if any(name.endswith(".onnx") for name in names):
        return Finding("weights", "warn", "ONNX alone: weights and vectors are not checked.")
    advice = "`infoxlm export MODEL --output_dir FOLDER` writes one"
    return Finding("weights", "fail", f"there is no model.safetensors; {advice}.")


def check_card(folder: Path) -> Finding:
    """There is a model card, and its metadata is what the Hub accepts; asks no server."""
    path = folder / "README.md"
    if not path.is_file():
        return Finding("card", "warn", "there is no README.md yet; `infoxlm push` writes one.")
    try:
        data = ModelCard.load(path, ignore_metadata_errors=False).data.to_dict()
    except Exception as error:  # YAML, text that is no UTF-8, or a model-index of another form
        return Finding("card", "fail", f"the metadata of README.md cannot be read: {explain(error)}")
    if not data:
        text = "README.md has no metadata; begin it with a block of YAML between two lines of ---."
        return Finding("card", "fail", text)
    problems = _card_problems(data)
    if problems:
        return Finding("card", "fail", f"README.md: {some(problems)}; correct the block at its beginning.")
    return Finding("card", "ok", f"README.md with {len(data)} fields of metadata")


def _card_problems(data: dict[str, Any]) -> list[str]:
    problems = []
    for name in _CARD_TEXTS:
        if not all(isinstance(item, str) for item in _as_list(data.get(name))):
            problems.append(f"{name} must be text or a list of texts, found {data[name]!r} (use quotes)")
    for name in _as_list(data.get("base_model")):
        try:
            validate_repo_id(str(name))
        except HFValidationError:
            problems.append(f"base_model {name!r} is no name on the Hub")
    return problems


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


# --- code ---------------------------------------------------------------------------------------------------


def check_code(folder: Path) -> Finding:
    """Code that config.json names is in the folder, with all that it imports from there; nothing is run."""
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map") or {}
    if not auto_map:
        return Finding("code", "ok", "none needed")
    if not isinstance(auto_map, dict):
        return Finding("code", "fail", f"auto_map in config.json must be a mapping, found {auto_map!r}.")
    named = {name: str(reference).rpartition(".") for name, reference in auto_map.items()}
    foreign = [name for name, (module, _, _) in named.items() if not module.isidentifier()]
    own = [(module, a_class) for name, (module, _, a_class) in named.items() if name not in foreign]
    files = _imported_modules(folder, {module for module, _ in own})
    problems = [f"{name} is {auto_map[name]!r}, which is no class of this folder" for name in foreign]
    problems += [f"{module}.py is missing or no Python" for module, tree in files.items() if tree is None]
    problems += [f"{module}.py has no class {name}" for module, name in own if _lacks(files[module], name)]
    if problems:
        advice = "`infoxlm export --format infoxlm` writes all code files"
        return Finding("code", "fail", f"{some(problems)}; {advice}.")
    return Finding("code", "ok", f"{len(auto_map)} classes in {len(files)} files, complete; not run")


def _lacks(tree: ast.Module | None, name: str) -> bool:
    """Whether a module that could be read has no class of this name."""
    return tree is not None and name not in {
        node.name for node in tree.body if isinstance(node, ast.ClassDef)
    }


def _imported_modules(folder: Path, start: Iterable[str]) -> dict[str, ast.Module | None]:
    """These modules and all that they import from their folder; None for what is not there or no Python."""
    trees: dict[str, ast.Module | None] = {}
    waiting = sorted(start)
    while waiting:
        module = waiting.pop()
        if module not in trees:
            trees[module] = _parse(folder / f"{module}.py")
            waiting += _relative_imports(trees[module])
    return trees


def _parse(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None


def _relative_imports(tree: ast.Module | None) -> list[str]:
    nodes = [] if tree is None else ast.walk(tree)
    return [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level and node.module]


# --- configuration, tokenizer, model ------------------------------------------------------------------------


def load_config(folder: Path) -> tuple[Finding, Any]:
    """The configuration; None, with a failed finding, if it cannot be used."""
    problems = file_problems(folder, "config")
    if problems:
        return Finding("config", "fail", f"the folder cannot be loaded: {some(problems)}."), None
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever is wrong with a file that may hold anything
        return Finding("config", "fail", f"config.json cannot be loaded: {explain(error)}"), None
    if config.model_type not in MODEL_TYPES:
        text = f"model type {config.model_type!r}; expected one of {', '.join(MODEL_TYPES)}."
        return Finding("config", "fail", text), None
    shape = f"{config.num_hidden_layers} layers of {config.hidden_size}, vocabulary {config.vocab_size:,}"
    return Finding("config", "ok", f"{config.model_type}, {shape}"), config


def check_tokenizer(folder: Path, names: Sequence[str], config: Any) -> Finding:
    """The tokenizer loads, and speaks of the same tokens as the model."""
    if not set(TOKENIZER_FILES) & set(names):  # transformers would make an empty one
        text = f"there is none of {', '.join(TOKENIZER_FILES)}; put the model's tokenizer there."
        return Finding("tokenizer", "fail", text)
    problems = file_problems(folder, "tokenizer")
    if problems:
        return Finding("tokenizer", "fail", f"it cannot be loaded: {some(problems)}.")
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            problems = _vocabulary_problems(tokenizer, config) + _special_token_problems(tokenizer, config)
    except Exception as error:  # whatever is wrong with a file that may hold anything
        return Finding("tokenizer", "fail", f"it cannot be loaded: {explain(error)}")
    if problems:
        advice = "put the tokenizer there that the model was trained with"
        return Finding("tokenizer", "fail", f"{some(problems)}; {advice}.")
    longest = max_sequence_length(config)
    if tokenizer.model_max_length > longest:
        advice = f"set model_max_length to {longest} in tokenizer_config.json"
        return Finding("tokenizer", "warn", f"it does not cut at the model's {longest} positions; {advice}.")
    return Finding("tokenizer", "ok", f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens")


def _vocabulary_problems(tokenizer: PreTrainedTokenizerBase, config: Any) -> list[str]:
    highest = max([len(tokenizer) - 1, *tokenizer.get_vocab().values()])
    if highest >= config.vocab_size:
        return [f"its ids go up to {highest:,}, the model's table has {config.vocab_size:,} rows"]
    return []


def _special_token_problems(tokenizer: PreTrainedTokenizerBase, config: Any) -> list[str]:
    problems = [
        f"its {name} is {getattr(tokenizer, name)}, the model's {getattr(config, name)}"
        for name in ("bos_token_id", "pad_token_id", "eos_token_id")
        if getattr(tokenizer, name) != getattr(config, name)
    ]
    has_head = any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in config.architectures or [])
    if has_head and tokenizer.mask_token_id is None:
        problems.append("it has no mask token")
    ids = tokenizer("a")["input_ids"]
    if (ids[0], ids[-1]) != (config.bos_token_id, config.eos_token_id):
        problems.append(f"it makes {ids} of a word, without <s> at the beginning or </s> at the end")
    return problems


def check_keys(folder: Path, config: Any) -> Finding:
    """Every parameter of the class that config.json names has its tensor, and every tensor its parameter."""
    model_class = _model_class(config)
    if model_class is None:
        text = f"config.json names the architectures {config.architectures}, none of which is known here."
        return Finding("keys", "fail", text)
    try:
        with quiet_transformers():
            loaded: Any = model_class.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # whatever is wrong with a file that may hold anything
        return Finding("keys", "fail", f"{model_class.__name__} cannot be loaded: {explain(error)}")
    # XLM-R's class has a pooler, which no checkpoint of XLM-R or InfoXLM trained.
    missing = sorted(name for name in loaded[1]["missing_keys"] if not name.startswith("pooler."))
    unexpected = sorted(loaded[1]["unexpected_keys"])
    if missing or unexpected:
        text = f"missing: {some(missing)}; unexpected: {some(unexpected)}; what is missing would be random"
        return Finding("keys", "fail", f"{text}. Correct the architectures in config.json, or the weights.")
    return Finding("keys", "ok", f"all of {model_class.__name__}, and no others")


def _model_class(config: Any) -> type[PreTrainedModel] | None:
    """The class that the configuration names, if it is a model of ours or of transformers."""
    module = modeling_infoxlm if config.model_type == "infoxlm" else transformers
    found = getattr(module, (config.architectures or [""])[0], None)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


@torch.no_grad()
def check_vectors(folder: Path, config: Any) -> Finding:
    """`AutoModel` loads without code of the folder; the vectors of two sentences are finite and differ."""
    try:
        with quiet_transformers():
            model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
        hidden = model(input_ids=_two_sentences(config)).last_hidden_state
    except Exception as error:  # whatever is wrong with a file that may hold anything
        return Finding("vectors", "fail", f"AutoModel cannot be used: {explain(error)}")
    broken = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if broken or not hidden.isfinite().all():
        where = some(broken) if broken else "the vectors, although all weights are finite"
        return Finding("vectors", "fail", f"NaN or infinite values in {where}; take an earlier checkpoint.")
    first, second = hidden.mean(dim=1)
    difference = float((first - second).norm() / first.norm())
    if not difference > _LEAST_DIFFERENCE:
        text = f"two sentences differ by {difference:.1e}: the encoder has collapsed; take an earlier one."
        return Finding("vectors", "fail", text)
    kind = f"{type(model).__name__}, {len(first)} values"
    return Finding("vectors", "ok", f"{kind}, finite; two sentences differ by {difference:.0%}")


def _two_sentences(config: Any) -> torch.Tensor:
    """Tokens of two sentences without a common word, (2, L); needs no tokenizer."""
    special = {config.bos_token_id, config.pad_token_id, config.eos_token_id}
    words = [token for token in range(config.vocab_size) if token not in special]
    sentences = (words[:_WORDS], words[-_WORDS:])
    return torch.tensor([[config.bos_token_id, *words, config.eos_token_id] for words in sentences])
