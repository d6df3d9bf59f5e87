"""Forks and worker processes: models in pools and servers."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

# each prints one line a child; the parent has decoded with two threads before it forks
BEGIN = """if True:
    import multiprocessing, os, sys
    from dgpt2_quant.runtime import Model, Scheduler

    PATH = sys.argv[1]
    def text(model):
        return model.generate("Once upon a time", max_tokens=12, temperature=0)[0][0].text
    def load_and_write(_number=0):
        with Model.load(PATH, threads=2) as model:
            return text(model)
    def in_child(work):
        child = os.fork()
        if child == 0:
            print(repr(work()), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    model = Model.load(PATH, threads=2)
    expected = text(model)
    print(repr(expected), flush=True)
"""
PARENTS = {
    "after decoding": "in_child(load_and_write)",
    "after scoring": "model.score('Once upon a time ' * 40); in_child(load_and_write)",
    "after close": "model.close(); in_child(load_and_write)",
    "from a child": "in_child(lambda: (load_and_write(), in_child(load_and_write))[0])",
    "while a scheduler works": """
    with Scheduler(model, parallel=2) as scheduler:
        handles = [scheduler.submit("The king", max_tokens=400, ignore_eos=True) for _ in range(2)]
        next(handles[0])
        in_child(load_and_write)
        assert [handle.result(60).tokens for handle in handles] == [400, 400]""",
    "and the parent goes on": "in_child(load_and_write); assert text(model) == expected; in_child(load_and_write)",
    "a pool": """
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for found in pool.map(load_and_write, range(4)):
            print(repr(found))""",
}


def run(program: str, *arguments: object) -> list[str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("parent", PARENTS)
def test_a_forked_child_loads_the_model_and_writes_the_same(short_files: dict[str, Path], parent: str) -> None:
    lines = run(BEGIN + "\n    " + PARENTS[parent].lstrip("\n "), short_files["Q8_0"])
    assert len(lines) >= 2
    assert set(lines) == {lines[0]}


def test_a_fork_that_python_does_not_see_is_refused(short_files: dict[str, Path]) -> None:
    program = (
        BEGIN
        + """
    import ctypes
    child = ctypes.PyDLL(None).fork()  # as a server in C does
    if child == 0:
        try:
            load_and_write()
        except Exception as error:
            print(type(error).__name__, error, error.hint, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    """
    )
    _, said = run(program, short_files["Q8_0"])
    assert said.startswith("RuntimeFailure this process was forked")
    assert "`spawn` or `forkserver`" in said


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_ways_to_start(short_files: dict[str, Path], tmp_path: Path, method: str) -> None:
    program = f"""if True:
    import multiprocessing, sys
    from dgpt2_quant.runtime import Model

    def write(path):
        with Model.load(path, threads=2) as model:
            return model.generate("Once upon a time", max_tokens=12, temperature=0)[0][0].text

    if __name__ == "__main__":
        print(repr(write(sys.argv[1])))
        with multiprocessing.get_context("{method}").Pool(1) as pool:
            print(repr(pool.apply(write, [sys.argv[1]])))
    """
    file = tmp_path / "program.py"
    file.write_text(program, "utf-8")
    done = subprocess.run(
        [sys.executable, file, short_files["Q8_0"]], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    here, there = done.stdout.splitlines()
    assert here == there


APPLICATION = """
from dgpt2_quant.runtime import Model

def load():
    return Model.load(PATH, threads=2)
def text(model):
    return model.generate("Once upon a time", max_tokens=12, temperature=0)[0][0].text

expected = text(load())  # before the fork, as an application that warms up
own = None

def application(environ, start_response):
    global own
    own = own or load()
    start_response("200 OK", [])
    return [f"{environ['wsgi.multiprocess']} {text(own) == expected}".encode()]
"""


@pytest.mark.peer
def test_gunicorn_that_loads_the_application_first(short_files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(f"PATH = {str(short_files['Q8_0'])!r}\n{APPLICATION}", "utf-8")
    address = str(tmp_path / "socket")
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--bind", f"unix:{address}"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([*command, "application:application"], cwd=tmp_path, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while "Booting worker" not in (tmp_path / "log").read_text("utf-8"):
            assert server.poll() is None, (tmp_path / "log").read_text("utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(4):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(address)
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert b"".join(iter(lambda: client.recv(4096), b"")).endswith(b"\r\n\r\nTrue True")
    finally:
        server.terminate()
        server.wait(20)
