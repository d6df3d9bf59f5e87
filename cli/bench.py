"""`dgpt2-quant bench`: the levels of one model, side by side."""

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
from .output import note, print_json, print_table
from .progress import progress_bar


def bench(
    model: CheckpointOption = "distilbert/distilgpt2",
    type: TypesOption = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            metavar="FILE.gguf",
            help="Measure this file of the model too, made by recipe lean or anyone; repeat for several.",
        ),
    ] = None,
    text: ScoredTextOption = "evaluation",
    parse_special: ParseSpecialOption = True,
    keep_crlf: KeepCrlfOption = False,
    reference: Annotated[
        str, typer.Option("--reference", metavar="TYPE", help="What to compare with: f32 or f16.")
    ] = "f32",
    ctx_size: WindowOption = 512,
    stride: StrideOption = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Rounds of the speed measurement.")] = 5,
    prompt_sizes: Annotated[
        str | None,
        typer.Option("--prompt-sizes", metavar="N,N", help="Prompts to time, in tokens; 16,128 if not given."),
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option("--depths", metavar="N,N", help="Time decoding after N tokens; 0,256 if not given."),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option("--batches", metavar="N,N", help="Time N sequences together; 1,4,8 if not given."),
    ] = None,
    thread_counts: Annotated[
        str | None,
        typer.Option("--thread-counts", metavar="N,N", help="Time other numbers of threads too; 1 if not given."),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="Time llama_cpp.Llama, Transformers and CTranslate2 on the same weights, if installed."
        ),
    ] = False,
    llama_cpp_bin: Annotated[
        Path | None, typer.Option("--llama-cpp-bin", metavar="DIR", help="Time the llama-bench in this folder too.")
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            "--patience",
            metavar="SECONDS",
            help="How long disturbed measurements may take in all; 0: repeat none, and measure one round.",
        ),
    ] = 60.0,
    per_token: PerTokenOption = None,
    cache: Annotated[
        str,
        typer.Option("--reference-cache", metavar="SIZE", help="Keep this much of the reference's logits; 0: none."),
    ] = "1GB",
    threads: ThreadsOption = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where the report goes; a new folder here if not given."),
    ] = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Compare types by quality, speed and size.

    Size, load time, peak memory, perplexity, KL divergence against F32, prompt and decode speed; written as
    bench.json, report.md and report.html with plots.

    Types that are not given: f16 q8_0 q5_k_m q4_k_m q4_0, or none beside --file.
    Example: dgpt2-quant bench -m storybook -t q8_0 -t q4_k
    """
    from dgpt2_quant.bench.bench import bench as run_bench
    from dgpt2_quant.bench.quality.per_token import check_per_token
    from dgpt2_quant.bench.quality.windows import Cut
    from dgpt2_quant.bench.report.write_report import (
        COLUMNS,
        REPORT_FILES,
        refuse_reports,
        remarks,
        table_rows,
        write_report,
    )
    from dgpt2_quant.bench.speed.grid import Grid, parse_counts
    from dgpt2_quant.core.errors import UsageError
    from dgpt2_quant.core.sizes import parse_bytes

    folder = Path(output or time.strftime("dgpt2-quant-bench/%Y%m%d-%H%M%S"))
    refuse_reports(folder, overwrite=overwrite)
    per_token = check_per_token(per_token, overwrite=overwrite)
    if (
        per_token is not None
        and per_token.resolve().is_relative_to(folder.resolve())
        and per_token.name in REPORT_FILES
    ):
        raise UsageError(f"--per-token {per_token} is a file of the report itself", "Give it another name.")
    grid = Grid(
        parse_counts(prompt_sizes, "--prompt-sizes") if prompt_sizes is not None else None,
        parse_counts(depths, "--depths", least=0) if depths is not None else None,
        parse_counts(batches, "--batches") if batches is not None else None,
        parse_counts(thread_counts, "--thread-counts") if thread_counts is not None else None,
    )
    with progress_bar() as progress:
        document = run_bench(
            model,
            type=type,
            file=file or (),
            text=text,
            parse_special=parse_special,
            keep_crlf=keep_crlf,
            reference=reference,
            cut=Cut("llama.cpp" if stride is None else "strided", ctx_size, stride),
            cache_bytes=parse_bytes(cache),
            rounds=rounds,
            grid=grid,
            peers=peers,
            llama_cpp_bin=llama_cpp_bin,
            patience=patience,
            per_token=per_token,
            overwrite=overwrite,
            threads=threads,
            revision=revision,
            offline=offline,
            progress=progress,
            announce=note,
        )
    if json:
        print_json(document)
    else:
        print_table(COLUMNS, table_rows(document))
        for remark in remarks(document):
            typer.echo(remark)
    write_report(document, folder, overwrite=overwrite)  # after the table: a full disk must not lose the results
    note(f"Report: {folder / 'report.md'}")
