"""How a program ends: exit codes, one line for a person, the traceback for a developer."""

import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl

from modeling_infoxlm.commands import align_words, information, mine, tatoeba
from modeling_infoxlm.runs.errors import DataError, Interrupted, UsageError
from modeling_infoxlm.runs.process import STOP_SIGNALS, StopOnSignal, configure_process, run_main


def raising(error: BaseException) -> Callable[[list[str]], None]:
    def main(argv: list[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UsageError("layer must be in 0..2,\n found 9."), 2, "error: layer must be in 0..2, found 9."),
        (DataError("a.tsv is empty."), 2, "error: a.tsv is empty."),
        (ValueError("xlco_layer is 9 but\n  two."), 1, "error: xlco_layer is 9 but two."),
        (FileNotFoundError(2, "No such file", "a"), 1, "error: [Errno 2] No such file: 'a'"),
        (ValueError(), 1, "error: ValueError"),
        (KeyError("query"), 1, "error: KeyError: 'query' (run again with --debug for the traceback)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted("checkpoint-4 is saved."), 130, "interrupted: checkpoint-4 is saved."),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert run_main(raising(error), []) == code
    assert capsys.readouterr() == ("", f"{line}\n")


def test_what_ends_well_is_0_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(lambda argv: None, []) == 0
    assert capsys.readouterr() == ("", "")
    with pytest.raises(SystemExit):  # of the parser, which has said why
        run_main(raising(SystemExit(2)), [])


@pytest.mark.parametrize("place", ["file", "file/deeper"])
@pytest.mark.parametrize("form", ["--output_dir={}", "--output_dir {}"])
def test_a_file_in_the_place_of_the_output_folder_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, place: str, form: str
) -> None:
    (tmp_path / "file").write_text("of the user")
    argv = form.format(tmp_path / place).split()
    assert run_main(raising(AssertionError("the work")), argv) == 2
    line = f"error: {tmp_path}/file exists and is not a folder; choose another output folder.\n"
    assert capsys.readouterr() == ("", line)
    done: list[list[str]] = []
    assert run_main(done.append, ["--output_dir", str(tmp_path / "new")]) == 0 and len(done) == 1


def test_debug_adds_the_traceback_and_is_taken_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(raising(ValueError("bad")), ["--debug"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last)") and "in main" in error
    assert error.endswith("ValueError: bad\nerror: bad\n")
    seen: list[str] = []
    run_main(seen.extend, ["--seed", "1", "--debug", "--max_steps", "2"])
    assert seen == ["--seed", "1", "--max_steps", "2"]


def test_no_secret_is_shown(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """Whichever library says it, by whichever handler it had before."""
    token = "hf_" + "aB1" * 12

    def main(argv: list[str]) -> None:
        print("to", f"https://me:pass-word@hub.org/{token}")
        logging.getLogger("of.a.library").warning("with %s and %s", token, "s3cret-of-a-flag")
        raise RuntimeError(f"Illegal header value b'Bearer s3cret-of-a-flag' for {token}")

    assert run_main(main, ["--debug", "--hub_token", "s3cret-of-a-flag"]) == 1
    shown = "".join(capsys.readouterr()) + caplog.text
    assert shown.count("<token>") >= 6
    assert not [secret for secret in (token, "pass-word", "s3cret") if secret in shown]
    assert logging.LogRecord is logging.getLogRecordFactory()


@pytest.mark.parametrize("place", ["out/x", "the output"])
def test_a_full_disk_names_the_output(capsys: pytest.CaptureFixture[str], place: str) -> None:
    argv = ["--seed=1", f"--output_dir={place}"] if place == "out/x" else []
    assert run_main(raising(OSError(28, "No space left on device")), argv) == 1
    assert capsys.readouterr().err.startswith(f"error: {place} cannot be written: its disk is full")


# ---------------------------------------------------------------------------- the process


@contextmanager
def restored_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("amx, expected", [(False, "medium"), (True, "highest")])
def test_products_are_rounded_on_no_cpu(monkeypatch: pytest.MonkeyPatch, amx: bool, expected: str) -> None:
    """With AMX "medium" would compute fp32 products in bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": amx})
    monkeypatch.setattr("modeling_infoxlm.runs.process._keep_memory", lambda: None)
    with restored_precision():
        torch.set_float32_matmul_precision("highest")
        configure_process()
        assert torch.get_float32_matmul_precision() == expected


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        (tatoeba.run, "--data_dir d --output_dir out"),
        (mine.run, "a.de b.en --output out"),
        (information.run, "--bitext_files b.tsv --output_dir out"),
        (align_words.run, "--test_dir d --output_dir out"),
    ],
)
def test_what_runs_in_one_process_says_so_to_a_launcher(
    command: Callable[[list[str]], None], argv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process would do all the work, and write the same files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UsageError, match="runs in one process and was started in 2; start it without torchrun"
    ):
        command([*argv.split(), "--model_name_or_path", "m"])
    assert not (tmp_path / "out").exists()


def test_importing_the_package_changes_no_setting_of_the_process() -> None:
    program = (
        "import logging, signal, torch; before = torch.get_float32_matmul_precision();"
        "import modeling_infoxlm.training.trainer, modeling_infoxlm.runs.process as process;"
        "assert torch.get_float32_matmul_precision() == before;"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL;"
        "assert not logging.getLogger().handlers"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_our_log_lines_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    run_main(lambda argv: logging.getLogger("modeling_infoxlm.x").info("prepared"), [])
    assert capsys.readouterr().err == "INFO modeling_infoxlm.x: prepared\n"


def test_the_process_group_is_left_in_order(tmp_path: Path) -> None:
    def main(argv: list[str]) -> None:
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    assert run_main(main, []) == 0
    assert not torch.distributed.is_initialized()


# ---------------------------------------------------------------------------- being asked to stop

ARGS = SimpleNamespace(device=torch.device("cpu"), ddp_timeout_delta=timedelta(seconds=7))


@pytest.fixture
def stop() -> Iterator[StopOnSignal]:
    """Handlers are handed back in the end."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    callback = StopOnSignal()
    callback.on_train_begin(ARGS)
    assert all(signal.getsignal(number) != handler for number, handler in before.items())
    yield callback
    callback.on_train_end()
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def step(callback: StopOnSignal) -> tuple[bool, bool]:
    """Whether the end of a step saves, and whether it ends training."""
    control = callback.on_step_end(ARGS, None, TrainerControl())
    return control.should_save, control.should_training_stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_at_the_end_of_the_step(stop: StopOnSignal, number: signal.Signals) -> None:
    state = SimpleNamespace(global_step=4, max_steps=9)
    assert step(stop) == (False, False) and stop.received is None
    stop.raise_if_stopped(state)
    signal.raise_signal(number)  # no exception: the step under way goes on
    assert stop.received == number
    assert step(stop) == (True, True)
    with pytest.raises(Interrupted, match="checkpoint-4 is saved; run the same command again"):
        stop.raise_if_stopped(state)
    stop.raise_if_stopped(SimpleNamespace(global_step=9, max_steps=9))  # it was the last step
    with pytest.raises(KeyboardInterrupt):  # the second one ends at once
        signal.raise_signal(number)


def test_a_signal_to_another_rank_stops_this_one(stop: StopOnSignal, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(tensor: torch.Tensor, op: object, group: object) -> None:
        assert (op, group, tensor.device.type) == (torch.distributed.ReduceOp.MAX, "gloo 7 s", "cpu")
        tensor.fill_(signal.SIGTERM)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.distributed, "new_group", lambda backend, timeout: f"{backend} {timeout.seconds} s"
    )
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    stop.on_train_end()
    stop.on_train_begin(ARGS)
    assert step(stop) == (True, True)
    assert stop.received == signal.SIGTERM
