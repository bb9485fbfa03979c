"""The page of results says what the files say, and what is missing."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as bench
from benchmarks.report import GOALS, LONG_SET, SHORT_SET, write_report

MACHINE = {"cpu": "a processor", "cores": 2, "gpu": None, "python": "3", "torch": "2", "transformers": "5"}


def write(folder: Path, name: str, **values: Any) -> None:
    folder.mkdir(exist_ok=True)
    record = {"command": f"python -m {name}", "machine": MACHINE, "printed": f"table of {name}\n", **values}
    (folder / f"{name}.json").write_text(json.dumps(record))


@pytest.mark.parametrize(("ratio", "verdict"), [(3.456, "yes"), (2.7, "NO")])
def test_goals_are_held_against_the_files_that_are_there(tmp_path: Path, ratio: float, verdict: str) -> None:
    write(tmp_path / "speed", "step_fp32", ratio=ratio, mfu=0.8, update_s=0.2)
    write(tmp_path / "speed", "memory_baseline", peak_memory_gib=12.0)
    write(tmp_path / "speed", "memory_bf16", peak_memory_gib=6.0)
    write_report(tmp_path / "speed", tmp_path / "speed.md")
    page = (tmp_path / "speed.md").read_text()
    assert f"| step, fp32 vs N1 fp32 | 2.80x | 3.30x | {ratio:.2f}x | {verdict} |" in page
    assert "| clip + AdamW + EMA | 0.30 s | 0.15 s | 0.20 s | yes |" in page, "smaller is better here"
    assert "| 0.65x | 0.50x | 0.50x | yes |" in page, "ours divided by the baseline"
    assert page.count("not measured") == len(GOALS) - 4
    assert "table of step_fp32" in page and "`python -m step_fp32`" in page and "a processor" in page


def test_every_benchmark_has_a_module_that_understands_its_flags() -> None:
    for _, command in (SHORT_SET | LONG_SET).values():
        module, *flags = command.split()
        importlib.import_module(f"benchmarks.{module}").parse_arguments(flags)


def test_committed_results_are_readable(tmp_path: Path) -> None:
    """The page is the one that they make, and says of each goal what was measured."""
    docs = Path(__file__).parents[2] / "docs" / "results"
    write_report(docs / "speed", tmp_path / "speed.md")
    page = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert page == (docs / "speed.md").read_text(encoding="utf-8")
    assert "not measured" not in page and "| step, fp32 vs N1 fp32 | 2.80x | 3.30x | 3.12x | yes |" in page


def test_a_failed_benchmark_is_not_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(bench.SHORT_SET, "attention", ["", "attention --no_such_flag"])
    places = ["--results", str(tmp_path), "--report", str(tmp_path / "speed.md")]
    monkeypatch.setattr("sys.argv", ["bench", "--only", "attention", *places])
    assert bench.main() == 1
