"""`dgpt2-quant features`: prints the hidden states of a text."""

import sys
from typing import Annotated

import typer

from .options import (
    JsonOption,
    ModelOption,
    OfflineOption,
    OverwriteOption,
    RevisionOption,
    ThreadsOrAutoOption,
    TypeOption,
    read_prompt,
    thread_count,
)
from .output import note, print_json
from .progress import progress_bar


def features(
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="Text; - reads it from stdin.")],
    model: ModelOption = "distilbert/distilgpt2",
    type: TypeOption = None,
    pooling: Annotated[
        str, typer.Option(metavar="none|mean|last", help="One row per token, their mean, or the last row.")
    ] = "none",
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE.npy|-", help="Write the array in NumPy's format to this file; - is stdout."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    threads: ThreadsOrAutoOption = "auto",
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
) -> None:
    """Print the hidden states of a text.

    These are the hidden states after the final norm, GPT2Model's `last_hidden_state`, in float32. Without --output they
    are printed, one line per row.

    Example: dgpt2-quant features "Once upon a time" -m storybook --pooling mean
    """
    import numpy as np
    from dgpt2_quant.core.atomic_file import output_file, refuse_existing
    from dgpt2_quant.core.errors import UsageError
    from dgpt2_quant.core.paths import user_path
    from dgpt2_quant.quantize.store.converted_models import model_file
    from dgpt2_quant.runtime import Model
    from dgpt2_quant.runtime.scoring import check_pooling

    kind, count = check_pooling(pooling), thread_count(threads)
    to_stdout = output == "-"
    if to_stdout and json:
        raise UsageError("--output - and --json both write to stdout", "Omit one of them.")
    path = user_path(output) if output and not to_stdout else None
    if path:
        refuse_existing(path, overwrite)
    given = read_prompt(text)
    with progress_bar() as progress:
        name, file = model_file(model, type=type, revision=revision, offline=offline, progress=progress, announce=note)
    with Model.load(file, threads=count) as loaded:
        found = loaded.features(given, pooling=kind)
        quant_type = loaded.quant_type
    if to_stdout:
        np.save(sys.stdout.buffer, found)
        return
    if path:
        with output_file(path, overwrite=overwrite) as array:
            np.save(array, found)
    if json:
        document = {"model": name, "type": quant_type, "pooling": pooling, "shape": list(found.shape)}
        print_json(document | ({"path": str(path)} if path else {"features": found.tolist()}))
    elif path:
        typer.echo(f"{' x '.join(map(str, found.shape))} numbers (float32) in {path}")
    else:
        np.savetxt(sys.stdout, np.atleast_2d(found), fmt="%.9g")
