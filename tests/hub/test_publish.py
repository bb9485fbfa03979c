"""Pushing: a release arrives whole or not at all, whatever happens on the way."""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hub.finished_run import save_finished_run
from hub.server import Fault, LoopbackHub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled

from modeling_infoxlm.hub import publish
from modeling_infoxlm.hub.export import export
from modeling_infoxlm.hub.publish import PushRecord, TrainingPublisher, push_release
from modeling_infoxlm.hub.push import push_command
from modeling_infoxlm.hub.release import build_release
from modeling_infoxlm.hub.retries import HubError, RetriedApi
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.process import run_main

REPO = "org/model"
Push = Callable[..., PushRecord]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_finished_run(tmp_path_factory.mktemp("publish") / "out")


@pytest.fixture(scope="module")
def release(source: Path) -> Path:
    folder = source.parent / "release"
    build_release(source, folder, repo_id=REPO)
    return folder


@pytest.fixture(scope="module")
def sharded(source: Path) -> Path:
    folder = source.parent / "sharded"
    build_release(source, folder, repo_id=REPO, max_shard_size="20KB")
    return folder


@pytest.fixture
def push(hub: LoopbackHub, release: Path) -> Push:
    waits: list[float] = []

    def run(folder: Path = release, **options: object) -> PushRecord:
        api = RetriedApi(HfApi(endpoint=hub.endpoint, token=hub.token), wait=waits.append)
        return push_release(folder, REPO, api=api, **options)  # type: ignore[arg-type]

    run.waits = waits  # type: ignore[attr-defined]
    return run


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client itself waits between its tries of an upload."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def on_hub(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    return {name: content for name, content in hub.files(REPO, revision).items() if name != ".gitattributes"}


# ---------------------------------------------------------------------------- one commit, then a tag


def test_a_push_is_one_commit_and_a_tag(hub: LoopbackHub, push: Push, release: Path) -> None:
    before = contents(release)
    record = push()
    assert on_hub(hub) == before == contents(release)
    assert len(hub.commits(REPO)) == 2  # the Hub's own, and ours
    assert hub.tags(REPO) == {"v1": record.oid} and record.tag == "v1" and record.changed
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json", "training.json"} <= set(before)
    again = push()
    assert not again.changed and again.tag is None
    assert len(hub.commits(REPO)) == 2 and set(hub.tags(REPO)) == {"v1"}


def test_a_missing_tag_is_made_up_for(hub: LoopbackHub, push: Push) -> None:
    hub.inject(Fault(method="POST", path="/tag/", kind="status", status=500, times=5))
    with pytest.raises(HubError, match="could not make the tag"):
        push()
    record = push()
    assert not record.changed and hub.tags(REPO) == {"v1": record.oid}


def test_files_of_the_last_release_go_with_it_and_others_stay(
    hub: LoopbackHub, push: Push, sharded: Path
) -> None:
    push(sharded)
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.upload_file(path_or_fileobj=b"notes", path_in_repo="notes.txt", repo_id=REPO)
    record = push()
    names = set(on_hub(hub))
    assert "model.safetensors" in names and "notes.txt" in names and record.tag == "v2"
    assert not any(name.startswith("model-0") or name.endswith("index.json") for name in names)


def test_weights_that_others_left_there_do_not_hide_the_new_ones(
    hub: LoopbackHub, push: Push, sharded: Path
) -> None:
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(REPO)
    for name in ("model.safetensors", "pytorch_model.bin", "notes.txt"):
        api.upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id=REPO)
    push(sharded)
    assert on_hub(hub) == {**contents(sharded), "notes.txt": b"old"}


def test_a_card_that_was_edited_on_the_hub_is_kept(hub: LoopbackHub, push: Push) -> None:
    push()
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.upload_file(path_or_fileobj=b"---\nlicense: mit\n---\nMine.", path_in_repo="README.md", repo_id=REPO)
    push(tag="again")
    assert on_hub(hub)["README.md"].endswith(b"Mine.")


def test_a_branch_is_made_and_gets_no_tag(hub: LoopbackHub, push: Push) -> None:
    record = push(revision="trial")
    assert record.tag is None and hub.branches(REPO)["trial"] == record.oid
    assert on_hub(hub) == {} and "README.md" in on_hub(hub, "trial")


def test_a_pull_request_leaves_main_alone(hub: LoopbackHub, push: Push) -> None:
    push(tag="none")
    head = hub.branches(REPO)["main"]
    record = push(create_pr=True, message="again")
    assert hub.branches(REPO)["main"] == head and record.tag is None
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


def test_private_means_private(hub: LoopbackHub, push: Push) -> None:
    push(private=True)
    assert hub.is_private(REPO)
    HfApi(endpoint=hub.endpoint, token=hub.token).create_repo("org/open", private=False)
    with pytest.raises(UsageError, match="exists and is public"):
        publish.push_release(
            Path(publish.__file__).parent,
            "org/open",
            private=True,
            api=RetriedApi(HfApi(endpoint=hub.endpoint, token=hub.token)),
        )


# ---------------------------------------------------------------------------- trouble on the way


@pytest.mark.parametrize(
    "request_kind", ["POST /commit/", "POST /preupload/", "POST objects/batch", "PUT .", "POST /create"]
)
@pytest.mark.parametrize("kind", ["status", "drop"])
def test_trouble_that_passes_is_outlasted(
    hub: LoopbackHub, push: Push, release: Path, request_kind: str, kind: Literal["status", "drop"]
) -> None:
    method, path = request_kind.split()
    hub.inject(Fault(method=method, path=path, times=2, kind=kind))
    push()
    assert hub.pending_faults == 0
    assert on_hub(hub) == contents(release) and len(hub.commits(REPO)) == 2


@pytest.mark.parametrize(("kind", "status"), [("status", 500), ("drop", 0)])
def test_trouble_that_stays_is_one_line_and_no_commit(
    hub: LoopbackHub, push: Push, release: Path, kind: str, status: int
) -> None:
    before = contents(release)
    hub.inject(Fault(method="POST", path="/commit/", kind=kind, status=status, times=1000))  # type: ignore[arg-type]
    with pytest.raises(HubError, match="could not commit .* after 5 attempts") as caught:
        push()
    assert "\n" not in str(caught.value) and hub.token not in str(caught.value)
    assert on_hub(hub) == {} and hub.tags(REPO) == {} and contents(release) == before
    assert push.waits == sorted(push.waits) or len(push.waits) == 4  # type: ignore[attr-defined]


def test_a_push_goes_on_where_the_last_one_stopped(hub: LoopbackHub, push: Push) -> None:
    fault = Fault(method="POST", path="/commit/", kind="status", status=503, times=5)
    hub.inject(fault)
    with pytest.raises(HubError):
        push()
    hub.requests.clear()
    push()
    assert not any(line.startswith("PUT") for line in hub.requests)  # the weights were there already


def test_a_lost_answer_to_a_commit_that_removed_files(hub: LoopbackHub, push: Push, sharded: Path) -> None:
    push(sharded)
    hub.inject(Fault(method="POST", path="/commit/", kind="after"))
    push()
    assert hub.pending_faults == 0 and len(hub.commits(REPO)) == 3
    assert not any(name.startswith("model-0") for name in on_hub(hub))


def test_a_damaged_upload_is_sent_again(hub: LoopbackHub, push: Push, release: Path) -> None:
    hub.inject(Fault(method="PUT", path=".", kind="corrupt"))
    push()
    assert hub.pending_faults == 0
    sent = on_hub(hub)["model.safetensors"]
    assert (
        hashlib.sha256(sent).digest() == hashlib.sha256((release / "model.safetensors").read_bytes()).digest()
    )


def test_the_server_says_how_long_to_wait(hub: LoopbackHub, push: Push) -> None:
    hub.inject(Fault(method="POST", path="/create", kind="status", status=429, retry_after=7))
    push()
    assert push.waits == [7.0]  # type: ignore[attr-defined]


def test_a_token_that_is_wrong_or_may_only_read_is_not_tried_again(hub: LoopbackHub, release: Path) -> None:
    wrong = "hf_" + "w" * 20
    for token, message in (
        (wrong, "401 Unauthorized.*hf auth login"),
        (hub.read_token, "403 Forbidden.*its role"),
    ):
        api = RetriedApi(
            HfApi(endpoint=hub.endpoint, token=token), wait=lambda seconds: pytest.fail("it waited")
        )
        with pytest.raises(HubError, match=message) as caught:
            push_release(release, REPO, api=api)
        assert token not in str(caught.value)


def test_trouble_of_xet_is_outlasted_and_offline_mode_is_none() -> None:
    waits: list[float] = []
    errors = iter([ConnectionError("Network error"), TimeoutError("late"), OfflineModeIsEnabled("offline")])

    def action(hub: HfApi) -> None:
        raise next(errors)

    with pytest.raises(OfflineModeIsEnabled):
        RetriedApi(HfApi(), wait=waits.append).call("upload", action)
    assert len(waits) == 2


def test_no_hub_at_all(release: Path) -> None:
    with LoopbackHub() as closed:
        endpoint = closed.endpoint
    api = RetriedApi(HfApi(endpoint=endpoint, token="x"), attempts=2, wait=lambda seconds: None)
    with pytest.raises(HubError, match="could not make the repository .* after 2 attempts"):
        push_release(release, REPO, api=api)


# ---------------------------------------------------------------------------- while training


def publisher(hub: LoopbackHub, folder: Path) -> TrainingPublisher:
    made = TrainingPublisher(REPO, output_dir=folder, format="xlm-roberta")
    made.api = RetriedApi(HfApi(endpoint=hub.endpoint, token=hub.token), wait=lambda seconds: None)
    return made


@pytest.mark.timeout(60)
def test_a_failed_push_is_logged_and_leaves_nothing_behind(
    hub: LoopbackHub, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.inject(Fault(method="POST", path="/commit/", kind="status", status=500, times=1000))
    job = publisher(hub, tmp_path).push_checkpoint(source, message="step 1")
    assert isinstance(job.exception(timeout=60), HubError)
    while "the training goes on: could not commit" not in caplog.text:  # which comes a moment later
        time.sleep(0.01)
    assert on_hub(hub) == {} and list((tmp_path / ".pushing").iterdir()) == []


def test_a_checkpoint_may_be_removed_while_it_is_pushed(
    hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
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


def test_a_release_that_cannot_be_built_does_not_end_the_training(
    hub: LoopbackHub, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(source, tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"damaged")
    job = publisher(hub, tmp_path).push_checkpoint(tmp_path / "checkpoint-1", message="step 1")
    assert isinstance(job.exception(), UsageError) and "the training goes on" in caplog.text
    assert list((tmp_path / ".pushing").iterdir()) == [] and not hub.exists(REPO)


def test_a_run_begins_with_a_private_repository_or_not_at_all(hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / ".pushing" / "left").mkdir(parents=True)
    made = publisher(hub, tmp_path)
    made.prepare()
    assert not (tmp_path / ".pushing").exists() and not hub.is_private(REPO)
    made.private = True
    with pytest.raises(UsageError, match="exists and is public"):
        made.prepare()


# ---------------------------------------------------------------------------- the command


def test_the_card_names_the_repository_with_its_owner(
    hub: LoopbackHub, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    assert run_main(push_command, [str(source), "mine", "--token", hub.token]) == 0
    assert b'from_pretrained("tester/mine"' in hub.files("tester/mine")["README.md"]


def test_links_out_of_the_folder_are_not_followed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(source, tmp_path / "release")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "release" / "notes.txt").symlink_to(tmp_path / "secret")
    assert run_main(push_command, [str(tmp_path / "release"), REPO, "--dry_run"]) == 2
    assert "notes.txt is a link to a file outside" in capsys.readouterr().err


def test_a_dry_run_lists_files_and_sizes_and_sends_nothing(
    hub: LoopbackHub, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(source)
    assert run_main(push_command, [str(source), REPO, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown and "kB" in shown and "nothing was sent to org/model" in shown
    assert hub.requests == [] and contents(source) == before
    for name in ("", "a/b/c", "../x", "org/na me"):  # refused before anything is built
        assert run_main(push_command, [str(source), "--repo_id", name]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert run_main(push_command, [str(source / "none"), REPO]) == 2
    assert "there is no folder" in capsys.readouterr().err
