"""How a process begins, is stopped and ends, for entry points: importing the package changes nothing."""

import ctypes
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from modeling_infoxlm.runs.errors import Interrupted, UsageError
from modeling_infoxlm.runs.files import writing
from modeling_infoxlm.runs.secrets import blot_secrets, secrets_of_command

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what Slurm and container runtimes send
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # glibc's malloc.h


def configure_process(*, distributed: bool = False) -> None:
    """Make a CPU process as fast as it can be: the oneDNN product, and memory that stays in the process.

    Args:
        distributed: Whether the program knows to work with others that the same launcher has started.

    Raises:
        UsageError: If it does not and there are others: all would do the same work, and write the same files.
    """
    others = int(os.environ.get("WORLD_SIZE") or 1) - 1 if "LOCAL_RANK" in os.environ else 0
    if others and not distributed:
        raise UsageError(
            f"this program runs in one process and was started in {others + 1}; start it without torchrun or "
            "accelerate launch."
        )
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32
    # Without AMX nothing is rounded by "medium", and fp32 products take half the time on AMD.
    elif not torch.cpu.get_capabilities().get("amx_tile", False):
        torch.set_float32_matmul_precision("medium")
    _keep_memory()


def _keep_memory() -> None:
    """Keep large blocks in the heap.

    Else glibc gives each one back, and faulting it in anew costs ten times its use.
    """
    if sys.platform != "linux" or torch.cuda.is_available():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has no mallopt
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def leave_process_group() -> None:
    """End a distributed run in order: an exit under running gloo threads now and then aborts the process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and ends training after the step under way.

    A second signal ends the process at once.

    Attributes:
        received: Number of the signal received, None so far.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._ranks: Any = None  # all of them, talking from host to host

    def on_train_begin(self, args: Any, *more: Any, **kwargs: Any) -> None:
        """Listen from now on."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Through the device the host would wait at each step for all that was asked of it.
            self._ranks = torch.distributed.new_group(backend="gloo", timeout=args.ddp_timeout_delta)
        self._previous = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Hand the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Save and stop if a signal has come to any rank: all must agree on the step."""
        if self._ranks is not None:
            received = torch.tensor(self.received or 0)
            torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX, group=self._ranks)
            # A signal that came to this rank meanwhile is met at the next step.
            self.received = int(received) or self.received
        if self.received is not None:
            control.should_save = control.should_training_stop = True
        return control

    def raise_if_stopped(self, state: TrainerState) -> None:
        """End a run that was stopped before its last step; call it when the training has returned.

        Raises:
            Interrupted: With the checkpoint that is saved.
        """
        if self.received is not None and state.global_step < state.max_steps:
            raise Interrupted(
                f"checkpoint-{state.global_step} is saved; run the same command again to go on."
            )

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.default_int_handler)


class _Blotted:
    """A stream that no secret gets through."""

    def __init__(self, stream: TextIO, known: Sequence[str]) -> None:
        self._stream, self._known = stream, known

    def write(self, text: str) -> int:
        self._stream.write(blot_secrets(text, self._known))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def without_secrets(argv: Sequence[str]) -> Iterator[None]:
    """What is printed or logged in the block holds no token or password, nor the values of flags for one."""
    known, factory = secrets_of_command(argv), logging.getLogRecordFactory()

    def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        # Libraries that were imported earlier log to the stream as it was then.
        record.msg, record.args = blot_secrets(record.getMessage(), known), ()
        return record

    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(cast(TextIO, _Blotted(sys.stdout, known))))
        stack.enter_context(redirect_stderr(cast(TextIO, _Blotted(sys.stderr, known))))
        stack.callback(logging.setLogRecordFactory, factory)
        logging.setLogRecordFactory(make_record)
        yield


def run_main(main: Callable[[list[str]], None], argv: Sequence[str]) -> int:
    """Run an entry point and map how it ends to an exit code.

    Returns:
        0 done; 1 failure, after one line on stderr that says what to do (`--debug` anywhere in `argv` adds
        the traceback); 2 the same for a `UsageError`; 130 interrupted. The argument parser ends the process
        with 2 by itself.
    """
    with without_secrets(argv):
        return _run_main(main, argv)


def _run_main(main: Callable[[list[str]], None], argv: Sequence[str]) -> int:
    arguments = [argument for argument in argv if argument != "--debug"]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for client in ("httpx", "httpx2"):  # which say each request
        logging.getLogger(client).setLevel(logging.WARNING)
    try:
        with writing(_output_of(argv)):
            _refuse_file_as_folder(argv)
            main(arguments)
        leave_process_group()
    except (KeyboardInterrupt, Interrupted) as interruption:
        print(f"interrupted: {interruption}" if str(interruption) else "interrupted", file=sys.stderr)
        if isinstance(interruption, Interrupted):  # which all ranks agreed on
            leave_process_group()
        return INTERRUPTED
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        status = USAGE if isinstance(error, UsageError) else FAILED
        message = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (ValueError, OSError)):  # not foreseen: say what it is, and how to see more
            message = f"{type(error).__name__}: {message} (run again with --debug for the traceback)"
        print(f"error: {message}", file=sys.stderr)
        return status
    return OK


def _flags(argv: Sequence[str]) -> dict[str, str]:
    flags = dict(argument.partition("=")[::2] for argument in argv if "=" in argument)
    return flags | dict(zip(argv, argv[1:], strict=False))


def _refuse_file_as_folder(argv: Sequence[str]) -> None:
    """Before the work, whose result could not be written."""
    folder = Path(_flags(argv).get("--output_dir") or ".")
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), Path())
    if not nearest.is_dir():
        raise UsageError(f"{nearest} exists and is not a folder; choose another output folder.")


def _output_of(argv: Sequence[str]) -> str:
    """What a command writes to, for a failure that does not name its place."""
    flags = _flags(argv)
    return flags.get("--output_dir") or flags.get("--output") or "the output"
