"""What a server needs of a request: its end, its times, its cancellation and failure next to other requests, turns."""

import random
import threading
import time

import pytest
from dgpt2_quant.core.errors import RuntimeFailure, UsageError
from dgpt2_quant.runtime import Model, Scheduler, Turns

from ..waiting import wait_for
from .conftest import FAILING, PROMPTS


@pytest.fixture(scope="module")
def alone(model: Model) -> dict[str, str]:
    return {prompt: model.generate(prompt, max_tokens=30, temperature=0)[0][0].text for prompt in PROMPTS}


class TestResults:
    def test_the_completion_names_what_stopped_it(self, model: Model, scheduler: Scheduler) -> None:
        greedy = model.generate("The king", max_tokens=30, temperature=0)[0][0]
        word = greedy.text.split()[3]
        (token,) = greedy.token_ids[4:5]
        for options, reason, by in [
            ({}, "length", None),
            ({"stop": ["nowhere", word]}, "stop", word),
            ({"stop_token_ids": [token]}, "stop", token),
            ({"stop": "<|endoftext|>", "logit_bias": {0: 1000}}, "stop", "<|endoftext|>"),
            ({"logit_bias": {0: 1000}}, "eos", None),
        ]:
            found = scheduler.submit("The king", max_tokens=30, temperature=0, **options).result(30)  # type: ignore[arg-type]
            assert (found.finish_reason, found.stop_reason) == (reason, by)

    def test_only_the_first_event_has_the_log_probabilities_of_the_prompt(self, scheduler: Scheduler) -> None:
        first, *others = scheduler.submit("The king", echo=True, logprobs=1, max_tokens=5, temperature=0)
        assert others[-1].completion
        assert first.prompt_logprobs == others[-1].completion.prompt_logprobs
        assert {event.prompt_logprobs for event in others} == {()}

    def test_a_token_has_the_same_number_among_its_alternatives(self, scheduler: Scheduler) -> None:
        found = scheduler.submit("The king", echo=True, logprobs=8000, max_tokens=5, temperature=0).result(30)
        entries = [*(found.prompt_logprobs or ())[1:], *(found.logprobs or ())]
        assert len(entries) == 6
        assert all(entry.top[entry.token] == entry.logprob for entry in entries)

    def test_time_stamps_are_in_order(self, scheduler: Scheduler) -> None:
        before = time.perf_counter()
        handle = scheduler.submit("The king", max_tokens=5)
        handle.result(30)
        timing = handle.timing
        times = [before, timing.submitted, timing.started, timing.first_token, timing.finished, time.perf_counter()]
        assert times == sorted(times)  # type: ignore[type-var]
        assert timing.first_token_ms == pytest.approx(1000 * (times[3] - times[2]))  # type: ignore[operator]


class TestCancel:
    def test_it_frees_the_slot_within_a_step(self, scheduler: Scheduler) -> None:
        handles = [scheduler.submit("The king", max_tokens=500, ignore_eos=True) for _ in range(4)]
        queued = handles.pop()
        for handle in handles:
            next(handle)
        for handle in (queued, handles[0]):
            steps = scheduler.stats.totals.steps
            handle.cancel()
            assert handle.result(10).finish_reason == "cancelled"
            assert scheduler.stats.totals.steps - steps <= 2  # the step during the call, and one during the return
        assert (scheduler.stats.active, scheduler.stats.waiting) == (2, 0)

    def test_in_the_prompt(self, model: Model, scheduler: Scheduler, alone: dict[str, str]) -> None:
        running = scheduler.submit("The king", max_tokens=30, temperature=0)
        late = scheduler.submit(list(range(100, 600)), max_tokens=5)
        wait_for(lambda: late.timing.started is not None)
        late.cancel()
        assert late.result(10).finish_reason == "cancelled"
        assert late.timing.prompt_computed < 500
        assert running.result(30).text == alone["The king"]

    def test_it_disturbs_no_other_request(self, model: Model, alone: dict[str, str]) -> None:
        draw = random.Random(1)
        with Scheduler(model, parallel=3, queue=200) as scheduler:
            kept = []
            for number in range(60):
                prompt = PROMPTS[number % len(PROMPTS)]
                if number % 3 == 0:
                    kept.append((prompt, scheduler.submit(prompt, max_tokens=30, temperature=0)))
                else:
                    handle = scheduler.submit([*range(number, 300)], max_tokens=40, ignore_eos=True)
                    threading.Timer(draw.random() / 2, handle.cancel).start()
                time.sleep(draw.random() / 100)
            assert [handle.result(60).text for _, handle in kept] == [alone[prompt] for prompt, _ in kept]


class TestFailure:
    def test_of_one_request_while_others_continue(self, fragile: Model) -> None:
        expected = fragile.generate("The king", max_tokens=200, temperature=0)[0][0].text
        with Scheduler(fragile, parallel=3) as scheduler:
            running = scheduler.submit("The king", max_tokens=200, temperature=0)
            next(running)
            for prompt in (FAILING, FAILING * 150):
                with pytest.raises(RuntimeFailure, match="not finite"):
                    scheduler.submit(prompt).result(10)
            assert running.result(30).text == expected
            stats = scheduler.stats
            assert (stats.failed, stats.finished, stats.active) == (2, 1, 0)
            # nothing of the failed texts is left in their slots
            for handle in [scheduler.submit("The king", max_tokens=200, temperature=0) for _ in range(3)]:
                assert handle.result(30).text == expected

    def test_of_a_grammar_that_takes_too_long(self, model: Model, alone: dict[str, str]) -> None:
        with Scheduler(model, parallel=2, grammar_seconds=1e-9) as scheduler:
            running = scheduler.submit("The king", max_tokens=30, temperature=0)
            slow = scheduler.submit("The wolf", grammar="root ::= [a-z ]*")
            with pytest.raises(UsageError, match="`grammar` must take at most 1e-09 s for a token, not"):
                slow.result(10)
            assert running.result(30).text == alone["The king"]

    @pytest.mark.parametrize("seconds", [0, -1, "1", float("nan")])
    def test_a_wrong_limit_is_refused(self, model: Model, seconds: float) -> None:
        with pytest.raises(UsageError, match="`grammar_seconds` must be a number above 0"):
            Scheduler(model, grammar_seconds=seconds)


class TestTurns:
    def test_they_come_in_the_order_in_which_they_were_asked_for(self) -> None:
        turns, order = Turns(), []

        def work(number: int) -> None:
            with turns:
                order.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
        with turns:
            for number, thread in enumerate(threads):
                thread.start()
                wait_for(lambda number=number: len(turns._tickets) == number + 2)
        work(20)  # the one who had the turn does not overtake those who wait
        for thread in threads:
            thread.join()
        assert order == list(range(21))

    def test_a_long_computation_lets_those_that_wait_compute_first(self) -> None:
        turns, order = Turns(), []

        def work(number: int) -> None:
            with turns:
                order.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        with turns:
            turns.pass_on()  # nobody waits
            for thread in threads:
                thread.start()
            wait_for(lambda: len(turns._tickets) == 4)
            turns.pass_on()
            assert sorted(order) == [0, 1, 2]
        for thread in threads:
            thread.join()

    def test_schedulers_wait_for_their_turn(self, model: Model, alone: dict[str, str]) -> None:
        turns = Turns()
        with Scheduler(model, turns=turns) as one, Scheduler(model, turns=turns) as other:
            with turns:
                handles = [each.submit("The king", max_tokens=30, temperature=0) for each in (one, other)]
                time.sleep(0.05)
                assert one.stats.totals.prompt_tokens == other.stats.totals.prompt_tokens == 0
            features: list[object] = []

            def embed() -> None:
                with turns:
                    features.append(model.features("The wolf", pooling="mean"))

            thread = threading.Thread(target=embed)
            thread.start()
            assert [handle.result(30).text for handle in handles] == [alone["The king"]] * 2
            thread.join(30)
            assert len(features) == 1
