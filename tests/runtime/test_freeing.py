"""Dropped objects are freed at once, and shared or closed ones still answer."""

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core import versions as llama_cpp_version
from dgpt2_quant.core.errors import DgptQuantError, RuntimeFailure
from dgpt2_quant.runtime import Completion, Model, Scheduler
from dgpt2_quant.runtime.native import native_thread as native_calls

from ..waiting import wait_for
from .conftest import FAILING

PROMPT = "Once upon a time"


@pytest.fixture
def model(short_files: dict[str, Path]) -> Iterator[Model]:
    with Model.load(short_files["Q8_0"], threads=1) as model:
        yield model


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def use_everything(path: Path) -> Model:
    model = Model.load(path, threads=1)
    next(model.stream(PROMPT, max_tokens=5))
    model.generate([PROMPT, "The king"], max_tokens=140)
    model.features(PROMPT)
    Scheduler(model, parallel=2).submit(PROMPT, max_tokens=3).result()
    return model


@pytest.mark.usefixtures("no_collection")
def test_a_dropped_model_is_freed_at_once(short_files: dict[str, Path]) -> None:
    native_calls.flush()
    before = len(native_calls._alive)
    model = use_everything(short_files["Q8_0"])
    gone = weakref.ref(model)
    del model
    assert gone() is None
    wait_for(lambda: len(native_calls._alive) == before)  # its scheduler's thread ends by itself


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("prompts", [PROMPT, [PROMPT, "The king"]])
def test_a_closed_model_is_freed_though_its_texts_are_kept(short_files: dict[str, Path], prompts: Any) -> None:
    """As after an error in the middle of a text, whose traceback keeps it."""
    native_calls.flush()
    before = len(native_calls._alive)
    with Model.load(short_files["Q8_0"], threads=1) as model:
        texts = model.batch(prompts, max_tokens=50, ignore_eos=True)
        next(texts)
    assert len(native_calls._alive) == before
    assert [text.finish_reason for text in texts.completions if text] == ["cancelled"] * len(texts.seeds)
    with pytest.raises(RuntimeFailure, match="closed"):
        list(texts)


@pytest.mark.usefixtures("no_collection")
def test_dropped_schedulers_end_after_the_requests_that_are_kept(model: Model) -> None:
    handles = [Scheduler(model, parallel=1).submit(PROMPT, max_tokens=30) for _ in range(4)]
    Scheduler(model)
    assert [handle.result(20).tokens for handle in handles] == [30] * 4
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "dgpt2-quant scheduler"])


def test_a_dropped_handle_cancels_its_request(model: Model) -> None:
    with Scheduler(model, parallel=1) as scheduler:
        scheduler.submit(PROMPT, max_tokens=400, ignore_eos=True)
        kept = scheduler.submit(PROMPT, max_tokens=2)
        assert kept.result(20).tokens == 2
        assert scheduler.stats.cancelled == 1


def test_an_array_keeps_the_memory_that_it_shows(short_files: dict[str, Path]) -> None:
    kept: list[np.ndarray[Any, Any]] = []
    with Model.load(short_files["Q8_0"], threads=1) as model:
        model.visit_logits(model.tokenize(PROMPT), 0, lambda _position, rows: kept.append(rows))
        expected = kept[0].copy()
    Model.load(short_files["Q8_0"], threads=1).close()  # which would get the memory
    assert np.array_equal(kept[0], expected)


class TestReaders:
    def test_two_threads_read_one_handle(self, model: Model) -> None:
        with Scheduler(model, parallel=1) as scheduler:
            handle = scheduler.submit(PROMPT, max_tokens=60, ignore_eos=True)
            with ThreadPoolExecutor(3) as pool:
                shares = [pool.submit(list, handle) for _ in range(3)]
                events = [event for share in shares for event in share.result(20)]
            completion = handle.result(5)
        assert sum(len(event.token_ids) for event in events) == 60
        assert len([event for event in events if event.completion]) == 1
        assert completion.tokens == 60

    def test_all_readers_get_the_error_of_a_failure(self, fragile: Model) -> None:
        with Scheduler(fragile, parallel=1) as scheduler, ThreadPoolExecutor(2) as pool:
            handle = scheduler.submit(FAILING)
            for reader in [pool.submit(list, handle) for _ in range(2)]:
                with pytest.raises(RuntimeFailure, match="not finite"):
                    reader.result(20)

    def test_three_threads_read_one_stream(self, model: Model) -> None:
        expected = "".join(model.stream(PROMPT, max_tokens=60, seed=1, ignore_eos=True))
        generation = model.stream(PROMPT, max_tokens=60, seed=1, ignore_eos=True)
        with ThreadPoolExecutor(3) as pool:
            shares = [pool.submit(list, generation) for _ in range(3)]
            pieces = [piece for share in shares for piece in share.result(20)]
        assert len("".join(pieces)) == len(expected)
        assert generation.completion
        assert generation.completion.text == expected

    def test_two_tasks_read_one_handle(self, model: Model) -> None:
        async def main() -> tuple[list[int], Completion]:
            async with Scheduler(model, parallel=1) as scheduler:
                handle = scheduler.submit(PROMPT, max_tokens=40, ignore_eos=True)

                async def count() -> int:
                    return sum([len(event.token_ids) async for event in handle])

                return list(await asyncio.gather(count(), count())), await handle

        shares, completion = asyncio.run(asyncio.wait_for(main(), 20))
        assert sum(shares) == completion.tokens == 40

    def test_await_gives_the_completion(self, model: Model) -> None:
        async def main() -> list[Completion]:
            async with Scheduler(model, parallel=2) as scheduler:
                return list(await asyncio.gather(*[scheduler.submit(PROMPT, max_tokens=4, seed=s) for s in (1, 2)]))

        assert [completion.tokens for completion in asyncio.run(asyncio.wait_for(main(), 20))] == [4, 4]


def test_closed_generations_have_what_they_wrote(model: Model) -> None:
    expected = "".join(model.stream(PROMPT, max_tokens=30, seed=1))
    with contextlib.closing(model.stream(PROMPT, max_tokens=30, seed=1)) as generation:
        written = next(generation)
    assert generation.completion
    assert generation.completion.finish_reason == "cancelled"
    assert generation.completion.text == written == expected[: len(written)]
    assert list(generation) == []
    with model.batch([PROMPT, "The king"], max_tokens=30) as batch:
        next(batch)
    assert [found and found.finish_reason for found in batch.completions] == ["cancelled"] * 2
    assert "".join(model.stream(PROMPT, max_tokens=30, seed=1)) == expected


def test_statistics_are_a_snapshot(model: Model) -> None:
    with Scheduler(model, parallel=1) as scheduler:
        before = scheduler.stats
        scheduler.submit(PROMPT, max_tokens=9, ignore_eos=True).result(20)
        assert scheduler.stats.totals.decode_tokens - before.totals.decode_tokens == 8


def test_where_no_thread_can_be_started_the_model_goes_on(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeFailure, match="refuses to start another thread"):
        Scheduler(model)
    assert "".join(model.stream(PROMPT, max_tokens=3))
    model.close()


class TestVersion:
    @pytest.mark.parametrize("version", ["0.3.36", "0.3.36+v3"])
    def test_the_supported_one(self, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        monkeypatch.setattr(llama_cpp_version, "version", lambda _: version)
        llama_cpp_version.check_version()

    @pytest.mark.parametrize("version", ["0.3.35", "0.3.360", "0.3.37+v3"])
    def test_another_one_is_refused(self, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        monkeypatch.setattr(llama_cpp_version, "version", lambda _: version)
        with pytest.raises(
            DgptQuantError, match=rf"llama-cpp-python {version.replace('+', '.')} is installed"
        ) as caught:
            llama_cpp_version.check_version()
        assert caught.value.hint == "Install it: `pip install llama-cpp-python==0.3.36`."

    @pytest.mark.parametrize(
        ("local", "lines", "missing"),
        [
            ("v4", "flags\t\t: fpu avx2 avx512f avx512cd avx512vl\n", "avx512bw, avx512dq"),
            ("arm64", "processor\t: 0\nFeatures\t: fp asimd crc32\n", "asimddp, asimdhp"),
        ],
    )
    def test_a_wheel_for_another_processor_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, local: str, lines: str, missing: str
    ) -> None:
        monkeypatch.setattr(llama_cpp_version, "version", lambda _: f"0.3.36+{local}")
        (tmp_path / "cpuinfo").write_text(lines, "utf-8")
        with pytest.raises(DgptQuantError, match=f"this processor lacks {missing}$"):
            llama_cpp_version.check_version(tmp_path / "cpuinfo")

    @pytest.mark.parametrize(
        ("local", "lines"),
        [
            ("v3", "flags\t\t: fpu sse4_2 avx2 bmi2 f16c fma\n"),
            ("v4", ""),  # the system does not list the instructions
            ("cpu", "flags\t\t: fpu\n"),  # not a wheel of ours
        ],
    )
    def test_other_wheels_are_accepted(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, local: str, lines: str
    ) -> None:
        monkeypatch.setattr(llama_cpp_version, "version", lambda _: f"0.3.36+{local}")
        (tmp_path / "cpuinfo").write_text(lines, "utf-8")
        llama_cpp_version.check_version(tmp_path / "cpuinfo")

    def test_another_layout_is_refused(self) -> None:
        with pytest.raises(DgptQuantError, match="the size of llama_token_data is 16, not 12"):
            llama_cpp_version.check_layout("the size of llama_token_data", 16, 12)


def test_a_model_that_is_closed_in_the_middle_of_texts_is_freed(short_files: dict[str, Path]) -> None:
    native_calls.flush()
    before = len(native_calls._alive)
    with Model.load(short_files["Q8_0"], threads=1) as model:
        greedy = model.stream([5, 6, 7, 8, 9] * 4, temperature=0, max_tokens=50)  # with rows of guesses ahead
        next(greedy), next(greedy)
        batch = model.batch([PROMPT, "The king"], max_tokens=50)
        next(batch)
        sampled = model.stream(PROMPT, max_tokens=50)
        next(sampled)
    assert len(native_calls._alive) == before
    for ended in (greedy, batch, sampled):
        with pytest.raises(RuntimeFailure, match="is closed"):
            list(ended)


def test_a_failure_keeps_nothing_in_memory(fragile: Model) -> None:
    gc.collect()
    with Scheduler(fragile) as scheduler:
        handle = scheduler.submit(FAILING)
        for _ in range(3):
            with pytest.raises(RuntimeFailure, match="not finite") as caught:
                handle.result(20)
            depth = len(caught.traceback)
        assert depth < 8  # and does not grow with each call
        gone = weakref.ref(handle)
        del caught, handle
        assert gone() is None


def test_a_request_that_meets_the_end_of_its_scheduler_is_not_lost(model: Model) -> None:
    for _ in range(20):
        scheduler = Scheduler(model, parallel=1)
        first = scheduler.submit(PROMPT, max_tokens=1)
        first.result(20)
        second = scheduler.submit(PROMPT, max_tokens=1)
        del scheduler
        assert second.result(20).tokens == 1
