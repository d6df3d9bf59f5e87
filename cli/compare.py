"""`dgpt2-quant compare`: checks whether a newer benchmark is worse than an older one."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import report
from .options import JsonOption
from .output import print_json, print_table
from .streams import ReaderGoneError

if TYPE_CHECKING:
    from dgpt2_quant.bench.compare import Change, Comparison

WORSE = 1  # exit status, the same as for an error: a gate blocks in both cases
_FIGURES = {
    "bytes": "bytes",
    "bits_per_weight": "bpw",
    "perplexity": "perplexity",
    "kld_mean": "KLD mean",
    "kld_p99": "KLD 99%",
    "top1_agreement": "top-1",
    "decode_ratio": "decode ratio",
    "prompt_ratio": "prompt ratio",
}


def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="The bench.json to compare with.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The bench.json that must not be worse.")],
    kld_tolerance: Annotated[
        float,
        typer.Option(
            metavar="X", help="Allowed increase of the KL divergence, as a fraction; twice that for its 99 % quantile."
        ),
    ] = 0.01,
    ppl_tolerance: Annotated[
        float, typer.Option(metavar="X", help="Allowed increase of the perplexity, as a fraction.")
    ] = 0.005,
    size_tolerance: Annotated[
        float, typer.Option(metavar="X", help="Allowed increase of the file size, as a fraction.")
    ] = 0.001,
    speed_tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Allowed loss of speed relative to the reference, as a fraction. Omit to ignore speed.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check whether a newer benchmark is worse than an older one.

    Exits with status 1 if it is. Worse means, by more than the tolerance: more KL divergence or perplexity, a larger
    file, a missing type, or fewer bits per weight of a type without a gain; with --speed-tolerance also less speed. The
    same build on the same machine gives the same numbers. Rounding on another processor changes the KL divergence by
    about 1 %; most single tensors with the next lower type cost more. Both benchmarks must have the same model, text
    and reference.
    """
    from dgpt2_quant.bench.compare import compare as compare_documents

    comparison = compare_documents(
        old,
        new,
        kld_tolerance=kld_tolerance,
        ppl_tolerance=ppl_tolerance,
        size_tolerance=size_tolerance,
        speed_tolerance=speed_tolerance,
    )
    try:
        print_json(comparison) if json else _print(comparison)
        sys.stdout.flush()
    except ReaderGoneError as error:  # after `| head` the exit status is still the verdict
        raise typer.Exit(WORSE if comparison["worse"] else report(error)) from error
    if comparison["worse"]:
        raise typer.Exit(WORSE)


def _print(comparison: "Comparison") -> None:
    from dgpt2_quant.bench.document.blocks import visible
    from dgpt2_quant.bench.document.format_numbers import full_name

    rows: dict[str, list[str]] = {}
    for one in comparison["changes"]:
        name = visible(full_name(one["type"], one["recipe"]))
        rows.setdefault(name, [name]).append(_cell(one))
    if rows:
        print_table(["new", *_FIGURES.values()], list(rows.values()))
    for sentence in (*comparison["notes"], *comparison["reasons"]):
        typer.echo(sentence)
    typer.echo("Worse." if comparison["worse"] else "Not worse.")


def _cell(one: "Change") -> str:
    """The new value and its change, with an exclamation mark if it is worse by more than the tolerance."""
    from dgpt2_quant.bench.compare import number
    from dgpt2_quant.bench.document.format_numbers import change

    by = "=" if one["new"] == one["old"] else "from 0" if one["change"] is None else change(one["change"])
    return f"{number(one['new'])} ({by})" + "!" * one["worse"]
