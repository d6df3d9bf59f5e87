"""A fake Hugging Face Hub that takes uploads: the routes that `HfApi.create_repo` and `upload_folder` use without Xet.

Routes and bodies are those of huggingface_hub's `hf_api.py`, `_commit_api.py` and `lfs.py`.
"""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class Uploads:
    """What arrived: created repositories, files by name, tokens; `status` refuses everything if it is not 200."""

    url: str = ""
    status: int = 200
    repositories: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # by hash, before their commit
    cards: list[str] = field(default_factory=list)  # those that the client had checked
    commits: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    uploads: Uploads

    def do_GET(self) -> None:
        self._send({"id": "me/x", "sha": COMMIT, "siblings": []})

    def do_PUT(self) -> None:
        self.uploads.objects[self.path.rsplit("/", 1)[-1]] = self._body()
        self._send({})

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self._body()
        self.uploads.tokens.add(self.headers.get("Authorization"))
        if self.uploads.status != 200:
            self._send({"error": "no"}, self.uploads.status)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.uploads.repositories.append(name)
            self._send({"url": f"{self.uploads.url}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self.uploads.cards.append(json.loads(body)["content"])
            self._send({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [(one["path"], "lfs" if one["path"].endswith((".gguf", ".png")) else "regular") for one in files]
            self._send({"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.uploads.url}/put/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._send({"transfer": "basic", "objects": objects})
        elif re.search(r"/commit/", path):
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._send({"error": f"no route {path}"}, 404)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.uploads.commits.append(value["summary"])
            elif line["key"] == "file":
                self.uploads.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.uploads.files[value["path"]] = self.uploads.objects[value["oid"]]
        url = f"{self.uploads.url}/me/x/commit/{COMMIT}"
        self._send({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, document: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def taking_uploads() -> Iterator[Uploads]:
    """A Hub on a free port until the block ends."""
    uploads = Uploads()
    handler = type("Handler", (_Handler,), {"uploads": uploads})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        uploads.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield uploads
        finally:
            server.shutdown()
            thread.join()
