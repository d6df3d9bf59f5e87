"""Makes the release of DistilGPT2, verifies it, and writes its measurements into the documents: `make distilgpt2`.

usage: release_distilgpt2.py FOLDER [--rehearse] [--threads N]

Downloads `distilbert/distilgpt2` at a pinned revision, and WikiText-2. Copies the release's bench.json to
`docs/bench/distilgpt2.json`, from which `make docs` writes the README's table. With --rehearse a server on this machine
replaces the Hub: it has a random model of DistilGPT2's shape with an invented vocabulary, and a ZIP archive like that
of WikiText-2. The documents are then not changed.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

MODEL, REVISION = "distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa"
DATASET, ARCHIVE, MEMBER = "datasets/ggml-org/ci", "wikitext-2-raw-v1.zip", "wikitext-2-raw/wiki.test.raw"
CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n\n# Random\n\n## Limitations and bias\n\nIt knows nothing.\n"
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "bench" / "distilgpt2.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        if arguments.rehearse:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler_of(files_of_hub(temporary))))
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            # before huggingface_hub is imported, which reads them once
            os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(temporary / "home")}
            os.environ |= {"HF_HUB_DISABLE_XET": "1", "DGPT2_QUANT_CACHE": str(temporary / "cache")}
        make(arguments.folder, arguments.threads, rehearses=arguments.rehearse)


def make(folder: Path, threads: int | None, *, rehearses: bool) -> None:
    from dgpt2_quant.bench.data.datasets import DATASETS
    from dgpt2_quant.cli.progress import progress_bar
    from dgpt2_quant.publish.release import release
    from dgpt2_quant.publish.verify import verify

    if rehearses:  # the rehearsal's text has another hash
        DATASETS["wikitext2"] = replace(DATASETS["wikitext2"], sha256=None)
    started = time.perf_counter()
    with progress_bar() as progress:
        release(
            MODEL, output=folder, revision=REVISION, text="wikitext2", threads=threads, progress=progress, announce=note
        )
        note(f"The release took {time.perf_counter() - started:.0f} s.")
        started = time.perf_counter()
        checks = verify(folder, threads=threads, progress=progress)
    wrong = [f"{check.name}: {check.problem}" for check in checks if check.problem]
    note(f"{len(checks)} checks in {time.perf_counter() - started:.0f} s, {len(wrong)} failed.")
    if wrong:
        raise SystemExit("\n".join(wrong))
    if not rehearses:
        shutil.copyfile(folder / "bench.json", DOCUMENT)


def note(text: str) -> None:
    print(text, file=sys.stderr)


def files_of_hub(folder: Path) -> dict[str, bytes]:
    """The content of the server by repository and file name."""
    from dgpt2_quant.core.text import load_text
    from random_distilgpt2 import weights, write_small_files, write_weights

    model, archive = folder / "model", io.BytesIO()
    write_small_files(model, 6, 768, 12)
    write_weights(model, weights(6, 768, buffers=True), 1)
    (model / "README.md").write_text(CARD, "utf-8")
    paragraphs = load_text("evaluation").text.split("\n\n")
    lines = [" = A tale = \n", *(f" {paragraph.strip()} \n" for paragraph in paragraphs)]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(MEMBER, " \n".join(lines))
    found = {f"{MODEL}/{path.name}": path.read_bytes() for path in model.iterdir()}
    return found | {f"{DATASET}/{ARCHIVE}": archive.getvalue()}


def handler_of(files: dict[str, bytes]) -> type[BaseHTTPRequestHandler]:
    """The routes of the Hub for downloads: a model's list of files, and files by repository and revision."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            repository, _, rest = path.partition("/resolve/")
            name = rest.partition("/")[2]
            if path.startswith(f"api/models/{MODEL}"):
                names = [key.removeprefix(f"{MODEL}/") for key in files if key.startswith(MODEL)]
                siblings = [{"rfilename": name} for name in names]
                tree = [{"type": "file", "path": n, "size": len(files[f"{MODEL}/{n}"]), "oid": "0" * 40} for n in names]
                document = tree if "/tree/" in path else {"id": MODEL, "sha": REVISION, "siblings": siblings}
                self.answer(200, json.dumps(document).encode())
            elif (content := files.get(f"{repository}/{name}")) is not None:
                self.answer(200, content)
            else:
                self.answer(404, b"")

        do_HEAD = do_GET

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    return Handler


if __name__ == "__main__":
    main()
