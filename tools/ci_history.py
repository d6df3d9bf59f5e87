"""Converts `bench.json` for the charts of benchmark-action/github-action-benchmark.

usage: ci_history.py merged/bench.json -o FOLDER

Writes two files, because a chart has one direction: history-smaller.json (perplexity, KL divergence, size) and
history-bigger.json (speeds). Speeds are multiples of the reference's in the same rounds: hosted runners differ by more
than quant types do.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def smaller_is_better(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Three points for each type: perplexity, mean KL divergence (nats) and bytes."""
    points = []
    for result in document["results"]:
        name = result["type"]
        kld, perplexity = (f"± {result[error]:.3g}" for error in ("kld_stderr", "perplexity_stderr"))
        points += [
            {"name": f"{name} perplexity", "unit": "", "value": result["perplexity"], "range": perplexity},
            {"name": f"{name} KL divergence", "unit": "nats", "value": result["kld_mean"], "range": kld},
            {"name": f"{name} size", "unit": "bytes", "value": result["bytes"]},
        ]
    return points


def bigger_is_better(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Two points for each type: the speeds of the prompt and of decoding, as multiples of the reference's."""
    unit = f"x {document['reference']['type']}"
    points = []
    for result in document["results"]:
        for what in ("prompt", "decode"):
            ratio = result[f"{what}_ratio"]
            spread = f"{ratio['min']:.3g}-{ratio['max']:.3g}"
            points.append({"name": f"{result['type']} {what}", "unit": unit, "value": ratio["median"], "range": spread})
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    document = json.loads(options.document.read_text("utf-8"))
    for name, points in (("smaller", smaller_is_better(document)), ("bigger", bigger_is_better(document))):
        (options.output / f"history-{name}.json").write_text(json.dumps(points, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
