"""`dgpt2-quant eval`: evaluates quant types of a model on a task."""

from typing import Annotated

import typer

from .options import (
    JsonOption,
    KeepCrlfOption,
    ModelOption,
    OfflineOption,
    ParseSpecialOption,
    RevisionOption,
    ThreadsOption,
    TypesOption,
)
from .output import note, print_json, print_table
from .progress import progress_bar


def evaluate(
    task: Annotated[
        str,
        typer.Option(
            "--task",
            metavar="NAME",
            help="lambada, cbt (cbt-cn, cbt-ne), wikitext2, wikitext103, enwik8, text8, bpb (of any text), bias"
            " (crows-pairs, card-prompts), or classify (labelled examples).",
        ),
    ],
    model: ModelOption = "distilbert/distilgpt2",
    type: TypesOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Data in its published format or archive, - for stdin, or the name of another data set, such as"
            " cbt-cn-valid. Default: downloaded.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Use the first N items. Default: all.")
    ] = None,
    ctx_size: Annotated[
        int | None,
        typer.Option("--ctx-size", metavar="N", help="Context size in tokens. Default: the model's."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride", metavar="N", help="Score in windows that advance by N tokens. Default: half a window."
        ),
    ] = None,
    parse_special: ParseSpecialOption = True,
    keep_crlf: KeepCrlfOption = False,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
) -> None:
    """Evaluate quant types of a model on a task, zero-shot.

    Prints each metric with its 95 % interval, and its change from F16. A .gguf file is measured without F16.
    docs/tasks.md describes the tasks.

    Default type: q4_k_m.

    Example: dgpt2-quant eval -m distilgpt2 -t q8_0 -t q4_k --task lambada
    """
    from dgpt2_quant.bench.tasks.evaluate import evaluate as run_tasks
    from dgpt2_quant.bench.tasks.table import COLUMNS, prompt_lines, task_rows, task_title

    with progress_bar() as progress:
        documents = run_tasks(
            model,
            task=task,
            type=type,
            data=data,
            limit=limit,
            ctx_size=ctx_size,
            stride=stride,
            parse_special=parse_special,
            keep_crlf=keep_crlf,
            threads=threads,
            revision=revision,
            offline=offline,
            progress=progress,
            announce=note,
        )
    if json:
        print_json(documents[0] if len(documents) == 1 else documents)
        return
    for number, document in enumerate(documents):
        typer.echo(("\n" if number else "") + task_title(document))
        print_table(COLUMNS, task_rows(document))
        for line in prompt_lines(document):
            typer.echo(line)
