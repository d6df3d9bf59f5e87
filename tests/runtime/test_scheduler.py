"""Continuous batching: requests come, stream, are cancelled and finish independently, from threads and from asyncio."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dgpt2_quant.core.errors import OverloadedError, RuntimeFailure, UsageError
from dgpt2_quant.runtime import Model, Scheduler
from dgpt2_quant.runtime.slot import CHUNK

from ..waiting import wait_for
from .conftest import FAILING, PROMPTS


@pytest.fixture(scope="module")
def alone(model: Model) -> dict[str, str]:
    """Each prompt's greedy text, written by itself. F32's logits are not so even that a batch would change it."""
    return {prompt: model.generate(prompt, max_tokens=20, temperature=0)[0][0].text for prompt in PROMPTS}


def test_more_requests_than_slots(scheduler: Scheduler, alone: dict[str, str]) -> None:
    handles = [scheduler.submit(prompt, max_tokens=20, temperature=0) for prompt in PROMPTS]
    assert [handle.result(30).text for handle in handles] == list(alone.values())
    wait_for(lambda: scheduler.stats.finished == 6)
    stats = scheduler.stats
    assert (stats.waiting, stats.active, stats.cancelled, stats.failed) == (0, 0, 0, 0)
    assert stats.totals.decode_tokens == 6 * 19  # the first ones come from the prompts
    assert stats.totals.steps < 6 * 19, "they decode together"


def test_events_make_up_the_completion(scheduler: Scheduler, alone: dict[str, str]) -> None:
    events = list(scheduler.submit(PROMPTS[0], max_tokens=20, temperature=0, logprobs=2))
    assert len(events) > 10
    *pieces, last = events
    assert last.completion
    assert "".join(event.text for event in events) == last.completion.text == alone[PROMPTS[0]]
    assert sum((event.token_ids for event in events), ()) == last.completion.token_ids
    assert sum((event.logprobs for event in events), ()) == last.completion.logprobs
    assert all(event.completion is None for event in pieces)


def test_result_can_be_called_again(scheduler: Scheduler) -> None:
    read, unread = (scheduler.submit(PROMPTS[0], max_tokens=3, temperature=0) for _ in range(2))
    *_, last = read
    assert last.completion
    assert [read.result(30), read.result(30), unread.result(30), unread.result(30)] == [last.completion] * 4
    assert list(unread) == []


def test_a_request_comes_in_between(scheduler: Scheduler, alone: dict[str, str]) -> None:
    long = scheduler.submit("The king", max_tokens=400, ignore_eos=True, seed=1)
    next(long)
    assert scheduler.submit(PROMPTS[0], max_tokens=20, temperature=0).result(30).text == alone[PROMPTS[0]]
    assert scheduler.stats.active == 1, "the short one did not wait for the long one"
    long.cancel()


def test_requests_end_at_different_times(scheduler: Scheduler, alone: dict[str, str]) -> None:
    """Slots are filled anew and sequences moved, and each text stays what it is."""
    handles = [
        (prompt, length, scheduler.submit(prompt, max_tokens=length, temperature=0))
        for length in (3, 20, 1, 7, 12)
        for prompt in PROMPTS
    ]
    for prompt, length, handle in handles:
        completion = handle.result(30)
        assert completion.tokens == length
        assert alone[prompt].startswith(completion.text)


def test_a_shared_prompt_is_computed_once(scheduler: Scheduler) -> None:
    before = scheduler.stats.totals.prompt_tokens
    handles = [scheduler.submit([7] * 100, max_tokens=3, seed=seed) for seed in range(3)]
    for handle in handles:
        handle.result(30)
    assert scheduler.stats.totals.prompt_tokens - before == 100
    assert sorted(handle.timing.prompt_computed for handle in handles) == [0, 0, 100]


def test_one_at_a_time_gives_the_text_of_stream(model: Model) -> None:
    with Scheduler(model, parallel=1) as scheduler:
        handles = [scheduler.submit(prompt, max_tokens=30, seed=4) for prompt in PROMPTS]
        texts = [handle.result(30).text for handle in handles]
    assert texts == ["".join(model.stream(prompt, max_tokens=30, seed=4)) for prompt in PROMPTS]


class TestCancel:
    def test_while_it_runs(self, scheduler: Scheduler) -> None:
        handle = scheduler.submit("The king", max_tokens=500, ignore_eos=True)
        begun = next(handle).text
        handle.cancel()
        completion = handle.result(10)
        assert completion.finish_reason == "cancelled"
        assert completion.text.startswith(begun)
        assert completion.tokens < 400
        handle.cancel()  # again is fine
        assert list(handle) == []

    def test_while_it_waits(self, scheduler: Scheduler) -> None:
        running = [scheduler.submit("The king", max_tokens=500, ignore_eos=True) for _ in range(3)]
        waiting = scheduler.submit("The wolf", max_tokens=500)
        waiting.cancel()
        completion = waiting.result(10)
        assert (completion.finish_reason, completion.tokens) == ("cancelled", 0)
        for handle in running:
            handle.cancel()

    def test_a_handle_that_is_gone_cancels_its_request(self, scheduler: Scheduler) -> None:
        handle = scheduler.submit("The king", max_tokens=500, ignore_eos=True)
        next(handle)
        del handle
        gc.collect()
        wait_for(lambda: scheduler.stats.cancelled == 1)
        assert scheduler.stats.active == 0


class TestQueue:
    def test_a_full_queue_refuses_requests(self, model: Model) -> None:
        with Scheduler(model, parallel=1, queue=2) as scheduler:
            handles = [scheduler.submit("The king", max_tokens=300, ignore_eos=True) for _ in range(3)]
            with pytest.raises(OverloadedError, match="the scheduler is full: 1 requests at a time, and 2"):
                scheduler.submit("The wolf")
            for handle in handles:
                handle.cancel()
            assert [handle.result(10).finish_reason for handle in handles] == ["cancelled"] * 3
            assert scheduler.submit("The wolf", max_tokens=2).result(10).tokens == 2

    def test_first_come_first_served(self, model: Model) -> None:
        with Scheduler(model, parallel=1, queue=9) as scheduler:
            ended: list[int] = []
            handles = [scheduler.submit("The king", max_tokens=40, ignore_eos=True) for _ in range(6)]
            readers = [
                threading.Thread(target=lambda n=n, t=t: (t.result(), ended.append(n))) for n, t in enumerate(handles)
            ]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join(30)
            assert sorted(ended) == [0, 1, 2, 3, 4, 5]
            waited = [handle.timing.waited_seconds for handle in handles]
            assert waited == sorted(waited)

    def test_a_long_prompt_does_not_stall_other_requests(self, model: Model) -> None:
        """It is computed in chunks, and the others get a token after each."""
        with Scheduler(model, parallel=2) as scheduler:
            running = scheduler.submit("The king", max_tokens=450, ignore_eos=True, seed=1)
            next(running)
            steps = scheduler.stats.totals.steps
            late = scheduler.submit([5] * 500, max_tokens=2)
            next(late)
            assert scheduler.stats.totals.steps - steps >= 500 // CHUNK
            running.cancel()

    @pytest.mark.parametrize("wrong", [{"parallel": 0}, {"parallel": 257}, {"queue": -1}, {"ctx_size": 0}])
    def test_bounds(self, model: Model, wrong: dict[str, int]) -> None:
        with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
            Scheduler(model, **wrong)

    def test_wrong_requests_are_refused_at_once(self, scheduler: Scheduler) -> None:
        for call, message in [
            (lambda: scheduler.submit("x " * 600), "at most 512 tokens"),
            (lambda: scheduler.submit("x", top_p=2.0), "top_p"),
            (lambda: scheduler.submit("x", grammar="root ::= nothing"), "grammar"),
        ]:
            with pytest.raises(UsageError, match=message):
                call()
        assert scheduler.submit("x", max_tokens=1).result(10).tokens == 1

    def test_a_request_for_no_tokens(self, scheduler: Scheduler) -> None:
        (event,) = scheduler.submit("x", max_tokens=0)
        assert event.completion
        assert event.completion.finish_reason == "length"


class TestThreadsAndTasks:
    def test_many_threads(self, scheduler: Scheduler, alone: dict[str, str]) -> None:
        found: dict[int, str] = {}

        def ask(number: int) -> None:
            prompt = PROMPTS[number % len(PROMPTS)]
            found[number] = scheduler.submit(prompt, max_tokens=20, temperature=0).result(60).text

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == {number: alone[PROMPTS[number % len(PROMPTS)]] for number in range(24)}

    def test_asyncio(self, scheduler: Scheduler, alone: dict[str, str]) -> None:
        async def ask(prompt: str) -> str:
            handle = scheduler.submit(prompt, max_tokens=20, temperature=0)
            return "".join([event.text async for event in handle])

        async def main() -> list[str]:
            return await asyncio.gather(*map(ask, PROMPTS))

        assert asyncio.run(main()) == list(alone.values())

    def test_a_task_that_is_cancelled(self, scheduler: Scheduler) -> None:
        async def main() -> None:
            handle = scheduler.submit("The king", max_tokens=500, ignore_eos=True)

            async def read() -> None:
                async for _ in handle:
                    pass

            task = asyncio.create_task(read())
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            handle.cancel()
            assert (await asyncio.to_thread(handle.result, 10)).finish_reason == "cancelled"

        asyncio.run(main())


class TestEnd:
    def test_close_ends_what_runs(self, model: Model) -> None:
        scheduler = Scheduler(model, parallel=1)
        handles = [scheduler.submit("The king", max_tokens=500, ignore_eos=True) for _ in range(2)]
        next(handles[0])
        scheduler.close()
        assert [handle.result(1).finish_reason for handle in handles] == ["cancelled"] * 2
        with pytest.raises(RuntimeFailure, match="closed"):
            scheduler.submit("x")
        scheduler.close()

    def test_drain_waits(self, model: Model, alone: dict[str, str]) -> None:
        scheduler = Scheduler(model, parallel=2)
        handles = [scheduler.submit(prompt, max_tokens=20, temperature=0) for prompt in PROMPTS]
        scheduler.close(drain=True)
        assert [handle.result(1).text for handle in handles] == list(alone.values())

    def test_who_does_not_want_to_wait_ends_a_drain(self, model: Model) -> None:
        scheduler = Scheduler(model, parallel=2)
        handles = [scheduler.submit("The king", max_tokens=480, ignore_eos=True) for _ in range(20)]
        next(handles[0])
        draining = threading.Thread(target=scheduler.close, kwargs={"drain": True})
        draining.start()
        wait_for(lambda: scheduler._worker.draining)
        scheduler.close()
        draining.join(10)
        assert {handle.result(1).finish_reason for handle in handles[2:]} == {"cancelled"}

    def test_closing_the_model_closes_its_schedulers(self, short_files: dict[str, Path]) -> None:
        model = Model.load(short_files["Q4_0"], threads=1)
        handle = Scheduler(model).submit("The king", max_tokens=500, ignore_eos=True)
        next(handle)
        model.close()
        assert handle.result(1).finish_reason == "cancelled"

    def test_after_a_failure_the_next_request_works(self, fragile: Model) -> None:
        with Scheduler(fragile, parallel=2) as scheduler:
            failed = scheduler.submit(FAILING)
            for _ in range(2):
                with pytest.raises(RuntimeFailure, match="not finite"):
                    failed.result(10)
            assert scheduler.submit("The king", max_tokens=5).result(10).tokens == 5
            assert scheduler.stats.failed == 1

    def test_a_program_may_end_without_closing(self, short_files: dict[str, Path]) -> None:
        program = """if True:
            import sys
            from dgpt2_quant.runtime import Model, Scheduler
            scheduler = Scheduler(Model.load(sys.argv[1], threads=1))
            handle = scheduler.submit("The king", max_tokens=500, ignore_eos=True)
            print(next(handle).text)
        """
        command = [sys.executable, "-c", program, str(short_files["Q4_0"])]
        child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (child.returncode, child.stderr) == (0, "")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_forked_child_gets_an_error(self, short_files: dict[str, Path]) -> None:
        program = """if True:
            import os, sys
            from dgpt2_quant.runtime import Model, Scheduler
            scheduler = Scheduler(Model.load(sys.argv[1], threads=1))
            handle = scheduler.submit("The king", max_tokens=3)
            if os.fork() == 0:
                for use in (lambda: scheduler.submit("x"), handle.result, lambda: next(handle)):
                    try:
                        use()
                    except Exception as error:
                        print(type(error).__name__, "forked" in str(error), flush=True)
                scheduler.close()
                sys.exit(0)
            assert os.wait()[1] == 0
            print(scheduler.submit("The king", max_tokens=3).result(10).tokens)
        """
        command = [sys.executable, "-c", program, str(short_files["Q4_0"])]
        child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (child.stdout, child.returncode) == ("RuntimeFailure True\n" * 3 + "3\n", 0), child.stderr
