"""Texts and data from a file, a FIFO, a pipe, stdin, plain or packed: the same numbers in every verb."""

import gzip
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer.main
from dgpt2_quant.bench.bench import bench
from dgpt2_quant.bench.perplexity import perplexity
from dgpt2_quant.bench.tasks.evaluate import evaluate
from dgpt2_quant.cli.main import app
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.calibration.imatrix_file import read_importance
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model
from typer.core import TyperGroup, TyperOption
from typer.testing import CliRunner

from ..bench.data.test_datasets import tarred
from ..bench.tasks.test_cbt import FILE as CBT_FILE
from ..checkpoints import END_OF_TEXT, make_checkpoint
from .program import TOOL
from .test_contract import dgpt2, document

TEXT = load_text().text[:9000].encode()
SHA256 = hashlib.sha256(TEXT).hexdigest()
Pipe = Callable[[str, bytes], Path]


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    """Makes a FIFO that a thread writes a content to, once."""
    (tmp_path / "pipe").mkdir()
    with ThreadPoolExecutor(4) as writers:
        written = []

        def make(name: str, content: bytes) -> Path:
            path = tmp_path / "pipe" / name
            os.mkfifo(path)
            written.append(writers.submit(path.write_bytes, content))
            return path

        yield make
        for path in (tmp_path / "pipe").iterdir():  # a writer without a reader would wait for ever
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        with suppress(BrokenPipeError):
            for one in written:
                one.result(timeout=60)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tale.txt").write_bytes(TEXT)
    return tmp_path / "tale.txt"


def without_speed(found: Any) -> Any:
    return {key: value for key, value in found.items() if key != "tps"}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("way", ["file", "fifo", "-", "/dev/stdin", "pipe"])
def test_perplexity_is_the_same_from_everywhere(
    way: str, packed: bool, file: Path, pipe: Pipe, tmp_path: Path, short_files: dict[str, Path]
) -> None:
    model = short_files["Q4_0"]
    right = perplexity(str(model), text=file, threads=1)
    assert right["text"] == {"name": "tale.txt", "sha256": SHA256, "tokens": 2321, "parse_special": True, "notes": []}
    name, content = ("tale.txt.gz", gzip.compress(TEXT)) if packed else ("tale.txt", TEXT)
    text: str | Path = way if way in ("-", "/dev/stdin") else tmp_path / name
    if way == "file":
        (tmp_path / name).write_bytes(content)
    elif way == "fifo":
        text = pipe(name, content)
    call = ("perplexity", "-m", model, "--threads", "1", "--json", "--text")
    if way == "pipe":  # more than a pipe holds, and nobody can seek in it
        done = subprocess.run([TOOL, *map(str, call), "-"], input=content, capture_output=True, check=False)
    else:
        done = dgpt2(*call, text, stdin=content)
    found = without_speed(document(done))
    assert found["text"].pop("name") == ("stdin" if way in ("-", "/dev/stdin", "pipe") else "tale.txt")
    del right["text"]["name"]  # type: ignore[misc]
    assert found == without_speed(right) | {"model": found["model"]}


def test_imatrix_and_calibrate_take_a_pipe(file: Path, pipe: Pipe, tmp_path: Path) -> None:
    for name, text in (("file", file), ("pipe", pipe("tale.txt", TEXT))):
        done = dgpt2("imatrix", "storybook", "--text", text, "--chunks", "1", "-o", tmp_path / f"{name}.gguf")
        assert done.returncode == 0, done.stderr
    one, other = (read_importance(tmp_path / f"{name}.gguf") for name in ("file", "pipe"))
    assert one.sha256 == other.sha256
    assert one.chunk_count == 1
    [right] = convert("storybook", type="q4_0", calibrate=file, output=tmp_path / "right.gguf")
    call = ("convert", "storybook", "-t", "q4_0", "--calibrate", "-", "--json", "-o", tmp_path / "found.gguf")
    [found] = document(dgpt2(*call, stdin=gzip.compress(TEXT)))
    assert right.tensors == found["tensors"]
    tail = -right.plan.data_bytes  # the name of the text is in the head
    assert (tmp_path / "right.gguf").read_bytes()[tail:] == (tmp_path / "found.gguf").read_bytes()[tail:]


def test_bench_takes_a_pipe(file: Path, pipe: Pipe, tmp_path: Path) -> None:
    model = str(make_checkpoint(tmp_path / "tiny", layers=1, context=512))
    no_grid = {"prompt_sizes": (), "depths": (), "batches": (), "thread_counts": ()}
    found = bench(model, type="q8_0", text=pipe("tale.txt", TEXT), rounds=1, threads=1, **no_grid)
    right = perplexity(model, type="f32", text=file, threads=1)
    text: Any = found["text"]
    assert {key: text[key] for key in right["text"]} == right["text"]
    assert found["reference"]["perplexity"] == pytest.approx(right["perplexity"], rel=1e-6)


def test_eval_takes_a_pipe(pipe: Pipe, tmp_path: Path, short_files: dict[str, Path]) -> None:
    passages = ("The fox ate the goose and then the fox", "The king met an old woman")
    lines = "".join(json.dumps({"text": passage}) + "\r\n" for passage in passages)
    (tmp_path / "l.jsonl").write_text(lines)
    model = str(short_files["Q4_0"])
    [right] = evaluate(model, task="lambada", data=tmp_path / "l.jsonl")
    [piped] = evaluate(model, task="lambada", data=pipe("l.jsonl.gz", gzip.compress(lines.encode())))
    assert (piped["data"], piped["results"]) == (right["data"], right["results"])
    call = ("eval", "-m", model, "--task", "lambada", "--json", "--data", "-")
    assert document(dgpt2(*call, stdin=lines.encode()))["results"] == right["results"]


def test_a_group_of_tasks_reads_its_archive_once(pipe: Pipe, tmp_path: Path, short_files: dict[str, Path]) -> None:
    names = ("cbtest_CN_test_2500ex.txt", "cbtest_NE_test_2500ex.txt")
    archive = tarred(tmp_path / "a.tgz", dict.fromkeys(names, CBT_FILE.content))
    found = evaluate(str(short_files["Q4_0"]), task="cbt", data=pipe("a.tgz", archive.read_bytes()), limit=1)
    assert [one["data"]["name"] for one in found] == list(names)


def test_a_file_that_the_user_named_is_not_to_be_downloaded_again(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl.gz").write_bytes(gzip.compress(os.urandom(500))[:300])
    done = dgpt2("eval", "-m", "storybook", "--task", "lambada", "--data", tmp_path / "l.jsonl.gz")
    assert done.returncode == 2
    assert b"l.jsonl.gz is a broken gzip file" in done.stderr
    assert b"ownload" not in done.stderr


@pytest.mark.parametrize("parse_special", [True, False])
def test_special_tokens_are_those_of_model_score_or_letters(
    parse_special: bool, tmp_path: Path, short_files: dict[str, Path]
) -> None:
    text = END_OF_TEXT.join(["Once upon a time there was a king. ", "The fox ate the goose. "] * 5)
    (tmp_path / "documents.txt").write_text(text)
    with Model.load(short_files["Q4_0"], threads=1) as model:
        tokens = model.tokenize(text, special=parse_special)
        nll = -model.score(tokens)[1:].mean()
    flags = [] if parse_special else ["--no-parse-special"]
    call = ("perplexity", "-m", short_files["Q4_0"], "--text", tmp_path / "documents.txt", "--method", "strided")
    done = dgpt2(*call, "--per-token", tmp_path / "tokens.jsonl", "--json", *flags)
    found = document(done)
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    assert (found["text"]["tokens"], found["text"]["parse_special"]) == (len(tokens), parse_special)
    [note] = found["text"]["notes"]
    assert done.stderr.decode() == f"{note}\n"
    assert f"9 special tokens (<|endoftext|>), read as {'tokens' if parse_special else 'letters'}" in note
    lines = [json.loads(line)["text"] for line in (tmp_path / "tokens.jsonl").read_text("utf-8").splitlines()]
    assert lines.count(END_OF_TEXT) == (9 if parse_special else 0)
    assert text.endswith("".join(lines))


def test_bits_per_byte_count_the_bytes_of_special_tokens(tmp_path: Path, short_files: dict[str, Path]) -> None:
    text = END_OF_TEXT.join(["Once upon a time there was a king. ", "The fox ate the goose. "])
    (tmp_path / "documents.txt").write_text(text)
    with Model.load(short_files["Q4_0"], threads=1) as model:
        nats = -model.score(END_OF_TEXT + text)[1:].sum()
    [found] = evaluate(str(short_files["Q4_0"]), task="bpb", data=tmp_path / "documents.txt")
    for name in ("bits_per_byte", "bits_per_character"):
        assert found["results"][0]["metrics"][name]["value"] == pytest.approx(nats / len(text) / 0.6931472, rel=1e-5)


def test_a_crlf_copy_has_the_perplexity_of_the_text(file: Path, tmp_path: Path, short_files: dict[str, Path]) -> None:
    right = perplexity(str(short_files["Q4_0"]), text=file, threads=1)
    (tmp_path / "crlf.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.replace(b"\n", b"\r\n"))
    call = ("perplexity", "-m", short_files["Q4_0"], "--threads", "1", "--text", tmp_path / "crlf.txt", "--json")
    done = dgpt2(*call)
    assert document(done)["perplexity"] == right["perplexity"]
    assert f"{TEXT.count(10)} CRLF line ends, read as LF" in done.stderr.decode()
    assert "byte order mark" in done.stderr.decode()
    assert document(dgpt2(*call, "--keep-crlf"))["text"]["tokens"] > right["text"]["tokens"]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_prompt_on_stdin_loses_its_last_line_end(end: bytes, short_files: dict[str, Path]) -> None:
    call = ("run", "-", "-m", short_files["Q4_0"], "-n", "1", "--json")
    done = dgpt2(*call, stdin=b"one\r\ntwo" + end)
    assert document(done)["prompt"] == "one\ntwo"
    assert b"1 CRLF line end, read as LF" in done.stderr
    assert document(dgpt2(*call, stdin=b"two" + end))["prompt"] == "two"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["run", "-", "--grammar-file", "-"], 2, "stdin (`-`) was already read"),
        (["run", "-", "--grammar-file", "/dev/stdin"], 2, "stdin (`-`) was already read"),
        (["perplexity", "--per-token", "-"], 2, "--per-token must be a file"),
        (["bench", "--per-token", "-"], 2, "--per-token must be a file"),
        (["imatrix", "--text", "-", "-o", "-"], 2, "cannot be written to stdout"),
        (["perplexity", "--text", "/dev/zero"], 2, "/dev/zero is binary"),
        (["perplexity", "--text", "/"], 1, "cannot read the text '/': Is a directory"),
        (["eval", "--task", "bpb", "--data", "/dev/zero"], 2, "/dev/zero is binary"),
    ],
)
def test_what_cannot_be(arguments: list[str], status: int, says: str, tmp_path: Path) -> None:
    done = dgpt2(
        *arguments, *(["storybook"] if arguments[0] == "imatrix" else ["-m", "storybook"]), stdin=b'root ::= "a"'
    )
    assert (done.returncode, done.stdout) == (status, b"")
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_stdin_that_is_closed_or_empty() -> None:
    call = [TOOL, "perplexity", "-m", "storybook", "--text", "-"]
    closed = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *call], capture_output=True, check=False)
    assert (closed.returncode, b"cannot read stdin: it is closed" in closed.stderr) == (1, True)
    assert b"the text stdin is empty" in dgpt2(*call[1:]).stderr


def test_a_terminal_is_waited_for_with_a_note() -> None:
    ours, theirs = os.openpty()
    os.write(ours, b"The end.\n\x04")
    call = [TOOL, "perplexity", "-m", "storybook", "-t", "f32", "--text", "-"]
    done = subprocess.run(call, stdin=theirs, capture_output=True, check=False, timeout=60)
    os.close(theirs)
    os.close(ours)
    assert done.stderr.startswith(b"Reading the text from the terminal; end it with Ctrl-D")
    assert b"the text has 4 tokens" in done.stderr


def test_paths_take_a_tilde(file: Path, tmp_path: Path, short_files: dict[str, Path]) -> None:
    call = ("perplexity", "-m", short_files["Q4_0"], "--threads", "1", "--text", "~/tale.txt")
    assert dgpt2(*call, "--per-token", "~/tokens.jsonl", HOME=str(tmp_path)).returncode == 0
    assert (tmp_path / "tokens.jsonl").stat().st_size


def options() -> list[tuple[str, str, bool]]:
    """(verb, option, whether one value is all that it takes)."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return [
        (verb, param.opts[0], not param.multiple)
        for verb, command in group.commands.items()
        for param in command.params
        if isinstance(param, TyperOption) and not param.is_flag
    ]


def test_an_option_of_one_value_is_not_given_twice() -> None:
    for verb, option, single in options():
        done = CliRunner().invoke(app, [verb, option, "1", option, "2"])
        assert (f"{option} was given 2 times" in done.output) == single, (verb, option)
        assert done.exit_code == 2 or not single
    assert len(options()) > 80
