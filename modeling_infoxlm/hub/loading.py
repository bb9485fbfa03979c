"""Look before loading: whether a name is a folder or of the Hub, and what a library says in one clear line.

Everything that is loaded here comes through `load`, which looks at the files first (`file_checks.py`): torch
advises to load pickles without its protection.
"""

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging as transformers_logging

from modeling_infoxlm.hub.file_checks import AGAIN, CONFIG, Part, file_problems, safetensors_problems
from modeling_infoxlm.runs.errors import UsageError, some

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


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
    what = f"the tokenizer of {name_or_path}" if part == "tokenizer" else str(name_or_path)
    problems = file_problems(Path(name_or_path), part) if Path(name_or_path).is_dir() else []
    if problems:
        raise UsageError(f"{what} cannot be loaded: {some(problems)}.")
    try:
        return loader(name_or_path, **options)
    except (UsageError, MemoryError):
        raise
    # Any other error is the files' fault: each reader has kinds of its own for a damaged one.
    except Exception as error:
        raise UsageError(f"{what} cannot be loaded: {explain(error)}") from error


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
            f"{name_or_path} cannot be loaded: its weights have other shapes than its {CONFIG} says, or the "
            f"task needs: {some(wrong)}; put together what belongs together; where the head is for other "
            "labels, give the encoder that it was made from."
        )
    if report["missing_keys"]:
        logger.info("%s lacks %s: drawn anew.", name_or_path, some(sorted(report["missing_keys"])))
    return model, report


def check_encoder(name_or_path: str | Path, model: Any, missing: Sequence[str]) -> None:
    """Refuse a checkpoint whose encoder would be random, or whose weights are no numbers.

    A pooler may be random: nothing here reads it. `missing` are the parameters that the checkpoint lacks.

    Raises:
        UsageError: With the first weight.
    """
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    lost = [key for key in missing if key.startswith(prefix) and not key.startswith(f"{prefix}pooler.")]
    if lost:
        raise UsageError(
            f"{name_or_path} lacks {len(lost)} weights of the encoder, such as {lost[0]}; "
            f"is it a checkpoint of another architecture than its {CONFIG} says?"
        )
    broken = [key for key, value in model.named_parameters() if not value.isfinite().all()]
    if broken:
        raise UsageError(
            f"{name_or_path} has NaN or infinite weights in {len(broken)} tensors, such as {broken[0]}: "
            "the run that wrote it has diverged, or the file is damaged; take an earlier checkpoint."
        )


def check_name(name_or_path: str | Path, what: str = "checkpoint such as out/checkpoint-500") -> None:
    """Refuse at once what can only be a path and is none: the Hub takes a minute to answer, and misleads.

    Raises:
        UsageError: If it is a file, a path that is not there, or no name of a repository; with `what` is due.
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


def check_state_file(path: Path) -> None:
    """Refuse a file that should hold tensors and does not, with what it is."""
    problems = safetensors_problems(path)
    if problems:
        raise UsageError(f"{path.parent}: {problems[0]}.")


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
    return f"a pickle that is cut short, damaged or of another kind ({type(error).__name__}); {AGAIN}"


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
