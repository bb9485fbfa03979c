"""The doctor: what it says of the machine and the login, and how the command ends."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub.server import Fault, LoopbackHub
from huggingface_hub import HfApi, constants
from tiny_release import CHECKS, write_release

from modeling_infoxlm import doctor
from modeling_infoxlm.doctor import check_attention, check_disk, check_login, doctor_command
from modeling_infoxlm.hub.checkup import Finding
from modeling_infoxlm.runs.process import run_main


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain release with nothing wrong; not to be changed."""
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def folder(release: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    return Path(shutil.copytree(release, tmp_path / "copy"))


# The machine.


@pytest.fixture
def login(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoopbackHub:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


def test_the_login_is_told_without_the_token(login: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for token, role in ((login.token, "write"), (login.read_token, "read")):
        monkeypatch.setenv("HF_TOKEN", token)
        assert check_login() == Finding("login", "ok", f"tester at {login.endpoint}, token that may {role}")
    wrong = "hf_" + "x" * 20
    monkeypatch.setenv("HF_TOKEN", wrong)
    finding = check_login()
    assert finding.level == "fail" and "does not accept" in finding.text and wrong not in finding.text
    for kind, text in (("status", "503"), ("drop", "was not reached")):  # no failure of ours
        login.inject(Fault(method="GET", path="whoami", kind=kind, status=503))
        finding = check_login()
        assert finding.level == "warn" and login.pending_faults == 0 and text in finding.text
    login.requests.clear()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE" in check_login().text
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    finding = check_login()
    assert finding.level == "warn" and "not logged in" in finding.text and login.requests == []


def test_packed_attention_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    finding = check_attention(device)
    assert finding.level == "ok" and "batched products" in finding.text
    wrong = lambda *args, **options: lambda query, *rest, **more: query * 2  # noqa: E731
    monkeypatch.setattr(doctor, "plan_attention", wrong)
    assert check_attention(device).level == "fail"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch finds none")
def test_flash_attention_is_tried_on_a_gpu() -> None:
    finding = check_attention(torch.device("cuda"))
    assert finding.level == "ok" and "flash attention" in finding.text


def test_little_room_on_the_disk_is_warned_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    for free, level in ((10**9, "warn"), (10**12, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        assert check_disk("here", tmp_path / "not" / "yet").level == level


# The command.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes a second or changes the settings of the process."""
    monkeypatch.setattr(doctor, "configure_process", lambda **options: None)
    monkeypatch.setattr(doctor, "matmul_peak", lambda device, dtype: 1.5e12)


def test_the_command_prints_one_line_a_check(
    login: LoopbackHub, quick: None, release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(doctor_command, [str(release)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[-len(CHECKS) :]] == CHECKS
    assert all(re.match(r"(ok  |warn)  [a-z]", line) for line in lines)
    assert last == f"{len(lines)} checks, none failed."
    assert "matmul     TFLOP/s: 1.5 in bf16, 1.5 in fp32" in "\n".join(lines) and "transformers 5" in lines[0]
    assert login.token not in "\n".join(lines)
    assert run_main(doctor_command, []) == 0  # the machine alone
    checks = [line.split()[1] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert checks == ["versions", "device", "attention", "loss", "matmul", "disk", "disk", "login"]


def test_a_check_that_fails_in_itself_is_a_finding(
    login: LoopbackHub, quick: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object) -> float:
        raise SystemError("no kernel\nimage")

    monkeypatch.setattr(doctor, "matmul_peak", fails)
    assert run_main(doctor_command, []) == 1
    shown = capsys.readouterr().out
    assert "fail  matmul     SystemError: no kernel image" in shown and "login" in shown


def test_a_failed_check_gives_status_1_and_one_line(
    login: LoopbackHub, quick: None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "optimizer.pt").write_text("x")
    (folder / "README.md").write_text("no metadata")
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4" / "scheduler.pt").write_text("x")
    assert run_main(doctor_command, [str(folder)]) == 1
    captured = capsys.readouterr()
    failed = [line for line in captured.out.splitlines() if line.startswith("fail")]
    assert [line.split()[1] for line in failed] == ["pickles", "card"] and "scheduler" not in captured.out
    assert re.fullmatch(r"error: 2 of \d+ checks failed\.\n", captured.err)


def test_what_cannot_be_examined(login: LoopbackHub, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("./none", "/none", "a/b/c", __file__):
        assert run_main(doctor_command, [name]) == 2
        assert "is no folder" in capsys.readouterr().err
    for kind, reason in (("drop", ""), ("status", "503")):
        login.inject(Fault(method="GET", path="/api/models/", kind=kind, status=503))
        assert run_main(doctor_command, ["org/name"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: org/name cannot be fetched from {login.endpoint}")
        assert reason in error and error.count("\n") == 1 and login.pending_faults == 0


EXAMINE = """
import sys
from modeling_infoxlm.doctor import doctor_command
from modeling_infoxlm.runs.process import run_main
for name in sys.argv[1:]:
    print(name, run_main(doctor_command, name.split()), flush=True)
"""


def test_a_repository_is_examined_without_its_pickles(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("org/name", private=True)
    api.upload_folder(repo_id="org/name", folder_path=folder)
    api.create_tag("org/name", tag="good")
    api.upload_file(repo_id="org/name", path_or_fileobj=b"\0bad", path_in_repo="optimizer.pt")
    hub.requests.clear()
    done = subprocess.run(
        [sys.executable, "-c", EXAMINE, "org/name --model_revision good", "org/name", "org/none"],
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "org/name --model_revision good 0" in done.stdout, done.stdout
    assert "org/name 1" in done.stdout and "optimizer.pt: a pickle" in done.stdout
    assert "org/none 2" in done.stdout and "has no org/none at main" in done.stderr
    assert hub.token not in done.stdout + done.stderr and "tester at" in done.stdout
    assert not any("optimizer.pt" in line for line in hub.requests)
    assert any(f"resolve/{hub.tags('org/name')['good']}/config.json" in line for line in hub.requests)
