"""Answers slices on a Ray cluster: the function of slices.py in actors of Ray Data, one model each.

A slice's answers do not depend on the process that gives them, so a cluster of equal builds writes the same bytes as
one machine, and Ray may run a slice again when a node or an actor has died. This module adds what Ray Data lacks:

- the order: slices carry numbers, and the results are asked for in order;
- failures: an exception in an actor would end the job, so a failure is a result, and so are the errors of lines;
- threads: Ray sets OMP_NUM_THREADS to 1 by default, so each actor gets the number of its cores;
- memory: a Dataset is created for a window of slices, never for the whole input.
"""

import json
import logging
import os
import pickle
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from dgpt2_quant.core.cores import usable_cores
from dgpt2_quant.core.errors import DgptQuantError, ModelNotFoundError, RuntimeFailure, UsageError
from dgpt2_quant.core.versions import tool_version
from dgpt2_quant.quantize.checkpoint.folder import file_sha256
from dgpt2_quant.quantize.checkpoint.resolve import is_gguf_name
from dgpt2_quant.quantize.store.converted_models import model_file
from dgpt2_quant.runtime import Model
from dgpt2_quant.runtime.native.build import native_build
from dgpt2_quant.runtime.threads import MOST_AUTO

from .lines import Line
from .record import WORDS, Part
from .slices import Answer, JobSettings, SliceRunner

_WINDOW = 32  # slices for each actor in a window: an actor loads its model once a window
_WINDOW_BYTES = 1 << 28
_CONNECT_SECONDS = 10


@dataclass(frozen=True)
class NodeJob:
    """What a node needs: the model (`path` on the first machine), its hash, and what it must have in common with it."""

    model: str
    type: str | None
    revision: str | None
    path: Path
    sha256: str
    settings: JobSettings
    ctx_size: int | None
    common: dict[str, str]  # by the names of the record


class SliceActor:
    """A model on a node. A failure is a result, which ends the job with a message."""

    def __init__(self, job: NodeJob, threads: int) -> None:
        self.failure = ""
        try:
            _require_common(job)
            model = Model.load(_found(job), ctx_size=job.ctx_size, threads=threads)
            self.runner = SliceRunner(model, job.settings)
        except (DgptQuantError, MemoryError, OSError) as error:
            self.failure = _failure(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answers: list[Answer] = []
        failure = self.failure
        if not failure:
            try:
                answers = self.runner(pickle.loads(row["lines"]))
            except (DgptQuantError, MemoryError, OSError) as error:
                failure = _failure(error)
        return {"slice": int(row["slice"]), "answers": json.dumps(answers), "failure": failure}


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connects to the running cluster at `address`; None starts one on this machine.

    A program that has initialized Ray keeps its connection. Raises `DgptQuantError`.
    """
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise DgptQuantError("`engine` ray needs Ray Data", "Install the extra: `pip install 'dgpt2-quant[ray]'`.")
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    here = {"num_cpus": usable_cores(), "include_dashboard": False} if address is None else {}
    try:
        host, _, port = (address or "").rpartition(":")
        if host and port.isdecimal():  # Ray itself would look for minutes
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        ray.init(address=address or "local", **here, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = address or "this machine"
        raise RuntimeFailure(
            f"no Ray cluster at {where}: {error}", "Start it with `ray start --head`, or check the address."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def answered_on_ray(
    slices: Iterator[tuple[Part, list[Line]]], job: NodeJob, threads: int | str
) -> Generator[tuple[Part, list[Answer]], None, None]:
    """(the input up to the end of the slice, answers) of each slice, in order, on the `cluster`.

    Raises `DgptQuantError`.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    while first := next(slices, None):
        cores, actors = _sizes(ray, threads)
        window = _window(chain([first], slices), _WINDOW * actors)
        rows = [{"slice": number, "lines": pickle.dumps(lines)} for number, (_, lines) in enumerate(window)]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            SliceActor,
            fn_constructor_args=(job, cores),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, max_tasks_in_flight_per_actor=2),
            num_cpus=cores,
        )
        try:
            for number, row in enumerate(dataset.iter_rows()):
                if row["failure"]:
                    raise RuntimeFailure(row["failure"], "Repair the node, and run the same command again.")
                if row["slice"] != number:
                    raise RuntimeFailure(f"Ray returned slice {row['slice']} of a window instead of {number}")
                yield window[number][0], [Answer(*answer) for answer in json.loads(row["answers"])]
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RuntimeFailure(f"Ray ended the job: {reason}", "Run the same command again.") from error


def _sizes(ray: Any, threads: int | str) -> tuple[int, int]:
    """(cores of an actor, actors) for the nodes that are alive now."""
    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    nodes = [cores for cores in found if cores]
    each = threads if isinstance(threads, int) else min([MOST_AUTO, *nodes])
    if not (actors := sum(cores // each for cores in nodes)):
        raise UsageError(f"`threads` {each} is more than the cores of any node", "Omit `threads`.")
    return each, actors


def _window(slices: Iterator[tuple[Part, list[Line]]], most: int) -> list[tuple[Part, list[Line]]]:
    """The next slices, as many as fit into memory."""
    found: list[tuple[Part, list[Line]]] = []
    size = 0
    for part, lines in slices:
        found.append((part, lines))
        size += sum(len(line.data) for line in lines)
        if len(found) == most or size > _WINDOW_BYTES:
            break
    return found


def _require_common(job: NodeJob) -> None:
    """Raises `UsageError` if this node would give other bytes."""
    build = native_build()
    own = {"version": tool_version(), "llama_cpp": build.llama_cpp, "instructions": build.instructions}
    for name, expected in job.common.items():
        if own[name] != expected:
            raise UsageError(
                f"another {WORDS[name]} than the first machine's: {own[name]}, not {expected}; equal nodes are needed"
                " for equal bytes, unless `allow_mixed` is set"
            )


def _found(job: NodeJob) -> Path:
    """The model's file on this node: at the same path, or converted from the Hub. Raises `ModelNotFoundError`."""
    if job.path.is_file() and file_sha256(job.path) == job.sha256:
        return job.path
    if not is_gguf_name(job.model):
        _, path = model_file(job.model, type=job.type, revision=job.revision)
        if file_sha256(path) == job.sha256:
            return path
    raise ModelNotFoundError(
        f"{job.path} with the SHA-256 {job.sha256} is not on this node: copy it there, to the same path"
    )


def _failure(error: BaseException) -> str:
    return f"the node {socket.gethostname()} failed: {getattr(error, 'message', None) or error!r}"
