"""The queue, clients that leave or do not read, times, connections, and the end of the server."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from dgpt2_quant.serve.calls.models import ModelFile
from dgpt2_quant.serve.calls.settings import Limits, Settings

from ..waiting import wait_for
from .conftest import Running, running

LONG = {"prompt": "Once upon a time", "max_tokens": 500, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def served(files: list[ModelFile]) -> Iterator[Running]:
    """One model, with room for two texts and one in the queue."""
    with running(files[:1], parallel=2, queue=1) as found:
        yield found


@pytest.fixture(autouse=True)
def _idle(served: Running) -> Iterator[None]:
    yield
    wait_for(lambda: active(served) == 0)


def active(served: Running) -> int:
    stats = served.models.find(None).scheduler.stats
    return stats.active + stats.waiting


def gone(connection: socket.socket) -> bool:
    """Whether the server ends the connection."""
    with suppress(ConnectionResetError):
        while connection.recv(1000):
            pass
    return True


def start(served: Running, **body: object) -> http.client.HTTPConnection:
    """A request whose answer is not read."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("POST", "/v1/completions", json.dumps(LONG | body), {"content-type": "application/json"})
    return connection


def test_a_full_queue_is_refused_at_once_and_the_others_finish(served: Running) -> None:
    with ThreadPoolExecutor(3) as pool:
        long = [pool.submit(served.post, "/v1/completions", **LONG) for _ in range(3)]
        wait_for(lambda: active(served) == 3)
        started = time.perf_counter()
        refused = served.post("/v1/completions", prompt="The wolf")
        assert time.perf_counter() - started < 5  # the figure is measured in docs/serving.md
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 0 < int(refused.headers["retry-after"]) <= 120
        answers = [one.result() for one in long]
    assert {answer.json()["choices"][0]["finish_reason"] for answer in answers} == {"length"}


def test_several_texts_are_taken_together_or_not_at_all(served: Running) -> None:
    assert served.post("/v1/completions", prompt="The wolf", n=4).status_code == 400, "more than it ever takes"
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(served.post, "/v1/completions", **LONG)
        wait_for(lambda: active(served) == 1)
        assert served.post("/v1/completions", prompt="The wolf", n=3).status_code == 429
        assert active(served) == 1
        assert long.result().status_code == 200


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_its_place_and_disturbs_nobody(served: Running, stream: bool) -> None:
    alone = served.post("/v1/completions", **LONG).json()["choices"][0]["text"]
    with ThreadPoolExecutor(1) as pool:
        leaving = start(served, stream=stream)
        wait_for(lambda: active(served) == 1)
        staying = pool.submit(served.post, "/v1/completions", **LONG)
        waiting = start(served, stream=stream)
        wait_for(lambda: active(served) == 3)
        waiting.close()
        wait_for(lambda: active(served) == 2)
        leaving.close()
        wait_for(lambda: active(served) == 1)
        assert staying.result().json()["choices"][0]["text"] == alone
    assert " 499" in served.log.getvalue()


@pytest.mark.parametrize("writes", [1, 2])
def test_a_client_that_leaves_after_several_requests_frees_its_place(files: list[ModelFile], writes: int) -> None:
    body = json.dumps(LONG).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    with running(files[:1], parallel=2, queue=1) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
            connection.sendall(request * (3 - writes))
            wait_for(lambda: active(served) == 1)
            if writes == 2:
                connection.sendall(request)
        wait_for(served.log.getvalue)
        wait_for(lambda: active(served) == 0)
    (line,) = served.log.getvalue().splitlines()
    assert "POST /v1/completions 499, " in line


def test_the_body_must_arrive_in_time(files: list[ModelFile]) -> None:
    limits = Limits(body_seconds=0.2, idle_seconds=0.3, connections=3)
    with running(files[:1], Settings(port=0, limits=limits)) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as silent:
            assert gone(silent), "without a request"
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert slow.recv(1000).startswith(b"HTTP/1.1 200")
            slow.sendall(b"G")
            assert gone(slow), "without a second request"
        idle = [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(4)]
        assert idle[-1].recv(100).startswith(b"HTTP/1.1 503")
        for connection in idle:
            connection.close()


def test_an_answer_must_end_in_time(files: list[ModelFile]) -> None:
    with running(files[:1], Settings(port=0, limits=Limits(request_seconds=0.05))) as served:
        late = served.post("/v1/completions", **LONG)
        assert (late.status_code, late.headers["x-should-retry"]) == (408, "false")
        with served.client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            text = response.read().decode()
        *_, error, done, rest = text.split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "request_timeout"
        assert (done, rest) == ("data: [DONE]", "")
        wait_for(lambda: active(served) == 0)


def test_a_client_that_does_not_read_is_dropped(files: list[ModelFile]) -> None:
    with running(files[:1], Settings(port=0, limits=Limits(write_seconds=0.2))) as served:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            slow.connect(("127.0.0.1", served.port))
            body = json.dumps(LONG | {"stream": True, "logprobs": 100, "n": 3}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            slow.sendall(head.encode() + body)
            wait_for(lambda: "499" in served.log.getvalue(), 30)
        wait_for(lambda: active(served) == 0 and not served.server.server_state.connections)


def test_shutdown_lets_requests_end_and_ends_those_that_do_not(
    files: list[ModelFile], short_files: dict[str, Path]
) -> None:
    with running(files[:1], Settings(port=0, shutdown_seconds=0.2)) as served:
        started = threading.Event()

        def read() -> str:
            body = LONG | {"stream": True}
            with httpx2.stream("POST", f"http://127.0.0.1:{served.port}/v1/completions", json=body, timeout=30) as one:
                parts = []
                for part in one.iter_text():
                    started.set()
                    parts.append(part)
            return "".join(parts)

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            started.wait(10)
            served.server.should_exit = True
            text = reading.result(20)
    assert text.endswith("data: [DONE]\n\n")
    assert "shutting down" in text or '"finish_reason":"length"' in text


def test_not_ready_until_all_models_are_loaded(files: list[ModelFile]) -> None:
    with running(files[:1]) as served:
        loaded, served.models.loaded = served.models.loaded, {}
        health = served.client.get("/health")
        assert health.status_code == 503
        assert health.json()["error"]["code"] == 503
        assert served.post("/v1/completions", prompt="a").status_code == 503
        served.models.loaded = loaded
        assert served.client.get("/health").json() == {"status": "ok"}


def test_a_client_that_leaves_within_its_body_is_no_error(served: Running) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as leaving:
        leaving.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        time.sleep(0.05)
        lines = served.log.getvalue().count("\n")
    wait_for(lambda: served.log.getvalue().count("\n") > lines)
    assert "POST /v1/completions 499, " in served.log.getvalue().splitlines()[-1]


def test_an_answer_that_is_not_read_is_dropped(files: list[ModelFile]) -> None:
    limits = Limits(write_seconds=0.2, body=1 << 22)
    with running(files[:1], Settings(port=0, limits=limits)) as served, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect(("127.0.0.1", served.port))
        body = json.dumps({"content": "7^" * 2_000_000}).encode()
        head = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body)
        wait_for(lambda: "POST /tokenize 200" in served.log.getvalue(), 30)
        wait_for(lambda: not served.server.server_state.connections)
