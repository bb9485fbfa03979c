"""The loopback Hub against the real client: what the other Hub tests stand on."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub.server import Fault, LoopbackHub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

NAME = "org/name"
FILES = {
    "config.json": b'{"a": 1}\n',
    "empty.txt": b"",
    "model.safetensors": os.urandom(300_000),
    "sub/deep/text.txt": "grün\n".encode(),
}
TRANSPORT_ERROR = HfHubHTTPError.__bases__[0]


@pytest.fixture
def api(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """The real client, which does not wait between its tries, with an empty repository."""
    for module in ("utils._http", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=lambda seconds: None))
    client = HfApi(endpoint=hub.endpoint, token=hub.token)
    client.create_repo(NAME)
    return client


def uploaded(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    """Files apart from the Hub's own."""
    return {name: content for name, content in hub.files(NAME, revision).items() if name != ".gitattributes"}


def commit(api: HfApi, *operations: CommitOperationAdd | CommitOperationDelete, **options: object) -> str:
    return api.create_commit(NAME, list(operations), commit_message="test", **options).oid


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


def test_files_come_back_as_they_were_sent(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    first = commit(api, *(add(name, content) for name, content in FILES.items()))
    assert uploaded(hub) == FILES and hub.commits(NAME)[0].lfs == {"model.safetensors"}
    api.create_tag(NAME, tag="v1")
    hub.requests.clear()
    second = commit(
        api, add("model.safetensors", FILES["model.safetensors"]), CommitOperationDelete("empty.txt")
    )
    assert not any(line.startswith("PUT") for line in hub.requests)  # what is there is not sent again
    assert [one.oid for one in hub.commits(NAME)[:2]] == [second, first]
    read = Path(
        snapshot_download(NAME, revision="v1", cache_dir=tmp_path, endpoint=hub.endpoint, token=hub.token)
    )
    assert {name: (read / name).read_bytes() for name in FILES} == FILES and read.name == first
    with pytest.raises(HfHubHTTPError, match="is not there"):  # a commit is made whole or not at all
        commit(api, add("b.txt", b"b"), CommitOperationDelete("none.txt"))
    assert uploaded(hub) == {name: content for name, content in FILES.items() if name != "empty.txt"}


def test_branches_and_pull_requests_leave_main_alone(hub: LoopbackHub, api: HfApi) -> None:
    api.create_branch(NAME, branch="v/1")
    on_branch = commit(api, add("b.txt", b"b"), revision="v/1")
    assert commit(api, add("a.bin", b"\0a"), create_pr=True) == hub.branches(NAME)["refs/pr/1"]
    assert uploaded(hub) == {} and uploaded(hub, "refs/pr/1") == {"a.bin": b"\0a"}
    assert hub.branches(NAME)["v/1"] == on_branch and uploaded(hub, "v/1") == {"b.txt": b"b"}
    for make in (lambda: api.create_branch(NAME, branch="v/1"), lambda: api.create_repo(NAME)):
        with pytest.raises(HfHubHTTPError, match="409"):
            make()
    with pytest.raises(RevisionNotFoundError):
        commit(api, add("c.txt", b"c"), revision="none")


def test_tokens_are_told_apart(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo("org/secret", private=True)
    reader, anonymous, wrong = (
        HfApi(endpoint=hub.endpoint, token=token) for token in (hub.read_token, False, "hf_" + "x" * 20)
    )
    assert reader.model_info("org/secret").private and not anonymous.model_info(NAME).private
    for client, status in ((api, "404"), (anonymous, "401")):
        with pytest.raises(RepositoryNotFoundError, match=status):
            client.model_info("org/none")
    with pytest.raises(RepositoryNotFoundError, match="401"):
        anonymous.model_info("org/secret")
    for client, status in ((reader, "403"), (anonymous, "401"), (wrong, "401")):
        with pytest.raises(HfHubHTTPError, match=status):
            client.create_repo("org/other")
    assert not hub.exists("org/other") and api.create_repo("mine").repo_id == "tester/mine"


@pytest.mark.parametrize(
    ("fault", "error", "arrives"),
    [
        (Fault(method="POST", path=r"/commit/main$", kind="status", status=500), HfHubHTTPError, False),
        (Fault(method="POST", path="/commit/", kind="drop"), TRANSPORT_ERROR, False),
        (Fault(method="PUT", path="/lfs/", kind="corrupt"), RuntimeError, False),
        (Fault(method="POST", path="/commit/", kind="after"), TRANSPORT_ERROR, True),
        (Fault(method="PUT", path="/lfs/", kind="drop", times=100), RuntimeError, False),
        (Fault(method="PUT", path="/lfs/", kind="drop"), None, True),  # the client tries again
        (Fault(method="POST", path="/preupload/", kind="status", status=503, times=2), None, True),
    ],
)
def test_faults_happen(
    hub: LoopbackHub, api: HfApi, fault: Fault, error: type[Exception] | None, arrives: bool
) -> None:
    hub.inject(fault)
    if error is None:
        commit(api, add("a.bin", b"\0" * 1_000_000))
    else:
        with pytest.raises(error):
            commit(api, add("a.bin", b"\0" * 1_000_000))
    assert ("a.bin" in uploaded(hub)) == arrives and hub.pending_faults in (0, 94)


@pytest.mark.parametrize(
    "metadata",
    [
        "a: [",
        "- a",
        "license: 3",
        "language: [en, no]",
        "base_model: /home/me/model",
        "model-index: {}",
        "model-index: [{results: []}]",
        "model-index: [{name: a, results: [{task: {type: b}, metrics: [{type: c, value: 1}]}]}]",
    ],
)
def test_a_card_with_invalid_metadata_is_refused(hub: LoopbackHub, api: HfApi, metadata: str) -> None:
    with pytest.raises(ValueError, match="Invalid metadata"):
        commit(api, add("README.md", f"---\n{metadata}\n---\n# Title\n".encode()))
    assert uploaded(hub) == {}


def test_a_hub_that_has_ended_answers_nobody() -> None:
    with LoopbackHub() as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        assert api.whoami()["name"] == "tester"
    with pytest.raises(TRANSPORT_ERROR):
        api.whoami()
