"""A Hugging Face Hub in one process, for tests: 127.0.0.1, in memory, gone when the block ends.

The real `huggingface_hub` client, transformers and the Trainer talk to it, because they are told its address
in `HF_ENDPOINT`. So what is tested is what users run, and no test needs a network.

    with LoopbackHub() as hub:
        hub.client().create_repo("org/name")
        hub.inject(Fault(method="POST", path=r"/commit/", kind="status", status=500))
        ...
        subprocess.run([...], env=hub.environment(tmp_path / "hf_home"))
        assert hub.files("org/name")["config.json"] == b"..."

What it does as the Hub does: a new repository has one commit that holds `.gitattributes`; a commit is made
whole or not at all; large and binary files go through LFS, whose sha256 is checked, and are read from another
host name (`localhost`); a missing repository is 404; a read token may not write (403).

It has what the tests here ask for: models alone, no Xet (set HF_HUB_DISABLE_XET=1, as `environment` does), no
parts of files, no pages of long answers. Each request needs a token, which may see every repository; metadata
of cards is not looked at.

This file holds the sockets, the faults and what tests look at; `hub_api.py` the endpoints.
"""

import contextlib
import os
import re
import socket
import sys
import threading
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from hub.hub_api import Answer, Api, Commit, HubError, Request
from huggingface_hub import HfApi


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of this method whose path, with its query, matches.

    Kinds: `status` answers with that status (and `Retry-After: retry_after`, in seconds) and does nothing;
    `drop` closes the connection in the middle of the request's body; `corrupt` damages the body on its way
    (for the PUT of an LFS object: the sha256 is then wrong); `after` does what is asked and loses the answer.
    """

    method: str
    path: str
    kind: Literal["status", "drop", "corrupt", "after"]
    status: int = 500
    times: int = 1
    retry_after: int | None = None


class LoopbackHub:
    """The Hub as tests use it: a context manager, and a look at what it holds.

    Attributes:
        endpoint: Its address, for `HF_ENDPOINT`.
        token: Token of the user `tester` that may write; `read_token` may only read.
        requests: "METHOD path?query" of every request, in order.
        repositories: By their names, each with its `tags`, `heads` (branches, and `refs/pr/N`) and `private`.
    """

    def __init__(self) -> None:
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        # Put together, so that nothing in the source looks like a token.
        self.token, self.read_token = "hf_" + "t" * 20, "hf_" + "r" * 20
        self.requests: list[str] = []
        self._faults: list[Fault] = []
        self._api = Api(self.endpoint, {self.token: "write", self.read_token: "read"})
        self.repositories = self._api.repositories
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.close_connections()

    def environment(self, hf_home: Path) -> dict[str, str]:
        """This process's environment with this Hub in place of the real one, for a subprocess.

        Args:
            hf_home: Folder of the subprocess's Hub cache; a new one is an empty cache.
        """
        replaced = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(replaced)}
        switches = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK")
        direct = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
        where = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token, "HF_HOME": str(hf_home)}
        return kept | direct | dict.fromkeys(switches, "1") | where

    def client(self) -> HfApi:
        """The real client, whose token may write."""
        return HfApi(endpoint=self.endpoint, token=self.token)

    def inject(self, fault: Fault) -> None:
        """Let something go wrong; of several faults that match, the one given first comes first."""
        with self._lock:
            self._faults.append(replace(fault))

    @property
    def pending_faults(self) -> int:
        """How many injected faults have not happened: 0 says that a test met what it prepared."""
        return sum(fault.times for fault in self._faults)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Files of a branch, tag, pull request or commit."""
        return dict(self.commits(name, revision)[0].files)

    def commits(self, name: str, revision: str = "main") -> list[Commit]:
        """Commits of a revision, newest first; the last one is the Hub's own."""
        with self._lock:
            return list(self.repositories[name].history(revision))

    def tags(self, name: str) -> dict[str, str]:
        """Commit of each tag."""
        return dict(self.repositories[name].tags)

    def note(self, method: str, path: str) -> Fault | None:
        """Log a request, and take the fault that is meant for it."""
        with self._lock:
            self.requests.append(f"{method} {path}")
            for fault in self._faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def answer(self, request: Request) -> Answer:
        """Do what is asked, one request at a time."""
        with self._lock:
            return self._api.answer(request)


class _Handler(BaseHTTPRequestHandler):
    """Reads requests, lets faults happen, writes answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Server"

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: Any) -> None:
        """Nothing: `LoopbackHub.requests` is the log."""

    def _serve(self) -> None:
        fault = self.server.hub.note(self.command, self.path)
        kind = None if fault is None else fault.kind
        if kind == "drop":
            self._read_body(share=0.5)
            self.close_connection = True
            return
        body = self._read_body()
        if fault is not None and kind == "status":
            self._send(_failure(fault))
            return
        if kind == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        url = urlsplit(self.path)
        answer = self.server.hub.answer(
            Request(self.command, url.path, parse_qs(url.query), self.headers, body)
        )
        if kind == "after":
            self.close_connection = True
        else:
            self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _read_body(self, share: float = 1.0) -> bytes:
        """The body, or a share of it: of a body of unknown length that of its first chunk."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(share * int(self.headers.get("Content-Length", 0))))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(int(share * size)))
            if share < 1:
                return chunks[0]
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else answer.body)


def _failure(fault: Fault) -> Answer:
    answer = HubError(fault.status, "injected fault").answer
    waiting = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    return replace(answer, headers=answer.headers | waiting)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.connections: set[socket.socket] = set()

    def close_connections(self) -> None:
        """End what clients keep open, so that a Hub that has ended answers nobody."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print errors of the server; a client that goes away is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
