"""What tests of the commands share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_pretraining import PAIRS, Refusal
from tiny_text import write_pairs

import run_pretraining

Main = Callable[[list[str]], int]


@pytest.fixture(scope="module", autouse=True)
def unchanged_process() -> Iterator[None]:
    """The settings of a process are for programs; and the peak need not be measured each time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("align_words", "fine_tune", "information", "mine", "pretrain", "tatoeba"):
            patch.setattr(f"modeling_infoxlm.commands.{name}.configure_process", lambda **options: None)
        patch.setattr("modeling_infoxlm.commands.pretrain.matmul_peak", lambda device, dtype: 1e12)
        yield


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "text" / "en-xx.tsv", PAIRS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """The one line on standard error of a command that ends with 2 for its input (or, a failure, with 1)."""

    def run(argv: list[str], *, main: Main = run_pretraining.main, code: int = 2) -> str:
        capsys.readouterr()
        try:
            found = main(argv)
        except SystemExit as exit_:
            found = exit_.code
        error = capsys.readouterr().err
        assert found == code, error
        assert "Traceback" not in error
        lines = [line for line in error.splitlines() if "error: " in line]
        assert len(lines) == 1 and error.splitlines()[-1] == lines[0], error
        return lines[0].partition("error: ")[2]

    return run
