"""The documents: examples in Python and with `storybook` run, command lines are parsed, tools and files exist.

A block of Python that cannot run here has a comment with the reason before it: `<!-- not run: downloads -->`.
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import typer
from dgpt2_quant.cli.main import VERBS, app
from dgpt2_quant.core.quant_types import find_types

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOOLS = sorted((ROOT / "tools").glob("*.py"))


class Example(NamedTuple):
    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def python_blocks(page: Path) -> Iterator[Example]:
    """Those that are to be run."""
    text = page.read_text("utf-8")
    for match in re.finditer(r"^(<!-- not run: .+ -->\n+)?```python\n(.*?)^```$", text, re.M | re.S):
        if not match[1]:
            yield Example(page, text[: match.start(2)].count("\n") + 1, match[2])


def code_lines(page: Path) -> Iterator[Example]:
    """The lines of code blocks, fenced or indented, continued ones as one; and code within a line."""
    fenced, before = False, ""
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            before += line.strip()
            if before.endswith("\\"):
                before = before[:-1]
            else:
                yield Example(page, number, before)
                before = ""
        else:
            yield from (Example(page, number, code) for code in re.findall(r"`(dgpt2-quant [^`]+)`", line))


def calls() -> Iterator[tuple[Example, list[str]]]:
    """Every call of the program in the documents, with its arguments."""
    for page in PAGES:
        for example in code_lines(page) if page.name != "cli.md" else ():  # generated, its lines wrapped
            if found := re.search(r"(?:^|[\s/(;|])dgpt2-quant (?!\d)(.*)", example.text):
                yield example, arguments(found[1])
    for name, verb in VERBS.items():
        for found in re.finditer(r"Example: dgpt2-quant (.*)", verb.__doc__ or ""):
            yield Example(ROOT / "docs" / "cli.md", 0, name), arguments(found[1])


def arguments(line: str) -> list[str]:
    """A shell's words, up to a sign that ends the command or redirects; what may be left out is there, once."""
    words = shlex.shlex(re.sub(r"[][]|\s\.\.\.", "", line), posix=True, punctuation_chars="|&;<>()")
    words.whitespace_split = True
    found = []
    for word in words:
        if set(word) <= set("|&;<>()"):
            break
        found.append(word)
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if any(python_blocks(page))], ids=lambda page: page.name)
def test_python_examples_run(page: Path, tmp_path: Path) -> None:
    """Each by itself, in the order of the page, with the files of those before it."""
    for example in python_blocks(page):
        command = [sys.executable, "-c", "\n" * (example.line - 1) + example.text]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{example}\n{done.stderr}"


def shell_lines(page: Path) -> Iterator[Example]:
    """The lines of code blocks that use `storybook` and no file of the reader's."""
    for example in code_lines(page):
        line = example.text.split("#")[0]
        foreign = re.search(r"\b[A-Z]{3,}\b|(?<!-o )(?<![\w./-])(?!storybook)[\w./-]+\.(gguf|txt|jsonl?|tgz)\b", line)
        serves = "dgpt2-quant serve" in line  # until it is stopped; tests/cli/test_serve.py does
        if re.match(r"(echo .*\| )?dgpt2-quant .*storybook", line) and not foreign and not serves:
            yield example


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(shell_lines(page))], ids=lambda page: page.name)
def test_shell_examples_run(page: Path, tmp_path: Path) -> None:
    """In the order of the page, in one folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for example in shell_lines(page):
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", example.text],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{example}: {example.text}\n{done.stderr}"


@pytest.mark.parametrize("call", list(calls()), ids=lambda call: f"{call[0]} {' '.join(call[1][:1])}")
def test_command_lines_are_understood(call: tuple[Example, list[str]]) -> None:
    """Its verb and its flags exist and take such values; it is not called."""
    example, (verb, *words) = call
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group | typer.core.TyperGroup)
    with group.make_context("dgpt2-quant", [verb], resilient_parsing=True) as context:
        if verb in ("-h", "--help", "--version"):
            return
        command = group.get_command(context, verb)
        assert command, f"{example}: there is no verb {verb}"
        if not words:  # only named
            return
        try:
            parameters = command.make_context(verb, words, parent=context).params
        except click.exceptions.Exit:  # --help
            return
        except Exception as error:
            raise AssertionError(f"{example}: dgpt2-quant {shlex.join([verb, *words])}: {error}") from error
        types = parameters.get("type") or ()
        find_types([name for name in ([types] if isinstance(types, str) else types) if name != "TYPE"])


def test_what_the_documents_name_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for page in PAGES:
        text = page.read_text("utf-8")
        for tool in re.findall(r"tools/\w+\.py", text):
            assert (ROOT / tool).is_file(), f"{page.name} names {tool}"
        for target in re.findall(r"`make ([a-z-]+)`", text):
            assert target in targets, f"{page.name} names make {target}"


def test_tools_can_be_imported_and_explain_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/tools` runs them, which takes minutes."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    for tool in TOOLS:
        found = runpy.run_path(str(tool))
        assert "main" not in found or f"usage: {tool.name}" in found["__doc__"], tool.name
