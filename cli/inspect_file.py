"""`dgpt2-quant inspect`: shows a GGUF file. (Not inspect.py, which is a module of the standard library.)"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import JsonOption
from .output import megabytes, print_json, print_table

if TYPE_CHECKING:
    from dgpt2_quant.quantize.describe import Description

_WHERE_FROM = {
    "set manually": "dgpt2_quant.tensor_types",
    "requantized": "dgpt2_quant.requantized_from",
    "source commit": "dgpt2_quant.source.commit",
    "source sha256": "dgpt2_quant.source.sha256",
    "imatrix of": "quantize.imatrix.dataset",
    "imatrix sha256": "dgpt2_quant.imatrix.sha256",
}
_LABELS_SHOWN = 50
_HEADS = {"text": "classifies texts", "token": "classifies tokens", "choice": "compares choices"}


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A GGUF file.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="Also list all metadata and tensors.")] = False,
    json: JsonOption = False,
) -> None:
    """Show the type, size and metadata of a GGUF file.

    Reads only its header.
    """
    from dgpt2_quant.quantize.describe import describe

    described = describe(file)
    if json:
        print_json(described.to_json())
        return
    rows = (
        _importance_rows(described) if described.metadata.get("general.type") == "imatrix" else _model_rows(described)
    )
    for label, text in [["file", str(described.path)], ["size", megabytes(described.bytes)], *rows]:
        typer.echo(f"{label:<14} {text}")
    if tensors:
        typer.echo("")
        for key, value in described.metadata.items():
            typer.echo(f"{key:<45} {_short(value)}")
        typer.echo("")
        lines = [[t.name, t.type, " x ".join(map(str, t.shape)), str(t.bytes)] for t in described.tensors]
        print_table(["tensor", "type", "shape", "bytes"], lines)


def _model_rows(described: "Description") -> list[list[str]]:
    metadata = described.metadata
    rows = [
        ["model", f"{metadata.get('general.name', '?')}, {described.architecture}"],
        ["parameters", f"{described.parameters:,}"],
        ["type", f"{described.type or '?'}, {described.bits_per_weight:.2f} bits per weight"],
        ["tensors", ", ".join(f"{count} {name}" for name, count in described.counts().items())],
        ["recipe", described.recipe or "not recorded"],
        ["context", f"{described.context} positions"],
        ["vocabulary", f"{described.vocabulary} tokens"],
        *_token_rows(described),
        *_head_rows(described),
        *_pad_rows(described),
        ["license", str(metadata.get("general.license", "not recorded"))],
    ]
    if described.adapters:
        rows.append(["adapters", ", ".join(f"{one.name}={one.weight:g}" for one in described.adapters)])
    for label, key in _WHERE_FROM.items():
        if (value := metadata.get(key)) is not None:
            rows.append([label, ", ".join(map(str, value)) if isinstance(value, list) else str(value)])
    return rows


def _token_rows(described: "Description") -> list[list[str]]:
    if described.vocabulary is None:
        return []
    ends = {"bos": "before", "eos": "after"}
    added = [f"{role} {ends[role]} each text" for role in described.added_tokens]
    rows = [[role, f"{token.text!r} ({token.id})"] for role, token in described.special_tokens.items()]
    return [
        *rows,
        ["added", " and ".join(added) or "no tokens"],
        ["chat template", ", ".join(described.chat_templates) or "none"],
    ]


def _head_rows(described: "Description") -> list[list[str]]:
    if (head := described.head) is None:
        return []
    rows = [["head", f"{_HEADS.get(head.kind, head.kind)}, {head.problem_type}"]]
    if head.labels:
        names = [label if label.isprintable() else repr(label) for label in head.labels[:_LABELS_SHOWN]]
        more = [f"... ({len(head.labels)} in all)"] if len(head.labels) > _LABELS_SHOWN else []
        rows.append(["labels", ", ".join([*names, *more])])
    return rows


def _pad_rows(described: "Description") -> list[list[str]]:
    key = "dgpt2_quant.padding"
    count, twin, share = (described.metadata.get(name) for name in (key, f"{key}.twin", f"{key}.probability"))
    if not count:
        return []
    taken = f"; together {share:.1g} of the probability" if isinstance(share, float) else ""
    return [["pad tokens", f"{count}, copies of token {twin}{taken}"]]


def _importance_rows(described: "Description") -> list[list[str]]:
    metadata = described.metadata
    matrices = sum(tensor.name.endswith(".in_sum2") for tensor in described.tensors)
    count, size = (metadata.get(f"imatrix.chunk_{what}", "?") for what in ("count", "size"))
    texts = metadata.get("imatrix.datasets", "?")
    return [
        ["kind", f"importance matrix, of {matrices} matrices"],
        ["texts", ", ".join(map(str, texts if isinstance(texts, list) else [texts]))],
        ["collected on", f"{count} chunks of {size} tokens"],
    ]


def _short(value: object) -> str:
    if isinstance(value, list):
        return f"[{len(value)}] {', '.join(map(repr, value[:4]))}, ..."
    text = f"{value:.6g}" if isinstance(value, float) else str(value)  # the digits of a float32
    return text if len(text) <= 80 else text[:77] + "..."
