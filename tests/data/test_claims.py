"""Claims: several jobs share the work of one folder."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_prepare import Letters, Run, contents

from modeling_infoxlm.data import claims, decide, plan
from modeling_infoxlm.data import prepare as prepare_module
from modeling_infoxlm.data.prepare import PrepareSettings, prepare, prepare_part
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.data.sources import parse_bitext_sources


@pytest.mark.parametrize("parts", [False, True])
def test_jobs_at_once_share_the_work_and_read_nothing_twice(
    run: Run,
    multiway: list[Path],
    tmp_path: Path,
    letter_tokenizer: Letters,
    monkeypatch: pytest.MonkeyPatch,
    parts: bool,
) -> None:
    whole = run(multiway, heldout_fraction=0.2)
    calls: list[str] = []

    def counted(module: Any, name: str, key: Callable[[Any], str]) -> None:
        original = getattr(module, name)

        def counting(*args: Any) -> Any:
            calls.append(f"{name} {key(args[0])}")
            time.sleep(0.05)  # so that jobs meet
            return original(*args)

        monkeypatch.setattr(module, name, counting)

    counted(plan, "_sha256", lambda location: Path(location).name)
    counted(prepare_module, "read_source", lambda task: Path(task.unit.source.locations[0]).name)
    counted(decide, "_decide", lambda plan: "all")
    counted(prepare_module, "write_source", lambda task: Path(task.unit.source.locations[0]).name)
    jobs = 4
    start = threading.Barrier(jobs)

    def job(index: int) -> Corpus | None:
        start.wait()
        options: dict[str, Any] = {
            "tokenizer": letter_tokenizer,
            "output_dir": tmp_path / "shared",
            "settings": PrepareSettings(heldout_fraction=0.2),
        }
        sources = parse_bitext_sources(map(str, multiway))
        if parts:
            return prepare_part(sources, **options, shard_index=index, num_shards=jobs)
        return prepare(sources, **options)

    with ThreadPoolExecutor(jobs) as pool:
        corpora = list(pool.map(job, range(jobs)))
    assert any(corpora) if parts else all(corpora)
    assert contents(tmp_path / "shared") == contents(whole.folder)
    files = [path.name for path in multiway]
    steps = [f"{name} {file}" for name in ("_sha256", "read_source", "write_source") for file in files]
    assert sorted(calls) == sorted([*steps, "_decide all"])


def test_a_claim_of_a_dead_job_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = tmp_path / "x.claim"
    with claims.claimed(claim) as mine, claims.claimed(claim) as again:
        assert mine and not again
        assert not claims.Watch().is_free(claim)  # this process lives
    assert claims.Watch().is_free(claim) and not claim.exists()
    ended = subprocess.Popen(["true"])
    ended.wait()
    claim.write_text(f"{socket.gethostname()} {ended.pid}")  # by kill -9
    assert claims.Watch().is_free(claim) and not list(tmp_path.iterdir())
    claim.write_text("another-machine 1")
    watch = claims.Watch()
    assert not watch.is_free(claim)
    monkeypatch.setattr(claims, "DEAD_AFTER_SECONDS", 0.0)  # no sign of life for that long
    assert watch.is_free(claim)
    made = tmp_path / "made"
    claim.write_text("another-machine 1")
    claims.make_once(made, claim, lambda: made.write_text("x") and None)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
