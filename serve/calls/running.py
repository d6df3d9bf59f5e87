"""The texts that one HTTP request generates: submitted together or not at all, and cancelled together."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from dgpt2_quant.core.errors import DgptQuantError, RuntimeFailure
from dgpt2_quant.runtime import Completion, Event, RequestHandle
from pydantic import BaseModel

from .call import Call
from .errors import HTTPError, of_library, overloaded, refused, timed_out, unavailable
from .models import ServedModel


class Running:
    """Use it in `with`: leaving the block cancels what has not ended, within one step of the scheduler."""

    def __init__(
        self,
        call: Call,
        served: ServedModel,
        texts: Sequence[tuple[Sequence[int], Mapping[str, Any]]],
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Submits (token ids, options of `Scheduler.submit`) for each text. `names` maps options to request fields.

        Raises `HTTPError`: 429 when the queue has no room for all of them, 400 for a wrong option.
        """
        self.call, self.served, self.names = call, served, names
        scheduler = served.scheduler
        if len(texts) > served.room:
            raise overloaded()
        self.generated = [0] * len(texts)  # tokens of each text so far
        self.handles: list[RequestHandle] = []
        try:
            for tokens, options in texts:
                self.handles.append(scheduler.submit(list(tokens), **options))
        except DgptQuantError as error:
            self.cancel()
            if type(error) is RuntimeFailure:  # the scheduler is closed
                raise unavailable("the server is shutting down") from error
            raise of_library(error, names) from error
        call.began(served, self.handles)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self.call.ended(self.served, self.handles, sum(self.generated))

    def cancel(self) -> None:
        for handle in self.handles:
            handle.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(number of the text, event) as they come. Raises `HTTPError` after the time limit, or for a failure."""
        arrived: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue()

        async def follow(number: int, handle: RequestHandle) -> None:
            try:
                async for event in handle:
                    arrived.put_nowait((number, event))
                arrived.put_nowait((number, None))
            except Exception as error:
                arrived.put_nowait((number, error))

        tasks = [asyncio.create_task(follow(number, handle)) for number, handle in enumerate(self.handles)]
        late = timed_out(self.call.limits.request_seconds)
        # not `asyncio.timeout`: the reader of this generator may be another task each time
        timer = asyncio.get_running_loop().call_at(self.call.deadline, arrived.put_nowait, (0, late))
        left = len(tasks)
        try:
            while left:
                number, event = await arrived.get()
                if event is None:
                    left -= 1
                elif isinstance(event, HTTPError):
                    raise event
                elif isinstance(event, Exception):
                    raise of_library(event, self.names) from event
                else:
                    if event.completion and event.completion.finish_reason == "cancelled":
                        raise unavailable("the server is shutting down")
                    self.generated[number] += len(event.token_ids)
                    self.call.saw(self.served, number, event)
                    yield number, event
        finally:
            timer.cancel()
            for task in tasks:
                task.cancel()

    async def results(self) -> list[Completion]:
        """The completions, in order."""
        found: dict[int, Completion] = {}
        async for number, event in self.events():
            if event.completion:
                found[number] = event.completion
        return [found[number] for number in range(len(self.handles))]


def tokens_to_generate(call: Call, body: BaseModel, name: str, default: int | None = None) -> int | None:
    """The field `name` of a request, or the default, within the server's limit; None or -1: as many as fit.

    Raises `HTTPError` for a larger number that was asked for.
    """
    most = call.limits.tokens
    wanted: int | None = getattr(body, name)
    if name not in body.model_fields_set or wanted is None:
        wanted = default
        if most is not None and wanted is not None:
            return min(wanted, most) if wanted >= 0 else most
    if most is None:
        return wanted
    if wanted is not None and wanted > most:
        raise refused(f"`{name}` must be at most {most} on this server, not {wanted}", name)
    return wanted if wanted is not None and wanted >= 0 else most


def require_count(call: Call, served: ServedModel, count: int, name: str) -> None:
    """Raises `HTTPError` for more texts than a request may generate; `name` is the field that multiplies them."""
    most = min(call.limits.sequences, served.scheduler.parallel + served.scheduler.queue)
    if count > most:
        raise refused(f"a request may generate at most {most} texts on this server, not {count}", name)


def with_seed(options: Mapping[str, Any], seed: int | None, number: int) -> Mapping[str, Any]:
    """The options of text `number`: the texts of a request have the seeds from `seed` on. None and -1: random ones."""
    return {**options, "seed": None if seed in (None, -1) else seed + number}
