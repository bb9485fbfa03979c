"""What tests of pre-training share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_pretraining import PAIRS
from tiny_text import write_pairs

import run_pretraining


@pytest.fixture
def unchanged_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a process are for programs; and the peak need not be measured each time."""
    monkeypatch.setattr("modeling_infoxlm.commands.pretrain.configure_process", lambda **options: None)
    monkeypatch.setattr("modeling_infoxlm.commands.pretrain.matmul_peak", lambda device, dtype: 1e12)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "text" / "en-xx.tsv", PAIRS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line on standard error of a command that ends with 2 for its input (or, a failure, with 1)."""

    def run(argv: list[str], *, code: int = 2) -> str:
        capsys.readouterr()
        try:
            found = run_pretraining.main(argv)
        except SystemExit as exit_:
            found = exit_.code
        error = capsys.readouterr().err
        assert found == code, error
        assert "Traceback" not in error
        lines = [line for line in error.splitlines() if "error: " in line]
        assert len(lines) == 1 and error.splitlines()[-1] == lines[0], error
        return lines[0].partition("error: ")[2]

    return run
