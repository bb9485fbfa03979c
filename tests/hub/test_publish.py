"""Pushing: a release arrives whole or not at all, whatever happens on the way."""

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.finished_run import contents, save_finished_run
from hub.server import Fault, LoopbackHub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled

from modeling_infoxlm.hub.export import export
from modeling_infoxlm.hub.publish import PushRecord, TrainingPublisher, push_release
from modeling_infoxlm.hub.push import push_command
from modeling_infoxlm.hub.release import build_release
from modeling_infoxlm.hub.retries import HubError, RetriedApi
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.process import run_main

REPO = "org/model"
Push = Callable[..., PushRecord]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_finished_run(tmp_path_factory.mktemp("publish") / "out")


@pytest.fixture(scope="module")
def release(source: Path) -> Path:
    build_release(source, source.parent / "release", repo_id=REPO)
    return source.parent / "release"


@pytest.fixture(scope="module")
def sharded(source: Path) -> Path:
    build_release(source, source.parent / "sharded", repo_id=REPO, max_shard_size="20KB")
    return source.parent / "sharded"


@pytest.fixture
def push(hub: LoopbackHub, release: Path) -> Push:
    waits: list[float] = []

    def run(folder: Path = release, **options: object) -> PushRecord:
        api = RetriedApi(hub.client(), wait=waits.append)
        return push_release(folder, REPO, api=api, **options)  # type: ignore[arg-type]

    run.waits = waits  # type: ignore[attr-defined]
    return run


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client itself waits between its tries of an upload."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def on_hub(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    return {name: content for name, content in hub.files(REPO, revision).items() if name != ".gitattributes"}


# ---------------------------------------------------------------------------- one commit, then a tag


def test_a_push_is_one_commit_and_a_tag(hub: LoopbackHub, push: Push, release: Path) -> None:
    before = contents(release)
    hub.inject(Fault(method="POST", path="/tag/", kind="status", status=500, times=5))
    with pytest.raises(HubError, match="could not make the tag"):
        push()
    record = push()
    assert on_hub(hub) == before == contents(release)
    assert len(hub.commits(REPO)) == 2  # the Hub's own, and ours
    assert hub.tags(REPO) == {"v1": record.oid} and record.tag == "v1" and not record.changed
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json", "training.json"} <= set(before)
    again = push()
    assert not again.changed and again.tag is None
    assert len(hub.commits(REPO)) == 2 and set(hub.tags(REPO)) == {"v1"}


def test_old_weights_go_and_what_others_wrote_stays(hub: LoopbackHub, push: Push, sharded: Path) -> None:
    """Weights that somebody left there would hide the new ones; so would those of the last release."""
    api = hub.client()
    api.create_repo(REPO)
    for name in ("model.safetensors", "pytorch_model.bin", "notes.txt"):
        api.upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id=REPO)
    push(sharded)
    assert on_hub(hub) == {**contents(sharded), "notes.txt": b"old"}
    api.upload_file(path_or_fileobj=b"---\nlicense: mit\n---\nMine.", path_in_repo="README.md", repo_id=REPO)
    record = push()
    names = set(on_hub(hub))
    assert {"model.safetensors", "notes.txt"} <= names and record.tag == "v2" and record.changed
    assert not any(name.startswith("model-0") or name.endswith("index.json") for name in names)
    assert on_hub(hub)["README.md"].endswith(b"Mine.")


def test_a_branch_and_a_pull_request_leave_main_alone_and_get_no_tag(hub: LoopbackHub, push: Push) -> None:
    record = push(revision="trial")
    assert record.tag is None and hub.repositories[REPO].heads["trial"] == record.oid
    assert on_hub(hub) == {} and "README.md" in on_hub(hub, "trial")
    push(tag="none")
    head = hub.repositories[REPO].heads["main"]
    record = push(create_pr=True, message="again")
    assert hub.repositories[REPO].heads["main"] == head and record.tag is None
    with pytest.raises(UsageError, match="either --create_pr or --revision"):
        push(create_pr=True, revision="trial")


def test_a_tag_can_be_named_once(hub: LoopbackHub, push: Push, source: Path, tmp_path: Path) -> None:
    assert push(tag="paper").tag == "paper"
    again = push(tag="paper")
    assert not again.changed and again.tag is None
    (tmp_path / "new").mkdir()
    build_release(source, tmp_path / "new" / "release", repo_id=REPO, dtype="bfloat16")
    with pytest.raises(UsageError, match="push again with another --tag"):
        push(tmp_path / "new" / "release", tag="paper")
    with pytest.raises(UsageError, match="has a tag paper already"):
        push(tag="paper")


def test_private_means_private(hub: LoopbackHub, push: Push, tmp_path: Path) -> None:
    push(private=True)
    assert hub.repositories[REPO].private
    hub.client().create_repo("org/open", private=False)
    with pytest.raises(UsageError, match="exists and is public"):
        push_release(Path(__file__).parent, "org/open", private=True, api=RetriedApi(hub.client()))
    (tmp_path / ".pushing" / "left").mkdir(parents=True)
    made = publisher(hub, tmp_path)  # of a run that begins
    made.prepare()
    assert not (tmp_path / ".pushing").exists()
    made.repo_id, made.private = "org/open", True
    with pytest.raises(UsageError, match="exists and is public"):
        made.prepare()


# ---------------------------------------------------------------------------- trouble on the way


@pytest.mark.parametrize(
    ("request_kind", "kind"),
    [
        *itertools.product(("POST /commit/", "POST /preupload/", "PUT ."), ("status", "drop")),
        ("POST objects/batch", "status"),
        ("POST /create", "drop"),
        ("PUT .", "corrupt"),
    ],
)
def test_trouble_that_passes_is_outlasted(
    hub: LoopbackHub, push: Push, release: Path, request_kind: str, kind: Any
) -> None:
    method, path = request_kind.split()
    hub.inject(Fault(method=method, path=path, times=1 if kind == "corrupt" else 2, kind=kind))
    push()
    assert hub.pending_faults == 0
    assert on_hub(hub) == contents(release) and len(hub.commits(REPO)) == 2


@pytest.mark.parametrize("kind", ["status", "drop"])
def test_after_trouble_that_stays_the_next_push_goes_on(
    hub: LoopbackHub, push: Push, release: Path, kind: Any
) -> None:
    before = contents(release)
    hub.inject(Fault(method="POST", path="/commit/", kind=kind, status=503, times=5))
    with pytest.raises(HubError, match="could not commit .* after 5 attempts") as caught:
        push()
    assert "\n" not in str(caught.value) and hub.token not in str(caught.value)
    assert on_hub(hub) == {} and hub.tags(REPO) == {} and contents(release) == before
    assert push.waits == sorted(push.waits) or len(push.waits) == 4  # type: ignore[attr-defined]
    hub.requests.clear()
    push()
    assert not any(line.startswith("PUT") for line in hub.requests)  # the weights were there already


def test_a_lost_answer_and_a_server_that_asks_to_wait(hub: LoopbackHub, push: Push, sharded: Path) -> None:
    hub.inject(Fault(method="POST", path="/create", kind="status", status=429, retry_after=7))
    push(sharded)
    assert push.waits == [7.0]  # type: ignore[attr-defined]
    hub.inject(Fault(method="POST", path="/commit/", kind="after"))
    push()
    assert hub.pending_faults == 0 and len(hub.commits(REPO)) == 3
    assert not any(name.startswith("model-0") for name in on_hub(hub))


def test_a_token_that_is_wrong_or_may_only_read_is_not_tried_again(hub: LoopbackHub, release: Path) -> None:
    wrong = "hf_" + "w" * 20
    for token, message in (
        (wrong, "401 Unauthorized.*hf auth login"),
        (hub.read_token, "403 Forbidden.*its role"),
    ):
        client = HfApi(endpoint=hub.endpoint, token=token)
        api = RetriedApi(client, wait=lambda seconds: pytest.fail("it waited"))
        with pytest.raises(HubError, match=message) as caught:
            push_release(release, REPO, api=api)
        assert token not in str(caught.value)


def test_no_hub_at_all(release: Path) -> None:
    with LoopbackHub() as closed:
        client = closed.client()
    with pytest.raises(HubError, match="could not make the repository .* after 2 attempts"):
        push_release(release, REPO, api=RetriedApi(client, attempts=2, wait=lambda seconds: None))


def test_trouble_of_xet_is_outlasted_and_offline_mode_is_none() -> None:
    waits: list[float] = []
    errors = iter([ConnectionError("Network error"), TimeoutError("late"), OfflineModeIsEnabled("offline")])

    def action(hub: HfApi) -> None:
        raise next(errors)

    with pytest.raises(OfflineModeIsEnabled):
        RetriedApi(HfApi(), wait=waits.append).call("upload", action)
    assert len(waits) == 2


# ---------------------------------------------------------------------------- while training


def publisher(hub: LoopbackHub, folder: Path) -> TrainingPublisher:
    made = TrainingPublisher(REPO, output_dir=folder, format="xlm-roberta")
    made.api = RetriedApi(hub.client(), wait=lambda seconds: None)
    return made


@pytest.mark.timeout(60)
def test_a_release_or_push_that_fails_is_logged_and_leaves_nothing_behind(
    hub: LoopbackHub, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(source, tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"damaged")
    job = publisher(hub, tmp_path).push_checkpoint(tmp_path / "checkpoint-1", message="step 1")
    assert isinstance(job.exception(), UsageError) and "the training goes on" in caplog.text
    assert list((tmp_path / ".pushing").iterdir()) == [] and REPO not in hub.repositories
    hub.inject(Fault(method="POST", path="/commit/", kind="status", status=500, times=1000))
    job = publisher(hub, tmp_path).push_checkpoint(source, message="step 1")
    assert isinstance(job.exception(timeout=60), HubError)
    while "the training goes on: could not commit" not in caplog.text:  # which comes a moment later
        time.sleep(0.01)
    assert on_hub(hub) == {} and list((tmp_path / ".pushing").iterdir()) == []


def test_a_checkpoint_may_go_while_it_is_pushed(hub: LoopbackHub, source: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(source, checkpoint)
    expected = contents(checkpoint)
    job = publisher(hub, tmp_path).push_checkpoint(
        checkpoint, message="1", checkpoint_in_repo="last-checkpoint"
    )
    shutil.rmtree(checkpoint)
    job.result(timeout=60)
    found = {name: content for name, content in on_hub(hub).items() if name.startswith("last-checkpoint/")}
    assert found == {f"last-checkpoint/{name}": content for name, content in expected.items()}


# ---------------------------------------------------------------------------- the command


def test_command(
    hub: LoopbackHub, source: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(source)
    assert run_main(push_command, [str(source), REPO, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown and "kB" in shown and "nothing was sent to org/model" in shown
    for name in ("", "a/b/c", "../x", "org/na me"):  # refused before anything is built
        assert run_main(push_command, [str(source), "--repo_id", name]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert run_main(push_command, [str(source / "none"), REPO]) == 2
    assert "there is no folder" in capsys.readouterr().err
    export(source, tmp_path / "release")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "release" / "notes.txt").symlink_to(tmp_path / "secret")
    assert run_main(push_command, [str(tmp_path / "release"), REPO, "--dry_run"]) == 2
    assert "notes.txt is a link to a file outside" in capsys.readouterr().err
    assert hub.requests == [] and contents(source) == before
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    assert run_main(push_command, [str(source), "mine", "--token", hub.token]) == 0
    assert b'from_pretrained("tester/mine"' in hub.files("tester/mine")["README.md"]  # with its owner
