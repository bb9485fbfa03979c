"""Carrying out a study whose commands are a small program, which fails and is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modeling_infoxlm.commands import study as command
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.studies import study as studies
from modeling_infoxlm.studies.plan import Study
from modeling_infoxlm.studies.runs import read_runs

PROGRAM = """
import json, os, pathlib, signal, sys, time
flags = json.loads(pathlib.Path(sys.argv[3]).read_text())
out = pathlib.Path(flags["output_dir"])
out.mkdir(parents=True, exist_ok=True)
calls = out / "calls"
calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
if flags.get("waits") and len(calls.read_text()) == 1:
    signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(130)))
    (out / "waiting").write_text(str(os.getpid()))
    time.sleep(60)
if flags.get("fails") and not pathlib.Path(flags["fails"]).exists():
    print("error: it cannot be")
    sys.exit(1)
(out / "run.json").write_text('{"identity": {}}')
(out / "model.safetensors").write_text("large")
(out / (sys.argv[1] + "_results.json")).write_text("{}")
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    monkeypatch.setattr(studies, "PROGRAM", (sys.executable, str(path)))


def make(folder: Path, arms: dict[str, Any]) -> Study:
    path = folder / "study.json"
    content = {"output_dir": str(folder / "out"), "results_dir": str(folder / "results"), "arms": arms}
    path.write_text(json.dumps(content | {"evaluations": {"look": {"command": "tatoeba"}}}))
    return Study.read(path)


def calls(folder: Path) -> dict[str, int]:
    return {
        path.parent.parent.parent.name + "/" + path.parent.name: len(path.read_text())
        for path in folder.rglob("calls")
    }


@pytest.mark.usefixtures("program")
def test_what_is_done_is_not_done_again_and_what_failed_is(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    study = make(tmp_path, {"good": {}, "bad": {"fails": str(mended)}})
    with pytest.raises(studies.StudyFailed, match="1 of 4 steps"):
        studies.carry_out(study)
    assert calls(tmp_path / "out") == {"good/run": 1, "good/look": 1, "bad/run": 1}
    mended.touch()
    assert studies.carry_out(study) == 2
    assert studies.carry_out(study) == 0
    assert calls(tmp_path / "out") == {"good/run": 1, "good/look": 1, "bad/run": 2, "bad/look": 1}
    kept = {path.relative_to(tmp_path / "results").as_posix() for path in (tmp_path / "results").rglob("*.*")}
    assert kept == {
        f"{arm}/seed-1/{name}"
        for arm in ("good", "bad")
        for name in (
            "study.json",
            "run/run.json",
            "run/pretrain_results.json",
            "look/run.json",
            "look/tatoeba_results.json",
        )
    }


@pytest.mark.usefixtures("program")
def test_a_kill_before_the_copies_leaves_them_to_the_next_call(tmp_path: Path) -> None:
    study = make(tmp_path, {"one": {}})
    studies.carry_out(study)
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "out/one/seed-1/run/trainer_state.json").write_text(" " * (1 << 21))
    (tmp_path / "out/two/seed-1/run").mkdir(parents=True)
    (tmp_path / "out/two/seed-1/run/run.json").touch()
    bad = make(tmp_path, {"one": {}, "two": {"fails": str(tmp_path / "absent")}})
    with pytest.raises(studies.StudyFailed):
        studies.carry_out(bad)
    kept = {path.name for path in (tmp_path / "results/one/seed-1").rglob("*.json")}
    assert kept == {
        *("study.json", "run.json", "trainer_state.json", "pretrain_results.json", "tatoeba_results.json"),
    }
    assert not (tmp_path / "results/two").exists()  # of which nothing is done


@pytest.mark.usefixtures("program")
def test_arms_are_compared_as_the_file_has_them_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(
        command, "compare", lambda paths, _: compared.extend(run.arm for run in read_runs(paths))
    )
    for arms in ({"one": {}, "two": {}}, {"three": {}, "two": {}}):
        make(tmp_path, arms)
        command.run([str(tmp_path / "study.json")])
    assert compared == ["one", "two", "three", "two"]


@pytest.mark.usefixtures("program")
def test_results_may_be_kept_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("out")
    study = replace(make(tmp_path, {"one": {}}), results_dir=tmp_path / "link")
    assert studies.carry_out(study) == 2


@pytest.mark.usefixtures("program")
def test_a_step_that_was_done_with_other_flags_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    studies.carry_out(make(tmp_path, {"one": {}}))
    with pytest.raises(UsageError, match=r"one, seed 1: run was done with other flags \(max_steps\): remove"):
        studies.carry_out(make(tmp_path, {"new": {}, "one": {"max_steps": 5}}))
    assert "new/run" not in calls(tmp_path / "out")


def start(folder: Path, arms: dict[str, Any]) -> "subprocess.Popen[str]":
    (folder / "program.py").write_text(PROGRAM)
    make(folder, arms)
    code = (
        "import sys; from pathlib import Path; from modeling_infoxlm.studies import study, plan;"
        f"study.PROGRAM = (sys.executable, {str(folder / 'program.py')!r});"
        f"study.carry_out(plan.Study.read(Path({str(folder / 'study.json')!r})))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def wait_for(process: "subprocess.Popen[str]", path: Path) -> None:
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.05)


def test_a_command_that_a_killed_study_left_keeps_others_out(tmp_path: Path) -> None:
    process = start(tmp_path, {"one": {"waits": True}})
    wait_for(process, tmp_path / "out/one/seed-1/run/waiting")
    process.kill()
    process.communicate(timeout=60)
    with pytest.raises(UsageError, match="or a command that it left when it was killed"):
        studies.carry_out(Study.read(tmp_path / "study.json"))
    left = int((tmp_path / "out/one/seed-1/run/waiting").read_text())
    os.kill(left, signal.SIGKILL)
    assert subprocess.run(process.args, capture_output=True, check=True, timeout=60)
    assert calls(tmp_path / "out") == {"one/run": 2, "one/look": 1}


def test_a_signal_is_handed_on_and_the_same_command_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, {"one": {"waits": True}})
    wait_for(process, tmp_path / "out/one/seed-1/run/waiting")
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "Interrupted: one, seed 1: run was stopped" in errors
    assert "saved" in (tmp_path / "out/one/seed-1/run.log").read_text()
    subprocess.run(process.args, check=True, capture_output=True)
    assert calls(tmp_path / "out") == {"one/run": 2, "one/look": 1}
