"""`dgpt2-quant classify`: labels texts with a model's classification head."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import (
    JsonOption,
    ModelOption,
    OfflineOption,
    RevisionOption,
    ThreadsOrAutoOption,
    TypeOption,
    read_prompt,
    thread_count,
)
from .output import note, print_json, print_table
from .progress import progress_bar

if TYPE_CHECKING:
    from dgpt2_quant.runtime import Classification

_SHOWN = 60  # characters of a text in a table


def classify(
    model: ModelOption,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...|-", help="Texts; - reads one from stdin.")
    ] = None,
    type: TypeOption = None,
    lines: Annotated[
        str | None, typer.Option("--lines", metavar="FILE|-", help="Classify each line of this file, or of stdin.")
    ] = None,
    aggregation: Annotated[
        Literal["simple", "none"],
        typer.Option(help="For a model that labels tokens: join neighbours with the same label, or list each token."),
    ] = "simple",
    truncate: Annotated[bool, typer.Option("--truncate", help="Ignore the end of a text that is too long.")] = False,
    threads: ThreadsOrAutoOption = "auto",
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
) -> None:
    """Label texts with a model's classification head.

    Prints all labels of a single text, or the best label of each of several. A model that labels tokens prints spans;
    one for multiple choice compares the texts with each other. docs/runtime.md describes the scores.

    Example: dgpt2-quant classify "I could not be happier" -m my-emotion-model
    """
    from dgpt2_quant.core.errors import UsageError
    from dgpt2_quant.quantize.store.converted_models import model_file
    from dgpt2_quant.runtime import Model

    count = thread_count(threads)
    if bool(texts) == (lines is not None):
        raise UsageError(
            "classify needs texts or --lines, not both", 'For example: `dgpt2-quant classify "I am happy" -m MODEL`.'
        )
    given = [read_prompt(text) for text in texts or ()] if lines is None else _read_lines(lines)
    with progress_bar() as progress:
        name, path = model_file(model, type=type, revision=revision, offline=offline, progress=progress, announce=note)
    with Model.load(path, threads=count) as loaded:
        kind = loaded.head.kind if loaded.head else None
        asked: list[Any] = [given] if kind == "choice" else list(given)
        with progress_bar() as progress:
            found = []
            for number, text in enumerate(asked, 1):
                found += loaded.classify([text], truncate=truncate, aggregation=aggregation)
                progress(number, len(asked), "classify")
        if cut := sum(one.truncated for one in found):
            note(f"{cut} of {len(found)} texts have more than {loaded.positions} tokens; their ends are ignored.")
        quant_type = loaded.quant_type
    if json:
        results = [{"text": text, **one.to_json()} for text, one in zip(asked, found, strict=True)]
        print_json({"model": name, "type": quant_type, "head": kind, "results": results})
    elif kind == "token":
        _print_spans(given, found)
    elif len(found) == 1:
        ranked = sorted(found[0].scores, key=lambda one: -one.logit)
        print_table(["label", "score"], [[_shown(one.label), f"{one.score:.4f}"] for one in ranked])
    else:
        best = [(one.best, text) for text, one in zip(given, found, strict=True)]
        rows = [[_shown(one.label), f"{one.score:.4f}", _shown(text)] for one, text in best]
        print_table(["label", "score", "text"], rows)


def _read_lines(path: str) -> list[str]:
    """The lines that are not empty."""
    from dgpt2_quant.core.errors import UsageError
    from dgpt2_quant.core.read_input import read_input
    from dgpt2_quant.core.text import as_text

    text = as_text(read_input(path, announce=note).file()).announced(note).text
    found = [line for line in text.split("\n") if line.strip()]
    if not found:
        raise UsageError(f"{path} has no text", "Write one text on each line.")
    return found


def _print_spans(texts: Sequence[str], found: Sequence["Classification"]) -> None:
    for number, (text, one) in enumerate(zip(texts, found, strict=True)):
        if len(texts) > 1:
            typer.echo(("\n" if number else "") + _shown(text))
        rows = [[_shown(s.label), f"{s.score:.4f}", str(s.start), str(s.end), _shown(s.text)] for s in one.spans]
        if rows:
            print_table(["label", "score", "start", "end", "text"], rows)
        else:
            typer.echo("no labels")


def _shown(text: str) -> str:
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."
