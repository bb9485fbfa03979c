"""Repositories in memory, and what the Hub does with each request: the loopback Hub without its sockets.

`server.py` says what it is for and what is left out.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

USER = "tester"
Files = dict[str, bytes]
LFS_SUFFIXES = (".bin", ".data", ".model", ".onnx", ".pt", ".safetensors")


@dataclass(frozen=True)
class Commit:
    """One commit: all its files; those in `lfs` are kept as large ones."""

    oid: str
    message: str
    files: Files
    lfs: frozenset[str]
    parent: str | None


@dataclass
class Request:
    """A request; `path` is still quoted and has no query."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """What the body holds."""
        return json.loads(self.body or b"{}")


@dataclass
class Answer:
    """An answer; `Content-Length` is added when it is sent."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, content: Any, status: int = 200) -> "Answer":
        """An answer that is JSON."""
        return cls(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


class HubError(Exception):
    """An answer that is an error: status, message, and the code that the client makes a class of."""

    def __init__(self, status: int, message: str, code: str | None = None, **content: Any) -> None:
        super().__init__(message)
        self.answer = Answer.json({"error": message, **content}, status)
        self.answer.headers |= {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class Repository:
    """Commits and the names that point at them: `tags`, and `heads` (branches, and `refs/pr/N`)."""

    def __init__(self, name: str, private: bool) -> None:
        self.name, self.private = name, private
        self.commits: dict[str, Commit] = {}
        self.tags: dict[str, str] = {}
        self.heads: dict[str, str] = {}
        self.add_commit("main", None, "initial commit", {".gitattributes": b"*.bin filter=lfs\n"})

    def find(self, revision: str) -> Commit:
        """The commit of a branch, pull request, tag or oid."""
        oid = self.heads.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str) -> Iterator[Commit]:
        """Commits from this revision back to the first."""
        commit: Commit | None = self.find(revision)
        while commit is not None:
            yield commit
            commit = self.commits[commit.parent] if commit.parent else None

    def add_commit(self, head: str, parent: str | None, message: str, files: Files, *lfs: str) -> str:
        """Write a commit and move a head to it: the one place where content changes; returns its oid."""
        seed = f"{self.name} {len(self.commits)} {parent} {message}".encode()
        oid = hashlib.sha1(seed + b"".join(files.values())).hexdigest()
        self.commits[oid] = Commit(oid, message, files, frozenset(lfs), parent)
        self.heads[head] = oid
        return oid


class Api:
    """The endpoints; each takes the request and the named parts of its path."""

    def __init__(self, endpoint: str, roles: dict[str, str]) -> None:
        self.endpoint = endpoint
        self.roles = {f"Bearer {token}": role for token, role in roles.items()}
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # LFS content by sha256

    def answer(self, request: Request) -> Answer:
        """Find who is asked, do it, and turn errors into answers."""
        method = "GET" if request.method == "HEAD" else request.method
        for known, pattern, function in ROUTES:
            match = re.fullmatch(pattern, request.path) if known == method else None
            if match is not None:
                parts = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
                try:
                    return function(self, request, **parts)
                except HubError as error:
                    return error.answer
        return HubError(404, f"the loopback Hub does not know {request.method} {request.path}").answer

    # Who may do what.

    def role(self, request: Request) -> str:
        given = request.headers.get("Authorization")
        if given not in self.roles:
            raise HubError(401, "Invalid username or password.")
        return self.roles[given]

    def check_writer(self, request: Request) -> None:
        if self.role(request) != "write":
            raise HubError(403, "Forbidden: this token has no permission to write.")

    def readable(self, request: Request, repo: str) -> Repository:
        self.role(request)
        if repo not in self.repositories:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.repositories[repo]

    def writable(self, request: Request, repo: str) -> Repository:
        found = self.readable(request, repo)
        self.check_writer(request)
        return found

    def whoami(self, request: Request) -> Answer:
        access = {"displayName": "test", "role": self.role(request)}
        user = {"type": "user", "id": "0", "name": USER, "fullname": "Test User", "isPro": False, "orgs": []}
        return Answer.json({**user, "auth": {"type": "access_token", "accessToken": access}})

    # Repositories and the names of commits.

    def create_repository(self, request: Request) -> Answer:
        self.check_writer(request)
        asked = request.json()
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.endpoint}/{name}"
        if name in self.repositories:
            raise HubError(409, "You already created this model repo", url=url)
        self.repositories[name] = Repository(name, asked.get("visibility") == "private")
        return Answer.json({"url": url, "name": name})

    def describe(self, request: Request, repo: str, revision: str = "main") -> Answer:
        found = self.readable(request, repo)
        commit = found.find(revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        about = {"id": repo, "sha": commit.oid, "private": found.private}
        return Answer.json({**about, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def list_references(self, request: Request, repo: str) -> Answer:
        found = self.readable(request, repo)
        kinds = {"branches": ("refs/heads/", found.heads), "tags": ("refs/tags/", found.tags)}
        named = {
            kind: [{"name": name, "ref": start + name, "targetCommit": oid} for name, oid in names.items()]
            for kind, (start, names) in kinds.items()
        }
        return Answer.json({**named, "converts": []})

    def create_branch(self, request: Request, repo: str, branch: str) -> Answer:
        found = self.writable(request, repo)
        return self.add_name(found.heads, branch, found.find("main").oid)

    def create_tag(self, request: Request, repo: str, revision: str) -> Answer:
        found = self.writable(request, repo)
        return self.add_name(found.tags, request.json()["tag"], found.find(revision).oid)

    def add_name(self, names: dict[str, str], name: str, oid: str) -> Answer:
        if name in names:
            raise HubError(409, f"Reference already exists: {name}")
        names[name] = oid
        return Answer.json({}, 201)

    # Reading.

    def list_tree(self, request: Request, repo: str, revision: str, path: str = "") -> Answer:
        commit = self.readable(request, repo).find(revision)
        below = [name for name in sorted(commit.files) if name.startswith(f"{path}/" if path else "")]
        if not below:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        return Answer.json([file_row(commit, name) for name in below])

    def resolve(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        commit = self.readable(request, repo).find(revision)
        at = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            error = HubError(404, "Entry not found", "EntryNotFound").answer
            return replace(error, headers=error.headers | at)
        content, etag = commit.files[path], f'"{oid_of(commit, path)}"'
        if path not in commit.lfs:
            return Answer(200, content, at | {"ETag": etag})
        linked = {"X-Linked-ETag": etag, "X-Linked-Size": str(len(content)), "ETag": etag}
        return Answer(302, b"", at | linked | {"Location": self.address(sha256(content))})

    def address(self, oid: str) -> str:
        """Where content is written and read.

        On another host name: the client follows redirects to the same one, and would miss X-Repo-Commit.
        """
        return f"{self.endpoint.replace('127.0.0.1', 'localhost')}/lfs/{oid}"

    def get_large(self, request: Request, oid: str) -> Answer:
        return Answer(200, self.large[oid], {"ETag": f'"{oid}"'})

    # Writing.

    def validate_card(self, request: Request) -> Answer:
        return Answer.json({"errors": [], "warnings": []})

    def choose_upload_modes(self, request: Request, repo: str, revision: str) -> Answer:
        commit = self.writable(request, repo).find(revision)
        rows = []
        for asked in request.json()["files"]:
            path, sample = asked["path"], base64.b64decode(asked.get("sample", ""))
            is_large = asked["size"] > 0 and (path.endswith(LFS_SUFFIXES) or b"\0" in sample)
            row = {"path": path, "shouldIgnore": False, "oid": oid_of(commit, path)}
            rows.append(row | {"uploadMode": "lfs" if is_large else "regular"})
        return Answer.json({"files": rows})

    def start_large_uploads(self, request: Request, repo: str) -> Answer:
        self.writable(request, repo)
        objects = [{"oid": asked["oid"], "size": asked["size"]} for asked in request.json()["objects"]]
        for item in objects:
            if item["oid"] not in self.large:
                item["actions"] = {"upload": {"href": self.address(item["oid"])}}
        return Answer.json({"transfer": "basic", "objects": objects})

    def put_large(self, request: Request, oid: str) -> Answer:
        found = sha256(request.body)
        if found != oid:
            raise HubError(400, f"BadDigest: the sha256 of what was received is {found}, expected {oid}")
        self.large[oid] = request.body
        return Answer()

    def commit(self, request: Request, repo: str, revision: str) -> Answer:
        found = self.writable(request, repo)
        parent = found.find(revision)
        header, *operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        files, lfs = self.apply(parent, operations)  # all that can fail
        url, extra = f"{self.endpoint}/{repo}", {}
        if request.query.get("create_pr", [""])[0].lower() in ("true", "1"):
            number = 1 + sum(name.startswith("refs/pr/") for name in found.heads)
            revision, extra = f"refs/pr/{number}", {"pullRequestUrl": f"{url}/discussions/{number}"}
        oid = found.add_commit(revision, parent.oid, header["value"]["summary"], files, *lfs)
        return Answer.json({"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", **extra})

    def apply(self, parent: Commit, operations: list[dict[str, Any]]) -> tuple[Files, set[str]]:
        """Files after these operations, and which of them are large."""
        files, lfs = dict(parent.files), set(parent.lfs)
        for operation in operations:
            key, value = operation["key"], operation["value"]
            path = value["path"]
            lfs.discard(path)
            if key == "file":
                files[path] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in self.large:
                files[path] = self.large[value["oid"]]
                lfs.add(path)
            elif key == "deletedFile" and path in files:
                del files[path]
            else:
                raise HubError(400, f"{key} of {path} cannot be done: what it names is not there")
        return files, lfs


_API = r"/api/models/(?P<repo>[^/]+/[^/]+)"
_PAGE = r"/(?P<repo>[^/]+/[^/]+)"
_AT = r"/(?P<revision>[^/]+)"

# The first that matches; GET stands for HEAD too.
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", "/api/whoami-v2", Api.whoami),
    ("POST", "/api/repos/create", Api.create_repository),
    ("POST", "/api/validate-yaml", Api.validate_card),
    ("GET", f"{_API}/revision{_AT}", Api.describe),
    ("GET", f"{_API}/refs", Api.list_references),
    ("GET", rf"{_API}/tree{_AT}(?:/(?P<path>.+))?", Api.list_tree),
    ("GET", _API, Api.describe),
    ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", Api.create_branch),
    ("POST", f"{_API}/tag{_AT}", Api.create_tag),
    ("POST", f"{_API}/preupload{_AT}", Api.choose_upload_modes),
    ("POST", f"{_API}/commit{_AT}", Api.commit),
    ("PUT", "/lfs/(?P<oid>[^/]+)", Api.put_large),
    ("GET", "/lfs/(?P<oid>[^/]+)", Api.get_large),
    ("POST", rf"{_PAGE}\.git/info/lfs/objects/batch", Api.start_large_uploads),
    ("GET", rf"{_PAGE}/resolve{_AT}/(?P<path>.+)", Api.resolve),
]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def oid_of(commit: Commit, path: str) -> str | None:
    """What the client compares to see whether a file has changed: the name that git, or LFS, gives it."""
    if path not in commit.files:
        return None
    content = commit.files[path]
    git_oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return sha256(content) if path in commit.lfs else git_oid


def file_row(commit: Commit, path: str) -> dict[str, Any]:
    """A file as the tree lists it."""
    size, oid = len(commit.files[path]), oid_of(commit, path)
    row = {"type": "file", "path": path, "size": size, "oid": oid}
    return row | ({"lfs": {"oid": oid, "size": size, "pointerSize": 130}} if path in commit.lfs else {})
