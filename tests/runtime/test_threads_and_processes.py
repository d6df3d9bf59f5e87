"""Models in several threads and processes, and their end."""

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import RuntimeFailure, UsageError
from dgpt2_quant.runtime import Model, Scheduler, pipeline
from dgpt2_quant.runtime.native import bindings
from dgpt2_quant.runtime.native import native_thread as native_calls
from dgpt2_quant.runtime.native.context import NativeContext

PROMPTS = ["Once upon a time", "The wolf", "A king had three sons", "“Mother,” said"]
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 40}


def text(model: Model, prompt: str = PROMPTS[0]) -> str:
    return "".join(model.stream(prompt, **OPTIONS))


class TestThreads:
    @pytest.mark.parametrize("count", [1, 3])
    def test_calls_from_several_threads_take_turns(self, storybook: Model, count: int) -> None:
        expected = {prompt: [text(storybook, prompt)] * count for prompt in PROMPTS}
        start = threading.Barrier(len(PROMPTS))

        def work(prompt: str) -> None:
            start.wait(10)
            for _ in range(2):
                completions = storybook.generate([prompt] * count, **OPTIONS)
                assert [completion.text for (completion,) in completions] == expected[prompt]

        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            for job in [pool.submit(work, prompt) for prompt in PROMPTS]:
                job.result(60)

    def test_scoring_in_other_threads_changes_no_text(self, storybook: Model) -> None:
        expected, score = text(storybook), storybook.score(PROMPTS[2]).tolist()
        states = storybook.features(PROMPTS[1]).tolist()

        def work(number: int) -> None:
            for _ in range(2):
                if number == 0:
                    assert storybook.generate(PROMPTS[0], **OPTIONS)[0][0].text == expected
                elif number == 1:
                    assert storybook.score(PROMPTS[2]).tolist()[1:] == score[1:]
                else:
                    assert storybook.features(PROMPTS[1]).tolist() == states

        with ThreadPoolExecutor(3) as pool:
            for job in [pool.submit(work, number) for number in range(3)]:
                job.result(60)

    def test_two_models_in_two_threads(self, storybook: Model, short_files: dict[str, Path]) -> None:
        with Model.load(short_files["Q4_0"], threads=1) as other:
            models = [storybook, other]
            expected = [text(model) for model in models]
            with ThreadPoolExecutor(2) as pool:
                jobs = [pool.submit(lambda model=model: [text(model) for _ in range(5)]) for model in models]
                assert [job.result(60) for job in jobs] == [[each] * 5 for each in expected]

    def test_tokenizing_while_another_thread_generates(self, storybook: Model) -> None:
        generation = storybook.stream(PROMPTS[0], **OPTIONS)
        next(generation)
        with ThreadPoolExecutor(1) as pool:
            tokens = pool.submit(storybook.tokenize, PROMPTS[0]).result(10)
            assert pool.submit(storybook.detokenize, tokens).result(10) == PROMPTS[0]

    def test_close_while_another_thread_generates(self, short_files: dict[str, Path]) -> None:
        model = Model.load(short_files["Q4_0"], threads=1)
        begun = threading.Event()

        def work() -> None:
            while True:  # one text could be through before it is closed
                for _ in model.stream(PROMPTS[0], max_tokens=500, ignore_eos=True):
                    begun.set()

        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(work)
            assert begun.wait(20)
            model.close()
            with pytest.raises(RuntimeFailure, match="is closed"):
                job.result(20)

    def test_pipelines_of_several_threads_take_turns(self, storybook: Model) -> None:
        generator = pipeline("text-generation", model=storybook, do_sample=False, max_new_tokens=20)
        expected = {prompt: generator(prompt) for prompt in PROMPTS}
        with ThreadPoolExecutor(4) as pool:
            for prompt, found in zip(2 * PROMPTS, pool.map(generator, 2 * PROMPTS), strict=True):
                assert found == expected[prompt]

    @pytest.mark.parametrize("use", ["model.tokenize(TEXT)", "scheduler.submit(TEXT, truncate=True)"])
    def test_close_while_another_thread_tokenizes(self, use: str, short_files: dict[str, Path]) -> None:
        program = f"""if True:
            import sys, threading, time
            from dgpt2_quant.core.errors import RuntimeFailure
            from dgpt2_quant.runtime import Model, Scheduler
            TEXT = "word hello " * 100_000
            def work():
                global found
                try:
                    found = {use}
                except RuntimeFailure as error:
                    found = error
            for seconds in (0, 0.02, 0.1):
                model = Model.load(sys.argv[1], threads=1)
                scheduler = Scheduler(model)
                thread = threading.Thread(target=work)
                thread.start()
                time.sleep(seconds)
                model.close()
                thread.join()
                assert "closed" in str(found) or not isinstance(found, list) or len(found) > 200_000, found
        """
        command = [sys.executable, "-c", program, str(short_files["Q4_0"])]
        child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (child.returncode, child.stderr) == (0, "")


class TestInterrupts:
    """A signal's handler is called while llama.cpp works, which calls back to log."""

    @pytest.mark.parametrize("what", ["load", "context"])
    def test_no_interrupt_is_lost(
        self, what: str, short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lib, name = (
            bindings.bindings(),
            {"load": "llama_model_load_from_file", "context": "llama_init_from_model"}[what],
        )
        real = getattr(lib, name)
        native_calls.flush()
        alive = len(native_calls._alive)

        def interrupted(*arguments: Any) -> Any:
            os.kill(os.getpid(), signal.SIGUSR1)
            return real(*arguments)

        def handler(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(lib, name, interrupted)
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                Model.load(short_files["Q4_0"], threads=1)
            assert signal.getsignal(signal.SIGUSR1) is handler
        finally:
            signal.signal(signal.SIGUSR1, before)
        native_calls.flush()
        assert len(native_calls._alive) == alive


class TestEnd:
    def test_a_model_cannot_be_copied_or_pickled(self, storybook: Model) -> None:
        for use in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(UsageError, match="cannot be copied or pickled"):
                use(storybook)
        assert text(storybook)

    def test_too_little_memory_for_more_sequences_leaves_the_model_usable(
        self, short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Model.load(short_files["Q4_0"], threads=1) as model:
            expected = model.generate(PROMPTS[:2], **OPTIONS)
            with monkeypatch.context() as patch:
                patch.setattr(bindings.bindings(), "llama_init_from_model", lambda *_: None)
                with pytest.raises(RuntimeFailure, match="for 4 sequences"):
                    model.generate(PROMPTS, **OPTIONS)
            assert model.generate(PROMPTS[:2], **OPTIONS) == expected

    def test_a_generation_that_is_dropped_frees_its_turn(self, storybook: Model) -> None:
        expected = text(storybook)
        for begin in (lambda: storybook.stream("The wolf"), lambda: storybook.batch(PROMPTS)):
            pieces: Any = begin()
            next(pieces)
            gone = weakref.ref(pieces)
            del pieces
            gc.collect()
            assert gone() is None
            assert text(storybook) == expected
        (completion,) = storybook.generate(PROMPTS[0], **OPTIONS, parallel=3)[0]
        assert completion.text == expected

    def test_a_generation_that_never_starts_ends_no_other(self, storybook: Model) -> None:
        first, second = storybook.stream(PROMPTS[0], **OPTIONS), storybook.stream("The wolf")
        written = next(first)
        del second
        gc.collect()
        assert written + "".join(first) == text(storybook)

    def test_every_context_is_freed(self, short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[NativeContext] = []
        real = NativeContext.__init__

        def init(context: NativeContext, *given: Any, **options: Any) -> None:
            real(context, *given, **options)
            made.append(context)

        monkeypatch.setattr(NativeContext, "__init__", init)
        model = Model.load(short_files["Q4_0"], threads=1)
        with Scheduler(model, parallel=2) as scheduler:  # and both go far at the same time
            handles = [scheduler.submit("The king", max_tokens=300, ignore_eos=True) for _ in range(2)]
            assert list(model.stream([5] * 250, max_tokens=40, ignore_eos=True))
            assert [handle.result(60).tokens for handle in handles] == [300, 300]
        model.generate(["a", "b"], max_tokens=2)
        model.features("a")
        model.close()
        assert len(made) == 6  # the two engines that go beyond the flash positions have two each
        assert [context for context in made if context._owner] == []


CHILD = """if True:
    import os, sys, threading
    from dgpt2_quant.core.errors import RuntimeFailure
    from dgpt2_quant.runtime import Model

    model = Model.load(sys.argv[1], threads=1)
    alone = model.generate("Once upon a time", max_tokens=20, temperature=0)[0][0].text
    generation = model.stream("The wolf", seed=1)
    next(generation)
    model.features([1])
    for end in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            said = []
            uses = [
                lambda: model.generate("Once"), lambda: model.logits([1]), lambda: model.features([1]),
                lambda: model.score([1]), lambda: model.tokenize("Once"), lambda: next(generation),
            ]
            for use in uses:
                try:
                    use()
                except RuntimeFailure as error:
                    said.append(str(error))
            expected = f"was loaded in process {os.getppid()}, which forked this one"
            right = len(said) == len(uses) and all(expected in each for each in said)
            if end == "close":
                model.close()
            if end == "del":
                del generation, model, uses
            sys.exit(7 if right else 8)
        print(end, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        assert model.generate("Once upon a time", max_tokens=20, temperature=0)[0][0].text == alone
        generation = model.stream("The wolf", seed=1)
        next(generation)
"""
BUSY = """if True:
    import os, sys, threading
    from dgpt2_quant.core.errors import RuntimeFailure
    from dgpt2_quant.runtime import Model

    model, through = Model.load(sys.argv[1], threads=1), threading.Event()
    def work():
        while not through.is_set():
            model.logits([1] * 100)
    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                model.logits([1])
            except RuntimeFailure:
                model.close()
                os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    through.set()
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestFork:
    def run(self, program: str, *arguments: str) -> list[str]:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *arguments]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as child:
            try:
                out, errors = child.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, 9)  # its own children hold the pipes, too
                raise
        assert (child.returncode, errors) == (0, "")
        return out.splitlines()

    def test_a_forked_child_gets_an_error_and_ends_by_itself(self, short_files: dict[str, Path]) -> None:
        ends = ["exit", "close", "del"]
        assert self.run(CHILD, str(short_files["Q4_0"]), *ends) == [f"{end} 7" for end in ends]

    def test_a_child_that_is_forked_while_a_thread_computes(self, short_files: dict[str, Path]) -> None:
        # the thread is not there in the child, but the lock that it holds is
        assert self.run(BUSY, str(short_files["Q4_0"])) == ["7"] * 3
