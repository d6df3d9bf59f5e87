"""One event shape: streams, batches and schedulers give the same text, tokens and completion."""

import asyncio
import copy
import pickle
from typing import Any

import pytest
from dgpt2_quant.runtime import Event, Model, Scheduler

PROMPT = "Once upon a time"
OPTIONS: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "lookup": 0, "logprobs": 1, "stop": [" beautiful that"]}


def async_events(model: Model) -> list[Event]:
    async def read() -> list[Event]:
        async with Scheduler(model, parallel=1) as scheduler:
            handle = scheduler.submit(PROMPT, **OPTIONS)
            events = [event async for event in handle]
            assert await handle == events[-1].completion
            await scheduler.aclose()  # closing twice is fine
            return events

    return asyncio.run(read())


@pytest.mark.parametrize(
    "events_of",
    [
        lambda model: list(model.stream(PROMPT, **OPTIONS)),
        lambda model: list(model.batch([PROMPT], **OPTIONS)),
        lambda model: list(Scheduler(model, parallel=1).submit(PROMPT, **OPTIONS)),
        async_events,
    ],
    ids=["stream", "batch", "scheduler", "async"],
)
def test_every_way_gives_the_same_events(storybook: Model, events_of: Any) -> None:
    ((completion,),) = storybook.generate(PROMPT, **OPTIONS)
    events = events_of(storybook)
    assert all(type(event) is Event for event in events)
    assert "".join(events) == "".join(event.text for event in events) == completion.text
    assert [token for event in events for token in event.token_ids] == list(completion.token_ids)
    assert [entry for event in events for entry in event.logprobs] == list(completion.logprobs or ())
    assert [event.completion for event in events] == [None] * (len(events) - 1) + [completion]
    assert {event.number for event in events} == {0}


def test_the_last_event_may_have_no_text(storybook: Model) -> None:
    (event,) = storybook.stream(PROMPT, max_tokens=0)
    assert event == ""
    assert event.completion
    assert event.completion.finish_reason == "length"


def test_an_event_is_a_str(capsys: pytest.CaptureFixture[str]) -> None:
    event = Event(" upon", 2, (639,))
    print("Once", event, sep="", end="")
    assert capsys.readouterr().out == f"Once{event}" == "Once upon"
    assert (event, event.strip(), hash(event)) == (" upon", "upon", hash(" upon"))
    for other in (copy.copy(event), pickle.loads(pickle.dumps(event))):
        assert (other, other.text, other.number, other.token_ids) == (event, " upon", 2, (639,))
