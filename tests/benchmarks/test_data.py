"""The benchmark of the data path measures what it says, with sizes too small for a time to mean anything."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import data
from benchmarks.measure import run_benchmark

FILES = [data.EXAMPLES / f"en-{language}.tsv.xz" for language in ("de", "zh")]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("INFOXLM_DATA", raising=False)
        patch.setattr(data, "BATCH_TOKENS", (500, 2000))
        patch.setattr(data, "MIDDLE", 2000)
        patch.setattr(data, "PAIRS", 200)
        patch.setattr(data, "PIECES", 1500)
        text = ["--text", *map(str, FILES), "--lines", "100"]
        return data.measure(data.parse_arguments([*text, "--repeats", "1"]))


def test_numbers_follow_from_each_other_and_are_written(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A hundred lines may take no longer than the start-up alone, so the rate without it may be anything.
    assert result["prepare"]["with_start_up_tokens_per_second"] > 0
    assert set(result["masking"]) == set(result["joint"]) == {"500", "2000"}
    assert result["tokenizer"].startswith("trained on the text")
    assert result["prepare"]["files"] == 2 and result["prepare"]["tokens"] > 2000
    for size, found in result["joint"].items():
        assert found["tokens"] == pytest.approx(int(size), rel=0.7)
        assert found["tokens_per_second"] == found["tokens"] / found["samples"]["median_s"]
    assert result["collate_and_mask"]["tokens_per_second"] > 0

    monkeypatch.setattr(sys, "argv", ["data.py", "--lines", "3"])
    options = argparse.Namespace(output=tmp_path / "results" / "data.json")
    run_benchmark(options, lambda options: result, data.show, configure=lambda: None)
    written = json.loads(options.output.read_text())
    assert written["joint"] == result["joint"]
    assert written["command"] == "python -m benchmarks.data --lines 3" and written["machine"]["cores"]
    assert f"{result['prepare']['tokens']:,} tokens" in written["printed"]
