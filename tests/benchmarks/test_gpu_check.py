"""The certification of a GPU: parts run by themselves, their ends are kept, what has passed is kept too."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu_check


def test_parts_are_kept_as_they_end_and_only_failed_ones_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tmp_path / "test_case.py"
    case.write_text("def test_good(): pass\n\ndef test_bad(): raise ValueError('off by 7 %')\n")
    parts = {"fine": "platform", "tests": f"pytest -q -p no:cacheprovider {case}", "hangs": "http.server 0"}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    monkeypatch.setattr(gpu_check, "LIMIT", 30)
    record = gpu_check.check(tmp_path / "gpu", "NVIDIA H200", ["fine", "tests"])
    assert {name: part["code"] for name, part in record["parts"].items()} == {"fine": 0, "tests": 1}
    assert record["parts"]["tests"]["tests"]["test_good"] == "passed"
    monkeypatch.setattr(gpu_check, "LIMIT", 1)
    monkeypatch.setitem(parts, "fine", "no_such_module")  # it has passed, so it is not run again
    record = gpu_check.check(tmp_path / "gpu", "NVIDIA H200", ["fine", "hangs"])
    assert record == json.loads((tmp_path / "gpu" / "nvidia-h200.json").read_text())
    assert (record["parts"]["fine"]["code"], record["parts"]["hangs"]["code"]) == (0, 124)
    page = (tmp_path / "gpu" / "nvidia-h200.md").read_text()
    assert "# NVIDIA H200" in page and "| hangs | 124 |" in page and "off by 7 %" in page
    monkeypatch.setattr(gpu_check, "code_sha256", lambda: "other")  # of which nothing has passed
    record = gpu_check.check(tmp_path / "gpu", "NVIDIA H200", ["fine"])
    assert {name: part["code"] for name, part in record["parts"].items()} == {"fine": 1}


def test_a_page_shows_speed_and_memory() -> None:
    result = {"tokens_per_second": 123456.7, "mfu": 0.4567, "peak_gpu_gib": 70.04}
    machine = {"gpu": "A card", "torch": "2", "transformers": "5", "python": "3"}
    record = {"machine": machine, "parts": {"tokens65k": {"code": 0, "result": result}}}
    assert "| tokens65k | 0 | 123,457 | 45.7 | 70.0 |" in gpu_check.page(record)


@pytest.mark.parametrize("command", gpu_check.PARTS.values())
def test_benchmarks_take_the_flags_of_the_parts(command: str) -> None:
    module, *flags = command.split()
    if module.startswith("benchmarks."):
        __import__(module, fromlist=["parse_arguments"]).parse_arguments(flags)
