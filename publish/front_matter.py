"""The front matter of a model card, which the Hub reads: license, base model, tags, and results as `model-index`.

Keys: https://huggingface.co/docs/hub/model-cards; written by huggingface_hub's own classes.
"""

from typing import Any

from dgpt2_quant.bench.data.datasets import DATASETS
from dgpt2_quant.bench.document.format_numbers import name_of
from dgpt2_quant.bench.document.schema import BenchJson, TextInfo

from .record import ReleaseJson

UNKNOWN = "unknown"  # the Hub's value for a license that is not stated
_DIGITS = 6  # significant digits of a result


def front_matter(record: ReleaseJson, document: BenchJson) -> str:
    """The YAML block, with its `---` lines."""
    from huggingface_hub import ModelCardData  # takes half a second

    model = record["model"]
    related: dict[str, Any] = {}
    if model["base_model"]:
        # with a merged adapter it is a derived model, not only a quantized copy of the base
        is_base = not model["adapters"] or model["base_model"] != model["repository"]
        relation = "quantized" if is_base else "finetune"
        related = {"base_model": model["base_model"], "base_model_relation": relation}
    data = ModelCardData(
        license=model["license"],
        license_name=model["license_name"],
        license_link=model["license_link"],
        language=model["languages"] or None,
        library_name="gguf",
        pipeline_tag="text-generation",
        tags=["gguf", "gpt2", "llama.cpp", "cpu", *(["imatrix"] if record["calibration"] else [])],
        quantized_by=record["repo"].split("/")[0] if record["repo"] else "dgpt2-quant",
        model_name=model["name"],
        eval_results=_results(document),
        **related,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _results(document: BenchJson) -> list[Any]:
    from huggingface_hub import EvalResult

    dataset = _dataset(document["text"])
    found = []
    for row in document["results"]:
        for metric, value in (("perplexity", row["perplexity"]), ("kl_divergence", row["kld_mean"])):
            result = EvalResult(
                task_type="text-generation",
                metric_type=metric,
                metric_name=f"{metric} ({name_of(row)})",
                metric_value=float(f"{value:.{_DIGITS}g}"),
                **dataset,
            )
            found.append(result)
    return found


def _dataset(text: TextInfo) -> dict[str, Any]:
    if text["sha256"] == DATASETS["wikitext2"].sha256:
        return {
            "dataset_type": "Salesforce/wikitext",
            "dataset_name": "WikiText-2",
            "dataset_config": "wikitext-2-raw-v1",
            "dataset_split": "test",
        }
    return {"dataset_type": "text", "dataset_name": text["name"]}
