"""The tables that `eval` prints: metrics, and the likeliest tokens after the prompts of the model cards."""

import math

from .schema import MetricJson, TaskJson

COLUMNS = ("type", "metric", "value", "95 % interval", "change from F16", "its 95 % interval")


def task_rows(document: TaskJson) -> list[list[str]]:
    """One row per file and metric."""
    return [
        [
            row["type"],
            name.replace("_", " "),
            _number(metric["value"]),
            _range(metric["low"], metric["high"]),
            *_change(metric),
        ]
        for row in document["results"]
        for name, metric in row["metrics"].items()
    ]


def task_title(document: TaskJson) -> str:
    """One line: task, model, data and windows."""
    data = document["data"]
    stride = f", stride {document['stride']}" if document["stride"] else ""
    return (
        f"{document['task']}: {document['model']['name']} on {data['name']} ({data['items']:,} items, sha256"
        f" {data['sha256'][:16]}), context {document['context']}{stride}"
    )


def prompt_lines(document: TaskJson) -> list[str]:
    """The likeliest next tokens for each file and each prompt of the task card-prompts."""
    return [
        f"{row['type']}  {prompt['prompt']} ..."
        + ",".join(f"{top['text']} {100 * top['p']:.1f} %" for top in prompt["top"])
        for row in document["results"]
        for prompt in row.get("prompts", [])
    ]


def _change(metric: MetricJson) -> list[str]:
    if metric["change_against_f16"] is None:
        return ["", ""]
    return [_number(metric["change_against_f16"], "+"), _range(metric["change_low"], metric["change_high"], "+")]


def _range(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f"{_number(low, sign)} to {_number(high, sign)}"


def _number(value: float | None, sign: str = "") -> str:
    """Four significant digits, or more before the decimal point."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:{sign},.{digits}f}" if digits < 8 else f"{value:{sign}.1e}"
