"""The schema of the JSON of `eval`."""

from typing import NotRequired, TypedDict

from dgpt2_quant.bench.document.schema import Environment


class MetricJson(TypedDict):
    """A metric with its 95 % interval by bootstrap over the items, and its change from F16 on the same items (this
    file's value minus F16's), with an interval by paired bootstrap. Null if unknown: an interval of a single item (of a
    single template for card-prompts), a change if MODEL is one file, and a perplexity that overflows a double (above
    1.8e308) or has no words, with its interval and change."""

    value: float | None
    low: float | None
    high: float | None
    change_against_f16: float | None
    change_low: float | None
    change_high: float | None


class TopJson(TypedDict):
    """A possible next token and its probability."""

    text: str
    p: float


class PromptJson(TypedDict):
    """A prompt and its likeliest next tokens."""

    prompt: str
    top: list[TopJson]


class PairJson(TypedDict):
    """Two prompts and the Jensen-Shannon divergence of their next-token distributions, in nats (0 to ln 2)."""

    a: str
    b: str
    js_divergence: float


class TaskResult(TypedDict):
    """One file; `prompts` and `pairs` are only for the task card-prompts."""

    type: str
    metrics: dict[str, MetricJson]
    prompts: NotRequired[list[PromptJson]]
    pairs: NotRequired[list[PairJson]]


class DataJson(TypedDict):
    """The data set or file, the hash of its content (of the member of an archive), the number of items measured
    (passages, questions, pairs, or windows of a text), whether special tokens were parsed, and notes on changes to the
    text (special tokens, CRLF line ends, a byte order mark)."""

    name: str
    sha256: str
    items: int
    parse_special: bool
    notes: list[str]


class TaskModel(TypedDict):
    """The model; `source_sha256` hashes the checkpoint's content, and is null if MODEL is one file."""

    name: str
    source_sha256: str | None


class TaskJson(TypedDict):
    """One task. `context` is the context size; `stride` is null except for texts."""

    task: str
    data: DataJson
    model: TaskModel
    context: int
    stride: int | None
    results: list[TaskResult]
    environment: Environment
