"""`/v1/measurements`: what is known about the served files, and a measurement of all of them now, for the writing page.

Quality is `bench`'s on the bundled evaluation text, against the file with the most bits per weight; files of another
model are only timed. The files are timed in turns. Texts of other clients go on, and slow the timings down.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from dgpt2_quant.bench.quality.compare_files import compare_files
from dgpt2_quant.bench.quality.divergence import divergence, resampled
from dgpt2_quant.bench.speed.grid import Grid
from dgpt2_quant.bench.speed.rounds import measure_speed
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import DgptQuantError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.progress import Progress, Stages
from dgpt2_quant.core.text import load_text
from dgpt2_quant.serve.calls.call import Call
from dgpt2_quant.serve.calls.errors import HTTPError, of_library, overloaded, timed_out, unavailable
from dgpt2_quant.serve.calls.event_stream import EventStream
from dgpt2_quant.serve.calls.figures import UNKNOWN, Figures
from dgpt2_quant.serve.calls.json_body import Body
from dgpt2_quant.serve.calls.models import Models, ServedModel
from pydantic import Field
from starlette.requests import Request

_PATIENCE = 10.0  # seconds for disturbed timings


class MeasureBody(Body):
    """How thorough a measurement is."""

    rounds: int = Field(3, ge=1, le=10, description="Rounds in which each file is timed once.")


async def known(call: Call, request: Request) -> dict[str, Any]:
    """Size, quality and speed of each served file, as far as they were measured."""
    call.models.find(None)
    return _listed(call.models)


async def measure(call: Call, body: MeasureBody) -> EventStream:
    """Measures all served files: a stream of `done`, `of` and `what`, then the same list as GET. Raises `HTTPError`."""
    call.models.find(None)
    if not (call.settings.is_loopback or call.settings.keys):
        raise HTTPError(403, "on this address, measuring needs an API key", "permission_error", code="forbidden")
    _require_idle(call.models)
    return EventStream(_stream(call, body.rounds), write_seconds=call.limits.write_seconds)


def _require_idle(models: Models) -> None:
    if models.measuring:
        raise overloaded("a measurement is running")


async def _stream(call: Call, rounds: int) -> AsyncGenerator[dict[str, Any], None]:
    models, loop = call.models, asyncio.get_running_loop()
    _require_idle(models)  # again: another one may have begun before this stream
    models.measuring = True
    arrived: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    leaves = threading.Event()

    def report(done: int, total: int, what: str) -> None:
        if leaves.is_set() or models.ending:
            raise _Stopped
        loop.call_soon_threadsafe(arrived.put_nowait, {"done": done, "of": total, "what": what})

    def end(working: asyncio.Future[Any]) -> None:
        models.measuring = False
        arrived.put_nowait(None)
        working.exception()  # nobody may read it

    working = loop.run_in_executor(None, _measure, models, rounds, report)
    working.add_done_callback(end)
    try:
        while True:
            async with asyncio.timeout_at(call.deadline):
                event = await arrived.get()
            if event is None:
                break
            yield event
        models.figures |= working.result()
        yield _listed(models)
    except TimeoutError:
        raise timed_out(call.limits.request_seconds) from None
    except _Stopped:
        raise unavailable("the server is shutting down") from None
    except DgptQuantError as error:
        raise of_library(error) from error
    finally:
        leaves.set()


class _Stopped(Exception):
    """The client has left, or the server ends."""


def _measure(models: Models, rounds: int, report: Progress) -> dict[str, Figures]:
    """Quality and speed of all files."""
    loaded = list(models.loaded.values())
    base = max(loaded, key=lambda served: served.bits_per_weight)
    text = load_text("evaluation")
    is_of_base = _same_model(base, text.text)
    others = [served for served in loaded if served is not base and is_of_base(served)]
    by_path = {served.file.path: served.model for served in loaded}
    stages = Stages(report, 2.0 if others else 1.0)
    fixed = threads_or_all(None if models.threads == "auto" else models.threads)
    try:
        for model in by_path.values():
            model.threads = fixed  # "auto" would change it between two timings
        quality = None
        if others:
            quality = compare_files(
                base.file.path,
                [served.file.path for served in others],
                text.text,
                reference_cache=0,
                models=by_path,
                progress=stages.begin(1.0),
            )
        speeds = measure_speed(
            base.file.path,
            list(by_path),
            rounds=rounds,
            grid=Grid.none(),
            patience=_PATIENCE,
            models=by_path,
            progress=stages.begin(1.0),
        )
    finally:
        for model in by_path.values():
            model.threads = models.threads
    now = int(time.time())
    found = {
        served.id: UNKNOWN
        | {
            "prompt_tps": speed.prompt_tps,
            "decode_tps": speed.decode_tps,
            "source": "measured here",
            "measured_at": now,
        }
        for served, speed in zip(loaded, speeds.files, strict=True)
    }
    if quality is None:
        return found
    draws = resampled(quality)
    for number, served in enumerate(others):
        one = divergence(quality, number, draws)
        found[served.id] |= {
            "reference": base.id,
            "text": text.name,
            "tokens_scored": one.perplexity.tokens,
            "kld": one.kld_interval,
            "same_top": one.top1_agreement,
            "ppl_ratio": one.ppl_ratio_interval,
        }
    return found


def _same_model(base: ServedModel, text: str) -> Callable[[ServedModel], bool]:
    """Whether a file can be compared with that one: the same shape and the same tokens."""

    def about(served: ServedModel) -> tuple[object, ...]:
        header = read_header(served.file.path, arrays=False)
        layers, model = header.metadata["gpt2.block_count"], served.model
        return layers, model.width, model.real_vocabulary, model.tokenize(text)

    wanted = about(base)
    return lambda served: about(served) == wanted


def _listed(models: Models) -> dict[str, Any]:
    return {
        "object": "list",
        "measuring": models.measuring,
        "data": [
            {
                "id": served.id,
                "quant_type": served.file.quant_type,
                "bytes": served.bytes,
                "bits_per_weight": round(served.bits_per_weight, 3),
                **models.figures.get(served.id, UNKNOWN),
            }
            for served in models.loaded.values()
        ],
    }
