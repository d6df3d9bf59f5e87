"""`dgpt2-quant classify`: labels for people and scripts, and errors that name the way out."""

from pathlib import Path

import pytest
from dgpt2_quant.quantize.convert import convert

from ..classifiers import make_classifier
from .test_contract import dgpt2, document


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("classifiers")
    labels = {"text": ("joy", "anger\n", "fear"), "token": ("B-PER", "I-PER"), "choice": ("LABEL_0",)}
    found = {}
    for kind, names in labels.items():
        (file,) = convert(str(make_classifier(folder / kind, kind, names)), type=["f16"], output=folder)
        found[kind] = Path(file.path)
    return found


def table(*call: object, stdin: bytes = b"") -> list[list[str]]:
    done = dgpt2("classify", *call, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return [line.split() for line in done.stdout.decode().splitlines()]


def test_a_single_text_gets_all_labels(files: dict[str, Path]) -> None:
    head, _, *rows = table("the hat", "-m", files["text"])
    assert head == ["label", "score"]
    assert sorted(label for label, _ in rows) == ["anger", "fear", "joy"]
    scores = [float(score) for _, score in rows]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-3)


def test_several_texts_get_the_best_label(files: dict[str, Path]) -> None:
    given = table("the hat", "an inn", "-m", files["text"])
    assert given[0] == ["label", "score", "text"]
    assert [row[2:] for row in given[2:]] == [["the", "hat"], ["an", "inn"]]
    assert table("--lines", "-", "-m", files["text"], stdin=b"\xef\xbb\xbfthe hat\r\n\r\nan inn\r\n") == given


def test_tokens_get_spans(files: dict[str, Path]) -> None:
    head, _, *rows = table("the hat", "-m", files["token"])
    assert head == ["label", "score", "start", "end", "text"]
    assert {row[0] for row in rows} == {"PER"}


def test_the_document(files: dict[str, Path]) -> None:
    found = document(dgpt2("classify", "-", "-m", files["text"], "--json", stdin=b"the hat\n"))
    assert (found["model"], found["type"], found["head"]) == ("text.F16", "F16", "text")
    (result,) = found["results"]
    assert set(result) == {"text", "tokens", "truncated", "label", "score", "scores"}
    assert result["text"] == "the hat"
    assert result["score"] == max(one["score"] for one in result["scores"])
    choices = document(dgpt2("classify", "the hat", "an inn", "-m", files["choice"], "--json"))["results"]
    assert [one["text"] for one in choices] == [["the hat", "an inn"]]
    spans = document(dgpt2("classify", "the hat", "-m", files["token"], "--json"))["results"][0]["spans"]
    assert set(spans[0]) == {"label", "score", "start", "end", "text"}


def test_a_text_that_is_cut_is_noted(files: dict[str, Path]) -> None:
    done = dgpt2("classify", "the " * 99, "an inn", "-m", files["text"], "--truncate")
    assert b"1 of 2 texts have more than 64 tokens; their ends are ignored." in done.stderr
    assert document(dgpt2("classify", "the " * 99, "-m", files["text"], "--truncate", "--json"))["results"][0][
        "truncated"
    ]


def test_run_names_the_verb_for_a_classifier(files: dict[str, Path]) -> None:
    done = dgpt2("run", "the", "-m", files["text"], "-n", "2", "--seed", "1")
    assert done.returncode == 0
    assert b"`dgpt2-quant classify` uses its head" in done.stderr


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        (["the hat"], 2, b"Missing option '--model'"),
        (["-m", "text"], 2, b"classify needs texts or --lines"),
        (["the hat", "--lines", "x.txt", "-m", "text"], 2, b"classify needs texts or --lines"),
        (["the " * 99, "-m", "text"], 2, b"Set --truncate to ignore the end of it."),
        (["", "-m", "text"], 2, b"at least 1 token"),
        (["one", "-m", "choice"], 2, b"not a list of two or more"),
        (["the hat", "-m", "none.gguf"], 1, b"there is no file none.gguf"),
    ],
)
def test_errors(call: list[str], status: int, message: bytes, files: dict[str, Path]) -> None:
    done = dgpt2("classify", *(files.get(word, word) for word in call))
    assert done.returncode == status, done.stderr.decode()
    assert message in done.stderr
    assert done.stdout == b""


def test_inspect_lists_the_labels(files: dict[str, Path]) -> None:
    shown = dgpt2("inspect", files["text"]).stdout.decode().splitlines()
    assert "head           classifies texts, single_label_classification" in shown
    assert r"labels         joy, 'anger\n', fear" in shown


def test_a_language_model_has_no_labels(storybook_files: dict[str, Path]) -> None:
    done = dgpt2("classify", "the hat", "-m", storybook_files["Q8_0"])
    assert b"has no classification head" in done.stderr
    assert done.returncode == 2
