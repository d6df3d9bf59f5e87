"""What `eval` shows people: a table of metrics, and what the prompts of the model cards went on with."""

import math

from .schema import MetricJson, TaskJson

COLUMNS = ("type", "metric", "value", "95 % interval", "change against F16", "its 95 % interval")


def task_rows(document: TaskJson) -> list[list[str]]:
    """A row for each level and metric."""
    return [
        [
            level["type"],
            name.replace("_", " "),
            _number(metric["value"]),
            _range(metric["low"], metric["high"]),
            *_change(metric),
        ]
        for level in document["results"]
        for name, metric in level["metrics"].items()
    ]


def task_title(document: TaskJson) -> str:
    """What was measured, in a line."""
    data = document["data"]
    stride = f", stride {document['stride']}" if document["stride"] else ""
    return (
        f"{document['task']}: {document['model']['name']} on {data['name']} ({data['items']:,} items, sha256"
        f" {data['sha256'][:16]}), context {document['context']}{stride}"
    )


def prompt_lines(document: TaskJson) -> list[str]:
    """For each prompt of the task card-prompts and each level, the likeliest next tokens."""
    return [
        f"{level['type']}  {prompt['prompt']} ..."
        + ",".join(f"{top['text']} {100 * top['p']:.1f} %" for top in prompt["top"])
        for level in document["results"]
        for prompt in level.get("prompts", [])
    ]


def _change(metric: MetricJson) -> list[str]:
    if metric["change_against_f16"] is None:
        return ["", ""]
    return [_number(metric["change_against_f16"], "+"), _range(metric["change_low"], metric["change_high"], "+")]


def _range(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f"{_number(low, sign)} to {_number(high, sign)}"


def _number(value: float | None, sign: str = "") -> str:
    """Four digits that mean something, or more before the point."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:{sign},.{digits}f}" if digits < 8 else f"{value:{sign}.1e}"
