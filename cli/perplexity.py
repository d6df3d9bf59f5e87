"""`dgpt2-quant perplexity`: computes the perplexity of a model on a text."""

from typing import Annotated, Literal

import typer

from .options import (
    JsonOption,
    KeepCrlfOption,
    ModelOption,
    OfflineOption,
    OverwriteOption,
    ParseSpecialOption,
    PerTokenOption,
    RevisionOption,
    ScoredTextOption,
    StrideOption,
    ThreadsOption,
    TypeOption,
    WindowOption,
)
from .output import note, print_json
from .progress import progress_bar


def perplexity(
    model: ModelOption = "distilbert/distilgpt2",
    type: TypeOption = None,
    text: ScoredTextOption = "evaluation",
    parse_special: ParseSpecialOption = True,
    keep_crlf: KeepCrlfOption = False,
    ctx_size: WindowOption = 512,
    method: Annotated[
        Literal["llama.cpp", "strided"] | None,
        typer.Option(
            "--method",
            help="llama.cpp: separate chunks, the second half of each is scored. strided: overlapping windows, each"
            " token is scored once; the default with --stride.",
        ),
    ] = None,
    stride: StrideOption = None,
    per_token: PerTokenOption = None,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Compute the perplexity of a model on a text.

    With its standard error, by the method of llama-perplexity or of the documentation of Transformers.

    Example: dgpt2-quant perplexity -m storybook -t q4_0 --text story.txt --ctx-size 512 --stride 128
    """
    from dgpt2_quant.bench.perplexity import perplexity as run_perplexity

    with progress_bar() as progress:
        result = run_perplexity(
            model,
            type=type,
            text=text,
            parse_special=parse_special,
            keep_crlf=keep_crlf,
            ctx_size=ctx_size,
            method=method,
            stride=stride,
            per_token=per_token,
            overwrite=overwrite,
            threads=threads,
            revision=revision,
            offline=offline,
            progress=progress,
            announce=note,
        )
    if json:
        print_json(result)
        return
    stride_text = f", stride {result['stride']}" if result["stride"] else ""
    typer.echo(
        f"{result['model']} on {result['text']['name']}: perplexity {result['perplexity']:.4f} ±"
        f" {result['perplexity_stderr']:.4f}"
    )
    typer.echo(
        f"{result['tokens_scored']:,} of {result['text']['tokens']:,} tokens scored, {result['method']} method,"
        f" context {result['context']}{stride_text}; {result['tps']:.0f} tokens/s on {result['threads']} threads"
    )
