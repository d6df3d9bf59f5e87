"""`dgpt2-quant run`: generates text from a prompt."""

import inspect
import re
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from dgpt2_quant.core.errors import UsageError

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
from .output import note, print_json
from .progress import progress_bar

if TYPE_CHECKING:
    from dgpt2_quant.runtime import Batch, Completion, Model


def run(
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT|-", help="Text to continue; - reads it from stdin; omit to start from an empty prompt."
        ),
    ] = "",
    model: ModelOption = "distilbert/distilgpt2",
    type: TypeOption = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", "-n", min=-1, help="Maximum number of tokens to generate; -1: to the end of the context."
        ),
    ] = 128,
    min_tokens: Annotated[int, typer.Option(min=0, help="Minimum number of tokens before the text may end.")] = 0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Continue after an end-of-text token.")] = False,
    temperature: Annotated[float, typer.Option(help="Randomness of sampling; 0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Sample from the K likeliest tokens; 0: all.")] = 40,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens with total probability P; 1: all.")
    ] = 0.95,
    min_p: Annotated[
        float, typer.Option(help="Sample from tokens with at least P times the highest probability; 0: all.")
    ] = 0.05,
    typical_p: Annotated[
        float, typer.Option(help="Sample from the locally typical tokens with total probability P; 1: all.")
    ] = 1.0,
    repeat_penalty: Annotated[float, typer.Option(help="Above 1: make recent tokens less likely.")] = 1.0,
    frequency_penalty: Annotated[
        float, typer.Option(help="Above 0: make recent tokens less likely, for each occurrence.")
    ] = 0.0,
    presence_penalty: Annotated[float, typer.Option(help="Above 0: make recent tokens less likely, once.")] = 0.0,
    repeat_last_n: Annotated[int, typer.Option(help="Number of recent tokens for penalties; -1: all.")] = 64,
    dry_multiplier: Annotated[
        float, typer.Option(help="Above 0: make repetitions of a passage less likely (DRY); 0.8 is usual.")
    ] = 0.0,
    mirostat: Annotated[int, typer.Option(help="2: sample by Mirostat 2.0 instead; 0: off.")] = 0,
    mirostat_tau: Annotated[float, typer.Option(help="Target surprise of Mirostat, in bits.")] = 5.0,
    grammar_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Generate only text that matches this grammar (GBNF).")
    ] = None,
    lookup: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Draft up to N tokens where the text repeats itself, for speed. Default: 3 at temperature 0, else 0.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of sampling: the same seed and settings give the same text; -1: random. Default: random."
        ),
    ] = None,
    num_return_sequences: Annotated[
        int, typer.Option(min=1, help="Number of texts, generated together; text i has the seed SEED + i.")
    ] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Stop before this text, or at this special token; repeat for several."),
    ] = None,
    stop_token_id: Annotated[
        list[int] | None, typer.Option(metavar="ID", help="Stop at this token; repeat for several.")
    ] = None,
    special: Annotated[bool, typer.Option("--special", help="Print special tokens by name.")] = False,
    no_escape: Annotated[
        bool,
        typer.Option("--no-escape", help=r"Do not replace \n, \t, \r, \', \", \\ and \xHH in PROMPT and --stop."),
    ] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --json: add the log-probability of each token and of the N likeliest."),
    ] = None,
    ctx_size: Annotated[int | None, typer.Option(min=1, help="Context size in tokens. Default: the model's.")] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Keep only the end of a prompt that is too long.")
    ] = False,
    token_healing: Annotated[
        bool, typer.Option("--token-healing", help="The text may begin with the rest of PROMPT's last word.")
    ] = False,
    threads: ThreadsOrAutoOption = "auto",
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the text only when it is complete.")] = False,
    json: JsonOption = False,
) -> None:
    """Generate text from a prompt.

    Prints the prompt and its continuation. A checkpoint is converted first; the file is kept in the cache.

    Example: dgpt2-quant run "Once upon a time" -m storybook --seed 1
    """
    from dgpt2_quant.quantize.store.converted_models import model_file
    from dgpt2_quant.runtime import Model
    from dgpt2_quant.runtime.request import check_seed
    from dgpt2_quant.runtime.sampling.settings import Sampling

    settings: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical_p": typical_p,
        "repeat_penalty": repeat_penalty,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "repeat_last_n": repeat_last_n,
        "dry_multiplier": dry_multiplier,
        "mirostat": mirostat,
        "mirostat_tau": mirostat_tau,
        "grammar": _read_grammar(grammar_file),
    }
    Sampling(**settings)  # reports wrong values before a model is downloaded and converted
    check_seed(seed)
    if logprobs is not None and not json:
        raise UsageError("--logprobs needs --json", "Add --json, or omit --logprobs.")
    count = thread_count(threads)
    text = read_prompt(prompt) if prompt == "-" or no_escape else _unescaped(prompt)
    if text != prompt and prompt != "-":
        note("Escapes in the prompt were replaced by their characters; --no-escape keeps them.")
    _note_what_has_no_effect(locals())
    with progress_bar() as progress:
        name, path = model_file(model, type=type, revision=revision, offline=offline, progress=progress, announce=note)
    started = time.perf_counter()
    with Model.load(path, ctx_size=ctx_size, threads=count) as loaded:
        load_ms = 1000 * (time.perf_counter() - started)
        if ctx_size and ctx_size > loaded.positions:
            note(f"--ctx-size {ctx_size} is more than this model's {loaded.positions} positions, which are used.")
        if loaded.head:
            note(f"{name} is a classifier: `dgpt2-quant classify` uses its head; its text may make no sense.")
        batch = loaded.batch(
            text,
            num_return_sequences=num_return_sequences,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            ignore_eos=ignore_eos,
            seed=seed,
            stop=[end if no_escape else _unescaped(end) for end in stop or ()],
            stop_token_ids=stop_token_id,
            show_special=special,
            logprobs=logprobs,
            lookup=lookup,
            truncate=truncate,
            token_healing=token_healing,
            **settings,
        )
        if json:
            batch.run()
        else:
            _follow(batch, text, at_once=no_stream)
        timing = batch.timing
        if json:
            print_json(
                {
                    "model": name,
                    "type": loaded.quant_type,
                    "prompt": text,
                    "seed": batch.seeds[0],
                    "sequences": [_sequence(loaded, found) for found in batch.completions if found],
                    "timing": {"load_ms": load_ms, **timing.to_json(), "threads": loaded.threads},
                }
            )
        elif sys.stderr.isatty() and timing.decode_tps:
            note(f"[{timing.decode_tokens} tokens, {timing.decode_tps:.0f} tokens/s, seed {batch.seeds[0]}]")


def _follow(batch: "Batch", prompt: str, *, at_once: bool) -> None:
    """Prints the texts one after another, each after its prompt, the current one while it is generated.

    On Ctrl-C the output ends with a newline.
    """
    waiting = [[prompt] for _ in batch.completions]
    turn = 0

    def show() -> None:
        nonlocal turn
        while turn < len(waiting):
            done = batch.completions[turn] is not None
            if done or not at_once:
                sys.stdout.write("".join(waiting[turn]))
                waiting[turn] = []
                sys.stdout.flush()
            if not done:
                return
            turn += 1
            typer.echo("\n---" if turn < len(waiting) else "")

    try:
        if not at_once:
            show()
        for event in batch:
            waiting[event.number].append(event)
            show()
        show()
    except BaseException:
        typer.echo("".join(waiting[turn]) if turn < len(waiting) else "")
        raise


def _sequence(model: "Model", completion: "Completion") -> dict[str, Any]:
    """A text for the JSON output, with its tokens if there are `logprobs`."""
    from dgpt2_quant.runtime.token_text import describe_tokens

    found = {"text": completion.text, "tokens": completion.tokens, "finish_reason": completion.finish_reason}
    if completion.logprobs is None:
        return found
    return found | {"logprobs": describe_tokens(model, completion.logprobs)}


_ESCAPE = re.compile(r"""\\(?:([nrt'"\\])|x([0-9a-fA-F]{2}))""")


def _unescaped(text: str) -> str:
    """Replaces the escapes that llama.cpp's tools know; others are unchanged."""
    names = {"n": "\n", "r": "\r", "t": "\t"}
    return _ESCAPE.sub(lambda found: names.get(found[1], found[1]) if found[1] else chr(int(found[2], 16)), text)


def _note_what_has_no_effect(given: dict[str, Any]) -> None:
    """Reports options that have no effect without others."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(run).parameters.items()}
    without = {
        "--mirostat 2": (given["mirostat"], ["mirostat_tau"]),
        "a penalty": (
            (given["repeat_penalty"], given["frequency_penalty"], given["presence_penalty"]) != (1, 0, 0),
            ["repeat_last_n"],
        ),
        "a single text": (given["num_return_sequences"] == 1, ["lookup"]),
        "text that is streamed": (not given["json"], ["no_stream"]),
    }
    for what, (there, names) in without.items():
        for name in names:
            if not there and given[name] != defaults[name]:
                note(f"--{name.replace('_', '-')} has no effect without {what}.")
    if given["num_return_sequences"] > 1 and given["temperature"] == 0:
        note("At temperature 0 all texts are the same.")


def _read_grammar(path: str | None) -> str:
    if path is None:
        return ""
    from dgpt2_quant.core.read_input import read_input
    from dgpt2_quant.core.text import as_text

    text = as_text(read_input(path, "grammar", announce=note).file()).text
    if not text:
        raise UsageError(f"the grammar {path} is empty", "Name a GBNF file with a rule `root`.")
    return text
