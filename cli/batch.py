"""`dgpt2-quant batch`: answers a file of requests."""

from typing import Annotated, Any, Literal

import typer

from .options import ModelOption, OfflineOption, RevisionOption, ThreadsOrAutoOption, TypeOption, thread_count
from .output import note
from .progress import progress_bar

SOME_FAILED = 3  # exit status


def batch(
    input: Annotated[
        str, typer.Argument(metavar="INPUT|-", help="File of requests, one line of JSON each; may be gzip.")
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT|-", help="File to write or to continue; .gz compresses it.")],
    model: ModelOption = "distilbert/distilgpt2",
    type: TypeOption = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Default for plain lines, such as max_tokens=64 or temperature=0; repeat for several.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the job: a line without a seed gets one from it.")] = 0,
    errors: Annotated[
        Literal["file", "inline"] | None,
        typer.Option(
            help="Where failed lines are reported: OUTPUT.errors.jsonl, or OUTPUT itself. Default: file; inline for"
            " stdout."
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, and replace the files of a job.")] = False,
    slice: Annotated[
        int, typer.Option(min=1, metavar="N", help="Lines that are decoded together and saved at once.")
    ] = 256,
    parallel: Annotated[int, typer.Option(min=1, help="Texts that decode at the same time.")] = 16,
    ctx_size: Annotated[int | None, typer.Option(min=1, help="Context size in tokens. Default: the model's.")] = None,
    max_line: Annotated[int, typer.Option(min=1, metavar="BYTES", help="Limit of a line's length.")] = 1 << 20,
    threads: ThreadsOrAutoOption = "auto",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="ray: answer slices on a Ray cluster (docs/batch.md).")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A running Ray cluster. Default: one on this machine.")
    ] = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Accept nodes of Ray whose builds or processors round differently.")
    ] = False,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
) -> None:
    """Answer a file of requests, in the order of its lines.

    Lines are plain ({"prompt": "Once upon a time", "max_tokens": 32}) or in OpenAI's batch format; docs/batch.md lists
    all kinds. A job that was killed continues when the same command runs again, and its output has the same bytes.
    Exit status 3: some lines failed.

    Example: dgpt2-quant batch requests.jsonl answers.jsonl -m storybook --set max_tokens=64
    """
    from dgpt2_quant.jobs.batch import batch as run_batch

    count = thread_count(threads)
    options = dict(_option(text) for text in set or ())
    with progress_bar() as progress:
        found = run_batch(
            input,
            output,
            model=model,
            type=type,
            revision=revision,
            offline=offline,
            options=options,
            seed=seed,
            slice=slice,
            parallel=parallel,
            ctx_size=ctx_size,
            max_line=max_line,
            errors=errors,
            restart=restart,
            threads=count,
            engine=engine,
            ray_address=ray_address,
            allow_mixed=allow_mixed,
            progress=progress,
            announce=note,
        )
    there = "" if output == "-" else f" in {output}"
    if found.before == found.lines and not found.seconds:
        note(f"Already finished: {found.lines} lines{there}.")
    else:
        rest = f", {found.before} of them before" if found.before else ""
        note(f"{found.lines} lines{there}{rest}; {found.tokens} tokens, {found.seconds:.1f} s.")
    if found.failed:
        note(f"{found.failed} lines failed{f': see {found.errors}' if found.errors else ''}.")
        raise typer.Exit(SOME_FAILED)


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, with a value in JSON or else a text."""
    import json

    from dgpt2_quant.core.errors import UsageError

    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set must be NAME=VALUE, not {text!r}", "For example: --set max_tokens=64.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
