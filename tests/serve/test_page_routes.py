"""The files of the writing page over HTTP: types, caching, compression, security headers, and no way out of them."""

import gzip
import socket
from pathlib import Path

import pytest
from dgpt2_quant.serve import web_files
from dgpt2_quant.serve.calls.models import ModelFile
from dgpt2_quant.serve.calls.settings import Settings

from .conftest import Running, running

FOLDER = Path(web_files.__file__).with_name("web")
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def raw(served: Running, path: str) -> bytes:
    """The status line for a path that a client would normalize."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return connection.recv(1000).split(b"\r\n")[0]


def test_a_browser_gets_the_page_and_others_the_liveness_text(served: Running) -> None:
    page = served.client.get("/", headers=BROWSER)
    assert page.text == (FOLDER / "index.html").read_text("utf-8")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    head = served.client.head("/", headers=BROWSER)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", page.headers["etag"])
    for accept in ("*/*", "application/json", "text/html;q=0, */*", ""):
        other = served.client.get("/", headers={"accept": accept})
        assert (other.text, other.headers["vary"]) == ("Healthy", "Accept")


def test_every_file_is_served_with_its_type_and_a_strict_policy(served: Running) -> None:
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for path in FOLDER.iterdir():
        answer = served.client.get(f"/web/{path.name}")
        assert (answer.status_code, answer.content) == (200, path.read_bytes())
        assert answer.headers["content-type"].split(";")[0] == kinds[path.suffix]
        policy = answer.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy)
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_file_that_the_client_has_is_not_sent_again(served: Running) -> None:
    plain = served.client.get("/web/index.html", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = served.client.get("/web/index.html", headers={"accept-encoding": "br, gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content  # httpx decompresses it
    assert len(gzip.compress(plain.content)) >= int(packed.headers["content-length"])
    assert packed.headers["etag"] != plain.headers["etag"]
    assert "Accept-Encoding" in packed.headers["vary"]
    for known in (packed.headers["etag"], f'"other", W/{packed.headers["etag"]}', "*"):
        again = served.client.get("/web/index.html", headers={"accept-encoding": "gzip", "if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
    for refused in ("gzip;q=0", "identity"):
        answer = served.client.get("/web/index.html", headers={"accept-encoding": refused})
        assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/web/../gate.py",
        "/web/%2e%2e/gate.py",
        "/web/..%2fgate.py",
        "/web/%2e%2e%2fgate.py",
        "/web/..%5cgate.py",
        "/web//etc/passwd",
        "/web/%2fetc%2fpasswd",
        "/web/index.html%00.js",
        "/web/",
        "/web/absent.js",
    ],
)
def test_no_path_leads_out_of_the_folder(served: Running, path: str) -> None:
    assert raw(served, path) == b"HTTP/1.1 404 Not Found"


def test_files_cannot_be_changed(served: Running) -> None:
    answer = served.client.post("/web/index.html")
    assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})


def test_the_page_is_public_where_its_api_needs_a_key(files: list[ModelFile]) -> None:
    with running(files[:1], Settings(port=0, keys=("secret",))) as served:
        none = {"authorization": ""}
        for path in ("/", "/web/index.html"):
            assert served.client.get(path, headers=BROWSER | none).status_code == 200
        assert served.client.get("/", headers=none).status_code == 401
        assert served.client.get("/web/absent.js", headers=BROWSER | none).status_code == 401
        assert served.client.post("/", headers=BROWSER | none, json={"inputs": "a"}).status_code == 401
        assert served.client.get("/v1/models", headers=BROWSER | none).status_code == 401


def test_a_foreign_page_cannot_read_the_files(served: Running) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        for path in ("/", "/web/index.html"):
            assert served.client.get(path, headers=BROWSER | headers).status_code == 403


def test_static_files_are_not_in_the_openapi_document(served: Running) -> None:
    assert not [path for path in served.client.get("/openapi.json").json()["paths"] if path.startswith("/web")]
