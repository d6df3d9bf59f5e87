"""What the documents show works: examples in Python run, command lines are understood, tools and files are there.

A block of Python that cannot run here has a comment with the reason before it: `<!-- not run: downloads -->`.
"""

import json
import re
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
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for page in PAGES:
        text = page.read_text("utf-8")
        for tool in re.findall(r"tools/\w+\.py", text):
            assert (ROOT / tool).is_file(), f"{page.name} names {tool}"
        for target in re.findall(r"`make ([a-z]+)`", text):
            assert target in targets, f"{page.name} names make {target}"


# What they import, they find imported: one process does it for all. Each then runs in a child of its own.
RUN_TOOLS = """
import contextlib, io, json, os, runpy, sys
import dgpt2_quant.bench.bench, dgpt2_quant.bench.report.write_report
import dgpt2_quant.cli.main, dgpt2_quant.quantize.convert
import typer.testing
for call in json.loads(sys.argv[1]):
    ours, theirs = os.pipe()
    if not os.fork():
        os.dup2(theirs, 1), os.dup2(theirs, 2)
        sys.argv = call
        sys.path[0] = os.path.dirname(call[0])
        runpy.run_path(call[0], run_name="__main__")
        sys.exit()
    os.close(theirs)
    with open(ours) as file:
        said = file.read()
    print(json.dumps([call, os.waitstatus_to_exitcode(os.wait()[1]), said]), flush=True)
"""


def test_tools_explain_themselves(tmp_path: Path) -> None:
    """A module that others import only has to be imported."""
    calls = [[str(tool), "--help"] for tool in TOOLS]
    calls.append([str(ROOT / "tools" / "agreement.py"), "1"])  # what a document cites
    done = subprocess.run(
        [sys.executable, "-c", RUN_TOOLS, json.dumps(calls)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [call for call, _, _ in answers] == calls
    for (tool, argument), status, said in answers:
        assert status == 0, f"{tool} {argument}\n{said}"
        if argument == "--help" and 'if __name__ == "__main__"' in Path(tool).read_text("utf-8"):
            assert said.startswith("usage: "), tool
    assert json.loads(answers[-1][2].splitlines()[-1])["llama.cpp"]["kld_mean"] < 1e-4
    assert list(tmp_path.iterdir()) == []
