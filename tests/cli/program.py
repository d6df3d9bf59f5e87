"""The real program for tests: a process of its own for each call, with real streams, a folder and an environment.

Python and the imports would take most of the time of each of them, so a process that has them waits, and is forked for
every call. It has done nothing else; what is read from the environment is read in the child.
"""

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

TOOL = str(Path(sys.executable).with_name("dgpt2-quant"))

# Reads a line, a job; answers with the exit status. The child ends as any Python program ends.
FORKING = """
import gc, json, os, resource, sys
import dgpt2_quant.bench.bench, dgpt2_quant.bench.report.write_report, dgpt2_quant.quantize.convert
import dgpt2_quant.runtime, rich
import typer._adapters, typer.rich_utils
from dgpt2_quant.cli.main import main
from dgpt2_quant.runtime.native.bindings import bindings

bindings()
assert "huggingface_hub" not in sys.modules  # it keeps what it finds in the environment
gc.freeze()  # a child's end would go through all of it, and so copy it
for line in sys.stdin:
    job = json.loads(line)
    if pid := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    for number, name in enumerate(job["streams"]):
        os.dup2(os.open(name, os.O_RDWR | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    if job["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], resource.RLIM_INFINITY))
    sys.argv = job["call"]
    main()
    sys.exit()
"""


@functools.cache
def _forking() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(process.communicate)  # it ends with its jobs
    return process


def run_bytes(
    *arguments: str | Path,
    stdin: bytes = b"",
    folder: Path | None = None,
    largest_file: int | None = None,
    timeout: float = 120,
    **environment: str,
) -> subprocess.CompletedProcess[bytes]:
    """Calls the program; `environment` is added to ours, `largest_file` bounds the bytes of a file that it writes."""
    process = _forking()
    assert process.stdin
    assert process.stdout
    with tempfile.TemporaryDirectory() as scratch:
        streams = [Path(scratch, name) for name in ("stdin", "stdout", "stderr")]
        for path, content in zip(streams, (stdin, b"", b""), strict=True):
            path.write_bytes(content)
        job = {
            "call": [TOOL, *map(str, arguments)],
            "environment": {**os.environ, **environment},
            "folder": str(folder or Path.cwd()),
            "streams": [str(path) for path in streams],
            "largest_file": largest_file,
        }
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], timeout)[0]:
            os.killpg(process.pid, 9)
            _forking.cache_clear()
            raise subprocess.TimeoutExpired(job["call"], timeout)
        status = int(process.stdout.readline())
        return subprocess.CompletedProcess(job["call"], status, streams[1].read_bytes(), streams[2].read_bytes())


def run_text(
    *arguments: str | Path, folder: Path | None = None, largest_file: int | None = None
) -> subprocess.CompletedProcess[str]:
    """As `run_bytes`, with text output."""
    done = run_bytes(*arguments, folder=folder, largest_file=largest_file)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
