"""`dgpt2-quant run`: text from a prompt, as it comes."""

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from dgpt2_quant.quantize.errors import UsageError

from .options import JsonOption, ModelOption, OfflineOption, RevisionOption, TypeOption
from .output import note, print_json
from .progress import progress_bar

if TYPE_CHECKING:
    from dgpt2_quant.runtime.generate import Generation


def run(
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT|-", help="What to continue; - reads it from stdin; nothing begins a new text."),
    ] = "",
    model: ModelOption = "distilbert/distilgpt2",
    type: TypeOption = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=0, help="Tokens at the most.")] = 128,
    temperature: Annotated[float, typer.Option(help="How freely to choose; 0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Choose among the K likeliest tokens; 0 for all.")] = 40,
    top_p: Annotated[float, typer.Option(help="... that together have the probability P; 1 for all.")] = 0.95,
    min_p: Annotated[
        float, typer.Option(help="... that have P times the likeliest one's probability; 0 for all.")
    ] = 0.05,
    repeat_penalty: Annotated[float, typer.Option(help="Above 1: makes tokens of the last 64 less likely.")] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="The same seed and settings give the same text; random if not given.")
    ] = None,
    num_return_sequences: Annotated[int, typer.Option(min=1, help="How many texts; text i has the seed SEED + i.")] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeat for several.")
    ] = None,
    ctx_size: Annotated[
        int | None, typer.Option(min=1, help="Positions of context; the model's own number if not given.")
    ] = None,
    threads: Annotated[str, typer.Option(metavar="N|auto", help="Threads.")] = "auto",
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the text when it is complete.")] = False,
    json: JsonOption = False,
) -> None:
    """Continue a prompt with a model.

    The text goes to stdout with its prompt. A checkpoint is converted first, and kept for the next time.
    Example: dgpt2-quant run "Once upon a time" -m storybook --seed 1
    """
    from dgpt2_quant.quantize.store import model_file
    from dgpt2_quant.runtime.generate import total_timing
    from dgpt2_quant.runtime.model import Model

    with progress_bar() as progress:
        name, path = model_file(model, type=type, revision=revision, offline=offline, progress=progress, announce=note)
    text = _read_stdin() if prompt == "-" else prompt
    started = time.perf_counter()
    with Model.load(path, ctx_size=ctx_size, threads=_thread_count(threads)) as loaded:
        load_ms = 1000 * (time.perf_counter() - started)
        generations: list[Generation] = []
        for number in range(num_return_sequences):
            generation = loaded.stream(
                text,
                max_tokens=max_tokens,
                seed=generations[0].seed + number if generations else seed,
                stop=stop or (),
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repeat_penalty=repeat_penalty,
            )
            if number and not json:
                typer.echo("---")
            _follow(generation, text, quiet=json, at_once=no_stream)
            generations.append(generation)
    timing = total_timing([generation.timing for generation in generations])
    if json:
        print_json(
            {
                "model": name,
                "type": loaded.quant_type,
                "prompt": text,
                "seed": generations[0].seed,
                "sequences": [asdict(g.completion) for g in generations if g.completion],
                "timing": {"load_ms": load_ms, **timing.to_json(), "threads": loaded.threads},
            }
        )
    elif sys.stderr.isatty() and timing.decode_tps:
        note(f"[{timing.decode_tokens} tokens, {timing.decode_tps:.0f} tokens/s, seed {generations[0].seed}]")


def _follow(generation: "Generation", prompt: str, *, quiet: bool, at_once: bool) -> None:
    """Prints a generation as it comes, behind its prompt; a Ctrl-C leaves what is there on a line of its own."""
    shown = sys.stdout if not (quiet or at_once) else None
    pieces = [prompt]
    try:
        if shown:
            shown.write(prompt)
        for piece in generation:
            pieces.append(piece)
            if shown:
                shown.write(piece)
                shown.flush()
    finally:
        if not quiet:
            typer.echo("".join(pieces) if at_once else "")


def _read_stdin() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on stdin is not UTF-8: {error}", "Convert it, for example with iconv.") from error
    return text.removesuffix("\n")  # `echo` puts it there, and a model would take it for the end of a paragraph


def _thread_count(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise UsageError(f"--threads {text!r}; it takes a number, or auto")
    return int(text)
