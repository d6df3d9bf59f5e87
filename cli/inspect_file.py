"""`dgpt2-quant inspect`: what is in a GGUF file. (Not inspect.py: that is a module of the standard library.)"""

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption
from .output import megabytes, print_json, print_table


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A GGUF file.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor, and all metadata.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what a GGUF file holds.

    Only its head is read.
    """
    from dgpt2_quant.quantize.describe import describe

    described = describe(file)
    if json:
        print_json(described.to_json())
        return
    rows = [
        ["file", str(described.path)],
        ["size", megabytes(described.bytes)],
        ["model", f"{described.metadata.get('general.name', '?')}, {described.architecture}"],
        ["parameters", f"{described.parameters:,}"],
        ["type", f"{described.type or '?'}, {described.bits_per_weight:.2f} bits per weight"],
        ["tensors", ", ".join(f"{count} {name}" for name, count in described.counts().items())],
        ["recipe", described.recipe or "not recorded"],
        ["context", f"{described.context} positions"],
        ["vocabulary", f"{described.vocabulary} tokens"],
        ["license", str(described.metadata.get("general.license", "not recorded"))],
    ]
    for label, key in (("source commit", "commit"), ("source sha256", "sha256")):
        if value := described.metadata.get(f"dgpt2_quant.source.{key}"):
            rows.append([label, str(value)])
    for label, text in rows:
        typer.echo(f"{label:<14} {text}")
    if tensors:
        typer.echo("")
        for key, value in described.metadata.items():
            typer.echo(f"{key:<45} {_short(value)}")
        typer.echo("")
        lines = [[t.name, t.type, " x ".join(map(str, t.shape)), str(t.bytes)] for t in described.tensors]
        print_table(["tensor", "type", "shape", "bytes"], lines)


def _short(value: object) -> str:
    if isinstance(value, list):
        return f"[{len(value)}] {', '.join(map(repr, value[:4]))}, ..."
    text = f"{value:.6g}" if isinstance(value, float) else str(value)  # a float32 has no more digits
    return text if len(text) <= 80 else text[:77] + "..."
