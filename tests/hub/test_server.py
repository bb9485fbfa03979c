"""The loopback Hub against the real client: what the other Hub tests stand on."""

import base64
import hashlib
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from hub.server import Fault, LoopbackHub
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

NAME = "org/name"
FILES = {
    "config.json": b'{"a": 1}\n',
    "empty.txt": b"",
    "model.safetensors": os.urandom(300_000),
    "sub/deep/text.txt": "grün\n".encode(),
}
TRANSPORT_ERROR = HfHubHTTPError.__bases__[0]


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    """The real client, with an empty repository."""
    client = HfApi(endpoint=hub.endpoint, token=hub.token)
    client.create_repo(NAME)
    return client


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client would have waited before its next try."""
    seconds: list[float] = []
    for module in ("utils._http", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with regular and large files."""
    for name, content in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "folder"


def uploaded(hub: LoopbackHub, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
    """Files apart from the Hub's own."""
    files = hub.files(NAME, revision, repo_type)
    assert b"filter=lfs" in files.pop(".gitattributes")
    return files


def on_disk(folder: Path | str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and ".cache" not in path.parts]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    files.pop(".gitattributes", None)
    return files


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


def commit(api: HfApi, *operations: CommitOperationAdd | CommitOperationDelete, **options: object) -> str:
    return api.create_commit(NAME, list(operations), commit_message="test", **options).oid


def send(hub: LoopbackHub, method: str, path: str, body: object = None) -> tuple[int, str]:
    """A request that the client itself would refuse to send."""
    connection = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=10)
    lines = body if isinstance(body, list) else [body or {}]
    data = "\n".join(json.dumps(line) for line in lines)
    connection.request(method, path, data, {"Authorization": f"Bearer {hub.token}"})
    response = connection.getresponse()
    result = response.status, response.read().decode()
    connection.close()
    return result


# Repositories and who may see them.


def test_a_repository_is_created_once_and_deleted(hub: LoopbackHub, api: HfApi) -> None:
    assert hub.exists(NAME) and api.repo_exists(NAME) and not hub.exists(NAME, "dataset")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(NAME)
    url = api.create_repo(NAME, exist_ok=True)
    assert (url.repo_id, url.repo_type, str(url)) == (NAME, "model", f"{hub.endpoint}/{NAME}")
    api.delete_repo(NAME)
    assert not hub.exists(NAME) and not api.repo_exists(NAME)


def test_a_name_without_organisation_belongs_to_the_user(hub: LoopbackHub, api: HfApi) -> None:
    assert api.create_repo("mine", repo_type="dataset").repo_id == "tester/mine"
    assert hub.exists("tester/mine", "dataset")
    assert api.whoami()["name"] == "tester"


def test_a_private_repository_is_seen_with_a_token_only(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("org/secret", private=True)
    oid = api.upload_file(path_or_fileobj=b"x", path_in_repo="f.txt", repo_id="org/secret").oid
    assert hub.is_private("org/secret") and not hub.is_private(NAME)
    anonymous = HfApi(endpoint=hub.endpoint, token=False)
    assert anonymous.model_info(NAME).private is False
    with pytest.raises(RepositoryNotFoundError, match="401"):
        anonymous.model_info("org/secret")
    with pytest.raises(RepositoryNotFoundError, match="401"):
        anonymous.hf_hub_download("org/secret", "f.txt", cache_dir=tmp_path / "anonymous")
    reader = HfApi(endpoint=hub.endpoint, token=hub.read_token)
    assert reader.model_info("org/secret").sha == oid
    assert Path(reader.hf_hub_download("org/secret", "f.txt", cache_dir=tmp_path)).read_bytes() == b"x"
    api.update_repo_settings("org/secret", private=False)
    assert anonymous.model_info("org/secret").sha == oid


def test_what_is_missing_is_401_without_a_token_and_404_with_one(hub: LoopbackHub, api: HfApi) -> None:
    for client, status in ((api, "404"), (HfApi(endpoint=hub.endpoint, token=False), "401")):
        with pytest.raises(RepositoryNotFoundError, match=status):
            client.model_info("org/none")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(NAME, revision="none")
    with pytest.raises(KeyError):
        hub.files("org/none")
    with pytest.raises(KeyError):
        hub.files(NAME, "none")


def test_a_token_that_may_not_write_does_not(hub: LoopbackHub, api: HfApi) -> None:
    before = hub.commits(NAME)
    reader = HfApi(endpoint=hub.endpoint, token=hub.read_token)
    for write in (lambda: commit(reader, add("f.txt", b"x")), lambda: reader.create_repo("org/other")):
        with pytest.raises(HfHubHTTPError, match="403"):
            write()
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(endpoint=hub.endpoint, token=False).create_repo("org/other")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(endpoint=hub.endpoint, token="hf_" + "x" * 20).model_info(NAME)
    assert hub.commits(NAME) == before and not hub.exists("org/other")


@pytest.mark.parametrize("name", ["..", "../x", "a..b", ".hidden", "a--b", "a b", "x.git", ""])
def test_a_name_with_tricks_is_refused(hub: LoopbackHub, name: str) -> None:
    status, text = send(hub, "POST", "/api/repos/create", {"name": name, "organization": "org"})
    assert status == 400 and "Invalid repository name" in text
    assert not hub.exists(f"org/{name}")


def test_an_address_with_tricks_is_refused(hub: LoopbackHub) -> None:
    assert send(hub, "GET", "/api/models/../x")[0] == 400
    assert send(hub, "GET", "/api/models/%2e%2e%2fx")[0] == 400
    assert send(hub, "GET", "/api/unknown")[0] == 404


# Upload and download.


def test_files_come_back_as_they_were_sent(
    hub: LoopbackHub, api: HfApi, folder: Path, tmp_path: Path
) -> None:
    info = api.upload_folder(repo_id=NAME, folder_path=folder, commit_message="all")
    assert uploaded(hub) == FILES
    newest, first = hub.commits(NAME)
    assert (newest.oid, newest.message, newest.lfs) == (info.oid, "all", {"model.safetensors"})
    assert first.message == "initial commit"
    puts = [line for line in hub.requests if line.startswith("PUT")]
    assert len(puts) == 1 and puts[0].startswith("PUT /lfs/")
    read = snapshot_download(NAME, cache_dir=tmp_path / "cache", endpoint=hub.endpoint, token=hub.token)
    assert on_disk(read) == FILES and Path(read).name == info.oid
    one = hf_hub_download(
        NAME,
        "model.safetensors",
        revision=info.oid,
        local_dir=tmp_path,
        endpoint=hub.endpoint,
        token=hub.token,
    )
    assert Path(one).read_bytes() == FILES["model.safetensors"]


def test_what_is_already_there_is_not_sent_again(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    first = api.upload_folder(repo_id=NAME, folder_path=folder)
    (folder / "config.json").write_bytes(b"{}")
    hub.requests.clear()
    api.upload_folder(repo_id=NAME, folder_path=folder)
    assert not any(line.startswith("PUT") for line in hub.requests)
    assert uploaded(hub) == FILES | {"config.json": b"{}"}
    assert uploaded(hub, first.oid) == FILES


def test_a_wrong_checksum_is_refused(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    hub.inject(Fault(method="PUT", path="/lfs/", kind="corrupt"))
    with pytest.raises(RuntimeError, match="model.safetensors") as caught:
        api.upload_folder(repo_id=NAME, folder_path=folder)
    assert isinstance(caught.value.__cause__, BadRequestError) and "sha256" in str(caught.value.__cause__)
    assert uploaded(hub) == {} and len(hub.commits(NAME)) == 1 and hub.pending_faults == 0
    api.upload_folder(repo_id=NAME, folder_path=folder)  # nothing of the damaged one was kept
    assert uploaded(hub) == FILES


def test_a_commit_names_only_objects_that_were_uploaded(hub: LoopbackHub, api: HfApi) -> None:
    value = {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 5}
    header = {"key": "header", "value": {"summary": "test"}}
    regular = {"path": "b.txt", "content": base64.b64encode(b"b").decode(), "encoding": "base64"}
    lines = [header, {"key": "file", "value": regular}, {"key": "lfsFile", "value": value}]
    status, text = send(hub, "POST", f"/api/models/{NAME}/commit/main", lines)
    assert status == 400 and "was not uploaded" in text and uploaded(hub) == {}
    assert send(hub, "POST", f"/api/models/{NAME}/commit/main", lines[:2])[0] == 200
    assert uploaded(hub) == {"b.txt": b"b"}


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "a//x", ".git/config", "a\\x", ""])
def test_a_path_cannot_leave_its_repository(hub: LoopbackHub, api: HfApi, path: str) -> None:
    value = {"path": path, "content": "", "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": "test"}}, {"key": "file", "value": value}]
    status, text = send(hub, "POST", f"/api/models/{NAME}/commit/main", lines)
    assert status == 400 and "Invalid path" in text and uploaded(hub) == {}


def test_an_lfs_address_needs_its_signature(hub: LoopbackHub, api: HfApi) -> None:
    commit(api, add("a.bin", b"secret"))
    oid = hashlib.sha256(b"secret").hexdigest()
    assert send(hub, "GET", f"/lfs/{'0' * 16}/{oid}")[0] == 403


# Commits, branches, tags, pull requests.


def test_a_commit_is_made_whole_or_not_at_all(hub: LoopbackHub, api: HfApi) -> None:
    first = commit(api, add("a.txt", b"a"))
    with pytest.raises(EntryNotFoundError):
        commit(api, add("b.txt", b"b"), CommitOperationDelete("none.txt"))
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(api, add("b.txt", b"b"), parent_commit=hub.commits(NAME)[-1].oid)
    assert uploaded(hub) == {"a.txt": b"a"} and hub.commits(NAME)[0].oid == first
    second = commit(api, add("b.txt", b"b"), CommitOperationDelete("a.txt"), parent_commit=first)
    assert uploaded(hub) == {"b.txt": b"b"}
    assert [one.oid for one in hub.commits(NAME)][:2] == [second, first]


def test_a_branch_grows_on_its_own(hub: LoopbackHub, api: HfApi) -> None:
    first = commit(api, add("a.txt", b"a"))
    commit(api, add("a.txt", b"A"))
    api.create_branch(NAME, branch="v/1", revision=first)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(NAME, branch="v/1")
    api.create_branch(NAME, branch="v/1", exist_ok=True)
    on_branch = commit(api, add("b.txt", b"b"), revision="v/1")
    assert uploaded(hub) == {"a.txt": b"A"} and uploaded(hub, "v/1") == {"a.txt": b"a", "b.txt": b"b"}
    assert hub.branches(NAME)["v/1"] == on_branch
    with pytest.raises(RevisionNotFoundError):
        commit(api, add("c.txt", b"c"), revision="none")
    api.delete_branch(NAME, branch="v/1")
    assert set(hub.branches(NAME)) == {"main"}


def test_a_tag_stays_where_it_is(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    first = commit(api, add("a.txt", b"old"))
    api.create_tag(NAME, tag="v1.0")
    commit(api, add("a.txt", b"new"))
    assert hub.tags(NAME) == {"v1.0": first} and uploaded(hub) == {"a.txt": b"new"}
    read = snapshot_download(
        NAME, revision="v1.0", cache_dir=tmp_path, endpoint=hub.endpoint, token=hub.token
    )
    assert on_disk(read) == {"a.txt": b"old"}
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(NAME, tag="v1.0")
    references = api.list_repo_refs(NAME)
    assert [(tag.name, tag.target_commit) for tag in references.tags] == [("v1.0", first)]
    api.delete_tag(NAME, tag="v1.0")
    assert hub.tags(NAME) == {}


def test_a_pull_request_leaves_main_alone(hub: LoopbackHub, api: HfApi) -> None:
    info = api.create_commit(NAME, [add("a.bin", b"\0a")], commit_message="please", create_pr=True)
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert uploaded(hub) == {} and uploaded(hub, "refs/pr/1") == {"a.bin": b"\0a"}
    commit(api, add("b.txt", b"b"), revision="refs/pr/1")
    assert set(uploaded(hub, "refs/pr/1")) == {"a.bin", "b.txt"}
    references = api.list_repo_refs(NAME, include_pull_requests=True)
    assert [one.ref for one in references.pull_requests] == ["refs/pr/1"]
    assert [one.name for one in references.branches] == ["main"]
    assert api.create_commit(NAME, [add("c", b"c")], commit_message="more", create_pr=True).pr_num == 2


def test_a_repository_is_listed_and_its_files_deleted(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    api.upload_folder(repo_id=NAME, folder_path=folder, commit_message="all")
    assert set(api.list_repo_files(NAME)) == {".gitattributes", *FILES}
    assert {row.path for row in api.list_repo_tree(NAME)} == {
        *(name for name in FILES if "/" not in name),
        ".gitattributes",
        "sub",
    }
    assert [row.path for row in api.list_repo_tree(NAME, "sub/deep")] == ["sub/deep/text.txt"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(NAME, "none"))
    large, small = api.get_paths_info(NAME, ["model.safetensors", "config.json"])[::-1]
    assert (large.size, large.lfs.size, small.lfs) == (300_000, 300_000, None)
    siblings = {one.rfilename: one for one in api.model_info(NAME, files_metadata=True).siblings}
    assert siblings["model.safetensors"].lfs.sha256 == large.lfs.sha256
    api.delete_file("config.json", NAME)
    api.delete_folder("sub", NAME)
    assert set(uploaded(hub)) == {"empty.txt", "model.safetensors"}
    assert [one.title for one in api.list_repo_commits(NAME)][-2:] == ["all", "initial commit"]


# Cards.

GOOD_CARD = ModelCardData(
    license="mit",
    language=["multilingual", "en", "zh"],
    library_name="transformers",
    pipeline_tag="fill-mask",
    base_model="org/base-model_1.0",
    base_model_relation="finetune",
    model_name="name",
    eval_results=[EvalResult("retrieval", "org/data", "Data", "accuracy", 0.5)],
)


def test_a_valid_card_is_taken_and_shown(hub: LoopbackHub, api: HfApi) -> None:
    text = f"---\n{GOOD_CARD}\n---\n# Title\n"
    commit(api, add("README.md", text.encode()))
    info = api.model_info(NAME)
    assert (info.pipeline_tag, info.library_name) == ("fill-mask", "transformers")
    assert info.card_data.eval_results[0].metric_value == 0.5
    assert ModelCard(uploaded(hub)["README.md"].decode()).data.license == "mit"


def test_a_card_without_metadata_is_warned_about(api: HfApi) -> None:
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        commit(api, add("README.md", b"# Title\n"))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("a: [", "cannot be parsed"),
        ("license: mit\nlicense: mit", "duplicated"),
        ("- a", "must be a mapping"),
        ("license: 3", "license"),
        ("language: [en, no]", "language"),
        ("tags: {a: b}", "tags"),
        ("base_model: /home/me/model", "base_model"),
        ("base_model_relation: cousin", "base_model_relation"),
        ("model-index: {}", "must be an array"),
        ("model-index: [{results: []}]", "name"),
        ("model-index: [{name: a, results: [{task: {type: b}, metrics: [{type: c, value: 1}]}]}]", "dataset"),
        (
            "model-index: [{name: a, results: [{task: {type: b}, metrics: []}]}]",
            "metrics",
        ),
    ],
)
def test_a_card_with_invalid_metadata_is_refused(
    hub: LoopbackHub, api: HfApi, metadata: str, message: str
) -> None:
    text = f"---\n{metadata}\n---\n# Title\n"
    with pytest.raises(ValueError, match="Invalid metadata") as caught:
        commit(api, add("README.md", text.encode()))
    assert message in str(caught.value)
    assert not any("/commit/" in line for line in hub.requests)
    value = {"path": "README.md", "content": base64.b64encode(text.encode()).decode(), "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": "test"}}, {"key": "file", "value": value}]
    assert send(hub, "POST", f"/api/models/{NAME}/commit/main", lines)[0] == 400
    assert uploaded(hub) == {}


# Faults.


def test_the_client_tries_again_after_a_server_error(
    hub: LoopbackHub, api: HfApi, folder: Path, waits: list[float]
) -> None:
    hub.inject(Fault(method="POST", path="/preupload/", kind="status", status=503, times=2))
    hub.inject(Fault(method="PUT", path="/lfs/", kind="status", status=500))
    api.upload_folder(repo_id=NAME, folder_path=folder)
    assert uploaded(hub) == FILES and hub.pending_faults == 0 and len(waits) == 3


def test_the_client_waits_as_long_as_it_is_told(
    hub: LoopbackHub, api: HfApi, folder: Path, waits: list[float]
) -> None:
    hub.inject(Fault(method="POST", path="objects/batch", kind="status", status=429, retry_after=7))
    api.upload_folder(repo_id=NAME, folder_path=folder)
    assert uploaded(hub) == FILES and waits == [8.0]  # the client adds one


def test_a_failed_commit_changes_nothing(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    hub.inject(Fault(method="POST", path=r"/commit/main$", kind="status", status=500))
    with pytest.raises(HfHubHTTPError, match="500"):
        api.upload_folder(repo_id=NAME, folder_path=folder)
    assert uploaded(hub) == {} and len(hub.commits(NAME)) == 1 and hub.pending_faults == 0


@pytest.mark.parametrize("content", [b"\0" * 10, os.urandom(2_000_000)], ids=["short", "long"])
def test_an_upload_outlives_a_connection_that_drops(
    hub: LoopbackHub, api: HfApi, waits: list[float], content: bytes
) -> None:
    hub.inject(Fault(method="PUT", path="/lfs/", kind="drop"))
    commit(api, add("a.bin", content))
    assert uploaded(hub) == {"a.bin": content} and hub.pending_faults == 0 and len(waits) == 1
    assert sum(line.startswith("PUT") for line in hub.requests) == 2


def test_an_upload_that_always_drops_fails(hub: LoopbackHub, api: HfApi, waits: list[float]) -> None:
    hub.inject(Fault(method="PUT", path="/lfs/", kind="drop", times=100))
    with pytest.raises(RuntimeError, match="a.bin") as caught:
        commit(api, add("a.bin", os.urandom(2_000_000)))
    assert isinstance(caught.value.__cause__, TRANSPORT_ERROR) and uploaded(hub) == {}


def test_a_commit_that_drops_changes_nothing(hub: LoopbackHub, api: HfApi) -> None:
    hub.inject(Fault(method="POST", path="/commit/", kind="drop"))
    with pytest.raises(TRANSPORT_ERROR):
        commit(api, add("a.txt", b"a" * 1_000_000))
    assert uploaded(hub) == {} and hub.pending_faults == 0
    commit(api, add("a.txt", b"a"))
    assert uploaded(hub) == {"a.txt": b"a"}


def test_a_commit_whose_answer_is_lost_is_there(hub: LoopbackHub, api: HfApi) -> None:
    hub.inject(Fault(method="POST", path="/commit/", kind="after"))
    with pytest.raises(TRANSPORT_ERROR):
        commit(api, add("a.txt", b"a"))
    assert uploaded(hub) == {"a.txt": b"a"} and hub.pending_faults == 0


def test_a_download_goes_on_where_it_dropped(
    hub: LoopbackHub, api: HfApi, waits: list[float], tmp_path: Path
) -> None:
    content = os.urandom(30_000_000)  # the client reads chunks of 10 MB
    commit(api, add("a.bin", content))
    hub.requests.clear()
    hub.inject(Fault(method="GET", path="/lfs/", kind="drop"))
    read = api.hf_hub_download(NAME, "a.bin", cache_dir=tmp_path)
    assert Path(read).read_bytes() == content and hub.pending_faults == 0
    assert sum(line.startswith("GET /lfs/") for line in hub.requests) == 2


def test_a_part_of_a_file_can_be_asked_for(hub: LoopbackHub, api: HfApi) -> None:
    commit(api, add("a.txt", b"0123456789"))
    address = urlsplit(hub.endpoint).netloc
    for asked, status, expected in (("2-4", 206, b"234"), ("7-", 206, b"789"), ("10-", 416, b"")):
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request("GET", f"/{NAME}/resolve/main/a.txt", headers={"Range": f"bytes={asked}"})
        response = connection.getresponse()
        assert (response.status, response.read()) == (status, expected)
        connection.close()


def test_a_hub_that_has_ended_answers_nobody() -> None:
    with LoopbackHub() as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        assert api.whoami()["name"] == "tester"
    with pytest.raises(TRANSPORT_ERROR):
        api.whoami()


# Programs in their own processes.


def run(hub: LoopbackHub, home: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env=hub.environment(home),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_environment_of_a_subprocess_holds_this_hub_alone(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "1")
    environment = hub.environment(tmp_path)
    names = {name for name in environment if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    switches = {"HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK"}
    assert names == {"HF_ENDPOINT", "HF_TOKEN", "HF_HOME", *switches}
    assert environment["HF_ENDPOINT"] == hub.endpoint and environment["PATH"] == os.environ["PATH"]


HF = """
import sys
from huggingface_hub.cli.hf import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["hf", *line.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
"""


def test_the_hf_command_uploads_and_downloads(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    commands = (
        "auth whoami",
        f"upload {NAME} {folder} . --private --commit-message all",
        f"repos tag create {NAME} v1",
        f"download {NAME} --revision v1 --local-dir {tmp_path / 'read'}",
    )
    done = subprocess.run(
        [sys.executable, "-c", HF],
        input="\n".join(commands),
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "tester" in done.stdout
    assert uploaded(hub) == FILES == on_disk(tmp_path / "read")
    assert hub.is_private(NAME) and set(hub.tags(NAME)) == {"v1"}
    assert hub.commits(NAME)[0].message == "all"


LIBRARIES = """
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModel, XLMRobertaConfig, XLMRobertaModel

shape = dict(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
model = XLMRobertaModel(XLMRobertaConfig(**shape))
info = model.push_to_hub("org/name", private=True)
model.push_to_hub("org/name", commit_message="second")
for revision in ("main", info.oid):
    loaded = AutoModel.from_pretrained("org/name", revision=revision).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())

rows = {"text": ["a", "b", "c"], "label": [0, 1, 2]}
Dataset.from_dict(rows).push_to_hub("org/name", "en")
assert load_dataset("org/name", "en", split="train").to_dict() == rows
streamed = load_dataset("org/name", "en", split="train", streaming=True)
assert [row["text"] for row in streamed] == rows["text"]
"""


def test_transformers_and_datasets_push_and_load(hub: LoopbackHub, tmp_path: Path) -> None:
    run(hub, tmp_path / "home", "-c", LIBRARIES)
    assert set(uploaded(hub)) == {"README.md", "config.json", "model.safetensors"}
    assert set(uploaded(hub, repo_type="dataset")) == {"README.md", "en/train-00000-of-00001.parquet"}
