"""What a run is, its record `run.json`, and whether a folder holds this run, another one, or nothing.

Used by pre-training and fine-tuning alike; the identity is also what the report tells experiments apart by.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import Each, check_shape, read_json, write_json
from modeling_infoxlm.runs.provenance import describe_program

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
TRAINER_STATE = "trainer_state.json"
# Settings that say where files lay, not what was computed.
PLACES = set(
    "tokenizer_name config_name bitext_files mono_files prepared_data momentum_state data_dir train_file "
    "validation_files test_files files model model_name_or_path".split()
)
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_NOT_COMPUTED = ("token", "cache_dir", "preprocessing_num_workers")
# What a run starts from, by the flags that name it.
_INPUTS = ("model_name_or_path", "config_name", "tokenizer_name", "momentum_state", "prepared_data")
_SHAPING_TOKENIZER = set("tokenizer_vocab_size bitext_files mono_files bitext_columns max_seq_length".split())
# Of the end of a run: a new one would else be published with them.
_RESULTS = ("model*.safetensors", "model*.safetensors.index.json", "*_results.json", TRAINER_STATE)


class OutputFolderError(UsageError):
    """The output folder holds something that this run would mix with or destroy."""


def run_identity(*settings: Any, args: Any, computed: Sequence[str], **inputs: Any) -> dict[str, Any]:
    """Everything that changes what a run computes; two runs with the same are the same run.

    Args:
        settings: Dataclasses of arguments, all of whose fields count.
        args: Training arguments, of which only those named in `computed` count: others (workers, logging,
            where to push) may differ on resumption.
        computed: Their names.
        inputs: What else counts, such as the model and hashes of the files that are read.
    """
    fields = {name: value for instance in settings for name, value in asdict(instance).items()}
    identity = fields | inputs | {name: getattr(args, name) for name in computed}
    return {name: value for name, value in identity.items() if name not in _NOT_COMPUTED}


def identity_of_result(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a result file says of its run, by which the report tells experiments apart.

    Where files lay is left out, and the files that were read become a list of their hashes.
    """
    computed = {name: value for name, value in identity.items() if name not in PLACES}
    return {**computed, "files": sorted(identity["files"].values())}


@dataclass(frozen=True)
class Run:
    """A run and its folder; `checkpoint` is what it goes on from, None at the start."""

    folder: Path
    identity: Mapping[str, Any]
    argv: Sequence[str]
    checkpoint: str | None = None
    finished: bool = False

    @property
    def resumed_at_step(self) -> int | None:
        """The step at which the checkpoint was saved, from its name."""
        return None if self.checkpoint is None else int(self.checkpoint.rsplit("-", 1)[1])

    def write_record(self, **details: Any) -> None:
        """Write `run.json`: command, versions, commit, what the run is and other details; without secrets."""
        for left_by_a_kill in self.folder.glob(f"{RUN_FILE}.*partial"):
            left_by_a_kill.unlink(missing_ok=True)
        record = {**describe_program(self.argv), "identity": dict(self.identity), **details}
        write_json(self.folder / RUN_FILE, record)


def open_run(
    folder: Path,
    identity: Mapping[str, Any],
    *,
    argv: Sequence[str],
    overwrite: bool = False,
    writes: bool = True,
    outputs: Sequence[str] = (),
    remove_corpus: Callable[[Path], None] | None = None,
) -> Run:
    """Look for this run in a folder, and begin it there if it is new.

    Args:
        folder: Its output folder.
        identity: From `run_identity`.
        argv: Arguments of the command, for the record.
        overwrite: Start anew: an earlier run in the folder is removed, other files are left alone.
        writes: Whether this process is the one that writes. Others come later: what they find is this run's.
        outputs: Names of further files and folders that an earlier run may have left.
        remove_corpus: Removes the folder `data` of an earlier run that prepared it; None leaves it.

    Raises:
        OutputFolderError: If the folder holds a different run, or files of something else; or what is to be
            overwritten is read by this run.
    """
    if overwrite and writes:
        _remove_run(folder, identity, outputs, remove_corpus)
        found = None
    else:
        found = _find_record(folder)
    if found is not None and found.get("finished") and not _differing(found["identity"], identity):
        return Run(folder, identity, argv, finished=True)
    checkpoint = None if found is None else _find_checkpoint(folder, found["identity"], identity)
    run = Run(folder, identity, argv, checkpoint)
    if writes and run.checkpoint is None:  # the record of one that goes on tells what text it was trained on
        run.write_record()
    return run


def read_record(folder: Path) -> dict[str, Any]:
    """`run.json` of a run.

    Raises:
        OutputFolderError: If it cannot be read, or is no record.
    """
    path = folder / RUN_FILE
    try:
        record = read_json(path)
        check_shape(record, {"identity": Each(object)}, path)
    except ValueError as error:
        raise OutputFolderError(f"{error} Give another --output_dir.") from error
    return dict(record)


def _find_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run that lies in a folder; None of a folder that is empty or not there."""
    if (folder / RUN_FILE).is_file():
        return read_record(folder)
    # A kill while the record was written, the first file of a run, leaves a part of it alone.
    if folder.is_dir() and not all(fnmatch(path.name, f"{RUN_FILE}.*partial") for path in folder.iterdir()):
        raise OutputFolderError(
            f"{folder} is not empty and holds no {RUN_FILE} of a run; give another --output_dir, "
            "or --overwrite_output_dir true."
        )
    return None


def _differing(found: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """Names of what differs in two identities, of which the first has been in a file."""
    expected = json.loads(json.dumps(dict(identity), default=str))
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]


def _find_checkpoint(folder: Path, found: Mapping[str, Any], identity: Mapping[str, Any]) -> str | None:
    """Return the last checkpoint of the run in the folder, which has to be this one if it has trained."""
    differing = _differing(found, identity)
    if differing and (_checkpoints(folder) or (folder / "model.safetensors").is_file()):
        name, more = differing[0], differing[1:]
        others = f" (and {len(more)} more: {', '.join(more[:5])})" if more else ""
        raise OutputFolderError(
            f"{folder} holds a different run: {name} was {found.get(name)!r}, is now {identity.get(name)!r}"
            f"{others}. Give another --output_dir, or --overwrite_output_dir true to start anew."
        )
    if set(differing) & _SHAPING_TOKENIZER and _trained_tokenizer(found):
        # Nothing was trained yet: what a mended command asks for is made anew. Prepared data guards itself.
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    for checkpoint in _checkpoints(folder):  # only now: those of another run are not ours to judge
        if not _is_whole(checkpoint):
            logger.warning("%s was not completely written and is removed.", checkpoint)
            shutil.rmtree(checkpoint)
    last: str | None = get_last_checkpoint(str(folder))
    return last


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]


def _is_whole(checkpoint: Path) -> bool:
    """Whether no kill has cut a checkpoint short: the Trainer writes its state last."""
    try:
        json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _trained_tokenizer(identity: Mapping[str, Any]) -> bool:
    """Whether the folder `tokenizer` of a run was made by it: one that was named may lie there too."""
    if "model" in identity:  # of fine-tuning, which trains none
        return False
    return identity.get("tokenizer_name") is None and identity.get("model_name_or_path") is None


def _remove_run(
    folder: Path, new: Mapping[str, Any], outputs: Sequence[str], remove_corpus: Callable[[Path], None] | None
) -> None:
    """Remove what an earlier run wrote; its checkpoints would else be taken for the new one's."""
    if not folder.is_dir():
        return
    is_run = (folder / RUN_FILE).is_file()
    checkpoints = _checkpoints(folder)
    if checkpoints and not is_run:
        raise OutputFolderError(
            f"{folder} holds {checkpoints[0].name} but no {RUN_FILE}, so nobody knows of which run; "
            "remove it, or give another --output_dir."
        )
    identity = read_record(folder)["identity"] if is_run else {}
    prepared = [folder / "data"] if identity.get("prepared_data", "") is None else []
    tokenizer = [folder / "tokenizer"] if is_run and _trained_tokenizer(identity) else []
    _refuse_own_inputs(folder, [*checkpoints, *prepared, *tokenizer], new)
    if not is_run:
        return
    for corpus in prepared:
        if remove_corpus is not None:
            remove_corpus(corpus)
    written = [*checkpoints, *(folder / name for name in (".saving", ".pushing", *outputs))]
    written += [path for path in tokenizer if not path.is_symlink()]  # the run did not make what it points at
    written += [path for pattern in _RESULTS for path in folder.glob(pattern)]
    for path in [*written, folder / RUN_FILE]:  # last: a kill leaves what can be overwritten
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_own_inputs(folder: Path, removed: Sequence[Path], new: Mapping[str, Any]) -> None:
    """Refuse to remove or replace what the new run starts from: a kill would leave neither."""
    inputs = {flag: new.get(flag) for flag in _INPUTS}
    if "model" in new:  # of fine-tuning
        inputs["model_name_or_path"] = new["model"]["name_or_path"]
    for flag, name in inputs.items():
        if name is None:
            continue
        path = Path(name).resolve()
        replaced = flag != "prepared_data" and path == folder.resolve()
        if replaced or {path, *path.parents} & {place.resolve() for place in removed}:
            raise OutputFolderError(
                f"{flag} {name} lies in {folder}, whose run is to be overwritten; "
                "copy it elsewhere, or give another --output_dir."
            )
