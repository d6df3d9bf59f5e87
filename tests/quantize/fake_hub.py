"""A fake Hugging Face Hub on 127.0.0.1, with the routes and headers of a model download.

Downloads are tested over real HTTP, so requests, retries and errors are those of huggingface_hub. Routes and headers
are those used by its `hf_api.py` and `file_download.py`.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Refusal:
    """An error response: the status, and the headers in which the Hub states the reason."""

    status: int
    code: str = ""
    message: str = ""


@dataclass
class Repository:
    """A model with its files at `COMMIT` (branch main), and how the server fails for it."""

    files: dict[str, bytes]
    refusal: Refusal | None = None  # the API's response, before a download
    tree_refusal: Refusal | None = None  # the response for the list of files
    file_refusal: Refusal | None = None  # each file's response: the API of a gated model is public
    cut_after: int | None = None  # the first GET of model.safetensors ends after this many bytes
    silent: bool = False  # accepts the request and never responds
    xet: bool = False  # the files are in the Xet store, which denies access


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body_bytes: int = 0  # bytes of the body that were sent


class FakeHub(ThreadingHTTPServer):
    """`url` is the HF_ENDPOINT; a test adds `repositories` and reads `requests`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.closing = Event()

    def downloads(self, repository: str) -> list[Request]:
        """The GET requests for files of the repository, oldest first."""
        return [r for r in self.requests if r.method == "GET" and r.path.startswith(f"/{repository}/resolve/")]


@contextmanager
def serve() -> Iterator[FakeHub]:
    """A Hub without repositories, on a free port, until the block ends."""
    with FakeHub() as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.request_seen = Request(self.command, path, {k.lower(): v for k, v in self.headers.items()})
        self.server.requests.append(self.request_seen)
        if api := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+))?", path):
            self._api(api[1], api[2], api[3] or "main")
        elif path == "/xet-token":
            store = {"X-Xet-Cas-Url": f"{self.server.url}/xet", "X-Xet-Access-Token": "token"}
            self._send(200, headers=store | {"X-Xet-Token-Expiration": str(2**32)})
        elif path.startswith("/xet/"):
            self._send(401)
        elif file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*file.groups())
        else:
            self._send(404)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Silent: `requests` is the log, and stderr belongs to the test report."""

    def _api(self, name: str, route: str, revision: str) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if repository.refusal is not None:
            self._refuse(repository.refusal)
        elif route == "tree" and repository.tree_refusal is not None:
            self._refuse(repository.tree_refusal)
        elif route == "tree":
            self._send(200, json.dumps([_tree_entry(*item) for item in repository.files.items()]).encode())
        else:
            siblings = [{"rfilename": file} for file in repository.files]
            self._send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())

    def _file(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if repository.file_refusal is not None:
            self._refuse(repository.file_refusal)
            return
        content = repository.files[file]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if repository.xet:
            headers |= {"X-Xet-Hash": "ab" * 32, "X-Xet-Refresh-Route": f"{self.server.url}/xet-token"}
        resumed = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(resumed[1]) if resumed else 0
        if resumed:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = None
        if self.command == "GET" and file == "model.safetensors":
            cut, repository.cut_after = repository.cut_after, None
        self._send(206 if resumed else 200, content[start:], headers, cut)

    def _repository(self, name: str, revision: str) -> Repository | None:
        """The repository, or None if the request has been answered."""
        repository = self.server.repositories.get(name)
        if repository is None:
            # Without a token, the Hub reports a missing repository like a private one.
            self._refuse(Refusal(404 if "Authorization" in self.headers else 401, "RepoNotFound"))
        elif repository.silent:
            self.server.closing.wait()
            self.close_connection = True
            repository = None
        elif revision not in ("main", COMMIT):
            self._refuse(Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}"))
            repository = None
        return repository

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
        self._send(refusal.status, headers={key: value for key, value in headers.items() if value})

    def _send(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in ({"X-Repo-Commit": COMMIT} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            self.request_seen.body_bytes = len(body[:cut])
            if cut is not None:
                self.close_connection = True


def _tree_entry(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
