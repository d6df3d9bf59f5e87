"""Ctrl-C at any instant: it arrives once, within two seconds, and the interrupted model can be used or closed."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import RuntimeFailure
from dgpt2_quant.runtime import Model, Scheduler
from dgpt2_quant.runtime.native import native_thread as native_calls
from dgpt2_quant.runtime.native.bindings import bindings

ROOT = Path(__file__).parents[2]
PROMPT = "Once upon a time"


def write(model: Model, **options: Any) -> str:
    return "".join(model.stream(PROMPT, **{"max_tokens": 150, "seed": 1, **options}))


@pytest.fixture
def model(short_files: dict[str, Path]) -> Iterator[Model]:
    with Model.load(short_files["Q8_0"], threads=1) as model:
        yield model


def make_scheduler(model: Model) -> None:
    with Scheduler(model) as scheduler:
        scheduler.submit(PROMPT, max_tokens=2).result()


# where a signal comes: a function of C that is being called, and a use of the model that calls it
INSTANTS: dict[str, tuple[str, Callable[[Model], object]]] = {
    "decode": ("llama_decode", write),
    "score": ("llama_decode", lambda model: model.score(PROMPT)),
    "the other context is made": ("llama_init_from_model", write),
    "cells are copied": ("llama_state_seq_set_data", write),
    "cells are removed": ("llama_memory_seq_rm", write),
    "a sampler is made": ("llama_sampler_chain_init", write),
    "a grammar is made": ("llama_sampler_init_grammar", lambda model: write(model, grammar='root ::= "a"')),
    "tokenize": ("llama_tokenize", lambda model: model.tokenize(PROMPT)),
    "a scheduler": ("llama_init_from_model", make_scheduler),
}


def interrupting(real: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """The function, which sends one SIGINT while it is called."""

    def call(*arguments: Any) -> Any:
        if left:
            os.kill(os.getpid(), left.pop())
        return real(*arguments)

    return call


@pytest.mark.parametrize("instant", INSTANTS)
def test_in_the_middle_of_a_call(model: Model, monkeypatch: pytest.MonkeyPatch, instant: str) -> None:
    name, use = INSTANTS[instant]
    call = interrupting(getattr(bindings(), name), signals := [])
    monkeypatch.setattr(bindings(), name, call)
    other = Model.load(model.path, threads=1)  # whose contexts know the function from when they were made
    signals.append(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        use(other)
    monkeypatch.undo()
    assert write(other) == write(model)
    other.close()


@pytest.mark.parametrize("name", ["llama_free", "llama_model_free"])
def test_while_it_is_closed(short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(bindings(), name, interrupting(getattr(bindings(), name), [signal.SIGINT]))
    model = Model.load(short_files["Q8_0"], threads=1)
    write(model)
    model.score(PROMPT)
    native_calls.flush()
    alive = len(native_calls._alive)
    with pytest.raises(KeyboardInterrupt):
        model.close()
    model.close()
    assert len(native_calls._alive) == alive - 4  # two contexts to write in, one to score in, and the model


def test_in_a_callback_that_logs(short_files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    class Interrupt(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not interrupted:
                interrupted.append(record.getMessage())
                os.kill(os.getpid(), signal.SIGINT)

    interrupted: list[str] = []
    log, handler = logging.getLogger("dgpt2_quant.llama_cpp"), Interrupt()
    log.addHandler(handler)
    try:
        with caplog.at_level(logging.DEBUG, log.name), pytest.raises(KeyboardInterrupt):
            Model.load(short_files["Q8_0"], threads=1)
    finally:
        log.removeHandler(handler)
    assert interrupted


def test_nothing_is_logged_into_python_in_the_main_thread(
    short_files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    logged = caplog.at_level(logging.DEBUG, "dgpt2_quant.llama_cpp")
    with logged, Model.load(short_files["Q8_0"], threads=1) as model:
        write(model)
        model._single.context.set_threads(2)  # which it logs, too
        model.score(PROMPT * 20)
        model.generate([PROMPT, "The king"], max_tokens=140)
    assert caplog.records
    assert threading.main_thread().ident not in {record.thread for record in caplog.records}


def test_a_handler_that_closes_the_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Model.load(model.path, threads=1)
    before = signal.signal(signal.SIGUSR1, lambda *_: other.close())
    context = other._single.context._flash  # type: ignore[union-attr]
    monkeypatch.setattr(context, "_decode", interrupting(context._decode, [signal.SIGUSR1]))
    try:
        with pytest.raises(Exception, match="closed"):
            write(other)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.slow
def test_a_storm() -> None:
    command = [sys.executable, ROOT / "tools" / "stress.py", "interrupts", "220", "--seed", "3"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "ignored" not in found.stderr  # as Python says of an interrupt that it drops
    report = json.loads(found.stdout)
    assert report["sent"] == sum(report["received"].values()) == 220
    assert report["files_left"] == []


USES_IN_A_HANDLER: dict[str, tuple[Callable[[Model], object], Callable[[Model], object]]] = {
    "a text in a text": (write, lambda model: model.generate("The king", max_tokens=2)),
    "a text in several": (lambda model: model.generate([PROMPT] * 2, max_tokens=20, seed=1), write),
    "a score in a score": (lambda model: model.score(PROMPT), lambda model: model.score("The king")),
}


@pytest.mark.parametrize("case", USES_IN_A_HANDLER)
def test_a_handler_that_uses_the_model_is_refused_and_changes_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    use, other = USES_IN_A_HANDLER[case]
    expected = repr(use(model))
    errors: list[str] = []

    def handle(*_: Any) -> None:
        try:
            other(tested)
        except RuntimeFailure as error:
            errors.append(str(error))

    before = signal.signal(signal.SIGUSR1, handle)
    call = interrupting(bindings().llama_decode, signals := [])
    monkeypatch.setattr(bindings(), "llama_decode", call)
    tested = Model.load(model.path, threads=1)
    signals.append(signal.SIGUSR1)
    try:
        assert repr(use(tested)) == expected
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(errors) == 1
    assert "used the model in the middle of one of its calls" in errors[0]
    other(tested)
    tested.close()


def test_a_callback_that_scores_is_refused(model: Model) -> None:
    with pytest.raises(RuntimeFailure, match="used the model in the middle of one of its calls"):
        model.visit_logits([1, 2, 3], 0, lambda *_: model.score(PROMPT))
    model.score(PROMPT)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_handler_may_close_the_text_that_it_interrupts(
    model: Model, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    expected = write(model)
    context = model._single.context._flash  # type: ignore[union-attr]
    texts = model.stream(PROMPT, max_tokens=50, temperature=temperature, ignore_eos=True)
    next(texts)
    monkeypatch.setattr(context, "_decode", interrupting(context._decode, [signal.SIGUSR1]))
    before = signal.signal(signal.SIGUSR1, lambda *_: texts.close())
    try:
        rest = list(texts)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert texts.completion
    assert ("".join(rest), texts.completion.finish_reason, texts.completion.tokens) == ("", "cancelled", 1)
    assert write(model) == expected
