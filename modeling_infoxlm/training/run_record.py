"""`run.json`: what a run is and how it came to be; and the check that a folder holds no other run."""

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from modeling_infoxlm.configuration_infoxlm import InfoXLMConfig
from modeling_infoxlm.data.plan import differences
from modeling_infoxlm.data.prepare import remove_prepared
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import write_json
from modeling_infoxlm.runs.provenance import RUN_FILE, TRAINER_STATE, describe_program
from modeling_infoxlm.training.arguments import (
    ContrastArguments,
    DataArguments,
    ModelArguments,
    PretrainingArguments,
    default_of,
)

logger = logging.getLogger(__name__)

_SHAPING_TOKENIZER = {
    "tokenizer_vocab_size",
    "bitext_files",
    "mono_files",
    "bitext_columns",
    "max_seq_length",
}
_CHECKPOINT = re.compile(r"checkpoint-\d+")
# What a run starts from, by the flags that name it.
_INPUTS = ("model_name_or_path", "config_name", "tokenizer_name", "momentum_state", "prepared_data")
# Of the end of a run: a new one would else be published with them.
_RESULTS = ("model*.safetensors", "model*.safetensors.index.json", "*_results.json", "trainer_state.json")
# Training arguments that change what is computed, or what its end is compared with; others
# (workers, logging, where to push) may differ on resumption.
_COMPUTED = (
    "seed learning_rate lr_scheduler_type warmup_steps max_steps "
    "optim adam_beta1 adam_beta2 adam_epsilon weight_decay weight_decay_on_all max_grad_norm "
    "moments_dtype lr_scheduler_kwargs optim_args bf16 fp16 "
    "mlm_weight tlm_weight xlco_weight loss_normalization eval_layer eval_pooling eval_max_pairs"
).split()


class OutputFolderError(UsageError):
    """The output folder holds something that this run would mix with or destroy."""


def run_identity(
    model: ModelArguments,
    data: DataArguments,
    contrast: ContrastArguments,
    args: PretrainingArguments,
    *,
    config: InfoXLMConfig | None = None,
) -> dict[str, Any]:
    """Everything that changes what a run computes; two runs with the same are the same run.

    Args:
        model: Flags of the model.
        data: Flags of the data.
        contrast: Flags of the contrast.
        args: Training arguments.
        config: Of the model, where it is known already; flags that are unset are as it says.
    """
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    identity = {**asdict(model), **asdict(data), **asdict(contrast), "total_train_batch_size": batch}
    for name in ("token", "cache_dir", "preprocessing_num_workers"):
        del identity[name]
    if "xlco" in data.objective_names() and _depends_on_pass(contrast, config or InfoXLMConfig()):
        identity["pairs_together"] = args.per_device_train_batch_size * args.world_size
    return identity | {name: getattr(args, name) for name in _COMPUTED}


def _depends_on_pass(contrast: ContrastArguments, config: InfoXLMConfig) -> bool:
    """Whether a pair's loss depends on the others of its pass, so that accumulating is another contrast."""
    names = ("xlco_in_batch_negatives", "xlco_symmetric")
    flags = {name: getattr(contrast, name) for name in names}
    together = any(getattr(config, name) if flag is None else flag for name, flag in flags.items())
    return together or contrast.xlco_enqueue == "microbatch"


def changed_flags(*arguments: Any) -> list[str]:
    """Names of the flags that do not have their default value.

    Args:
        arguments: Instances of the dataclasses of arguments.
    """
    return [
        flag.name
        for instance in arguments
        for flag in fields(instance)
        if flag.init and getattr(instance, flag.name) != default_of(flag)
    ]


def write_run_record(
    output_dir: Path, *, argv: Sequence[str], identity: Mapping[str, Any], details: Mapping[str, Any]
) -> None:
    """Write `run.json` with command, versions, commit, what the run is (`identity`) and other `details`.

    Secrets that look like Hub tokens are blotted out of the command.
    """
    for left_by_a_kill in output_dir.glob(f"{RUN_FILE}.*partial"):
        left_by_a_kill.unlink(missing_ok=True)
    record = {**describe_program(argv), "identity": dict(identity), **details}
    write_json(output_dir / RUN_FILE, record)


def find_checkpoint(output_dir: Path, identity: Mapping[str, Any], *, overwrite: bool) -> str | None:
    """Return the last checkpoint of this very run in the folder, or None to start anew.

    Args:
        output_dir: Folder of the run.
        identity: What the run is: all settings that change what is computed.
        overwrite: Start anew: an earlier run in the folder is removed, other files are left alone.

    Raises:
        OutputFolderError: If the folder holds a different run, or files of something else; or what is to be
            overwritten is read by this run.
    """
    if overwrite:
        _remove_run(output_dir, identity)
        return None
    if not output_dir.is_dir():
        return None
    record = output_dir / RUN_FILE
    # A kill while the record was written, the first file of a run, leaves a part of it alone.
    if all(fnmatch(path.name, f"{RUN_FILE}.*partial") for path in output_dir.iterdir()):
        return None
    if not record.is_file():
        raise OutputFolderError(
            f"{output_dir} is not empty and holds no {RUN_FILE} of a run; give another --output_dir, "
            "or --overwrite_output_dir true."
        )
    found = _read_record(output_dir)["identity"]
    expected = json.loads(json.dumps(dict(identity), default=str))
    differing = [
        name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)
    ]
    trained = bool(_checkpoints(output_dir)) or (output_dir / "model.safetensors").is_file()
    if differing and trained:
        name = differing[0]
        more = f" (and {len(differing) - 1} more: {', '.join(differing[1:6])})" if len(differing) > 1 else ""
        raise OutputFolderError(
            f"{output_dir} holds a different run: "
            f"{name} was {found.get(name)!r}, is now {expected.get(name)!r}{more}. "
            "Give another --output_dir, or --overwrite_output_dir true to start anew."
        )
    if set(differing) & _SHAPING_TOKENIZER and _trained_tokenizer(found):
        # Nothing was trained yet: what a mended command asks for is made anew. Prepared data guards itself.
        shutil.rmtree(output_dir / "tokenizer", ignore_errors=True)
    _remove_broken_checkpoints(output_dir)  # only now: those of another run are not ours to judge
    return get_last_checkpoint(str(output_dir))


def check_corpus(output_dir: Path, corpus: Corpus) -> None:
    """Check that a run which goes on reads the text that it has read so far.

    Args:
        output_dir: Folder of the run, whose record is of its last start.
        corpus: What it would go on with.

    Raises:
        OutputFolderError: If text, tokenizer or settings of the corpus are others.
    """
    found = differences(_read_record(output_dir).get("corpus", corpus.manifest), corpus.manifest)
    if found:
        raise OutputFolderError(
            f"{output_dir} was trained on another corpus than {corpus.folder} is now: {'; '.join(found)}. "
            "Prepare that one again, or give another --output_dir."
        )


def step_of(checkpoint: str) -> int:
    """The step at which a checkpoint was saved, from its name."""
    return int(checkpoint.rsplit("-", 1)[1])


def hub_name(name_or_path: str | None) -> str | None:
    """Name of a model on the Hub; None for a folder, and for none."""
    return None if name_or_path is None or Path(name_or_path).is_dir() else name_or_path


def is_finished(output_dir: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very run, trained to its end and measured."""
    if not (output_dir / RUN_FILE).is_file():
        return False
    record = _read_record(output_dir)
    expected = json.loads(json.dumps(dict(identity), default=str))
    return bool(record.get("finished")) and record["identity"] == expected


def _read_record(output_dir: Path) -> dict[str, Any]:
    """`run.json` of a run.

    Raises:
        OutputFolderError: If it cannot be read, or is no record.
    """
    path = output_dir / RUN_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OutputFolderError(f"{path} cannot be read ({error}); give another --output_dir.") from error
    if not isinstance(record, dict) or not isinstance(record.get("identity"), dict):
        raise OutputFolderError(f"{path} is no record of a run; give another --output_dir.")
    return record


def _checkpoints(output_dir: Path) -> list[Path]:
    return [
        path for path in sorted(output_dir.iterdir()) if _CHECKPOINT.fullmatch(path.name) and path.is_dir()
    ]


def _remove_broken_checkpoints(output_dir: Path) -> None:
    """Remove checkpoints of this run that a kill cut short: the Trainer writes its state last."""
    for checkpoint in _checkpoints(output_dir):
        try:
            json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("%s was not completely written and is removed.", checkpoint)
            shutil.rmtree(checkpoint)


def _trained_tokenizer(identity: Mapping[str, Any]) -> bool:
    """Whether the folder `tokenizer` of a run was made by it: one that was named may lie there too."""
    if "model" in identity:  # of fine-tuning, which trains none
        return False
    return identity.get("tokenizer_name") is None and identity.get("model_name_or_path") is None


def _remove_run(output_dir: Path, new: Mapping[str, Any]) -> None:
    """Remove what an earlier run wrote; its checkpoints would else be taken for this one's."""
    if not output_dir.is_dir():
        return
    checkpoints = _checkpoints(output_dir)
    is_run = (output_dir / RUN_FILE).is_file()
    if checkpoints and not is_run:
        raise OutputFolderError(
            f"{output_dir} holds {checkpoints[0].name} but no {RUN_FILE}, so nobody knows of which run; "
            "remove it, or give another --output_dir."
        )
    identity = _read_record(output_dir)["identity"] if is_run else {}
    prepared = output_dir / "data" if identity.get("prepared_data", "") is None else None
    tokenizer = output_dir / "tokenizer" if is_run and _trained_tokenizer(identity) else None
    _refuse_own_inputs(output_dir, [*checkpoints, *filter(None, (prepared, tokenizer))], new)
    if not is_run:
        return
    if prepared is not None:
        remove_prepared(prepared)
    written = [*checkpoints, *(output_dir / name for name in (".saving", ".pushing"))]
    if tokenizer is not None and not tokenizer.is_symlink():  # nor did the run make what a link points at
        written.append(tokenizer)
    written += [path for pattern in _RESULTS for path in output_dir.glob(pattern)]
    for path in [*written, output_dir / RUN_FILE]:  # last: a kill leaves what can be overwritten
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_own_inputs(output_dir: Path, removed: Sequence[Path], new: Mapping[str, Any]) -> None:
    """Refuse to remove or replace what the new run starts from: a kill would leave neither."""
    inputs = {flag: new.get(flag) for flag in _INPUTS}
    if "model" in new:  # of fine-tuning
        inputs["model_name_or_path"] = new["model"]["name_or_path"]
    for flag, name in inputs.items():
        if name is None:
            continue
        path = Path(name).resolve()
        replaced = flag != "prepared_data" and path == output_dir.resolve()
        if replaced or {path, *path.parents} & {place.resolve() for place in removed}:
            raise OutputFolderError(
                f"{flag} {name} lies in {output_dir}, whose run is to be overwritten; "
                "copy it elsewhere, or give another --output_dir."
            )
