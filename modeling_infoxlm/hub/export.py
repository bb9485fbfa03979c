"""A trained model in the format that its users need, whole or not at all: `infoxlm export`.

    infoxlm export out --output_dir release
    infoxlm export out/checkpoint-500 --format sentence-transformers --layer 8 --output_dir vectors

A release is a folder with weights, configuration, tokenizer and `release.json`: what it was made of.
"""

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel

from modeling_infoxlm.hub.as_onnx import require_packages, save_as_onnx
from modeling_infoxlm.hub.evidence import write_training
from modeling_infoxlm.hub.formats import (
    DEFAULT_POOLING,
    MAX_SHARD_SIZE,
    Pooling,
    save_as_infoxlm,
    save_as_sentence_transformer,
    save_as_xlm_roberta,
)
from modeling_infoxlm.hub.source import Source, load_source
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import whole_folder, write_json
from modeling_infoxlm.runs.flags import flag, name_leading

Format = Literal["xlm-roberta", "infoxlm", "sentence-transformers", "onnx"]
Dtype = Literal["float32", "bfloat16", "float16"]

FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULT_FORMAT: Format = "xlm-roberta"
RELEASE_FILE = "release.json"

# Formats that an option has a meaning for.
_FORMATS_WITH = {
    "layer": ("sentence-transformers", "onnx"),
    "pooling": ("sentence-transformers",),
    "normalize": ("sentence-transformers",),
}


@dataclass
class FormatOptions:
    """What a release is made to be; flags of `infoxlm export` and `infoxlm push`."""

    format: Format | None = flag(
        None,
        "xlm-roberta loads everywhere; infoxlm comes with its code, to go on with pre-training; "
        "sentence-transformers is the encoder up to the sentence layer; onnx is for ONNX Runtime. "
        "Unset: xlm-roberta, or that of a release that is pushed.",
    )
    layer: int | None = flag(
        None,
        "Layer that the encoder is cut at; 0 is the embedding output. Unset: that of the contrast for "
        "sentence-transformers, the whole model for onnx.",
    )
    pooling: Pooling | None = flag(
        None,
        "Sentence vector for sentence-transformers: mean of all tokens, or cls, that of <s>. Unset: mean.",
    )
    normalize: bool = flag(False, "Scale vectors to length 1, for sentence-transformers.")
    dtype: Dtype = flag("float32", "Type of the stored weights; onnx: float32.")
    max_shard_size: str = flag(
        MAX_SHARD_SIZE, "Larger weights are stored in several files: a number and KB, MB, GB or TB."
    )

    def format_options(self) -> dict[str, Any]:
        """These options alone, for `export` and `build_release`."""
        return {one.name: getattr(self, one.name) for one in fields(FormatOptions)}


@dataclass
class ExportArguments(FormatOptions):
    """A trained model and the folder of its release."""

    _argument_group_name = "export"

    model_name_or_path: str = flag("", "Trained model: a checkpoint folder or a Hub name.")
    model_revision: str = flag("main", "Branch, tag or commit of model_name_or_path on the Hub.")
    output_dir: str = flag("release", "Folder of the release.")
    # repr=False: a printed or logged instance must not show the secret.
    token: str | None = flag(None, "Hub access token. Unset: the one stored by `hf auth login`.", repr=False)


@dataclass(frozen=True)
class ExportRecord:
    """What a release is and what it was made of: the content of `release.json`."""

    format: Format
    architecture: str  # class of the released model
    num_parameters: int
    dtype: Dtype
    layer: int | None  # that the encoder was cut at; None for a whole model
    pooling: Pooling | None  # how tokens become one vector, for sentence-transformers
    normalize: bool  # whether vectors are scaled to length 1, for sentence-transformers
    source: str  # name of the checkpoint on the Hub, or of its folder without the path
    source_revision: str | None  # commit of the checkpoint on the Hub
    source_sha256: str | None  # hash of the weights in the checkpoint's folder
    new: tuple[str, ...]  # parameters that the checkpoint lacked; they are random
    files: tuple[str, ...]  # all of the release, by their paths in it


def export_command(argv: list[str]) -> None:
    """Write a trained model as a release: `infoxlm export`."""
    argv = name_leading(argv, ("--model_name_or_path",))
    (arguments,) = parse_args_with_config((ExportArguments,), argv, program="infoxlm export", about=__doc__)
    if not arguments.model_name_or_path:
        raise UsageError(
            "infoxlm export needs a model: infoxlm export out/checkpoint-500 --output_dir release."
        )
    source, folder = arguments.model_name_or_path, Path(arguments.output_dir)
    access: dict[str, Any] = {"revision": arguments.model_revision, "token": arguments.token}
    record = export(source, folder, **access, **arguments.format_options())
    print(f"{folder}: {_describe(record, folder)}")


def export(
    source: str | Path,
    folder: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    **options: Any,
) -> ExportRecord:
    """Write a release of a checkpoint, whole or not at all.

    A release that this function wrote before is replaced, a folder with anything else in it is refused.

    Args:
        source: Checkpoint folder, or a name on the Hub, of InfoXLM or plain XLM-R, with any head.
        folder: Folder of the release.
        revision: Branch, tag or commit of the source on the Hub.
        token: Hub access token; None uses the one that is stored.
        options: Fields of `FormatOptions`, such as `format="onnx"`.

    Returns:
        What was written.

    Raises:
        UsageError: If an option does not fit the format, the folder must not be replaced, or the source is no
            complete checkpoint; see `load_source`.
    """
    folder, chosen = Path(folder).resolve(), FormatOptions(**options)
    form = chosen.format or DEFAULT_FORMAT
    _check_options(form, chosen)
    if form == "onnx":
        require_packages()  # before a large model is fetched and loaded
    before = read_record(folder)
    if before is not None and Path(source).resolve().is_relative_to(folder):
        raise UsageError(f"the release would replace its own source {source}; give another folder.")
    ours = () if before is None else before.files
    with whole_folder(folder, overwrite=True, marker=RELEASE_FILE, ours=ours) as partial:
        loaded = load_source(source, with_objectives=form == "infoxlm", revision=revision, token=token)
        write_training(Path(source), partial)
        released = _write(form, loaded, partial, chosen)
        is_st = form == "sentence-transformers"
        files = [path.relative_to(partial).as_posix() for path in partial.rglob("*") if not path.is_dir()]
        record = ExportRecord(
            format=form,
            architecture=type(released).__name__,
            num_parameters=released.num_parameters(),
            dtype=chosen.dtype,
            layer=released.config.num_hidden_layers if is_st else chosen.layer,
            pooling=chosen.pooling or DEFAULT_POOLING if is_st else None,
            normalize=chosen.normalize,
            source=loaded.name,
            source_revision=loaded.revision,
            source_sha256=loaded.sha256,
            new=loaded.new,
            files=tuple(sorted([*files, RELEASE_FILE])),
        )
        write_json(partial / RELEASE_FILE, asdict(record))
    return record


def read_record(folder: str | Path) -> ExportRecord | None:
    """What a release folder says of itself; None if it is no release of `export`."""
    try:
        content = json.loads((Path(folder) / RELEASE_FILE).read_text(encoding="utf-8"))
        lists = {name: tuple(content[name]) for name in ("new", "files")}
        return ExportRecord(**{**content, **lists})
    except (OSError, ValueError, TypeError, KeyError):  # absent, or another program's file of this name
        return None


def _check_options(form: str, options: FormatOptions) -> None:
    """Refuse what is no choice, and options that would have no effect."""
    for name, found, choices in (("format", form, FORMATS), ("dtype", options.dtype, get_args(Dtype))):
        if found not in choices:
            raise UsageError(f"{name} must be one of {', '.join(choices)}, found {found!r}.")
    if form == "onnx" and options.dtype != "float32":
        raise UsageError(
            f"onnx is written in float32, found dtype {options.dtype}; "
            "convert model.onnx with the tools of ONNX Runtime."
        )
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", options.max_shard_size):
        raise UsageError(
            f"max_shard_size must be a number and KB, MB, GB or TB, found {options.max_shard_size!r}."
        )
    for name, formats in _FORMATS_WITH.items():
        value = getattr(options, name)
        if value is not None and value is not False and form not in formats:  # layer 0 is given
            raise UsageError(f"{name} is for the format {' and '.join(formats)}, not for {form}.")


def _write(form: Format, source: Source, folder: Path, options: FormatOptions) -> PreTrainedModel:
    """Write the files of one format."""
    if form == "onnx":
        return save_as_onnx(source.model, folder, tokenizer=source.tokenizer, layer=options.layer)
    weights: dict[str, Any] = {"dtype": getattr(torch, options.dtype)}
    weights["max_shard_size"] = options.max_shard_size
    if form != "sentence-transformers":
        save = save_as_infoxlm if form == "infoxlm" else save_as_xlm_roberta
        return save(source.model, folder, tokenizer=source.tokenizer, **weights)
    if source.tokenizer is None:
        raise UsageError(
            f"{source.name} has no tokenizer, which sentence-transformers needs; "
            "put the one that it was trained with beside its weights."
        )
    return save_as_sentence_transformer(
        source.model,
        folder,
        tokenizer=source.tokenizer,
        layer=options.layer,
        pooling=options.pooling or DEFAULT_POOLING,
        normalize=options.normalize,
        **weights,
    )


def _describe(record: ExportRecord, folder: Path) -> str:
    """What the release is and how it is loaded, in one line."""
    new = f" New and random: {', '.join(record.new)}." if record.new else ""
    return {
        "xlm-roberta": "plain XLM-R; AutoModel.from_pretrained loads it without this package.",
        "infoxlm": "InfoXLM with its code; AutoModel.from_pretrained loads it with this package, or without "
        f"it by trust_remote_code=True.{new}",
        "sentence-transformers": f"{record.pooling} of {record.layer} layers; "
        f"SentenceTransformer({str(folder)!r}) loads it without this package.",
        "onnx": f"{record.architecture} as ONNX, equal to torch's to 1e-4; onnxruntime loads model.onnx.",
    }[record.format]
