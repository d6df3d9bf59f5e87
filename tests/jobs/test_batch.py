"""A job on disk: it continues with the same bytes, and refuses what differs by its name."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from dgpt2_quant.core.errors import DgptQuantError, OutputError, UsageError
from dgpt2_quant.jobs.batch import batch, batch_lines
from dgpt2_quant.jobs.job_files import JobFiles, errors_path, record_path
from dgpt2_quant.jobs.output_file import OutputFile
from dgpt2_quant.runtime import Model

from .conftest import some_lines, write_lines

LINES = some_lines(40)


class StopError(Exception):
    """Ends a job in the middle of a slice."""


class Job:
    """A call of `batch` on 40 lines in slices of 8."""

    def __init__(self, model: Path, folder: Path, name: str = "out.jsonl") -> None:
        folder.mkdir(exist_ok=True)
        self.input = write_lines(folder / "in.jsonl", LINES)
        self.output = folder / name
        self.options: dict[str, Any] = {"model": str(model), "slice": 8, "parallel": 3, "threads": 1}

    def run(self, **options: Any) -> Any:
        return batch(self.input, self.output, **{**self.options, **options})

    def stop_at(self, line: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        """Runs it until a slice that ends with that line is being decoded."""
        monkeypatch.setattr("dgpt2_quant.jobs.batch._EVERY", 0.0)

        def progress(done: int, total: int, what: str) -> None:
            if what.startswith(f"line {line - 8},") and done > 0:
                raise StopError

        with pytest.raises(StopError):
            self.run(progress=progress, **options)

    @property
    def files(self) -> dict[str, bytes]:
        """Output and errors."""
        paths = (self.output, errors_path(self.output))
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    @property
    def record(self) -> Any:
        return json.loads(record_path(self.output).read_text())


@pytest.fixture
def job(tiny: Path, tmp_path: Path) -> Job:
    return Job(tiny, tmp_path)


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a job without interruption."""
    job = Job(tiny, tmp_path_factory.mktemp("whole"))
    result = job.run()
    assert (result.lines, result.failed, result.before) == (40, 4, 0)
    return job.files


def test_good_lines_are_in_the_output_and_failed_ones_in_a_file_of_their_own(whole: dict[str, bytes]) -> None:
    good, failed = ([json.loads(line)["line"] for line in data.splitlines()] for data in whole.values())
    assert list(whole) == ["out.jsonl", "out.errors.jsonl"]
    assert failed == [6, 17, 28, 39]
    assert good == [number for number in range(1, 41) if number not in failed]


def test_line_i_answers_line_i_with_inline_errors(job: Job, whole: dict[str, bytes]) -> None:
    job.run(errors="inline")
    lines = job.files["out.jsonl"].splitlines()
    assert [json.loads(line)["line"] for line in lines] == list(range(1, 41))
    assert sorted(lines) == sorted(b"".join(whole.values()).splitlines())
    assert list(job.files) == ["out.jsonl"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_job_that_was_stopped_continues_with_the_same_bytes(
    name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    job = Job(tiny, tmp_path, name)
    for line in (8, 16, 40):
        job.stop_at(line, monkeypatch)
        with job.output.open("ab") as torn, errors_path(job.output).open("ab") as torn_error:
            torn.write(b'{"line": 9, "te')
            torn_error.write(b'{"li')
        assert job.record["input"]["lines"] == line - 8
    result = job.run()
    assert (result.lines, result.failed, result.before) == (40, 4, 32)
    unpack: Callable[[bytes], bytes] = gzip.decompress if name.endswith(".gz") else bytes
    assert [unpack(data) for data in job.files.values()] == list(whole.values())
    unbroken = Job(tiny, tmp_path / "unbroken", name)
    unbroken.run()
    assert job.files == unbroken.files


def test_a_finished_job_changes_nothing(job: Job) -> None:
    first = job.run()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in job.output.parent.iterdir()}
    again = job.run()
    assert (again.lines, again.failed, again.before) == (first.lines, first.failed, first.lines)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in job.output.parent.iterdir()}


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 7}, "begun with another `seed`: 0, not 7"),
    "slice": ({"slice": 9}, "begun with another `slice`: 8, not 9"),
    "parallel": ({"parallel": 2}, "begun with another `parallel`: 3, not 2"),
    "options": ({"options": {"max_tokens": 3}}, "begun with another `options`"),
    "errors": ({"errors": "inline"}, "begun with another `errors`: file, not inline"),
    "context": ({"ctx_size": 100}, "begun with another `ctx_size`: null, not 100"),
}


def test_what_differs_is_refused_by_its_name(
    job: Job, fragile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    job.options["options"] = {"logit_bias": {5: 1.5}, "stop": ("\0never",)}
    job.run()
    assert job.run().seconds == 0
    del job.options["options"]
    job.stop_at(24, monkeypatch, restart=True)
    before = job.files
    for options, words in DIFFERENT.values():
        with pytest.raises(OutputError, match=words) as caught:
            job.run(**options)
        assert "`restart`" in caught.value.hint
    other = tmp_path / "other" / Path(job.options["model"]).name
    other.parent.mkdir()
    shutil.copy(fragile, other)
    with pytest.raises(OutputError, match="another content of the model"):
        job.run(model=str(other))
    for name, words in {
        "version": "version of dgpt2-quant: 0.0.1, not",
        "llama_cpp": "build of llama.cpp: 0.0.1",
        "instructions": "instruction set: 0.0.1",
    }.items():
        record = job.record
        record_path(job.output).write_text(json.dumps({**record, "job": {**record["job"], name: "0.0.1"}}))
        with pytest.raises(OutputError, match=words):
            job.run()
        record_path(job.output).write_text(json.dumps(record))
    assert job.files == before
    job.run()
    assert job.files == whole


def test_changed_files_are_refused_and_restart_begins_anew(
    job: Job, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    job.stop_at(24, monkeypatch)
    kept = job.input.read_bytes()
    job.input.write_bytes(kept.replace(b"max_tokens", b"min_tokens", 1))
    with pytest.raises(OutputError, match=r"answered 16 lines of .*in.jsonl: they have changed since"):
        job.run()
    job.input.write_bytes(b"".join(kept.splitlines(True)[:3]))
    with pytest.raises(OutputError, match="they have changed"):
        job.run()
    job.input.write_bytes(kept)
    for path in (job.output, errors_path(job.output)):
        data = path.read_bytes()
        path.write_bytes(b"x" + data[1:])
        with pytest.raises(OutputError, match=f"{path.name} has changed since the job wrote it"):
            job.run()
        path.unlink()
        with pytest.raises(OutputError, match=f"{path.name} has changed since the job wrote it"):
            job.run()
        path.write_bytes(data)
    record_path(job.output).write_text("{")
    with pytest.raises(OutputError, match="not the record of a job"):
        job.run()
    job.run(restart=True)
    assert job.files == whole
    with job.input.open("a") as more:
        more.write('{"prompt": "one more"}\n')
    with pytest.raises(OutputError, match="there are more lines now"):
        job.run()


def test_changed_files_of_a_finished_job_are_refused(job: Job) -> None:
    job.run()
    for path in (job.output, errors_path(job.output)):
        data = path.read_bytes()
        for changed in (b"x" + data[1:], data + b"\n", None):
            path.unlink() if changed is None else path.write_bytes(changed)
            kept = job.files
            with pytest.raises(OutputError, match=f"{path.name} has changed since the job wrote it"):
                job.run()
            assert {name: data for name, data in job.files.items() if data} == kept
        path.write_bytes(data)
    record = job.record
    record["input"]["lines"] = "40"
    record_path(job.output).write_text(json.dumps(record))
    with pytest.raises(OutputError, match="not the record of a job"):
        job.run()


def test_a_failure_to_load_the_model_neither_begins_nor_replaces_a_job(job: Job, whole: dict[str, bytes]) -> None:
    with pytest.raises(UsageError, match="`threads` must be"):
        job.run(threads=0)
    assert not job.output.exists()
    job.run()
    with pytest.raises(UsageError, match="`threads` must be"):
        job.run(threads=0, restart=True)
    assert job.files == whole


def test_input_from_stdin_is_not_replaced(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    before = job.input.read_bytes()
    with job.input.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(UsageError, match="which is its `input`"):
            batch("-", job.input, restart=True, **job.options)
    assert job.input.read_bytes() == before


def test_a_file_named_stdin_is_a_file(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(Path("stdin"), LINES[:3])
    assert batch("stdin", job.output, **job.options).lines == 3


def test_an_output_that_was_removed_before_its_lock_is_not_used(tmp_path: Path) -> None:
    file = OutputFile(tmp_path / "out.jsonl")
    file.path.unlink()
    assert not file.lock()
    file.path.touch()
    assert not file.lock()
    file.close()


def test_files_of_others_are_not_replaced(job: Job, tmp_path: Path, whole: dict[str, bytes]) -> None:
    for path in (job.output, errors_path(job.output)):
        path.write_text("mine")
        with pytest.raises(OutputError, match=f"{path.name} already exists, and there is no record"):
            job.run()
        assert path.read_text() == "mine"
        path.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    for name in ("in.jsonl", "in.errors.jsonl"):
        source = write_lines(tmp_path / name, LINES[:2])
        with pytest.raises(UsageError, match="which is its `input`"):
            batch(source, tmp_path / "in.jsonl", **job.options)
    with pytest.raises(OutputError, match="is a folder"):
        batch(job.input, tmp_path, **job.options)
    errors_path(job.output).write_text("mine")
    write_lines(job.input, LINES)
    job.run(restart=True)
    assert job.files == whole


def test_a_second_process_on_the_output_is_refused_with_the_first_ones_number(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.stop_at(16, monkeypatch)
    code = (
        "import sys; from dgpt2_quant.jobs.job_files import JobFiles\n"
        "with JobFiles(sys.argv[1], inline=False, restart=False): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(job.output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        for restart in (False, True):
            with pytest.raises(OutputError, match=rf"is being written by process {os.getpid()} on "):
                job.run(restart=restart)
        other.kill()  # the lock ends with the process
    with JobFiles(job.output, inline=False, restart=False):
        pass


def test_a_full_disk_stops_the_job_and_it_continues(tiny: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    job, disk = Job(tiny, tmp_path), tmp_path / "disk"
    disk.mkdir()
    code = (
        "import sys, os; from pathlib import Path; from dgpt2_quant.jobs.batch import batch\n"
        "from dgpt2_quant.core.errors import OutputError\n"
        "folder, source, model = map(Path, sys.argv[1:])\n"
        "filler = folder / 'filler'\n"
        "def run(): return batch(source, folder / 'out.jsonl', model=str(model), slice=8, parallel=3, threads=1)\n"
        "for size in (64, 60, 44, 0):\n"  # KiB: for the record; for the first slice; for the third
        "    filler.write_bytes(b'x' * 1024 * size)\n"
        "    try: run()\n"
        "    except OutputError as error: print(error.message, '|', error.hint)\n"
        "sys.stdout.flush()\n"
        "os.write(1, (folder / 'out.jsonl').read_bytes())\n"
    )
    mount = 'mount -t tmpfs -o size=64k tmpfs "$0" || exit 77; "$@"'
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(disk)]
    try:
        command = [*inside, sys.executable, "-c", code, str(disk), str(job.input), str(tiny)]
        done = subprocess.run(command, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode in (1, 77) and b"Traceback" not in done.stderr:
        pytest.skip(f"no file system of one's own here: {done.stderr.decode()}")
    failures = done.stdout[: -len(whole["out.jsonl"])].decode().splitlines()
    assert len(failures) == 3, done.stderr
    assert all("the disk is full" in line and "run the same command again: it continues" in line for line in failures)
    assert done.stdout.endswith(whole["out.jsonl"]), done.stderr


def test_lines_that_are_not_utf8_are_errors_of_batch_lines(model: Model) -> None:
    lines: list[Any] = [
        '{"prompt": "\ud800"}',
        {"prompt": "\ud800"},
        MappingProxyType({"task": "score", "text": "the"}),
    ]
    first, second, third = batch_lines(lines, model=model)
    assert [line["error"]["code"] for line in (first, second)] == ["invalid_json"] * 2
    assert third["tokens"] == len(model.tokenize("the"))


def test_batch_lines_is_lazy_and_gives_the_same_answers(job: Job, model: Model, whole: dict[str, bytes]) -> None:
    taken: list[int] = []

    def lines() -> Any:
        for number, line in enumerate(LINES):
            taken.append(number)
            yield (line, json.dumps(line), json.dumps(line).encode())[number % 3]

    answers = batch_lines(lines(), model=job.options["model"], slice=8, parallel=3, threads=1)
    assert not taken
    found = [next(answers)]
    assert len(taken) == 8
    found += answers
    expected = sorted(map(json.loads, b"".join(whole.values()).splitlines()), key=lambda one: one["line"])
    assert found == expected
    assert [one["text"] for one in batch_lines([LINES[0]], model=model)] == [next(iter(expected))["text"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slice": 0}, "`slice` must be an integer, 1 or more, not 0"),
        ({"parallel": 1000}, "`parallel` must be an integer, 1-256, not 1000"),
        ({"seed": -1}, "`seed` must be an integer, 0 or more, not -1"),
        ({"options": {"seed": 3}}, "must not have a seed"),
        ({"options": {"max_tokens": "sixty"}}, "`max_tokens` must be an integer"),
        ({"options": {"logit_bias": {"the": 1}}}, "`logit_bias` must map token ids"),
        ({"options": {"max_tokns": 3}}, "has no `max_tokns`"),
        ({"options": {"temperature": -1}}, "`temperature` must be 0 to 100"),
        ({"ctx_size": 0}, "`ctx_size` must be an integer, 1 or more"),
        ({"max_line": 0}, "`max_line` must be an integer, 1 or more"),
        ({"errors": "nowhere"}, "`errors` must be file or inline, not nowhere"),
    ],
)
def test_wrong_arguments_are_refused_before_a_file_is_created(job: Job, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        job.run(**options)
    if words.startswith(("`max_tokens`", "`logit_bias`")):  # which the model checks
        with pytest.raises(UsageError, match=words):
            next(batch_lines([LINES[0]], **{**job.options, **options}))
    elif "errors" not in options:
        with pytest.raises(UsageError, match=words):
            batch_lines([], model="none.gguf", **options)
    with pytest.raises(DgptQuantError):
        job.run(model="none.gguf")
    assert not job.output.exists()
