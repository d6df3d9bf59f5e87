"""Puts the sections of a benchmark's report together: advice, main table, plots, method, and those of sections.py."""

from dgpt2_quant.bench.document.blocks import Items, Picture, Section, Table, Text, visible
from dgpt2_quant.bench.document.format_numbers import (
    DISTURBED,
    label,
    marked,
    of_several_runs,
    percent,
    small,
    speed,
    with_error,
)
from dgpt2_quant.bench.document.schema import BenchJson

from .advice import RULES
from .plots import CAPTIONS, PLOTS
from .sections import (
    confidence_section,
    environment_section,
    pairs_section,
    peers_section,
    quality_section,
    speed_sections,
    worst_sections,
)

COLUMNS = (
    "type",
    "MB",
    "bpw",
    "perplexity",
    "KLD mean",
    "KLD 99.9%",
    "top-1",
    "prompt t/s",
    "decode t/s",
    "load ms",
    "peak MB",
)


def table_rows(document: BenchJson) -> list[list[str]]:
    """One row per file, for `COLUMNS`."""
    return [
        [
            label(result),
            f"{result['bytes'] / 1e6:.2f}",
            f"{result['bits_per_weight']:.2f}",
            with_error(result["perplexity"], result["perplexity_stderr"]),
            small(result["kld_mean"]),
            small(result["kld_p999"]),
            percent(result["top1_agreement"]),
            speed(result["prompt_tps"], result["disturbed"]),
            speed(result["decode_tps"], result["disturbed"]),
            marked(f"{result['load_ms']:.0f}", result.get("load_disturbed")),
            f"{result['peak_rss_bytes'] / 1e6:.0f}",
        ]
        for result in document["results"]
    ]


def remarks(document: BenchJson) -> list[str]:
    """The sentences after the table: the reference, the mark of disturbed timings, and the advice."""
    reference = document["reference"]
    of_reference = (
        f"Reference {reference['type']}: perplexity"
        f" {with_error(reference['perplexity'], reference['perplexity_stderr'])}"
        f" over {reference['tokens_scored']:,} tokens."
    )
    lines = [of_reference]
    if any(row["disturbed"] or row.get("load_disturbed") for row in document["results"]):
        lines.append(f"{DISTURBED} disturbed: other programs used the machine while this was timed.")
    return [visible(line) for line in (*lines, *document["advice"])]


def report_sections(document: BenchJson, *, with_plots: bool) -> list[Section]:
    """The sections of the whole report, the advice first."""
    count, base = len(document["results"]), document["reference"]["type"]
    plots: list[Text | Picture] = [Picture(name, CAPTIONS[name]) for name in PLOTS]
    if not with_plots:
        plots = [Text("The plots need matplotlib: pip install 'dgpt2-quant[report]'")]
    return [
        Section(f"{document['model']['name']}: {count} file{'s' if count != 1 else ''} compared with {base}", level=1),
        Section("Advice", [Items(remarks(document))]),
        Section("All files", [Table(COLUMNS, table_rows(document))]),
        Section("Plots", plots),
        quality_section(document),
        *pairs_section(document),
        *confidence_section(document),
        *speed_sections(document),
        *peers_section(document),
        *worst_sections(document),
        _method_section(document),
        environment_section(document),
    ]


def _method_section(document: BenchJson) -> Section:
    text, base = document["text"], document["reference"]["type"]
    if text["stride"] is None:
        scored = f"by llama-perplexity's method: chunks of {text['context']} tokens, the second half of each scored"
    else:
        scored = f"by the strided method: windows of {text['context']} tokens, {text['stride']} new ones in each scored"
    rounds = sorted({result["decode_tps"]["rounds"] for result in document["results"]})
    count = f"{rounds[0]}-{rounds[-1]}" if len(rounds) > 1 else str(rounds[0]) if rounds else "0"
    said = (
        f"Perplexity with its standard error, {scored}. KLD: Kullback-Leibler divergence of the next-token distribution"
        f" from {base}'s, in nats. PPL ratio: to {base}'s perplexity. Intervals: 95 %, by bootstrap. Top-1: how often"
        " the likeliest token is the same. Δp: change of the probability of the token in the text. NLL corr.:"
        f" correlation of the tokens' negative log-likelihoods with {base}'s. bpw: bits per weight. Speeds: tokens per"
        f" second at batch 1, median (minimum-maximum) of {count} interleaved rounds. Peak memory and load time: in a"
        " fresh process."
    )
    if of_several_runs(document):
        said += " Merged from several runs: tokens per second, load time and memory may be from different machines."
    return Section("Method", [Text(said), Text("The advice follows from these rules:"), Items(RULES)])
