"""Whether the files of a checkpoint are what they are called, as far as it shows without loading them.

What transformers, torch and safetensors say of a damaged file names neither the file nor what it is.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from modeling_infoxlm.runs.files import read_json

Part = Literal["config", "tokenizer", "model"]

MODEL_TYPES = ("xlm-roberta", "infoxlm")
CONFIG, AGAIN = "config.json", "copy or download it again"
# Files of a checkpoint that are JSON objects; AutoTokenizer looks into the model's configuration too.
_OBJECTS: dict[Part, tuple[str, ...]] = {
    "config": (CONFIG,),
    "tokenizer": (CONFIG, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    + ("tokenizer.json",),
    "model": (CONFIG, "generation_config.json"),
}
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "vocab*.json", "*.tiktoken")
# What transformers takes, in its order.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_MOST_PARSED = 1 << 20  # bytes: a tokenizer's own file may have 20 MB and is not parsed twice
_MOST_LAYERS = 1000
# Fewest of each; an encoder may be cut at its embeddings.
_SIZES = dict.fromkeys(
    ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings"), 1
) | {"num_hidden_layers": 0}
# Sizes that tensors show: the end of a name, and what the configuration calls its dimensions.
_SHOWN_SIZES = {
    "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
    "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
    "encoder.layer.0.intermediate.dense.weight": ("intermediate_size", "hidden_size"),
}
_LAYER = re.compile(r".*encoder\.layer\.(\d+)\.")


def file_problems(folder: Path, part: Part) -> list[str]:
    """What is wrong with the files of a part of a checkpoint."""
    problems = [problem for name in _OBJECTS[part] for problem in _object_problems(folder / name)]
    if problems:
        return problems
    if (folder / CONFIG).is_file():
        problems = _size_problems(json.loads((folder / CONFIG).read_text(encoding="utf-8-sig")))
    elif part != "tokenizer":
        problems = [f"it holds no {CONFIG}{_checkpoints_in(folder)}"]
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
        tensors, data_start = _safetensors_header(path)
        end = data_start + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return [f"{path.name} is no safetensors file: it {what_is(path)}"]
    size = path.stat().st_size
    return [] if size == end else [f"{path.name} has {size:,} bytes, its header promises {end:,}; {AGAIN}"]


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Entries of the tensors in a safetensors file, and the byte at which their data begins."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length + 8 > path.stat().st_size:
            raise ValueError("its header is cut off")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def index_problems(index: Path) -> list[str]:
    """What is wrong with the list of the parts of split weights, and with the parts."""
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(parts.values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{index.name} cannot be read: it lists no parts of weights; {AGAIN}"]
    if outside or not names:
        named = ", ".join(map(repr, outside)) or "nothing"
        return [f"{index.name} names {named}, which is no file of this folder"]
    files = {name: index.parent / name for name in names}
    absent = [name for name, path in files.items() if not path.is_file()]
    if absent:
        return [f"{name} is missing, which {index.name} names" for name in absent]
    damaged = [problem for path in files.values() for problem in safetensors_problems(path)]
    if damaged:
        return damaged
    held = {name: _safetensors_header(path)[0] for name, path in files.items()}
    return [f"{part} does not hold {tensor}" for tensor, part in parts.items() if tensor not in held[part]]


def is_pickle(path: Path) -> bool:
    """Whether a file begins as those of torch do, new (a zip archive) or old."""
    with open(path, "rb") as file:
        start = file.read(8)
    # A safetensors file begins with a length in eight bytes, the last of which are zeros.
    is_old = start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5" and start[2:].strip(b"\0") != b""
    return is_old or start.startswith(b"PK\x03\x04")


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
        return f"is a page of HTML or XML, such as a server's error; {AGAIN}"
    return f"is {'cut short, damaged or of another kind' if start else 'empty'}; {AGAIN}"


def _object_problems(path: Path) -> list[str]:
    """What is wrong with a file that should hold one JSON object, and may be absent."""
    if not path.is_file():
        return [f"{path.name} is no file"] if os.path.lexists(path) else []
    if path.stat().st_size > _MOST_PARSED:
        with open(path, "rb") as file:
            return [] if file.read(64).lstrip().startswith(b"{") else [f"{path.name} {what_is(path)}"]
    try:
        content = read_json(path)
    except ValueError as error:
        reason = what_is(path)
        return [f"{path.name} {reason}" + (f" ({error})" if "damaged" in reason else "")]
    if not isinstance(content, dict):
        return [f"{path.name} must hold a JSON object, found {type(content).__name__}; {AGAIN}"]
    return []


def _vocabulary_problems(folder: Path) -> list[str]:
    files = [path for pattern in _VOCABULARIES for path in folder.glob(pattern) if path.is_file()]
    path = folder / "tokenizer_config.json"
    kind = str(read_json(path).get("tokenizer_class")) if path.is_file() else ""
    takes_text_as_it_is = kind.startswith(("ByT5", "Canine", "Perceiver"))
    if not files and not takes_text_as_it_is:  # transformers would make an empty one
        return [f"it holds none of {', '.join(_VOCABULARIES)}; put the model's tokenizer there"]
    models = [path for path in files if path.suffix == ".model"]
    return [f"{path.name} {what_is(path)}" for path in models if not path.read_bytes()[:1] == b"\n"]


def _size_problems(config: Mapping[str, Any]) -> list[str]:
    """Sizes of a configuration of XLM-R or ours that no model can have."""
    if config.get("model_type") not in MODEL_TYPES:
        return []
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return [f"{CONFIG}: architectures must be a list of names, found {named!r}"]
    sizes = {name: config[name] for name in _SIZES if name in config}
    wrong = [
        f"{CONFIG}: {name} must be a number of at least {_SIZES[name]}, found {value!r}"
        for name, value in sizes.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < _SIZES[name]
    ]
    if wrong:
        return wrong
    heads, layers = sizes.get("num_attention_heads", 1), sizes.get("num_hidden_layers", 0)
    if layers > _MOST_LAYERS:
        return [f"{CONFIG}: num_hidden_layers is {layers:,}, which no model has; correct it"]
    if sizes.get("hidden_size", heads) % heads:
        return [f"{CONFIG}: hidden_size {sizes['hidden_size']} cannot be divided among {heads} heads"]
    return []


def _shown_size_problems(folder: Path, files: Sequence[Path]) -> list[str]:
    """Where weights of XLM-R or ours show other sizes than the configuration: others would be drawn."""
    config = read_json(folder / CONFIG)
    if config.get("model_type") not in MODEL_TYPES:
        return []
    headers = [_safetensors_header(path)[0] for path in files]
    shapes = {name: entry["shape"] for header in headers for name, entry in header.items()}
    layers = [int(found[1]) + 1 for found in map(_LAYER.match, shapes) if found]
    shown: dict[str, int] = {"num_hidden_layers": max(layers, default=0)}
    for end, names in _SHOWN_SIZES.items():
        shape = next((shape for name, shape in shapes.items() if name.endswith(end)), ())
        shown |= dict(zip(names, shape, strict=False)) if len(shape) == len(names) else {}
    return [
        f"{CONFIG} says {name} {config[name]:,}, its weights {size:,}; put together what belongs together"
        for name, size in shown.items()
        if name in config and (config[name] > size if name == "num_hidden_layers" else config[name] != size)
    ]


def _checkpoints_in(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("checkpoint-*") if (path / CONFIG).is_file())
    if found:
        return f"; give a checkpoint in it, such as {folder / found[-1]}"
    if (folder / "adapter_config.json").is_file():
        return ": it is an adapter; merge it into its model first (`merge_and_unload` of peft)"
    return "; give the folder of a model or of one of its checkpoints"
