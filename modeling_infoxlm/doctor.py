"""`infoxlm doctor`: is this machine ready, and is this checkpoint in order?

infoxlm doctor                      what is installed, the device, how fast it is, disk, login
infoxlm doctor out/checkpoint-500   the same, and a check of a folder
infoxlm doctor org/name             the same, and a check of a repository on the Hub

One line a check; the exit code is 1 if one failed. No code of a checkpoint is run, nothing is unpickled.
"""

import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from rich.console import Console
from rich.text import Text

from modeling_infoxlm.fused_loss import why_not_compiled
from modeling_infoxlm.hub.checkup import PICKLES, Finding, Level, check_checkpoint
from modeling_infoxlm.hub.loading import check_name
from modeling_infoxlm.hub.retries import TRANSPORT_ERROR
from modeling_infoxlm.packed_attention import VarlenAttention, plan_attention, why_not_flash
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.flags import flag, name_leading
from modeling_infoxlm.runs.process import configure_process
from modeling_infoxlm.runs.provenance import PACKAGES
from modeling_infoxlm.runs.secrets import blot_secrets
from modeling_infoxlm.training.throughput import matmul_peak

LITTLE_DISK = 10 * 10**9  # bytes: a base checkpoint with its optimiser and momentum encoder has 5 GB
_COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_HEADS, _HEAD_SIZE, _TOKENS = 2, 64, 8  # of the attention that is tried
_UNREAD = [*(f"*{suffix}" for suffix in PICKLES), "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot"]


class DoctorFailure(ValueError):
    """At least one check failed."""


@dataclass
class DoctorArguments:
    """What is examined besides the machine."""

    _argument_group_name = "doctor"

    model_name_or_path: str | None = flag(None, "Checkpoint folder or name on the Hub. Or the first word.")
    model_revision: str = flag("main", "Branch, tag or commit of a repository on the Hub.")


def doctor_command(argv: list[str]) -> None:
    """Examine the machine and a checkpoint: `infoxlm doctor`; raises `DoctorFailure` if a check failed."""
    argv = name_leading(argv, ("--model_name_or_path",))
    (arguments,) = parse_args_with_config((DoctorArguments,), argv, program="infoxlm doctor", about=__doc__)
    configure_process(distributed=True)
    console = Console(highlight=False, soft_wrap=True)
    levels = [*_report(console, check_environment())]
    if arguments.model_name_or_path is not None:
        folder, names = _find(arguments.model_name_or_path, arguments.model_revision)
        levels += _report(console, check_checkpoint(folder, names))
    failed = levels.count("fail")
    if failed:
        raise DoctorFailure(f"{failed} of {len(levels)} checks failed.")
    console.print(f"{len(levels)} checks, none failed.")


def _report(console: Console, findings: Iterable[Finding]) -> list[Level]:
    """Print each finding when it is there; return their levels."""
    levels = []
    for finding in findings:
        text = f"  {finding.check:10} {blot_secrets(finding.text)}"
        console.print(Text.assemble((f"{finding.level:4}", _COLOURS[finding.level]), text))
        levels.append(finding.level)
    return levels


def check_environment() -> Iterator[Finding]:
    """Versions, device, what runs on it and how fast, disk and login of this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("versions", check_versions),
        ("device", lambda: check_device(device)),
        ("attention", lambda: check_attention(device)),
        ("loss", lambda: check_loss(device)),
        ("matmul", lambda: check_matmul(device)),
        ("disk", lambda: check_disk("here", Path.cwd())),
        ("disk", lambda: check_disk("for the Hub cache", Path(constants.HF_HUB_CACHE))),
        ("login", check_login),
    ]
    for name, check in checks:
        try:
            yield check()
        except Exception as error:  # whatever is wrong with a machine, the other checks are wanted
            yield Finding(name, "fail", f"{type(error).__name__}: {' '.join(str(error).split())}")


def check_versions() -> Finding:
    """Versions of Python and the packages that results depend on."""
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return Finding("versions", "ok", ", ".join([f"Python {platform.python_version()}", *versions]))


def check_device(device: torch.device) -> Finding:
    """The device that training would take, its free memory, and what several would talk by."""
    if device.type == "cpu":
        text = f"CPU, {os.cpu_count()} cores, threads of torch: {torch.get_num_threads()}"
        return Finding("device", "ok", f"{text}; no GPU is seen by torch {torch.__version__}")
    count, known = torch.cuda.device_count(), torch.cuda.get_device_properties(device)
    free, total = (f"{size / 2**30:.0f}" for size in torch.cuda.mem_get_info(device))
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    text = f"{count} x {known.name}, {free} of {total} GiB free, compute capability {capability}"
    text += f", CUDA {torch.version.cuda}"
    if torch.distributed.is_nccl_available():
        return Finding("device", "ok", f"{text}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")
    return Finding("device", "warn" if count > 1 else "ok", f"{text}, no NCCL: one GPU only")


def check_attention(device: torch.device) -> Finding:
    """Run packed attention as training would, and say which form of it that is and why."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = torch.ones(_TOKENS, _HEADS * _HEAD_SIZE, device=device, dtype=dtype)
    attention = plan_attention(np.array([_TOKENS - 3, 3]), None, rows, heads=_HEADS, needs_dropout=False)
    try:
        context = attention(rows, rows, rows, heads=_HEADS, scaling=_HEAD_SIZE**-0.5, dropout=0.0)
        torch.testing.assert_close(context, rows)  # the mean of equal values
    except (AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        return Finding("attention", "fail", f"{type(attention).__name__} does not work here: {reason}")
    if isinstance(attention, VarlenAttention):
        return Finding("attention", "ok", "flash attention over packed rows, with --bf16 or --fp16")
    if device.type == "cuda":
        reason = str(why_not_flash(rows.device, dtype, _HEAD_SIZE))
        return Finding("attention", "warn", f"batched products instead of flash attention: {reason}")
    return Finding("attention", "ok", "batched products of groups of similar length")


def check_loss(device: torch.device) -> Finding:
    """Whether the loss of masked tokens runs compiled."""
    if device.type == "cpu":
        return Finding("loss", "ok", "in blocks that stay in the cache")
    reason = why_not_compiled(device.type)
    if reason is None:
        return Finding("loss", "ok", "compiled kernels")
    return Finding("loss", "warn", f"uncompiled kernels, which are slower: {reason}")


def check_matmul(device: torch.device) -> Finding:
    """Measured peak of matrix products by the type that they run in."""
    types = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if device.type == "cuda":
        types = {**types, "fp16": torch.float16}
    peaks = [f"{matmul_peak(device, dtype) / 1e12:,.3g} in {name}" for name, dtype in types.items()]
    tf32 = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return Finding("matmul", "ok", f"TFLOP/s: {', '.join(peaks)}{' (TF32)' if tf32 else ''}")


def check_disk(name: str, path: Path) -> Finding:
    """Free space where this path is, or would be made."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / 1e9:,.0f} GB free {name} ({path})"
    if free >= LITTLE_DISK:
        return Finding("disk", "ok", text)
    text += "; a checkpoint of a base model has 5 GB: make room, or write elsewhere."
    return Finding("disk", "warn", text)


def check_login() -> Finding:
    """Who the Hub takes us for; never the token."""
    hub = constants.ENDPOINT
    if get_token() is None:
        return Finding("login", "warn", "not logged in; to publish: `hf auth login`.")
    try:
        user = HfApi(endpoint=hub).whoami()
    except OfflineModeIsEnabled:
        return Finding("login", "warn", "not asked: HF_HUB_OFFLINE is set.")
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            return Finding("login", "fail", f"{hub} does not accept the token; `hf auth login --force`.")
        return Finding("login", "warn", f"{hub} answered {error.response.status_code}; try again later.")
    except (TRANSPORT_ERROR, ValueError) as error:
        return Finding("login", "warn", f"{hub} was not reached: {type(error).__name__}.")
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    may = f", token that may {role}" if role in ("read", "write") else ""
    return Finding("login", "ok", f"{user.get('name')} at {hub}{may}")


def _find(name_or_path: str, revision: str) -> tuple[Path, list[str]]:
    """The folder of a checkpoint and the names of its files; from the Hub only what is read."""
    folder = Path(name_or_path)
    if folder.is_dir():
        paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        others = (".", "checkpoint-")  # hidden folders, and checkpoints of the run that lie in it
        seen = [path for path in paths if not any(part.startswith(others) for part in path.parts[:-1])]
        return folder, sorted(path.as_posix() for path in seen)
    check_name(name_or_path)
    try:
        info = HfApi().model_info(name_or_path, revision=revision)
        names = sorted(sibling.rfilename for sibling in info.siblings or [])
        return Path(snapshot_download(name_or_path, revision=info.sha, ignore_patterns=_UNREAD)), names
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        where = f"{constants.ENDPOINT} has no {name_or_path} at {revision}, or you may not see it"
        raise UsageError(f"there is no such folder, and {where} (`hf auth login`).") from error
    except (TRANSPORT_ERROR, OfflineModeIsEnabled) as error:
        reason = blot_secrets(" ".join(str(error).split()))
        raise OSError(f"{name_or_path} cannot be fetched from {constants.ENDPOINT}: {reason}") from error
