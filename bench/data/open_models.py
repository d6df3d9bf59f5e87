"""Models of several GGUF files, each loaded once."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dgpt2_quant.bench.document.environment import ram_bytes
from dgpt2_quant.runtime.model import Model


@contextmanager
def open_models(files: Iterable[Path], threads: int) -> Iterator[Mapping[Path, Model]]:
    """The models of the files by path, all open at once.

    Where they would take more than half of the machine's memory, the files are mapped instead of read, and each use may
    read from the disk.
    """
    paths = dict.fromkeys(files)
    huge_pages = 2 * sum(path.stat().st_size for path in paths if path.is_file()) <= (ram_bytes() or 0)
    with ExitStack() as stack:
        yield {path: stack.enter_context(Model.load(path, threads=threads, huge_pages=huge_pages)) for path in paths}


@contextmanager
def using_threads(model: Model, threads: int) -> Iterator[None]:
    """Another number of threads inside the block."""
    before = model.threads
    model.threads = threads
    try:
        yield
    finally:
        model.threads = before
