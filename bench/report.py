"""The benchmark's result for people: a table, and `report.md`."""

from collections.abc import Sequence
from pathlib import Path

from dgpt2_quant.quantize.json_text import to_json_text
from dgpt2_quant.quantize.output_file import output_file, refuse_existing

from .schema import BenchJson, RateJson, Result

REPORT_FILES = ("bench.json", "report.md")

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


def refuse_reports(folder: Path, *, overwrite: bool = False) -> None:
    """Raises `OutputError` before anything is measured, when the results could not be written afterwards."""
    for name in REPORT_FILES:
        refuse_existing(folder / name, overwrite)


def write_report(document: BenchJson, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Writes `bench.json` and `report.md` into the folder. Raises `OutputError`."""
    texts = {
        "bench.json": to_json_text(document) + "\n",
        "report.md": markdown(document),
    }
    for name in REPORT_FILES:
        with output_file(folder / name, overwrite=overwrite) as file:
            file.write(texts[name].encode())
    return [folder / name for name in REPORT_FILES]


def table_rows(document: BenchJson) -> list[list[str]]:
    """One row a level, for `COLUMNS`."""
    return [_row(result) for result in document["results"]]


def remarks(document: BenchJson) -> list[str]:
    """What has to be said about the table: the reference, the recommendation, and what disturbed it."""
    reference, recommended = document["reference"], document["recommended"]
    lines = [
        f"Reference {reference['type']}: perplexity"
        f" {_with_error(reference['perplexity'], reference['perplexity_stderr'])}"
        f" over {reference['tokens_scored']:,} tokens."
    ]
    if smallest := recommended["smallest_within_1pct_ppl"]:
        fastest = recommended["fastest_within_1pct_ppl"]
        lines.append(f"Within 1 % of its perplexity: smallest {smallest}, fastest {fastest}.")
    else:
        lines.append("No level stays within 1 % of its perplexity.")
    if disturbed := [result["type"] for result in document["results"] if result["disturbed"]]:
        lines.append(
            f"Other processes used the machine while these were timed: {', '.join(disturbed)}. Mind the speeds."
        )
    return lines


def markdown(document: BenchJson) -> str:
    """`report.md`: the table, the remarks, and where it was measured."""
    model, text, environment = document["model"], document["text"], document["environment"]
    lines = [
        f"# {model['name']}: {len(document['results'])} quantization levels",
        "",
        *markdown_table(COLUMNS, table_rows(document)),
        "",
        *(f"- {remark}" for remark in remarks(document)),
        "",
        "Perplexity with its standard error, by llama-perplexity's method: chunks of"
        f" {text['context']} tokens, the second half of each scored. KLD: Kullback-Leibler divergence of the next-token"
        f" distribution from {document['reference']['type']}'s, in nats. Top-1: how often the likeliest token is the"
        " same. bpw: bits per weight. Speeds: tokens per second at batch 1, median (minimum-maximum) of"
        f" {document['results'][0]['decode_tps']['rounds']} rounds in which the levels took turns. Peak memory and load"
        " time: of a fresh process each.",
        "",
        "## More of each level",
        "",
        *markdown_table(
            ["type", "PPL ratio", "KLD median", "KLD 99 %", "KLD max", "RMS dp", "first token ms"],
            [_second_row(result) for result in document["results"]],
        ),
        "",
        "## Measured on",
        "",
        f"- model: {model['name']}, {model['parameters']:,} parameters, source {model['source_sha256'][:16]}",
        f"- text: {text['name']}, {text['tokens']:,} tokens, sha256 {text['sha256'][:16]}",
        f"- machine: {environment['cpu']}, {environment['cores']} cores, {environment['threads']} threads,"
        f" {environment['os']}, load {environment['loadavg']} before the run",
        f"- dgpt2-quant {environment['dgpt2_quant']}, llama-cpp-python {environment['llama_cpp_python']},"
        f" Python {environment['python']}",
    ]
    return "\n".join(lines) + "\n"


def _row(result: Result) -> list[str]:
    return [
        result["type"],
        f"{result['bytes'] / 1e6:.2f}",
        f"{result['bits_per_weight']:.2f}",
        _with_error(result["perplexity"], result["perplexity_stderr"]),
        _small(result["kld_mean"]),
        _small(result["kld_p999"]),
        f"{100 * result['top1_agreement']:.1f} %",
        _rate(result["prompt_tps"]),
        _rate(result["decode_tps"]),
        f"{result['load_ms']:.0f}",
        f"{result['peak_rss_bytes'] / 1e6:.0f}",
    ]


def _second_row(result: Result) -> list[str]:
    return [
        result["type"],
        f"{result['ppl_ratio']:.4f}",
        _small(result["kld_median"]),
        _small(result["kld_p99"]),
        _small(result["kld_max"]),
        f"{100 * result['rms_dp']:.2f} %",
        f"{result['first_token_ms']:.1f}",
    ]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, numbers to the right."""
    rules = ["---:" if all(is_number(row[index]) for row in rows) else "---" for index in range(len(columns))]
    return [f"| {' | '.join(cells)} |" for cells in (columns, rules, *rows)]


def is_number(cell: str) -> bool:
    """Whether a cell of a table is to be aligned as a number."""
    return bool(cell) and cell[0] in "+-0123456789"


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def _rate(rate: RateJson) -> str:
    return f"{rate['median']:.0f} ({rate['min']:.0f}-{rate['max']:.0f})"


def _small(value: float) -> str:
    return f"{value:.5f}" if value < 0.1 else f"{value:.3f}"
