"""The sections of the report after its main table, as texts and tables."""

from collections.abc import Sequence
from itertools import pairwise

from dgpt2_quant.bench.document.blocks import Block, Items, Section, Table, Text, quoted
from dgpt2_quant.bench.document.format_numbers import (
    DISTURBED,
    change,
    label,
    marked,
    name_of,
    of_several_runs,
    percent,
    ratio,
    ratio_interval,
    small,
    speed,
    with_interval,
)
from dgpt2_quant.bench.document.schema import BenchJson, Environment, Pair, Result, SpeedPoint, WrongToken

_ALL_PAIRS = 6  # files, up to which every pair is shown
_TABLE_WIDTH = 8  # files in one table
_UNKNOWN = ""


def quality_section(document: BenchJson) -> Section:
    """KL divergence and related figures, with the noise floor as the last row."""
    columns = ["type", "PPL ratio (95 %)", "KLD mean (95 %)", "median", "90 %", "95 %", "99 %", "99.9 %", "max"]
    columns += ["top-1", "mean Δp", "RMS Δp", "NLL corr."]
    rows = [_quality_row(result) for result in document["results"]]
    blocks: list[Block] = []
    if floor := document["noise_floor"]:
        known = {
            "type": "noise floor",
            "PPL ratio (95 %)": f"{floor['ppl_ratio']:.6f}",
            "KLD mean (95 %)": small(floor["kld_mean"]),
            "99 %": small(floor["kld_p99"]),
            "max": small(floor["kld_max"]),
            "top-1": percent(floor["top1_agreement"], 2),
            "RMS Δp": percent(floor["rms_dp"], 3),
        }
        rows.append([known.get(column, _UNKNOWN) for column in columns])
        blocks.append(
            Text(
                f"Noise floor: {document['reference']['type']} compared with itself, computed in another way"
                f" ({floor['how']}). Differences up to this are rounding."
            )
        )
    return Section("Quality", [Table(columns, rows), *blocks])


def _quality_row(row: Result) -> list[str]:
    divergences = ("kld_median", "kld_p90", "kld_p95", "kld_p99", "kld_p999", "kld_max")
    correlation = row["nll_correlation"]
    return [
        label(row),
        ratio_interval(row["ppl_ratio_interval"]),
        with_interval(row["kld_interval"]),
        *(small(row[key]) for key in divergences),  # type: ignore[literal-required]
        percent(row["top1_agreement"], 2),
        change(row["mean_dp"]),
        percent(row["rms_dp"], 2),
        _UNKNOWN if correlation is None else f"{correlation:.5f}",
    ]


def pairs_section(document: BenchJson) -> list[Section]:
    """The differences between files, and which of them are real."""
    pairs = _shown_pairs(document)
    if not pairs:
        return []
    rows = [
        [
            pair["a"],
            pair["b"],
            with_interval(pair["kld_difference"]),
            _verdict(pair["kld_difference"]["low"], pair["kld_difference"]["high"]),
            with_interval(pair["nll_difference"]),
            _verdict(pair["nll_difference"]["low"], pair["nll_difference"]["high"]),
        ]
        for pair in pairs
    ]
    said = "How much worse the second file is than the first on the same tokens, in nats per token, with 95 % intervals"
    said += " by paired bootstrap. If the interval contains zero, this text does not distinguish the two."
    if len(pairs) < len(document["pairs"]):
        said += f" Shown are neighbours by size, of {len(document['pairs'])} pairs; bench.json has all."
    columns = ["first", "second", "KLD difference (95 %)", "by KLD", "NLL difference (95 %)", "by perplexity"]
    return [Section("Which differences are real", [Text(said), Table(columns, rows)])]


def _shown_pairs(document: BenchJson) -> list[Pair]:
    if len(document["results"]) <= _ALL_PAIRS:
        return document["pairs"]
    ordered = [name_of(row) for row in sorted(document["results"], key=lambda row: -row["bytes"])]
    neighbours = {frozenset(two) for two in pairwise(ordered)}
    return [pair for pair in document["pairs"] if frozenset((pair["a"], pair["b"])) in neighbours]


def _verdict(low: float, high: float) -> str:
    if low <= 0 <= high:
        return "no difference"
    return "second worse" if low > 0 else "second better"


def confidence_section(document: BenchJson) -> list[Section]:
    """KL divergence by the reference's confidence."""
    cells = {
        (label(row), part["low"], part["high"]): part for row in document["results"] for part in row["by_confidence"]
    }
    parts = sorted({(low, high) for _, low, high in cells})
    if not parts:
        return []
    columns = ["type"]
    for low, high in parts:
        tokens = max(part["tokens"] for (_, *bounds), part in cells.items() if tuple(bounds) == (low, high))
        columns.append(f"{100 * low:g}-{100 * high:g} % ({tokens:,} tokens)")
    rows = []
    for name in dict.fromkeys(label(row) for row in document["results"]):
        row = [name]
        for bounds in parts:
            part = cells.get((name, *bounds))
            known = part is not None and part["kld_mean"] is not None and part["top1_agreement"] is not None
            row.append(f"{small(part['kld_mean'])}, {percent(part['top1_agreement'])}" if known else _UNKNOWN)  # type: ignore[index, arg-type]
        rows.append(row)
    said = f"Mean KL divergence and top-1 agreement, by the probability that {document['reference']['type']} gives to"
    said += " its likeliest token. Where this is low, a change of the likeliest token means little."
    return [Section("By the reference's confidence", [Text(said), Table(columns, rows)])]


def speed_sections(document: BenchJson) -> list[Section]:
    """Speeds relative to the reference, then all settings of the grid."""
    several, results = of_several_runs(document), document["results"]
    energy = any(row["joules_per_token"] is not None for row in results)
    columns = ["type", "prompt ratio", "decode ratio", "first token ms", "rounds"]
    columns += ["J/token"] * energy + ["run"] * several + ["disturbed"]
    rows = [
        [
            label(row),
            marked(ratio(row["prompt_ratio"]), row["disturbed"]),
            marked(ratio(row["decode_ratio"]), row["disturbed"]),
            marked(f"{row['first_token_ms']:.1f}", row.get("load_disturbed")),
        ]
        + [str(row["decode_ratio"]["rounds"])]
        + [_or_unknown(row["joules_per_token"], ".3g")] * energy
        + [str(row["run"] + 1)] * several
        + [_yes(row["disturbed"])]
        for row in results
    ]
    said = f"Speed divided by that of {document['reference']['type']} in the same round: median (minimum-maximum)."
    if any(row["disturbed"] or row.get("load_disturbed") for row in results):
        said += f" {DISTURBED} disturbed: other programs used the machine."
    if several:
        said += " The files were measured in several runs: only these ratios can be compared between them."
    sections = [Section("Speed", [Text(said), Table(columns, rows)])]
    if grid := _grid(results):
        said = f"Tokens per second of all sequences together, medians; {DISTURBED} disturbed."
        if several:
            said += " Do not compare them between different runs."
        sections.append(Section("Speed by setting", [Text(said), *grid], level=3))
    return sections


def _grid(results: Sequence[Result]) -> list[Block]:
    points = {(_setting(point), label(row)): point for row in results for point in row["speed"]}
    settings = sorted({setting for setting, _ in points}, key=lambda setting: (setting[0] != "prompt", *setting[1:]))
    names = list(dict.fromkeys(name for _, name in points))
    tables: list[Block] = []
    for start in range(0, len(names), _TABLE_WIDTH):
        shown = names[start : start + _TABLE_WIDTH]
        rows = [
            [setting[0], *map(str, setting[1:]), *(_tps(points.get((setting, name))) for name in shown)]
            for setting in settings
        ]
        tables.append(Table(["measure", "threads", "batch", "depth", "tokens", *shown], rows))
    return tables


def _setting(point: SpeedPoint) -> tuple[str, int, int, int, int]:
    return point["measure"], point["threads"], point["batch"], point["depth"], point["tokens"]


def _tps(point: SpeedPoint | None) -> str:
    return marked(f"{point['tps']['median']:.0f}", point["disturbed"]) if point else _UNKNOWN


def peers_section(document: BenchJson) -> list[Section]:
    """Other programs with the same weights."""
    blocks: list[Block] = []
    if peers := document["peers"]:
        rows = [
            [
                peer["name"],
                peer["version"],
                peer["precision"],
                speed(peer["prompt_tps"], peer["disturbed"]) if peer["prompt_tps"] else _UNKNOWN,
                speed(peer["decode_tps"], peer["disturbed"]),
                ratio(peer["decode_ratio"]),
                _or_unknown(peer["load_ms"], ".0f"),
                _UNKNOWN if peer["peak_rss_bytes"] is None else f"{peer['peak_rss_bytes'] / 1e6:.0f}",
                _yes(peer["sane"]),
                _yes(peer["disturbed"]),
            ]
            for peer in peers
        ]
        columns = ["peer", "version", "precision", "prompt t/s", "decode t/s", "decode ratio", "load ms", "peak MB"]
        blocks.append(
            Text("Other programs with the same weights, prompt and number of tokens, timed in the same rounds.")
        )
        blocks.append(Table([*columns, "sane", "disturbed"], rows))
    if skipped := document["skipped_peers"]:
        blocks.append(Items([f"{peer['name']} was skipped: {peer['reason']}" for peer in skipped]))
    return [Section("Peers", blocks)] if blocks else []


def worst_sections(document: BenchJson) -> list[Section]:
    """The tokens that each file changed most."""
    rows = [row for row in document["results"] if row["worst"]]
    if not rows:
        return []
    said = "The tokens where each file differs most from the reference: the text before, the token of the text, the"
    said += " likeliest token of each, and the probability that each gives to the token of the text."
    sections = [Section("Worst tokens", [Text(said)])]
    columns = ["before", "token", "KLD", "reference's likeliest", "file's likeliest", "reference p", "file p"]
    for row in rows:
        table = Table(columns, [_worst_row(token) for token in row["worst"]])
        sections.append(Section(label(row), [table], level=3, folded=True))
    return sections


def _worst_row(token: WrongToken) -> list[str]:
    return [
        quoted(token["before"]),
        quoted(token["token"]),
        small(token["kld"]),
        quoted(token["reference_top"]),
        quoted(token["level_top"]),
        small(token["reference_p"]),
        small(token["level_p"]),
    ]


def environment_section(document: BenchJson) -> Section:
    model, text = document["model"], document["text"]
    items = [
        f"model: {model['name']}, {model['parameters']:,} parameters, source {model['source_sha256'][:16]}",
        f"text: {text['name']}, {text['tokens']:,} tokens, sha256 {text['sha256'][:16]}",
    ]
    runs = document["runs"] or [document["environment"]]
    for number, run in enumerate(runs):
        items.append(f"{f'run {number + 1}' if len(runs) > 1 else 'machine'}: {_machine(run)}")
    return Section("Measured on", [Items(items)])


def _machine(run: Environment) -> str:
    memory = f", {run['ram_bytes'] / 2**30:.0f} GiB" if run["ram_bytes"] else ""
    seconds, asked = run.get("disturbed_seconds", 0.0), run.get("rounds_asked")
    disturbed = f", {seconds:.0f} s of disturbed timings ({asked} rounds requested)" if seconds else ""
    return (
        f"{run['cpu']}, {run['cores']} cores, {run['threads']} threads{memory}, {run['os']},"
        f" load {run['loadavg']} before the run{disturbed};"
        f" dgpt2-quant {run['dgpt2_quant']}, llama-cpp-python {run['llama_cpp_python']}, Python {run['python']}"
    )


def _or_unknown(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else f"{value:{form}}"


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[value]
