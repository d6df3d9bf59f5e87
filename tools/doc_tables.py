"""Tables and plots of the documents, from `docs/bench/*.json`, which the measuring scripts and `bench` wrote."""

from collections.abc import Iterable
from math import prod
from typing import Any

from dgpt2_quant.bench.document.format_numbers import percent, small
from dgpt2_quant.bench.report.markdown import markdown_table
from dgpt2_quant.bench.report.plot_axes import (
    BLUE,
    GREEN,
    INK,
    PAPER,
    RED,
    STYLE,
    draw_legend,
    drawable,
    empty_axes,
    log_ticks,
)
from dgpt2_quant.bench.report.plot_labels import label_points
from dgpt2_quant.bench.report.summary import COLUMNS, remarks, table_rows
from dgpt2_quant.core.gguf_file import tensor_bytes
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import QuantType, find_type
from dgpt2_quant.quantize.recipes.plan import pad_tokens
from dgpt2_quant.quantize.recipes.tensor_types import tensor_types

Document = dict[str, Any]

DISTILGPT2 = Hyperparameters(
    vocabulary=50257, context=1024, width=768, inner=3072, layers=6, heads=12, norm_epsilon=1e-5
)
PRESETS = ("q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k")
MARKERS = {  # by kind of file: marker, colour, words
    "stock": ("o", BLUE, "stock, importance matrix"),
    "level": ("D", GREEN, "lean"),
    "searched": ("s", RED, "lean, searched"),
}


def type_table(types: Iterable[QuantType]) -> list[str]:
    rows = [
        [
            f"`{t.name.lower()}`" + "".join(f", `{alias}`" for alias in t.aliases),
            f"{t.bits_per_weight:g}",
            t.description + ("; needs an importance matrix" if t.needs_imatrix else ""),
        ]
        for t in types
    ]
    return markdown_table(["type", "bits per weight", "what it is"], rows)


def classify_table(document: Any) -> list[str]:
    """Accuracy and macro F1 of each type, with their changes against F16."""

    def cells(metric: Any) -> list[str]:
        value, low, high = (f"{100 * metric[name]:.1f}" for name in ("value", "low", "high"))
        change = [f"{100 * metric[name]:+.1f}" for name in ("change_against_f16", "change_low", "change_high")]
        return [f"{value} ({low} to {high})", f"{change[0]} ({change[1]} to {change[2]})"]

    rows = [
        [row["type"], *cells(row["metrics"]["accuracy"]), *cells(row["metrics"]["macro_f1"])]
        for row in document["results"]
    ]
    return markdown_table(["type", "accuracy, %", "change", "macro F1, %", "change"], rows)


def bench_table(document: Any) -> list[str]:
    return [*markdown_table(COLUMNS, table_rows(document)), "", *(f"- {remark}" for remark in remarks(document))]


def release_table(document: Any | None) -> list[str]:
    """The README's table of DistilGPT2's release; a sentence until somebody has run it."""
    if document is None:
        return ["(Not yet run on the real weights: the development machine cannot reach the Hub.)"]
    rows = [
        [
            row["type"],
            f"{row['bytes'] / 1e6:.1f}",
            small(row["kld_mean"]),
            f"{row['ppl_ratio']:.4f}",
            percent(row["top1_agreement"]),
            f"{row['decode_tps']['median']:.0f}",
        ]
        for row in document["results"]
    ]
    return markdown_table(["type", "MB", "KL divergence", "perplexity ratio", "same top token", "tokens/s"], rows)


def peers_table(document: Any) -> list[str]:
    """Decode speeds of dgpt2-quant and the peers relative to the reference in the same rounds, the fastest first."""
    found = [("dgpt2-quant", row["type"], row) for row in document["results"]]
    found += [(f"{row['name']} {row['version']}", row["precision"], row) for row in document["peers"]]
    rows = [
        [
            name,
            precision,
            tps(row["decode_tps"]),
            f"{row['decode_ratio']['median']:.2f}",
            tps(row["prompt_tps"]) if row["prompt_tps"] else "",
            f"{row['load_ms']:.0f}" if row["load_ms"] else "",
            f"{row['peak_rss_bytes'] / 1e6:.0f}" if row["peak_rss_bytes"] else "",
        ]
        for name, precision, row in sorted(found, key=lambda row: -row[2]["decode_ratio"]["median"])
    ]
    columns = ["", "weights", "decode, tokens/s", "over F32, same round", "prompt, tokens/s", "load ms", "peak MB"]
    return markdown_table(columns, rows)


README_ROWS = ("F32", "BF16", "INT8", "Q4_0")  # of each program, the weights that it is used with


def programs_table(document: Any) -> list[str]:
    """The README's table: decode speed and peak memory of dgpt2-quant and the peers, the slowest first."""
    found = [("**dgpt2-quant**", row["type"], row) for row in document["results"]]
    found += [(f"{row['name']} {row['version']}", row["precision"], row) for row in document["peers"]]
    rows = [
        [
            name,
            weights,
            f"{row['peak_rss_bytes'] / 1e6:.0f} MB" if row["peak_rss_bytes"] else "",
            f"{row['decode_tps']['median']:.0f}",
        ]
        for name, weights, row in sorted(found, key=lambda row: row[2]["decode_tps"]["median"])
        if weights in README_ROWS
    ]
    return markdown_table(["program", "weights", "peak memory", "tokens/s"], rows)


def perplexity_table(*documents: Document) -> list[str]:
    rows = [
        [
            found["file"],
            f"{found['perplexity']:.4f}",
            f"{found['llama_perplexity']:.4f}",
            f"{found['difference_percent']:+.4f} %",
            f"{found['tps']:,}",
            f"{found['llama_tps']:,}",
            "{median:.2f} ({min:.2f}-{max:.2f})".format_map(found["ratio"]),
        ]
        for document in documents
        for found in document["perplexity"]
    ]
    columns = ["file", "perplexity", "llama-perplexity", "difference", "tokens/s", "llama-perplexity's", "ratio"]
    return markdown_table(columns, rows)


def gate_lines(document: Document) -> list[str]:
    planted = document["planted"]
    changes = [row["kld_change"] for row in planted]
    caught, by_quality = (sum(row[key] for row in planted) for key in ("caught", "caught_by_quality"))
    return [
        f"{document['flagged_of_the_same_build']} of {document['runs']} runs of the same build were flagged, speeds"
        f" included ({document['speeds_compared']} compared, {document['speeds_disturbed']} disturbed; tolerance"
        f" {document['speed_tolerance']:.0%}). Of {len(planted)} tensors that were stored at a lower type, one at a"
        f" time, {caught} were caught, {by_quality} of them by their quality and the others only by their lost bits:"
        f" the mean KL divergence changed by {min(changes):+.1%} to {max(changes):+.0%}, and fell by chance for"
        f" {sum(change < 0 for change in changes)} of them."
    ]


def generation_table(document: Document) -> list[str]:
    rows = []
    for level, parts in levels_of(document):
        for part in ("decode", "prompt", "batch"):
            for name, found in parts[part].items():
                ours, *others = found["tps"]
                rows += [
                    [level, part, name, tps(found["tps"][ours]), other, tps(found["tps"][other]), f"{ratio:.2f}"]
                    for other, ratio in ((other, found["ratio"][other]) for other in others)
                ]
    return markdown_table(["type", "part", "", "dgpt2-quant, tokens/s", "peer", "tokens/s", "ratio"], rows)


def lookup_table(document: Document) -> list[str]:
    rows = [
        [
            name,
            *(tps(found["tps"][key]) for key in ("greedy", "greedy, lookup=0")),
            f"{found['ratio']['greedy, lookup=0']:.2f}",
            f"{found['same_texts']} of {found['texts']}",
        ]
        for name, found in document.items()
    ]
    return markdown_table(["model", "tokens/s", "`lookup=0`, tokens/s", "ratio", "same text"], rows)


def overhead_table(document: Document) -> list[str]:
    rows = [
        [name, f"{found['whole_ms']:.2f}", f"{found['bare_ms']:.2f}", f"{found['whole_ms'] - found['bare_ms']:.2f}"]
        for _, parts in levels_of(document)
        for name, found in parts["overhead"].items()
    ]
    return markdown_table(["setting", "ms a token", "a bare decode", "difference"], rows)


def governor_table(document: Document) -> list[str]:
    rows = [
        [busy, *(tps(speed) for speed in found["tps"].values()), f"{found['of_best_fixed']:.2f}"]
        for busy, found in document["load"].items()
    ]
    names = [name if name == "auto" else f"{name} fixed" for name in document["load"]["0"]["tps"]]
    return markdown_table(["busy processes", *(f"{name}, tokens/s" for name in names), "auto / best fixed"], rows)


def texts_table(document: Document) -> list[str]:
    rows = [
        [text["name"], f"`{text['sha256'][:16]}`", f"{text['tokens_scored']:,}", f"{text['perplexity']:.2f}"]
        for text in document["texts"]
    ]
    return markdown_table(["text", "SHA-256 begins", "tokens scored", "perplexity of F32"], rows)


def quality_tables(document: Document) -> list[str]:
    """For each text a table of all files but those with a step left out, by size."""
    files = sorted((file for file in document["files"] if file["kind"] != "ablated"), key=lambda file: file["bytes"])
    batches = list(files[0].get("tps", ()))
    lines: list[str] = []
    for text in (text["name"] for text in document["texts"]):
        rows = []
        for file in files:
            found = file["quality"][text]
            kld = [small(found["kld"][key]) for key in ("value", "low", "high")]
            rows.append(
                [
                    file["name"],
                    f"{file['bytes'] / 1e6:.3f}",
                    f"{file['bits_per_weight']:.2f}",
                    f"{kld[0]} ({kld[1]}-{kld[2]})",
                    small(found["kld_p999"]),
                    percent(found["top1_agreement"], 2),
                    f"{found['ppl_ratio']['value']:.4f}",
                    *(tps(file["tps"][batch]) for batch in batches),
                ]
            )
        columns = ["file", "MB", "bpw", f"KLD mean, {text}", "KLD 99.9%", "top-1", "PPL ratio"]
        speeds = ["decode, tokens/s" if batch == "1" else f"{batch} at once, tokens/s" for batch in batches]
        lines += [*([""] if lines else []), *markdown_table([*columns, *speeds], rows)]
    return lines


def recipes_table(*documents: Document) -> list[str]:
    """`lean` compared with `stock` at the same quant type, for several models and texts."""
    rows = []
    for document in documents:
        files = {file["name"]: file for file in document["files"]}
        for pair in document["pairs"]:
            one, other = files[pair["a"]], files[pair["b"]]
            if one["kind"] != "level" or one["name"] != f"lean {other['type']}":
                continue
            speeds = pair["speed_ratio"]
            rows.append(
                [
                    document["model"]["name"],
                    pair["text"],
                    other["type"],
                    f"{pair['bytes_ratio']:.3f}",
                    small(other["quality"][pair["text"]]["kld"]["value"]),
                    "{value:.2f} ({low:.2f}-{high:.2f})".format_map(pair["kld_ratio"]),
                    f"{pair['kld_p999_ratio']:.2f}",
                    f"{100 * pair['top1_difference']['value']:+.2f}",
                    *("{median:.2f}".format_map(speeds[batch]) for batch in ("1", "8") if batch in speeds),
                ]
            )
    columns = ["model", "text", "type", "bytes", "KLD of `stock`", "KLD", "KLD 99.9%", "top-1, points"]
    return markdown_table([*columns, "speed, 1 sequence", "8 sequences"][: len(rows[0])], rows)


def speeds_table(document: Document) -> list[str]:
    """Decode speed and size of each file, as ratios to a stock file; empty where no speeds were measured."""
    pairs = {(pair["a"], pair["b"]): pair for pair in document["pairs"] if pair.get("speed_ratio")}
    if not pairs:
        return []
    batches = list(next(iter(pairs.values()))["speed_ratio"])
    rows = [
        [
            *names,
            *("{median:.2f} ({min:.2f}-{max:.2f})".format_map(pair["speed_ratio"][batch]) for batch in batches),
            f"{pair['bytes_ratio']:.3f}",
        ]
        for names, pair in pairs.items()
    ]
    speeds = [f"speed ratio, {batch} sequence{'s' * (batch != '1')}" for batch in batches]
    return markdown_table(["file", "compared with", *speeds, "bytes ratio"], rows)


def large_models_table(document: Document) -> list[str]:
    """Time, memory and disk space of `lean` for large models, by tools/time_lean.py."""
    rows = [
        [
            f"{name}, {found['layers']} x {found['width']}",
            f"{found['lean_s'] / 60:.0f}",
            *(f"{found[key] / 1e3:.1f}" for key in ("peak_mb", "generating_needs_mb", "scratch_mb")),
        ]
        for name, found in document["models"].items()
    ]
    columns = ["model", "`--calibrate TEXT`, minutes", "`--calibrate TEXT`, GB"]
    return markdown_table([*columns, "generated text, GB", "scratch, GB"], rows)


def presets_table() -> list[str]:
    """The bytes of DistilGPT2's weights at some quant types by each recipe, computed from the recipes."""
    rows = []
    for recipe in ("stock", "lean"):
        for quant_type in map(find_type, PRESETS):
            types = tensor_types(DISTILGPT2.shapes(), quant_type, recipe, has_imatrix=True)
            pads = pad_tokens(DISTILGPT2.vocabulary, types) if recipe == "lean" else 0
            shapes = DISTILGPT2.padded(pads).shapes()
            sizes = {tensor: tensor_bytes(shape, types[tensor]) for tensor, shape in shapes.items()}
            total, embedding, positions = sum(sizes.values()), sizes["token_embd.weight"], sizes["position_embd.weight"]
            rows.append(
                [
                    f"{recipe} {quant_type.name}",
                    f"{embedding / 1e6:.1f}",
                    types["token_embd.weight"].name,
                    f"{positions / 1e6:.1f}",
                    f"{(total - embedding - positions) / 1e6:.1f}",
                    f"{total / 1e6:.1f}",
                    percent(embedding / total, 0),
                    f"{8 * total / sum(map(prod, shapes.values())):.2f}",
                ]
            )
    sizes_of = ["embedding, MB", "its type", "positions, MB", "blocks, MB", "all, MB"]
    return markdown_table(["file", *sizes_of, "embedding's share", "bpw"], rows)


def size_kld_plot(document: Any, text: str) -> Any:
    """A matplotlib figure of size against KL divergence on one text."""
    import matplotlib

    matplotlib.rcParams.update(STYLE)
    figure, axes = empty_axes("Size against KL divergence", document, height=5.2)
    kinds = {"equal": "searched"}
    drawn = sorted((file for file in document["files"] if file["kind"] != "ablated"), key=lambda file: file["bytes"])
    points: list[tuple[float, float]] = []
    names, legend = [], []
    for kind, (marker, colour, words) in MARKERS.items():
        files = [file for file in drawn if kinds.get(file["kind"], file["kind"]) == kind]
        if not files:
            continue
        legend.append((marker, colour, words))
        klds = [file["quality"][text]["kld"] for file in files]
        xs, ys = [file["bytes"] / 1e6 for file in files], [kld["value"] for kld in klds]
        line = "none" if kind == "level" else "-"
        axes.plot(xs, ys, color=colour, marker=marker, linestyle=line, markersize=6.5, markeredgecolor=PAPER, zorder=3)
        axes.vlines(xs, [kld["low"] for kld in klds], [kld["high"] for kld in klds], color=colour, linewidth=1)
        if kind != "searched":  # those are below the stock files whose size they have
            points += zip(xs, ys, strict=True)
            names += [file["name"].removeprefix("stock ").removeprefix("lean ") for file in files]
    values = [file["quality"][text]["kld"]["value"] for file in drawn]
    sizes = [file["bytes"] / 1e6 for file in drawn]
    axes.set_yscale("log")
    axes.set_ylim(low := min(values) / 1.5, high := max(values) * 1.5)
    log_ticks(axes.yaxis, low, high)
    axes.set_xlim(min(sizes) - 0.1 * (max(sizes) - min(sizes)), max(sizes) + 0.12 * (max(sizes) - min(sizes)))
    axes.set_xlabel(f"size, MB; scored on {drawable(text, 40)}")
    axes.set_ylabel("mean KL divergence from F32, nats")
    draw_legend(axes, legend)
    label_points(axes, points, names, INK, 8)
    return figure


def levels_of(document: Document) -> Iterable[tuple[str, Document]]:
    """What was measured, by quant type; the other keys are the circumstances."""
    return ((name, parts) for name, parts in document.items() if isinstance(parts, dict))


def tps(speed: dict[str, float]) -> str:
    return "{median:.0f} ({min:.0f}-{max:.0f})".format_map(speed)
