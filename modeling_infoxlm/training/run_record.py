"""`run.json`: what a run is and how it came to be; and the check that a folder holds no other run."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from modeling_infoxlm.provenance import RUN_FILE, describe_program, write_json
from modeling_infoxlm.training.arguments import (
    ContrastArguments,
    DataArguments,
    ModelArguments,
    PretrainingArguments,
    default_of,
)

_SHAPING_TOKENIZER = {
    "tokenizer_vocab_size",
    "bitext_files",
    "mono_files",
    "bitext_columns",
    "max_seq_length",
}
_RUN_FOLDERS = ("data", "tokenizer", ".saving", ".pushing")
# Of the end of a run: a new one would else be published with them.
_RESULTS = ("model*.safetensors", "model*.safetensors.index.json", "*_results.json", "trainer_state.json")
# Training arguments that change what is computed; others
# (workers, logging, where to push) may differ on resumption.
_COMPUTED = (
    "seed learning_rate lr_scheduler_type warmup_steps max_steps "
    "optim adam_beta1 adam_beta2 adam_epsilon weight_decay weight_decay_on_all max_grad_norm "
    "moments_dtype lr_scheduler_kwargs optim_args bf16 fp16 "
    "mlm_weight tlm_weight xlco_weight loss_normalization"
).split()


class OutputFolderError(ValueError):
    """The output folder holds something that this run would mix with or destroy."""


def run_identity(
    model: ModelArguments, data: DataArguments, contrast: ContrastArguments, args: PretrainingArguments
) -> dict[str, Any]:
    """Everything that changes what a run computes; two runs with the same are the same run."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    identity = {**asdict(model), **asdict(data), **asdict(contrast), "total_train_batch_size": batch}
    for name in ("token", "cache_dir", "preprocessing_num_workers"):
        del identity[name]
    return identity | {name: getattr(args, name) for name in _COMPUTED}


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
    record = {**describe_program(argv), "identity": dict(identity), **details}
    write_json(output_dir / RUN_FILE, record)


def find_checkpoint(output_dir: Path, identity: Mapping[str, Any], *, overwrite: bool) -> str | None:
    """Return the last checkpoint of this very run in the folder, or None to start anew.

    Args:
        output_dir: Folder of the run.
        identity: What the run is: all settings that change what is computed.
        overwrite: Start anew: an earlier run in the folder is removed, other files are left alone.

    Raises:
        OutputFolderError: If the folder holds a different run, or files of something else.
    """
    if overwrite:
        _remove_run(output_dir)
        return None
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return None
    record = output_dir / RUN_FILE
    if not record.is_file():
        raise OutputFolderError(
            f"{output_dir} is not empty and holds no {RUN_FILE} of a run; give another --output_dir, "
            "or --overwrite_output_dir true."
        )
    found = json.loads(record.read_text(encoding="utf-8"))["identity"]
    expected = json.loads(json.dumps(dict(identity), default=str))
    differing = [
        name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)
    ]
    checkpoint = get_last_checkpoint(str(output_dir))
    trained = checkpoint is not None or (output_dir / "model.safetensors").is_file()
    if differing and trained:
        name = differing[0]
        more = f" (and {len(differing) - 1} more: {', '.join(differing[1:6])})" if len(differing) > 1 else ""
        raise OutputFolderError(
            f"{output_dir} holds a different run: "
            f"{name} was {found.get(name)!r}, is now {expected.get(name)!r}{more}. "
            "Give another --output_dir, or --overwrite_output_dir true to start anew."
        )
    if set(differing) & _SHAPING_TOKENIZER and (output_dir / "tokenizer").is_dir():
        # Nothing was trained yet: what a mended command asks for is made anew. Prepared data guards itself.
        shutil.rmtree(output_dir / "tokenizer")
    return checkpoint


def step_of(checkpoint: str) -> int:
    """The step at which a checkpoint was saved, from its name."""
    return int(checkpoint.rsplit("-", 1)[1])


def hub_name(name_or_path: str | None) -> str | None:
    """Name of a model on the Hub; None for a folder, and for none."""
    return None if name_or_path is None or Path(name_or_path).is_dir() else name_or_path


def is_finished(output_dir: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very run, trained to its end and measured."""
    path = output_dir / RUN_FILE
    if not path.is_file():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    expected = json.loads(json.dumps(dict(identity), default=str))
    return bool(record.get("finished")) and record["identity"] == expected


def _remove_run(output_dir: Path) -> None:
    """Remove what an earlier run wrote; its checkpoints would else be taken for this one's."""
    checkpoints = list(output_dir.glob("checkpoint-*"))
    if (output_dir / RUN_FILE).is_file():
        for path in [
            *checkpoints,
            *(output_dir / name for name in _RUN_FOLDERS if (output_dir / name).exists()),
        ]:
            shutil.rmtree(path)
        for pattern in _RESULTS:
            for path in output_dir.glob(pattern):
                path.unlink()
        (output_dir / RUN_FILE).unlink()
    elif checkpoints:
        raise OutputFolderError(
            f"{output_dir} holds {checkpoints[0].name} but no {RUN_FILE}, so nobody knows of which run; "
            "remove it, or give another --output_dir."
        )
