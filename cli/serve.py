"""`dgpt2-quant serve`: an HTTP server for one or several quant types."""

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import OfflineOption, RevisionOption, ThreadsOrAutoOption, TypesOption, thread_count
from .output import note
from .progress import progress_bar

if TYPE_CHECKING:
    from dgpt2_quant.serve.calls.models import ModelFile

_DEFAULT = "distilbert/distilgpt2"


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="storybook (bundled), a Hub name, a checkpoint folder, or a .gguf file; repeat for several."
            f" Default: {_DEFAULT}.",
        ),
    ] = None,
    type: TypesOption = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8080,
    parallel: Annotated[int, typer.Option(min=1, help="Texts of a model that decode together.")] = 8,
    queue: Annotated[int, typer.Option(min=0, help="Texts of a model that may wait; more are refused (429).")] = 64,
    ctx_size: Annotated[int | None, typer.Option(min=1, help="Context size in tokens. Default: the model's.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Limit of the tokens to generate in a text. Default: the context.")
    ] = None,
    max_body: Annotated[int, typer.Option(min=1024, metavar="BYTES", help="Limit of a request's body.")] = 1 << 20,
    request_timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Limit of the time for an answer.")
    ] = 600.0,
    max_connections: Annotated[int, typer.Option(min=1, metavar="N", help="Limit of open connections.")] = 512,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Require an API key: any line of this file.")
    ] = None,
    allow_no_key: Annotated[
        bool, typer.Option("--allow-no-key", help="Serve without API keys on an address that is not loopback.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also accept this `Host` name, such as a reverse proxy's; repeatable."),
    ] = None,
    allow_grammar: Annotated[
        bool, typer.Option("--allow-grammar", help="Accept `grammar`; one such request can slow down all others.")
    ] = False,
    bench: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Show a bench.json's figures on the page, for the files that it measured."),
    ] = None,
    threads: ThreadsOrAutoOption = "auto",
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the writing page in the browser when the models are loaded.")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Write the access log as lines of JSON.")] = False,
) -> None:
    """Serve models over HTTP: OpenAI's API, llama.cpp's, and Azure ML's /score.

    A browser shows a page for writing at the same address. A checkpoint is converted first; the files are kept in the
    cache. Stop the server with Ctrl-C.

    Example: dgpt2-quant serve -m storybook -t q8_0 -t q4_0
    """
    from dgpt2_quant.bench.document.read import read_document
    from dgpt2_quant.core.errors import UsageError
    from dgpt2_quant.serve.calls.settings import Limits, Settings
    from dgpt2_quant.serve.extra import require_extra

    require_extra()
    from dgpt2_quant.serve.access_log import AccessLog
    from dgpt2_quant.serve.calls.figures import figures_of
    from dgpt2_quant.serve.calls.models import Models
    from dgpt2_quant.serve.keys import read_keys
    from dgpt2_quant.serve.server import Server, bind

    count = thread_count(threads)
    limits = Limits(body=max_body, tokens=max_tokens, request_seconds=request_timeout, connections=max_connections)
    settings = Settings(
        host=host,
        port=port,
        keys=read_keys(api_key_file) if api_key_file else (),
        hosts=tuple(allowed_host or ()),
        allow_grammar=allow_grammar,
        limits=limits,
    )
    if not (settings.is_loopback or settings.keys or allow_no_key):
        raise UsageError(
            f"--host {host} can be reached from other machines: it needs --api-key-file FILE",
            "Or allow requests without a key: --allow-no-key.",
        )
    document = read_document(bench) if bench else None
    with bind(settings) as listener:
        files = _files(model or [_DEFAULT], type, revision, offline)
        models = Models(files, parallel=parallel, queue=queue, ctx_size=ctx_size, threads=count)
        if document:
            models.figures = figures_of(document, files)
            if not models.figures:
                note(f"{bench} has figures of none of the files that are served.")
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}"

        def ready() -> None:
            note(f"Serving {', '.join(models.loaded)} on {address}; Ctrl-C stops it.")
            for served in models.loaded.values():
                if ctx_size and ctx_size > served.scheduler.positions:
                    note(
                        f"--ctx-size {ctx_size} is more than the {served.scheduler.positions} positions of {served.id}."
                    )
            if open_page:
                page = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
                # in a thread: a browser that starts asks the server before the call returns
                threading.Thread(target=_open_browser, args=[page], daemon=True).start()

        Server(models, settings, access_log=AccessLog(as_json=log_json), on_ready=ready).serve_on(listener)


def _open_browser(address: str) -> None:
    """Opens a page. Without a desktop only `BROWSER` is used: a text browser would take over the terminal."""
    import webbrowser

    if sys.platform == "linux" and not any(map(os.environ.get, ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))):
        opened = False
    else:
        opened = webbrowser.open(address)
    if not opened:
        note(f"No browser was found. Open {address} in one.")


def _files(names: list[str], types: list[str] | None, revision: str | None, offline: bool) -> "list[ModelFile]":
    """The GGUF files to serve; checkpoints are converted to each of the types."""
    from dgpt2_quant.core.errors import UsageError
    from dgpt2_quant.core.quant_types import DEFAULT_TYPE
    from dgpt2_quant.quantize.checkpoint.resolve import is_gguf_name
    from dgpt2_quant.quantize.store.converted_models import model_files
    from dgpt2_quant.serve.calls.models import ModelFile, file_to_serve

    if (types or revision) and all(map(is_gguf_name, names)):
        raise UsageError("--type and --revision have no effect on a .gguf file", "Omit them, or name a checkpoint.")
    found: list[ModelFile] = []
    for name in names:
        if is_gguf_name(name):
            found.append(file_to_serve(Path(name)))
            continue
        with progress_bar() as progress:
            stored = model_files(
                name,
                types=types or [DEFAULT_TYPE],
                revision=revision,
                offline=offline,
                progress=progress,
                announce=note,
            )
        found += [ModelFile(stored.name, kind.name, path, (name,)) for kind, path in stored.files.items()]
    return found
