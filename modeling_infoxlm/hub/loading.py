"""Look before loading: whether a name is a folder or of the Hub, and whether files are what they are called.

What transformers, torch and safetensors say of a damaged file names neither the file nor what it is, and
torch advises to load pickles without its protection. Everything that is loaded here comes through `load`.
"""

import difflib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging as transformers_logging

from modeling_infoxlm.runs.errors import UsageError, some

logger = logging.getLogger(__name__)

Part = Literal["config", "tokenizer", "model"]
Result = TypeVar("Result")

MODEL_TYPES = ("xlm-roberta", "infoxlm")
# Files of a checkpoint that are JSON; the tokenizer's own may have 20 MB and is not parsed twice.
_CONFIG, _TOKENIZER_JSON = "config.json", "tokenizer.json"
_OBJECTS: dict[Part, tuple[str, ...]] = {
    "config": (_CONFIG,),
    # AutoTokenizer looks into the model's configuration too, where there is one.
    "tokenizer": (
        _CONFIG,
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        _TOKENIZER_JSON,
    ),
    "model": (_CONFIG, "generation_config.json"),
}
_VOCABULARIES = (_TOKENIZER_JSON, "*.model", "vocab.*", "vocab*.json", "*.tiktoken")
# What transformers takes, in its order.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_MOST_PARSED = 1 << 20  # bytes
_MOST_LAYERS = 1000
_SIZES = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
# Sizes that tensors show: the end of a name, and what the configuration calls its dimensions.
_SHOWN_SIZES = {
    "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
    "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
    "encoder.layer.0.intermediate.dense.weight": ("intermediate_size", "hidden_size"),
}
_AGAIN = "copy or download it again"


def load(loader: Callable[..., Result], name_or_path: str | Path, *, part: Part, **options: Any) -> Result:
    """Call a `from_pretrained` for what is there and whole; what else goes wrong is told in one line.

    Args:
        loader: Such as `AutoTokenizer.from_pretrained`.
        name_or_path: Folder, or a name on the Hub.
        part: What is loaded, and so which files are looked at.
        options: Of the loader.

    Raises:
        UsageError: If there is no such folder, a file of it is not what it should be, or the loader fails.
    """
    check_name(name_or_path)
    if Path(name_or_path).is_dir():
        check_folder(Path(name_or_path), part)
    try:
        return loader(name_or_path, **options)
    except (UsageError, MemoryError):
        raise
    # Any other error is the files' fault: each reader has kinds of its own for a damaged one.
    except Exception as error:
        raise UsageError(f"{_named(name_or_path, part)} cannot be loaded: {explain(error)}") from error


def load_whole_model(
    model_class: Any, name_or_path: str | Path, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Load a model, and what transformers found missing and unexpected; see `load`.

    Raises:
        UsageError: Also if a tensor has another shape than the configuration says.
    """
    with quiet_transformers():  # what it would print is in its report, which callers look at
        model, report = load(
            model_class.from_pretrained,
            name_or_path,
            part="model",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    wrong = sorted(
        f"{name} {tuple(found)}, not {tuple(asked)}" for name, found, asked in report["mismatched_keys"]
    )
    if wrong:
        raise UsageError(
            f"{name_or_path} cannot be loaded: its weights have other shapes than its {_CONFIG} says, or the "
            f"task needs: {some(wrong)}; put together what belongs together; where the head is for other "
            "labels, give the encoder that it was made from."
        )
    if report["missing_keys"]:
        logger.info("%s lacks %s: drawn anew.", name_or_path, some(sorted(report["missing_keys"])))
    return model, report


def check_encoder(name_or_path: str | Path, model: Any, missing: Sequence[str]) -> None:
    """Refuse a checkpoint whose encoder would be random, or whose weights are no numbers.

    A pooler may be random: nothing here reads it.

    Args:
        name_or_path: What was loaded.
        model: As it was loaded.
        missing: Parameters that the checkpoint lacks.

    Raises:
        UsageError: With the first of them.
    """
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    lost = [key for key in missing if key.startswith(prefix) and not key.startswith(f"{prefix}pooler.")]
    if lost:
        raise UsageError(
            f"{name_or_path} lacks {len(lost)} weights of the encoder, such as {lost[0]}; "
            f"is it a checkpoint of another architecture than its {_CONFIG} says?"
        )
    broken = [key for key, value in model.named_parameters() if not value.isfinite().all()]
    if broken:
        raise UsageError(
            f"{name_or_path} has NaN or infinite weights in {len(broken)} tensors, such as {broken[0]}: "
            "the run that wrote it has diverged, or the file is damaged; take an earlier checkpoint."
        )


# --- names --------------------------------------------------------------------------------------------------


def check_name(name_or_path: str | Path, what: str = "checkpoint such as out/checkpoint-500") -> None:
    """Refuse at once what can only be a path and is none: the Hub takes a minute to answer, and misleads.

    Args:
        name_or_path: A folder, or a name on the Hub.
        what: What should be there.

    Raises:
        UsageError: If it is a file, a path that is not there, or no name of a repository.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if path.is_dir() and name:
        return
    if path.is_file():
        reason = f"it is no folder but a file; give the folder that holds it, {path.parent}"
    elif name.startswith("~") and path.expanduser().is_dir():
        reason = f"the shell did not replace the ~; write {path.expanduser()}"
    elif _looks_like_path(name):
        reason = f"there is no folder {name}; give a {what}, or a name on the Hub{_nearest(path)}"
    else:
        try:
            validate_repo_id(name)
            return
        except HFValidationError:
            reason = f"it is neither a folder nor a name on the Hub; give a {what}"
    raise UsageError(f"{name or repr(name)} cannot be loaded: {reason}.")


def _looks_like_path(name: str) -> bool:
    begins_here = "/" in name and Path(name).parts[0] not in ("", "/") and Path(Path(name).parts[0]).is_dir()
    return (
        not name
        or name.startswith((".", "/", "~"))
        or name.endswith("/")
        or "\\" in name
        or name.count("/") > 1
        or os.path.lexists(name)
        or begins_here
    )


def _nearest(path: Path) -> str:
    """How far a path leads, and what is called like the rest of it there."""
    if "\\" in str(path) and Path(str(path).replace("\\", "/")).is_dir():
        return f" (folders are divided by /: {str(path).replace(chr(92), '/')})"
    known = next((parent for parent in path.parents if parent.is_dir()), None)
    if known is None:
        return ""
    rest = path.relative_to(known).parts[0]
    found = difflib.get_close_matches(rest, [entry.name for entry in known.iterdir() if entry.is_dir()], n=1)
    return f" (did you mean {known / found[0]}?)" if found else f" ({known} holds no {rest})"


# --- files --------------------------------------------------------------------------------------------------


def check_folder(folder: Path, part: Part) -> None:
    """Refuse a folder in which a file of a part is missing or not what it is called.

    Raises:
        UsageError: With the file, what it is, and what to do.
    """
    problems = file_problems(folder, part)
    if problems:
        raise UsageError(f"{_named(folder, part)} cannot be loaded: {some(problems)}.")


def _named(name_or_path: str | Path, part: Part) -> str:
    return f"the tokenizer of {name_or_path}" if part == "tokenizer" else str(name_or_path)


def file_problems(folder: Path, part: Part) -> list[str]:
    """What is wrong with the files of a part, as far as it shows without loading them."""
    problems = [problem for name in _OBJECTS[part] for problem in _object_problems(folder / name)]
    if problems:
        return problems
    if (folder / _CONFIG).is_file():
        problems = _size_problems(json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
    elif part != "tokenizer":
        problems = [f"it holds no {_CONFIG}{_checkpoints_in(folder)}"]
    if problems or part == "config":
        return problems
    return weight_problems(folder) if part == "model" else _vocabulary_problems(folder)


def weight_problems(folder: Path) -> list[str]:
    """What is wrong with the weights that transformers would take."""
    whole, index = (folder / name for name in _WEIGHTS)
    if whole.is_file():
        return safetensors_problems(whole) or _shown_size_problems(folder, [whole])
    if index.is_file():
        return index_problems(index) or _shown_size_problems(folder, sorted(folder.glob("*.safetensors")))
    pickled = next((folder / name for name in _PICKLED_WEIGHTS if (folder / name).is_file()), None)
    if pickled is None:
        return [f"it holds no file named {_WEIGHTS[0]}{_checkpoints_in(folder)}"]
    return [] if pickled.suffix == ".json" or is_pickle(pickled) else [f"{pickled.name} {what_is(pickled)}"]


def safetensors_problems(path: Path) -> list[str]:
    """What is wrong with a safetensors file, by its header and its length."""
    try:
        tensors, data_start = read_safetensors_header(path)
        end = data_start + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return [f"{path.name} is no safetensors file: it {what_is(path)}"]
    size = path.stat().st_size
    return [] if size == end else [f"{path.name} has {size:,} bytes, its header promises {end:,}; {_AGAIN}"]


def read_safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Entries of the tensors in a safetensors file, and the byte at which their data begins.

    Raises:
        ValueError: If the header is cut off or no JSON.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length + 8 > path.stat().st_size:
            raise ValueError("its header is cut off")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def check_state_file(path: Path) -> None:
    """Refuse a file that should hold tensors and does not.

    Raises:
        UsageError: With the file and what it is.
    """
    problems = safetensors_problems(path)
    if problems:
        raise UsageError(f"{path.parent}: {problems[0]}.")


def index_problems(index: Path) -> list[str]:
    """What is wrong with the list of the parts of split weights, and with the parts."""
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(parts.values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{index.name} cannot be read: it lists no parts of weights; {_AGAIN}"]
    if outside or not names:
        named = ", ".join(map(repr, outside)) or "nothing"
        return [f"{index.name} names {named}, which is no file of this folder"]
    absent = [
        f"{name} is missing, which {index.name} names"
        for name in names
        if not (index.parent / name).is_file()
    ]
    damaged = absent or [problem for name in names for problem in safetensors_problems(index.parent / name)]
    if damaged:
        return damaged
    held = {name: read_safetensors_header(index.parent / name)[0] for name in names}
    return [f"{part} does not hold {tensor}" for tensor, part in parts.items() if tensor not in held[part]]


def is_pickle(path: Path) -> bool:
    """Whether a file begins as those of torch do, new (a zip archive) or old."""
    with open(path, "rb") as file:
        start = file.read(8)
    # A safetensors file begins with a length in eight bytes, the last of which are zeros.
    old = (
        start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5") and start[2:].strip(b"\0") != b""
    )
    return old or start.startswith(b"PK\x03\x04")


def what_is(path: Path) -> str:
    """What a file that is not what its name says is instead, and what to do; continues its name."""
    with open(path, "rb") as file:
        start = file.read(512)
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file: `git lfs pull` fetches it, or `hf download`"
    if is_pickle(path):
        return "is a pickle or a zip archive; give what its name says (`infoxlm export` writes safetensors)"
    if start.startswith(b"\x1f\x8b"):
        return "is compressed by gzip; unpack it"
    if start.lstrip().startswith(b"<"):
        return f"is a page of HTML or XML, such as a server's error; {_AGAIN}"
    return f"is {'cut short, damaged or of another kind' if start else 'empty'}; {_AGAIN}"


def _object_problems(path: Path) -> list[str]:
    """What is wrong with a file that should hold one JSON object, and may be absent."""
    if not path.is_file():
        return [f"{path.name} is no file"] if os.path.lexists(path) else []
    try:
        if path.stat().st_size > _MOST_PARSED:
            with open(path, "rb") as file:
                return [] if file.read(64).lstrip().startswith(b"{") else [f"{path.name} {what_is(path)}"]
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        return [f"{path.name} is no UTF-8 at byte {error.start:,}: it {what_is(path)}"]
    except json.JSONDecodeError as error:
        reason = what_is(path)
        place = f" (line {error.lineno}: {error.msg})" if "damaged" in reason else ""
        return [f"{path.name} {reason}{place}"]
    except RecursionError:
        return [f"{path.name} is nested too deep for what it should hold; {_AGAIN}"]
    except ValueError as error:  # a number of ten thousand digits
        return [f"{path.name} cannot be read ({error}); {_AGAIN}"]
    if not isinstance(content, dict):
        return [f"{path.name} must hold a JSON object, found {type(content).__name__}; {_AGAIN}"]
    return []


def _vocabulary_problems(folder: Path) -> list[str]:
    files = [path for pattern in _VOCABULARIES for path in folder.glob(pattern) if path.is_file()]
    if not files and not _needs_no_vocabulary(folder):  # transformers would make an empty one
        return [f"it holds none of {', '.join(_VOCABULARIES)}; put the model's tokenizer there"]
    models = [path for path in files if path.suffix == ".model"]
    return [f"{path.name} {what_is(path)}" for path in models if not path.read_bytes()[:1] == b"\n"]


def _needs_no_vocabulary(folder: Path) -> bool:
    """Whether a tokenizer takes bytes or characters as they are."""
    path = folder / "tokenizer_config.json"
    kind = json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class") if path.is_file() else None
    return str(kind).startswith(("ByT5", "Canine", "Perceiver"))


def _size_problems(config: Mapping[str, Any]) -> list[str]:
    """Sizes of a configuration of XLM-R or ours that no model can have."""
    if config.get("model_type") not in MODEL_TYPES:
        return []
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return [f"{_CONFIG}: architectures must be a list of names, found {named!r}"]
    sizes = {name: config[name] for name in (*_SIZES, "num_hidden_layers") if name in config}
    wrong = [
        f"{_CONFIG}: {name} must be a number of at least {least}, found {value!r}"
        for name, value in sizes.items()
        for least in [0 if name == "num_hidden_layers" else 1]  # an encoder may be cut at its embeddings
        if isinstance(value, bool) or not isinstance(value, int) or value < least
    ]
    if wrong:
        return wrong
    heads, layers = sizes.get("num_attention_heads", 1), sizes.get("num_hidden_layers", 0)
    if layers > _MOST_LAYERS:
        return [f"{_CONFIG}: num_hidden_layers is {layers:,}, which no model has; correct it"]
    if sizes.get("hidden_size", heads) % heads:
        return [f"{_CONFIG}: hidden_size {sizes['hidden_size']} cannot be divided among {heads} heads"]
    return []


def _shown_size_problems(folder: Path, files: Sequence[Path]) -> list[str]:
    """Where weights of XLM-R or ours show other sizes than the configuration: others would be drawn."""
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    if config.get("model_type") not in MODEL_TYPES:
        return []
    tensors = {
        name: entry["shape"] for path in files for name, entry in read_safetensors_header(path)[0].items()
    }
    layers = [
        int(found[1]) + 1 for found in map(re.compile(r".*encoder\.layer\.(\d+)\.").match, tensors) if found
    ]
    shown: dict[str, int] = {"num_hidden_layers": max(layers, default=0)}
    for end, names in _SHOWN_SIZES.items():
        shape = next((shape for name, shape in tensors.items() if name.endswith(end)), ())
        shown |= dict(zip(names, shape, strict=False)) if len(shape) == len(names) else {}
    return [
        f"{_CONFIG} says {name} {config[name]:,}, its weights {size:,}; put together what belongs together"
        for name, size in shown.items()
        if name in config and (config[name] > size if name == "num_hidden_layers" else config[name] != size)
    ]


def _checkpoints_in(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("checkpoint-*") if (path / _CONFIG).is_file())
    if found:
        return f"; give a checkpoint in it, such as {folder / found[-1]}"
    if (folder / "adapter_config.json").is_file():
        return ": it is an adapter; merge it into its model first (`merge_and_unload` of peft)"
    return "; give the folder of a model or of one of its checkpoints"


# --- words --------------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str:
    """What went wrong in a library, in one line with what to do; never its advice to unpickle."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "weights_only" in text or "UnpicklingError" in type(error).__name__:
        return f"its weights are {explain_pickle(error)}"
    if "offline mode" in text or "couldn't connect" in text or "OfflineMode" in type(error).__name__:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} is not reached"
        return (
            f"it is no folder here, and not in the cache, and {why}; give a folder, or `hf download` it first"
        )
    return text if isinstance(error, (ValueError, OSError)) else f"{text} ({type(error).__name__})"


def explain_pickle(error: BaseException) -> str:
    """Why torch refused a file, without its advice to load it unprotected; continues `the file is`."""
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    if wanted:
        return (
            f"a pickle that needs {wanted[1]} to be read, but may hold tensors and plain values only. "
            "Nothing in it was run; have it saved anew as safetensors"
        )
    return f"a pickle that is cut short, damaged or of another kind ({type(error).__name__}); {_AGAIN}"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Its reports on loading and its progress bars would stand between our lines."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
