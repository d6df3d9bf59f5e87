"""What is known about a served file: size, quality and speed, from a `bench.json` or measured by the server."""

import hashlib
from collections.abc import Sequence
from typing import TypedDict

from dgpt2_quant.bench.document.schema import BenchJson, Interval, RateJson

from .models import ModelFile


class Figures(TypedDict):
    """Figures of one file. KL divergence (nats), share of same likeliest tokens and perplexity ratio are from
    `reference`, on the first `tokens_scored` tokens of `text`; all four are null for the reference itself. Speeds are
    tokens per second. `source` is "bench.json" or "measured here", then at the Unix time `measured_at`."""

    reference: str | None
    text: str | None
    tokens_scored: int | None
    kld: Interval | None
    same_top: float | None
    ppl_ratio: Interval | None
    prompt_tps: RateJson | None
    decode_tps: RateJson | None
    source: str | None
    measured_at: int | None


UNKNOWN: Figures = {
    "reference": None,
    "text": None,
    "tokens_scored": None,
    "kld": None,
    "same_top": None,
    "ppl_ratio": None,
    "prompt_tps": None,
    "decode_tps": None,
    "source": None,
    "measured_at": None,
}


def figures_of(document: BenchJson, files: Sequence[ModelFile]) -> dict[str, Figures]:
    """The figures of those files that a benchmark has measured, by id: the ones with the same content.

    Of the reference a document has no hash: its type and size must match.
    """
    reference = document["reference"]
    found: dict[str, Figures] = {}
    for file in files:
        size = file.path.stat().st_size
        alike = [one for one in document["results"] if (one["type"], one["bytes"]) == (file.quant_type, size)]
        with file.path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest() if alike else ""
        for one in alike:
            if one["sha256"] == digest:
                found[file.id] = UNKNOWN | {
                    "reference": reference["type"],
                    "text": document["text"]["name"],
                    "tokens_scored": reference["tokens_scored"],
                    "kld": one["kld_interval"],
                    "same_top": one["top1_agreement"],
                    "ppl_ratio": one["ppl_ratio_interval"],
                    "prompt_tps": one["prompt_tps"],
                    "decode_tps": one["decode_tps"],
                    "source": "bench.json",
                }
        if file.id not in found and (reference["type"], reference["bytes"]) == (file.quant_type, size):
            found[file.id] = UNKNOWN | {
                "prompt_tps": reference["prompt_tps"],
                "decode_tps": reference["decode_tps"],
                "source": "bench.json",
            }
    return found
