"""`dgpt2-quant compare`: whether a newer benchmark is worse than an older one."""

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

WORSE = 1  # the exit status, the same as that of an error: a gate stays shut either way
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
        typer.Option(metavar="X", help="How much more KL divergence is no loss, as a fraction; 99 % quantile: twice."),
    ] = 0.01,
    ppl_tolerance: Annotated[
        float, typer.Option(metavar="X", help="How much more perplexity is no loss, as a fraction.")
    ] = 0.005,
    size_tolerance: Annotated[
        float, typer.Option(metavar="X", help="How much larger a file may be, as a fraction.")
    ] = (0.001),
    speed_tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="How much slower it may be, relative to the reference in the same round; not compared if not given.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Exit with 1 when a newer benchmark is worse than an older one.

    Worse is: more KL divergence or perplexity, a larger file, a missing type, or fewer bits per weight of the same
    type without a gain for them, each by more than its tolerance. The same build on the same machine gives the same
    numbers; 1 % of KL divergence (and the noise floor) is what another processor's rounding may change, and most
    single tensors at one level lower cost more. With a tolerance for speed, slower is worse too. Documents of other
    models, texts or references are an error.
    """
    from dgpt2_quant.bench.compare import compare
    from dgpt2_quant.bench.document.read import read_document

    comparison = compare(
        read_document(old),
        read_document(new),
        kld_tolerance=kld_tolerance,
        ppl_tolerance=ppl_tolerance,
        size_tolerance=size_tolerance,
        speed_tolerance=speed_tolerance,
    )
    try:
        print_json(comparison) if json else _print(comparison)
        sys.stdout.flush()
    except ReaderGoneError as error:  # the reader had enough (`| head`); the verdict is the exit status all the same
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
    """The new value, and how it changed; an exclamation mark where it is worse by more than the tolerance."""
    from dgpt2_quant.bench.compare import number
    from dgpt2_quant.bench.document.format_numbers import change

    by = "=" if one["new"] == one["old"] else "from 0" if one["change"] is None else change(one["change"])
    return f"{number(one['new'])} ({by})" + "!" * one["worse"]
