"""`dgpt2-quant bench`: compares the files of one model by size, quality and speed."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    CheckpointOption,
    JsonOption,
    KeepCrlfOption,
    OfflineOption,
    OverwriteOption,
    ParseSpecialOption,
    PerTokenOption,
    RevisionOption,
    ScoredTextOption,
    StrideOption,
    ThreadsOption,
    TypesOption,
    WindowOption,
)
from .output import note, print_json, print_report
from .progress import progress_bar


def bench(
    model: CheckpointOption = "distilbert/distilgpt2",
    type: TypesOption = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", metavar="FILE.gguf", help="Also measure this file of the model; repeat for several."),
    ] = None,
    text: ScoredTextOption = "evaluation",
    parse_special: ParseSpecialOption = True,
    keep_crlf: KeepCrlfOption = False,
    reference: Annotated[
        str, typer.Option("--reference", metavar="TYPE", help="Quant type to compare with: f32 or f16.")
    ] = "f32",
    ctx_size: WindowOption = 512,
    stride: StrideOption = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Rounds of the speed measurement.")] = 5,
    prompt_sizes: Annotated[
        str | None,
        typer.Option("--prompt-sizes", metavar="N,N", help="Time prompts of N tokens. Default: 16,128."),
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option("--depths", metavar="N,N", help="Time decoding after N tokens. Default: 0,256."),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option("--batches", metavar="N,N", help="Time decoding of N sequences together. Default: 1,4,8."),
    ] = None,
    thread_counts: Annotated[
        str | None,
        typer.Option("--thread-counts", metavar="N,N", help="Also time with N threads. Default: 1."),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="Also time llama_cpp.Llama, Transformers and CTranslate2 on the same weights, if installed."
        ),
    ] = False,
    llama_cpp_bin: Annotated[
        Path | None, typer.Option("--llama-cpp-bin", metavar="DIR", help="Also time the llama-bench in this folder.")
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            "--patience",
            metavar="SECONDS",
            help="Limit of the total time of disturbed measurements; 0 repeats none, and measures one round.",
        ),
    ] = 60.0,
    per_token: PerTokenOption = None,
    reference_cache: Annotated[
        str,
        typer.Option("--reference-cache", metavar="SIZE", help="Limit of the kept logits of references; 0 keeps none."),
    ] = "1GB",
    threads: ThreadsOption = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the report. Default: a new one here."),
    ] = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Compare quant types of a model by size, quality and speed.

    Measures size, load time, peak memory, perplexity, KL divergence from F32, prompt and decode speed. Writes
    bench.json, report.md and report.html with plots.

    Default types: f16 q8_0 q5_k_m q4_k_m q4_0, or none with --file.

    Example: dgpt2-quant bench -m storybook -t q8_0 -t q4_k
    """
    from dgpt2_quant.bench.bench import bench as run_bench
    from dgpt2_quant.bench.report.write_report import REPORT_FILES, refuse_reports, write_report
    from dgpt2_quant.bench.speed.grid import parse_counts
    from dgpt2_quant.core.errors import UsageError

    folder = Path(output or time.strftime("dgpt2-quant-bench/%Y%m%d-%H%M%S"))
    refuse_reports(folder, overwrite=overwrite)
    if per_token and per_token.name in REPORT_FILES and per_token.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"--per-token {per_token} is a file of the report", "Use another name.")
    with progress_bar() as progress:
        document = run_bench(
            model,
            type=type,
            file=file or (),
            text=text,
            parse_special=parse_special,
            keep_crlf=keep_crlf,
            reference=reference,
            ctx_size=ctx_size,
            stride=stride,
            rounds=rounds,
            prompt_sizes=parse_counts(prompt_sizes, "prompt_sizes"),
            depths=parse_counts(depths, "depths", least=0),
            batches=parse_counts(batches, "batches"),
            thread_counts=parse_counts(thread_counts, "thread_counts"),
            peers=peers,
            llama_cpp_bin=llama_cpp_bin,
            patience=patience,
            per_token=per_token,
            reference_cache=reference_cache,
            threads=threads,
            revision=revision,
            offline=offline,
            overwrite=overwrite,
            progress=progress,
            announce=note,
        )
    print_json(document) if json else print_report(document)
    write_report(document, folder, overwrite=overwrite)  # after the table: a full disk must not lose the results
    note(f"Report: {folder / 'report.md'}")
