"""Repositories in memory, and what the Hub does with each request: the loopback Hub without its sockets.

`server.py` says what it is for and what is left out.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

from hub.card_rules import front_matter

USER = "tester"
LFS_SUFFIXES = (
    ".bin",
    ".gz",
    ".model",
    ".msgpack",
    ".npz",
    ".onnx",
    ".parquet",
    ".pt",
    ".safetensors",
    ".zip",
)
LFS_SIZE = 10 * 2**20  # bytes
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)


@dataclass(frozen=True)
class Commit:
    """One commit: all its files; those in `lfs` are kept as large ones."""

    oid: str
    message: str
    files: dict[str, bytes]
    lfs: frozenset[str]
    parent: str | None
    date: datetime


@dataclass
class Request:
    """A request; `path` is still quoted and has no query."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, JSON or a form."""
        if self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded"):
            return parse_qs(self.body.decode())
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"the body is no JSON: {error}") from error

    def is_set(self, name: str) -> bool:
        """Whether the query switches something on."""
        return self.query.get(name, [""])[0].lower() in ("true", "1")


@dataclass
class Answer:
    """An answer; `Content-Length` is added when it is sent."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, content: Any, status: int = 200) -> "Answer":
        """An answer that is JSON."""
        return cls(status, json.dumps(content, default=str).encode(), {"Content-Type": "application/json"})


class HubError(Exception):
    """An answer that is an error: status, message, and the code that the client makes a class of."""

    def __init__(self, status: int, message: str, code: str | None = None, **content: Any) -> None:
        super().__init__(message)
        self.answer = Answer.json({"error": message, **content}, status)
        self.answer.headers["X-Error-Message"] = message
        if code is not None:
            self.answer.headers["X-Error-Code"] = code


class Repository:
    """Commits and the names that point at them: `tags`, and `heads` (branches, and `refs/pr/N`)."""

    def __init__(self, kind: str, name: str, private: bool) -> None:
        self.kind, self.name, self.private = kind, name, private
        self.commits: dict[str, Commit] = {}
        self.tags: dict[str, str] = {}
        self.heads: dict[str, str] = {}
        self.add_commit("main", None, "initial commit", {".gitattributes": GITATTRIBUTES.encode()})

    def find(self, revision: str) -> Commit:
        """The commit of a branch, pull request, tag, or (beginning of an) oid."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.heads.get(name) or self.tags.get(name)
        if oid is None and re.fullmatch("[0-9a-f]{7,40}", revision):
            oid = next((known for known in self.commits if known.startswith(revision)), None)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str) -> Iterator[Commit]:
        """Commits from this revision back to the first."""
        commit: Commit | None = self.find(revision)
        while commit is not None:
            yield commit
            commit = self.commits[commit.parent] if commit.parent else None

    def add_commit(
        self,
        head: str,
        parent: str | None,
        message: str,
        files: dict[str, bytes],
        lfs: frozenset[str] = frozenset(),
    ) -> Commit:
        """Write a commit and move a head to it: the one place where content changes."""
        seed = f"{self.kind} {self.name} {len(self.commits)} {parent} {message}".encode()
        oid = hashlib.sha1(seed + b"".join(files.values())).hexdigest()
        self.commits[oid] = Commit(oid, message, files, lfs, parent, datetime.now(UTC))
        self.heads[head] = oid
        return self.commits[oid]


class Api:
    """The endpoints; each takes the request and the named parts of its path."""

    def __init__(self, endpoint: str, roles: dict[str, str]) -> None:
        self.endpoint = endpoint
        self.roles = {f"Bearer {token}": role for token, role in roles.items()}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}  # LFS content by sha256
        self.secret = secrets.token_bytes(16)

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

    def role(self, request: Request) -> str | None:
        given = request.headers.get("Authorization")
        if given is not None and given not in self.roles:
            raise HubError(401, "Invalid credentials in Authorization header")
        return None if given is None else self.roles[given]

    def check_writer(self, request: Request) -> None:
        role = self.role(request)
        if role is None:
            raise HubError(401, "Invalid username or password.")
        if role != "write":
            raise HubError(403, "Forbidden: this token has no permission to write.")

    def readable(self, request: Request, kind: str, repo: str) -> Repository:
        role = self.role(request)
        found = self.repositories.get((kind, checked_name(repo)))
        if found is not None and (role is not None or not found.private):
            return found
        if role is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def writable(self, request: Request, kind: str, repo: str) -> Repository:
        found = self.readable(request, kind, repo)
        self.check_writer(request)
        return found

    # Account and repositories.

    def whoami(self, request: Request) -> Answer:
        role = self.role(request)
        if role is None:
            raise HubError(401, "Invalid username or password.")
        access = {"displayName": "test", "role": role}
        user = {"type": "user", "id": "0", "name": USER, "fullname": "Test User", "isPro": False, "orgs": []}
        return Answer.json({**user, "auth": {"type": "access_token", "accessToken": access}})

    def create_repository(self, request: Request) -> Answer:
        self.check_writer(request)
        kind, name = asked_repository(request)
        checked_name(name)
        if kind not in ("model", "dataset"):
            raise HubError(400, f"the loopback Hub has models and datasets, no {kind}")
        url = f"{self.endpoint}/{prefix(kind)}{name}"
        if (kind, name) in self.repositories:
            raise HubError(409, f"You already created this {kind} repo", url=url)
        self.repositories[kind, name] = Repository(kind, name, request.json().get("visibility") == "private")
        return Answer.json({"url": url, "name": name})

    def delete_repository(self, request: Request) -> Answer:
        kind, name = asked_repository(request)
        self.writable(request, kind, name)
        del self.repositories[kind, name]
        return Answer.json({})

    def change_settings(self, request: Request, kind: str, repo: str) -> Answer:
        found = self.writable(request, kind, repo)
        found.private = request.json().get("visibility") == "private"
        return Answer.json({"private": found.private})

    def check_access(self, request: Request, kind: str, repo: str) -> Answer:
        self.readable(request, kind, repo)
        return Answer.json({})

    def describe(self, request: Request, kind: str, repo: str, revision: str = "main") -> Answer:
        found = self.readable(request, kind, repo)
        history = list(found.history(revision))
        files, card = sorted(history[0].files), card_data(history[0])
        sibling = described_sibling if request.is_set("blobs") else named_sibling
        content = {
            "id": repo,
            "author": repo.split("/")[0],
            "sha": history[0].oid,
            "private": found.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card["tags"] if isinstance(card.get("tags"), list) else [],
            "createdAt": timestamp(history[-1].date),
            "lastModified": timestamp(history[0].date),
            "siblings": [sibling(history[0], path) for path in files],
            "cardData": card or None,
        }
        return Answer.json(content | {k: card[k] for k in ("pipeline_tag", "library_name") if k in card})

    # Names of commits.

    def list_references(self, request: Request, kind: str, repo: str) -> Answer:
        found = self.readable(request, kind, repo)
        requests = {name: oid for name, oid in found.heads.items() if name.startswith("refs/pr/")}
        branches = {name: oid for name, oid in found.heads.items() if name not in requests}
        return Answer.json(
            {
                "branches": references("refs/heads/", branches),
                "converts": [],
                "tags": references("refs/tags/", found.tags),
                "pullRequests": references("", requests),
            }
        )

    def list_commits(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        history = self.readable(request, kind, repo).history(revision)
        by = {"authors": [{"user": USER}], "message": ""}
        return Answer.json(
            [{**by, "id": one.oid, "title": one.message, "date": timestamp(one.date)} for one in history]
        )

    def create_branch(self, request: Request, kind: str, repo: str, branch: str) -> Answer:
        found = self.writable(request, kind, repo)
        if branch.startswith("refs/"):
            raise HubError(400, f"Invalid branch name: {branch}")
        start = request.json().get("startingPoint") or "main"
        add_name(found.heads, branch, found.find(start).oid)
        return Answer.json({}, 201)

    def create_tag(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        found = self.writable(request, kind, repo)
        add_name(found.tags, request.json()["tag"], found.find(revision).oid)
        return Answer.json({}, 201)

    def delete_branch(self, request: Request, kind: str, repo: str, branch: str) -> Answer:
        heads = self.writable(request, kind, repo).heads
        if branch == "main" or heads.pop(branch, None) is None:
            raise HubError(404, f"no branch {branch} that can be deleted", "RevisionNotFound")
        return Answer.json({})

    def delete_tag(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        if self.writable(request, kind, repo).tags.pop(revision, None) is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return Answer.json({})

    # Reading.

    def list_tree(self, request: Request, kind: str, repo: str, revision: str, path: str = "") -> Answer:
        commit = self.readable(request, kind, repo).find(revision)
        start = f"{path}/" if path else ""
        below = [row for row in tree_rows(commit) if row["path"].startswith(start)]
        if path and not below:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        if not request.is_set("recursive"):
            below = [row for row in below if "/" not in row["path"].removeprefix(start)]
        return Answer.json(below)

    def describe_paths(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        commit = self.readable(request, kind, repo).find(revision)
        asked = request.json().get("paths", [])
        return Answer.json([row for row in tree_rows(commit) if row["path"] in asked])

    def resolve(self, request: Request, repo: str, revision: str, path: str, kind: str = "model") -> Answer:
        commit = self.readable(request, kind, repo).find(revision)
        at = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            error = HubError(404, "Entry not found", "EntryNotFound").answer
            return replace(error, headers=error.headers | at)
        content = commit.files[path]
        if path not in commit.lfs:
            return serve_bytes(request, content, git_oid(content), at)
        oid = sha256(content)
        linked = {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content)), "ETag": f'"{oid}"'}
        return Answer(302, b"", at | linked | {"Location": self.signed_address(oid)})

    # Writing.

    def validate_card(self, request: Request) -> Answer:
        card = front_matter(request.json().get("content", ""))
        found = {"errors": card.errors, "warnings": card.warnings}
        content = {name: [{"message": line} for line in lines] for name, lines in found.items()}
        return Answer.json(content, 400 if card.errors else 200)

    def choose_upload_modes(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        commit = self.writable(request, kind, repo).find(revision)
        rows = []
        for asked in request.json()["files"]:
            path, sample = asked["path"], base64.b64decode(asked.get("sample", ""))
            oid = oid_of(commit, path)
            mode = "lfs" if is_large(path, asked["size"], sample) else "regular"
            rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Answer.json({"files": rows})

    def start_large_uploads(self, request: Request, repo: str, kind: str = "model") -> Answer:
        self.writable(request, kind, repo)
        verify = f"{self.endpoint}/{prefix(kind)}{repo}.git/info/lfs/objects/verify"
        objects = []
        for asked in request.json()["objects"]:
            one = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.large:
                upload = {"href": self.signed_address(asked["oid"])}
                one["actions"] = {"upload": upload, "verify": {"href": verify}}
            objects.append(one)
        return Answer.json({"transfer": "basic", "objects": objects})

    def verify_large(self, request: Request, repo: str, kind: str = "model") -> Answer:
        self.writable(request, kind, repo)
        asked = request.json()
        if len(self.large.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(404, f"object {asked['oid']} of {asked['size']} bytes was not received")
        return Answer.json({})

    def put_large(self, request: Request, signature: str, oid: str) -> Answer:
        self.check_signature(oid, signature)
        found = sha256(request.body)
        if found != oid:
            raise HubError(400, f"BadDigest: the sha256 of what was received is {found}, expected {oid}")
        self.large[oid] = request.body
        return Answer()

    def get_large(self, request: Request, signature: str, oid: str) -> Answer:
        self.check_signature(oid, signature)
        return serve_bytes(request, self.large[oid], oid, {})

    def signed_address(self, oid: str) -> str:
        """Where whoever knows the address writes and reads this content.

        On another host name: the client follows redirects to the same one, and would miss X-Repo-Commit.
        """
        return f"{self.endpoint.replace('127.0.0.1', 'localhost')}/lfs/{self.signature(oid)}/{oid}"

    def signature(self, oid: str) -> str:
        return hmac.new(self.secret, oid.encode(), "sha256").hexdigest()[:16]

    def check_signature(self, oid: str, signature: str) -> None:
        if not hmac.compare_digest(signature, self.signature(oid)):
            raise HubError(403, "SignatureDoesNotMatch")

    def commit(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        found = self.writable(request, kind, repo)
        if revision not in found.heads:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        header, operations = parse_commit(request.body)
        parent = found.find(revision)
        if header.get("parentCommit", parent.oid) != parent.oid:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        # All that can fail happens before the one call that changes something.
        files, lfs = self.apply(parent, operations)
        check_card_of(files, parent)
        url = f"{self.endpoint}/{prefix(kind)}{repo}"
        extra = {}
        if request.is_set("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in found.heads)
            revision, extra = f"refs/pr/{number}", {"pullRequestUrl": f"{url}/discussions/{number}"}
        oid = found.add_commit(revision, parent.oid, header["summary"], files, lfs).oid
        return Answer.json({"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", **extra})

    def apply(
        self, parent: Commit, operations: list[dict[str, Any]]
    ) -> tuple[dict[str, bytes], frozenset[str]]:
        """Files after these operations, and which of them are large."""
        files, lfs = dict(parent.files), set(parent.lfs)
        for operation in operations:
            key, value = operation["key"], operation["value"]
            path = checked_path(value["path"])
            if key == "file":
                files[path] = decode_base64(value["content"])
                lfs.discard(path)
            elif key == "lfsFile":
                files[path] = self.uploaded(value)
                lfs.add(path)
            elif key in ("deletedFile", "deletedFolder"):
                for gone in found_below(files, path):
                    del files[gone]
                    lfs.discard(gone)
            else:
                raise HubError(400, f"the loopback Hub does not know the operation {key}")
        return files, frozenset(lfs)

    def uploaded(self, value: dict[str, Any]) -> bytes:
        """Content of an LFS file of a commit."""
        content = self.large.get(value["oid"])
        if content is None or value.get("size", len(content)) != len(content):
            raise HubError(400, f"{value['path']}: the LFS object {value['oid']} was not uploaded")
        return content


_REPO = r"(?P<repo>[^/]+/[^/]+|[^/]+)"
_API = rf"/api/(?P<kind>model|dataset)s/{_REPO}"
_PAGE = rf"/(?:(?P<kind>dataset)s/)?{_REPO}"
_AT = r"/(?P<revision>[^/]+)"
_LARGE = r"/lfs/(?P<signature>[^/]+)/(?P<oid>[^/]+)"

# The first that matches; GET stands for HEAD too.
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", "/api/whoami-v2", Api.whoami),
    ("POST", "/api/repos/create", Api.create_repository),
    ("DELETE", "/api/repos/delete", Api.delete_repository),
    ("POST", "/api/validate-yaml", Api.validate_card),
    ("PUT", f"{_API}/settings", Api.change_settings),
    ("GET", f"{_API}/auth-check", Api.check_access),
    ("GET", f"{_API}/revision{_AT}", Api.describe),
    ("GET", f"{_API}/refs", Api.list_references),
    ("GET", f"{_API}/commits{_AT}", Api.list_commits),
    ("GET", rf"{_API}/tree{_AT}(?:/(?P<path>.+))?", Api.list_tree),
    ("GET", _API, Api.describe),
    ("POST", f"{_API}/paths-info{_AT}", Api.describe_paths),
    ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", Api.create_branch),
    ("DELETE", rf"{_API}/branch/(?P<branch>[^/]+)", Api.delete_branch),
    ("POST", f"{_API}/tag{_AT}", Api.create_tag),
    ("DELETE", f"{_API}/tag{_AT}", Api.delete_tag),
    ("POST", f"{_API}/preupload{_AT}", Api.choose_upload_modes),
    ("POST", f"{_API}/commit{_AT}", Api.commit),
    ("PUT", _LARGE, Api.put_large),
    ("GET", _LARGE, Api.get_large),
    ("POST", rf"{_PAGE}\.git/info/lfs/objects/batch", Api.start_large_uploads),
    ("POST", rf"{_PAGE}\.git/info/lfs/objects/verify", Api.verify_large),
    ("GET", rf"{_PAGE}/resolve{_AT}/(?P<path>.+)", Api.resolve),
]

# Content, and how it is shown.


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    """Name that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def oid_of(commit: Commit, path: str) -> str | None:
    """What the client compares to see whether a file has changed."""
    if path not in commit.files:
        return None
    return sha256(commit.files[path]) if path in commit.lfs else git_oid(commit.files[path])


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file in LFS: by its name, its size, or because it is binary."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE or b"\0" in sample)


def file_row(commit: Commit, path: str) -> dict[str, Any]:
    """A file as the tree lists it; the oid of an LFS file is that of its pointer."""
    content = commit.files[path]
    row: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if path not in commit.lfs:
        return row
    oid, size = sha256(content), len(content)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
    return row | {"oid": git_oid(pointer), "lfs": {"oid": oid, "size": size, "pointerSize": len(pointer)}}


def tree_rows(commit: Commit) -> list[dict[str, Any]]:
    """All files and folders."""
    folders = {str(parent) for path in commit.files for parent in PurePosixPath(path).parents} - {"."}
    rows = [{"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())} for path in folders]
    return sorted(rows + [file_row(commit, path) for path in commit.files], key=lambda row: row["path"])


def named_sibling(commit: Commit, path: str) -> dict[str, Any]:
    """A file as the description of a repository lists it."""
    return {"rfilename": path}


def described_sibling(commit: Commit, path: str) -> dict[str, Any]:
    """The same with `?blobs=True`."""
    row = file_row(commit, path)
    shown = {"rfilename": path, "size": row["size"], "blobId": row["oid"]}
    return shown | ({"lfs": {"sha256": row["lfs"]["oid"], **row["lfs"]}} if "lfs" in row else {})


def card_data(commit: Commit) -> dict[str, Any]:
    """Metadata of the card, empty without one."""
    return front_matter(commit.files.get("README.md", b"").decode(errors="replace")).content


def references(start: str, names: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": start + name, "targetCommit": oid} for name, oid in sorted(names.items())]


def timestamp(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def prefix(kind: str) -> str:
    """What stands before the name in the address of a page."""
    return "" if kind == "model" else f"{kind}s/"


def serve_bytes(request: Request, content: bytes, etag: str, headers: dict[str, str]) -> Answer:
    """Content, or the part of it that a Range header asks for."""
    headers = {**headers, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if asked is None:
        return Answer(200, content, headers)
    size = len(content)
    first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
    if first > last:
        return Answer(416, b"", headers | {"Content-Range": f"bytes */{size}"})
    part = {"Content-Range": f"bytes {first}-{last}/{size}"}
    return Answer(206, content[first : last + 1], headers | part)


# Checks of what comes in.


def asked_repository(request: Request) -> tuple[str, str]:
    """Kind and name in the body of a request to create or delete."""
    asked = request.json()
    return asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked.get('name')}"


def checked_name(name: str) -> str:
    """A repository name that stays one."""
    one = r"[A-Za-z0-9_]([\w.\-]{0,94}[A-Za-z0-9_])?"
    tricks = ".." in name or "--" in name or name.endswith(".git")
    if tricks or not re.fullmatch(rf"({one}/)?{one}", name, re.ASCII):
        raise HubError(400, f"Invalid repository name: {name!r}")
    return name


def checked_path(path: str) -> str:
    """A path that stays inside its repository; a folder may end with a slash."""
    path = path.removesuffix("/")
    if any(part in ("", ".", "..", ".git") for part in path.split("/")) or "\\" in path or "\0" in path:
        raise HubError(400, f"Invalid path in repository: {path!r}")
    return path


def check_card_of(files: dict[str, bytes], parent: Commit) -> None:
    """Refuse a commit that writes a card with invalid metadata."""
    card = files.get("README.md", b"")
    if card != parent.files.get("README.md", b""):
        errors = front_matter(card.decode(errors="replace")).errors
        if errors:
            raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")


def parse_commit(body: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and operations of a commit, one line of JSON each."""
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    except ValueError as error:
        raise HubError(400, f"a commit must be lines of JSON: {error}") from error
    if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
        raise HubError(400, "the first line of a commit must be its header, with a summary")
    return lines[0]["value"], lines[1:]


def decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise HubError(400, f"the content of a file is not base64: {error}") from error


def found_below(files: dict[str, bytes], path: str) -> list[str]:
    """This file, or the files in this folder."""
    found = [known for known in files if known == path or known.startswith(path + "/")]
    if not found:
        raise HubError(404, f"{path} does not exist", "EntryNotFound")
    return found


def add_name(names: dict[str, str], name: str, oid: str) -> None:
    """Make a branch or tag."""
    if name in names:
        raise HubError(409, f"Reference already exists: {name}")
    names[name] = oid
