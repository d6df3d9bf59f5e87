"""Options of `run` that llama.cpp has too: its meaning, or a clear refusal, or a note."""

import json
from pathlib import Path
from typing import Any

import pytest

from .program import run_bytes as dgpt2


@pytest.fixture
def model(storybook_files: dict[str, Path]) -> Path:
    return storybook_files["Q8_0"]


def answer(*arguments: str | Path, **options: Any) -> Any:
    done = dgpt2("run", *arguments, "--json", **options)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_seed_minus_1_is_random(model: Path) -> None:
    assert len({answer("x", "-m", model, "-n", "1", "--seed", "-1")["seed"] for _ in range(3)}) == 3


def test_escapes_are_read_as_in_llama_cpp(model: Path) -> None:
    done = dgpt2("run", "a\\nb", "-m", model, "-n", "1", "--json")
    assert json.loads(done.stdout)["prompt"] == "a\nb"
    assert b"--no-escape" in done.stderr
    assert answer("a\\nb", "-m", model, "-n", "1", "--no-escape")["prompt"] == "a\\nb"
    assert answer("-", "-m", model, "-n", "1", stdin=b"a\\nb")["prompt"] == "a\\nb"
    forced = ("x", "-m", model, "-n", "9", "--grammar-file")
    grammar = model.with_name("lines.gbnf")
    grammar.write_text(r'root ::= "a\nb" "\\n"')
    assert answer(*forced, grammar, "--stop", r"\n")["sequences"][0]["text"] == "a"
    assert answer(*forced, grammar, "--stop", r"\n", "--no-escape")["sequences"][0]["text"] == "a\nb"


def test_minus_1_token_is_to_the_end_of_the_context(model: Path) -> None:
    [found] = answer("king " * 490, "-m", model, "-n", "-1", "--ignore-eos")["sequences"]
    assert found["finish_reason"] == "length"
    assert found["tokens"] > 9


def test_tokens_come_with_ids_and_bytes(model: Path) -> None:
    grammar = model.with_name("emoji.gbnf")
    grammar.write_text('root ::= "😀"', "utf-8")
    [found] = answer("x", "-m", model, "-n", "9", "--logprobs", "1", "--grammar-file", grammar)["sequences"]
    assert b"".join(bytes(entry["bytes"]) for entry in found["logprobs"]).decode() == found["text"] == "😀"
    assert all(entry["token"] >= 0 and {"text", "logprob", "bytes"} <= set(entry) for entry in found["logprobs"])
    assert all({"token", "text", "bytes", "logprob"} == set(top) for entry in found["logprobs"] for top in entry["top"])


def test_a_special_token_stops_and_is_shown(model: Path) -> None:
    call = ("x", "-m", model, "-n", "9", "--temperature", "0", "--special", "--grammar-file")
    grammar = model.with_name("end.gbnf")
    grammar.write_text('root ::= "a"')
    assert answer(*call, grammar)["sequences"][0]["text"] == "a<|endoftext|>"
    assert answer(*call, grammar, "--stop", "<|endoftext|>")["sequences"][0]["finish_reason"] == "stop"
    token = answer(*call, grammar, "--logprobs", "0")["sequences"][0]["logprobs"][0]["token"]
    assert answer(*call, grammar, "--stop-token-id", str(token))["sequences"][0]["text"] == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--logprobs", "2"), "--logprobs needs --json"),
        (("--seed", "-2"), "--seed must be a whole number, 0 or more, or -1 for a random one, not -2"),
        (("--stop", ""), "each text of --stop must be a str"),
        (("--stop-token-id", "99999"), "99999"),
        (("--grammar-file", "/dev/null"), "is empty"),
        (("--repeat-penalty", "0"), "--repeat-penalty must be 0.01 to 100, not 0"),
    ],
    ids=str,
)
def test_options_without_effect_are_refused(arguments: tuple[str, ...], says: str, model: Path) -> None:
    done = dgpt2("run", "x", "-m", model, "-n", "1", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--ctx-size", "4096"), "--ctx-size 4096 is more than this model's 512 positions"),
        (("--mirostat-tau", "3"), "--mirostat-tau has no effect without --mirostat 2"),
        (("--repeat-last-n", "9"), "--repeat-last-n has no effect without a penalty"),
        (("--lookup", "3", "--num-return-sequences", "2"), "--lookup has no effect without a single text"),
    ],
    ids=str,
)
def test_options_without_effect_are_reported(arguments: tuple[str, ...], says: str, model: Path) -> None:
    done = dgpt2("run", "x", "-m", model, "-n", "1", *arguments)
    assert done.returncode == 0
    assert says in done.stderr.decode()
