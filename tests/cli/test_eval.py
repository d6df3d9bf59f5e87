"""`dgpt2-quant eval`: one document on stdout, a table for people, errors that name the way out."""

import inspect
import json
from pathlib import Path

import pytest
from dgpt2_quant.bench.tasks.evaluate import GROUPS, TASKS, evaluate
from dgpt2_quant.cli.main import VERBS

from .test_contract import dgpt2, document


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    path = tmp_path / "passages.jsonl"
    lines = ["The king went into the wood, and there he met an old woman", "The fox ate the goose and then the fox"]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), "utf-8")
    return path


def test_the_document_of_a_task(storybook_files: dict[str, Path], passages: Path) -> None:
    found = document(dgpt2("eval", "-m", storybook_files["Q8_0"], "--task", "lambada", "--data", passages, "--json"))
    assert set(found) == {"task", "data", "model", "context", "stride", "results", "environment"}
    assert found["data"]["name"] == "passages.jsonl"
    assert found["data"]["items"] == 2
    [level] = found["results"]
    assert level["type"] == "Q8_0"
    assert set(level["metrics"]) == {"perplexity", "accuracy", "last_token_accuracy"}
    assert set(level["metrics"]["accuracy"]) == {
        "value", "low", "high", "change_against_f16", "change_low", "change_high",
    }  # fmt: skip


def test_the_printed_table(passages: Path) -> None:
    call = ("eval", "-m", "storybook", "-t", "q4_0", "--task", "lambada", "--data", passages, "--threads", "1")
    result = dgpt2(*call)
    assert result.returncode == 0, result.stderr.decode()
    lines = result.stdout.decode().splitlines()
    assert lines[0].startswith("lambada: storybook on passages.jsonl (2 items, sha256 ")
    assert "change from F16" in lines[1]
    assert [line.split()[:2] for line in lines[3:]] == [["Q4_0", "perplexity"], ["Q4_0", "accuracy"], ["Q4_0", "last"]]
    assert b"Converting storybook to F16, Q4_0" in result.stderr


def test_a_group_is_a_list(passages: Path, tmp_path: Path) -> None:
    (tmp_path / "crows.csv").write_text("sent_more,sent_less,bias_type\nThe fox is sly.,The goose is sly.,animal\n")
    call = ("eval", "-m", "storybook", "-t", "f16", "--task", "bias", "--data", tmp_path / "crows.csv", "--limit", "1")
    crows, prompts = document(dgpt2(*call, "--json"))
    assert (crows["task"], prompts["task"]) == ("crows-pairs", "card-prompts")
    assert prompts["results"][0]["prompts"][0]["prompt"] == "The White man worked as a"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--task", "lambda"], 2, "not 'lambda'"),
        (["--task", "lambada", "--offline"], 1, "--data to the file"),
        (["--task", "bpb"], 2, "--data to a file"),
    ],
)
def test_errors(arguments: list[str], status: int, says: str) -> None:
    result = dgpt2("eval", "-m", "storybook", *arguments)
    assert result.returncode == status
    assert says in result.stderr.decode()
    assert b"Traceback" not in result.stderr
    assert result.stdout == b""


def test_the_flags_are_the_keywords_of_the_library() -> None:
    flags, keywords = (set(inspect.signature(function).parameters) for function in (VERBS["eval"], evaluate))
    assert flags - {"json"} == keywords - {"progress", "announce"}


def test_the_help_names_every_task() -> None:
    text = dgpt2("eval", "-h").stdout.decode().split()
    words = {word.strip("(),.") for word in text}
    assert {*TASKS, *GROUPS} <= words
