"""The files of the writing page, `serve/web/`: a fixed table in memory, with their HTTP headers."""

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response

PREFIX = "/web/"
_FOLDER = Path(__file__).with_name("web")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # the browser asks each time, and gets 304 for a file that has not changed
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class WebFile:
    """A file as it is sent: its type, its bytes, plain and compressed, and the hash that is its ETag."""

    content_type: str
    plain: bytes
    compressed: bytes
    hash: str


@cache
def web_files() -> dict[str, WebFile]:
    """The files by their names. Only names in this table are served, so no path can lead out of the folder."""
    found = {}
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _TYPES:
            plain = path.read_bytes()
            digest = hashlib.sha256(plain).hexdigest()[:32]
            found[path.name] = WebFile(_TYPES[path.suffix], plain, gzip.compress(plain, mtime=0), digest)
    return found


def is_page_request(method: str, path: str, headers: Headers) -> bool:
    """Whether a request asks for the page or one of its files, which everybody may read."""
    if method not in ("GET", "HEAD"):
        return False
    return wants_page(headers) if path == "/" else path.startswith(PREFIX) and path[len(PREFIX) :] in web_files()


def wants_page(headers: Headers) -> bool:
    """Whether the client is a browser that shows a page; other programs accept anything, or JSON."""
    return _accepts(headers.get("accept", ""), "text/html")


def file_response(name: str, headers: Headers) -> Response | None:
    """The file, or 304 if the client has it already; None if there is no such file."""
    if (file := web_files().get(name)) is None:
        return None
    packed = _accepts(headers.get("accept-encoding", ""), "gzip") and len(file.compressed) < len(file.plain)
    etag = f'"{file.hash}-gzip"' if packed else f'"{file.hash}"'
    about = {**_HEADERS, "ETag": etag, "Vary": "Accept, Accept-Encoding"}
    known = [one.strip().removeprefix("W/") for one in headers.get("if-none-match", "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers=about)
    if packed:
        about["Content-Encoding"] = "gzip"
    return Response(file.compressed if packed else file.plain, headers={**about, "Content-Type": file.content_type})


def _accepts(header: str, name: str) -> bool:
    """Whether a header such as `Accept` names a value, with a quality other than 0."""
    for part in header.lower().split(","):
        value, *parameters = (one.strip() for one in part.split(";"))
        if value == name:
            return not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", one) for one in parameters)
    return False
