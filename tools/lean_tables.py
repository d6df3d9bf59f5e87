"""The tables of what measure_lean.py, measure_roundings.py and time_lean.py have measured, as Markdown; its targets."""

from collections.abc import Iterator
from math import prod
from typing import Any

from dgpt2_quant.bench.document.format_numbers import percent, small
from dgpt2_quant.bench.report.markdown import markdown_table
from dgpt2_quant.core.gguf_file import tensor_bytes
from dgpt2_quant.core.hyperparameters import Hyperparameters, pad_count
from dgpt2_quant.core.quant_types import find_type
from dgpt2_quant.quantize.recipes.tensor_types import tensor_types

EQUAL = "Q4_K_M"  # the stock type at whose KL divergence sizes are compared
KLD_RATIO, BYTES_RATIO = 0.6, 0.85  # targets: at most
SPEED_RATIO = 1.3  # at least
PRESETS = ("q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k")
DISTILGPT2 = Hyperparameters(
    vocabulary=50257, context=1024, width=768, inner=3072, layers=6, heads=12, norm_epsilon=1e-5
)

Document = dict[str, Any]


def print_tables(document: Document) -> None:
    parts = [texts_table(document), quality_tables(document), targets_table(document), steps_table(document)]
    print("\n\n".join("\n".join(part) for part in parts if part))


def texts_table(document: Document) -> list[str]:
    rows = [
        [text["name"], f"`{text['sha256'][:16]}`", f"{text['tokens_scored']:,}", f"{text['perplexity']:.2f}"]
        for text in document["texts"]
    ]
    return markdown_table(["text", "SHA-256 begins", "tokens scored", "perplexity of F32"], rows)


def quality_tables(document: Document) -> list[str]:
    """One after the other, for each text."""
    first, *others = (quality_table(document, text["name"]) for text in document["texts"])
    return [*first, *(line for table in others for line in ("", *table))]


def quality_table(document: Document, text: str) -> list[str]:
    """All files but those with steps left out, by size."""
    files = sorted((file for file in document["files"] if file["kind"] != "ablated"), key=lambda file: file["bytes"])
    rows = []
    for file in files:
        found = file["quality"][text]
        rows.append(
            [
                file["name"],
                f"{file['bytes'] / 1e6:.3f}",
                f"{file['bits_per_weight']:.2f}",
                spanned(found["kld"], small),
                small(found["kld_p999"]),
                percent(found["top1_agreement"], 2),
                f"{found['ppl_ratio']['value']:.4f}",
            ]
        )
    columns = ["file", "MB", "bpw", f"KLD mean, {text}", "KLD 99.9%", "top-1", "PPL ratio"]
    return markdown_table(columns, rows)


def targets(document: Document) -> list[Document]:
    """Each as it was reached: `value` with its interval where it has one, the `limit`, and whether it was `met`."""
    return [*_at_equal_sizes(document), *_at_equal_quality(document)]


def _at_equal_sizes(document: Document) -> Iterator[Document]:
    searched = {file["name"]: file["beside"] for file in document["files"] if file["kind"] == "searched"}
    for pair in document["pairs"]:
        if pair["a"] in searched and pair["b"] == f"stock {searched[pair['a']]}":
            met = (
                pair["kld_ratio"]["value"] <= KLD_RATIO
                and pair["bytes_ratio"] <= 1
                and pair["kld_p999_ratio"] <= 1
                and pair["top1_difference"]["value"] >= 0
            )
            yield {"target": "size", "limit": KLD_RATIO, "beside": searched[pair["a"]], "met": met, **pair}


def _at_equal_quality(document: Document) -> Iterator[Document]:
    """The smallest file of the recipe whose mean KL divergence is no larger than that of the stock file."""
    stock = next(file for file in document["files"] if file["kind"] == "stock" and file["type"] == EQUAL)
    for text in (text["name"] for text in document["texts"]):
        limit = stock["quality"][text]["kld"]["value"]
        as_good = [
            file
            for file in document["files"]
            if file["kind"] not in ("stock", "ablated") and file["quality"][text]["kld"]["value"] <= limit
        ]
        best = min(as_good, key=lambda file: file["bytes"], default=None)
        found: Document = {"target": "quality", "limit": BYTES_RATIO, "beside": EQUAL, "text": text}
        if best is None:
            yield {**found, "a": None, "b": stock["name"], "met": False}
            continue
        (pair,) = (
            pair
            for pair in document["pairs"]
            if (pair["a"], pair["b"], pair["text"]) == (best["name"], stock["name"], text)
        )
        yield {**found, **pair, "met": pair["bytes_ratio"] <= BYTES_RATIO}


def targets_table(document: Document) -> list[str]:
    rows = []
    for found in document["targets"]:
        verdict = "met" if found["met"] else "**missed**"
        place = f"the {'size' if found['target'] == 'size' else 'KLD'} of {found['beside']}"
        if found["a"] is None:
            rows.append([place, found["text"], "no file", "", "", "", verdict])
            continue
        sizes, tails, kld = BYTES_RATIO, "", 1.0
        if found["target"] == "size":
            sizes, tails, kld = 1.0, ", at most 1", KLD_RATIO
        top = found["top1_difference"]
        rows.append(
            [
                place,
                found["text"],
                f"{found['bytes_ratio']:.3f}, at most {sizes:g}",
                f"{spanned(found['kld_ratio'], '{:.2f}'.format)}, at most {kld:g}",
                f"{found['kld_p999_ratio']:.2f}{tails}",
                f"{100 * top['value']:+.2f} ({100 * top['low']:+.2f} to {100 * top['high']:+.2f})"
                + (", at least 0" if tails else ""),
                verdict,
            ]
        )
    columns = ["at", "text", "size, of stock's", "KLD, of stock's", "KLD 99.9%, of stock's", "top-1, points", "target"]
    return markdown_table(columns, rows)


def steps_table(document: Document) -> list[str]:
    """What the mean KL divergence grows by when a step is left out of a searched file; empty without an ablation."""
    by_name = {file["name"]: file for file in document["files"] if file["kind"] == "ablated"}
    levels = list(dict.fromkeys(file["beside"] for file in by_name.values()))
    if not levels:
        return []
    rows = []
    for text in (text["name"] for text in document["texts"]):
        found = {
            (tuple(by_name[pair["a"]]["without"]), by_name[pair["a"]]["beside"]): pair["kld_ratio"]
            for pair in document["pairs"]
            if pair["text"] == text and pair["a"] in by_name
        }
        for without in dict.fromkeys(without for without, _ in found):
            name = f"`{without[0]}`" if len(without) == 1 else "all of them"
            rows.append([name, text, *(spanned(found[without, level], signed_percent) for level in levels)])
    return markdown_table(["left out", "text", *(f"at the size of {level}" for level in levels)], rows)


def roundings_table(document: Document) -> list[str]:
    """Of what measure_roundings.py wrote."""
    words = {"blk": "the blocks' matrices", "token_embd": "the embedding"}
    rows = []
    for found in document["roundings"]:
        weights, both = (found[key]["kld"]["value"] for key in ("weights", "both"))
        cells = [spanned(found[key]["kld"], small) for key in ("weights", "both")]
        rows.append(
            [words.get(found["part"], f"`{found['part']}`"), found["type"], *cells, percent(1 - weights / both, 0)]
        )
    columns = ["quantized", "type", "KLD, weights rounded", "KLD, activations too", "share of the activations"]
    return markdown_table(columns, rows)


def preset_sizes() -> list[Document]:
    """Where the bytes of DistilGPT2's weights are, at each of the levels by each recipe: from the code."""
    found = []
    for recipe in ("stock", "lean"):
        for name in PRESETS:
            level = find_type(name)
            shapes = (DISTILGPT2.padded(pad_count(DISTILGPT2.vocabulary)) if recipe == "lean" else DISTILGPT2).shapes()
            types = tensor_types(shapes, level, recipe, has_imatrix=True)
            sizes = {tensor: tensor_bytes(shape, types[tensor]) for tensor, shape in shapes.items()}
            embedding, positions = sizes["token_embd.weight"], sizes["position_embd.weight"]
            found.append(
                {
                    "name": f"{recipe} {level.name}",
                    "type": types["token_embd.weight"].name,
                    "embedding": embedding,
                    "positions": positions,
                    "blocks": sum(sizes.values()) - embedding - positions,
                    "bits_per_weight": 8 * sum(sizes.values()) / sum(map(prod, shapes.values())),
                }
            )
    return found


def presets_table() -> list[str]:
    rows = []
    for row in preset_sizes():
        total = row["embedding"] + row["positions"] + row["blocks"]
        rows.append(
            [
                row["name"],
                f"{row['embedding'] / 1e6:.1f}",
                row["type"],
                f"{row['positions'] / 1e6:.1f}",
                f"{row['blocks'] / 1e6:.1f}",
                f"{total / 1e6:.1f}",
                percent(row["embedding"] / total, 0),
                f"{row['bits_per_weight']:.2f}",
            ]
        )
    columns = [
        "level",
        "embedding, MB",
        "its type",
        "positions, MB",
        "blocks, MB",
        "all, MB",
        "embedding's share",
        "bpw",
    ]
    return markdown_table(columns, rows)


TIMED = {
    "convert": "a conversion, with the model's own text",
    "given": "a conversion, with a given text",
    "search": "a search, with the model's own text",
}


def seconds_table(document: Document) -> list[str]:
    """Of what time_lean.py wrote: what a conversion and a search take, by stages."""
    rows = []
    for name, title in TIMED.items():
        if name in document:
            found, limit = document[name], document["limits"][f"{name}_s"]
            verdict = "met" if found["seconds"] <= limit else "**missed**"
            rows.append([f"**{title}**", f"{found['seconds']:.1f}", f"{verdict}: at most {limit}"])
            rows += [[stage, f"{seconds:.1f}", ""] for stage, seconds in found["stages"].items()]
    return markdown_table(["", "seconds", "target"], rows)


def speeds_table(document: Document) -> list[str]:
    """Of what time_lean.py wrote: each `lean` file beside each stock one."""
    rows = []
    for found in document["speed"]["pairs"]:
        ratio = found["ratio"]
        verdict = "met" if found["met"] else "**missed**"
        rows.append(
            [
                found["lean"],
                found["stock"],
                str(found["batch"]),
                f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
                f"{found['bytes_ratio']:.3f}",
                verdict,
            ]
        )
    goal = f"speed at least {SPEED_RATIO}, bytes at most {BYTES_RATIO}"
    return markdown_table(["file", "beside", "sequences", "speed ratio", "bytes ratio", goal], rows)


def spanned(interval: Document, write: Any) -> str:
    """A value and its 95 % interval."""
    value, low, high = (write(interval[key]) for key in ("value", "low", "high"))
    return f"{value} ({low}-{high})" if "%" not in value else f"{value} ({low} to {high})"


def signed_percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %"
