"""`eval --json`: what each key means."""

from typing import NotRequired, TypedDict

from dgpt2_quant.bench.document.schema import Environment


class MetricJson(TypedDict):
    """A metric with its 95 % interval by bootstrap over the items, and how far it is from that of F16 on the same items
    (this level's less F16's), with an interval by paired bootstrap. Null where it is not known: an interval of a single
    item (of the metric's kind; of a single template, where the prompts of one are drawn together), a change where MODEL
    is one file, a perplexity too large for a double (above 1.8e308) or over no words, with its interval and change."""

    value: float | None
    low: float | None
    high: float | None
    change_against_f16: float | None
    change_low: float | None
    change_high: float | None


class TopJson(TypedDict):
    """A token that may come next, and its probability."""

    text: str
    p: float


class PromptJson(TypedDict):
    """A prompt, and the likeliest next tokens."""

    prompt: str
    top: list[TopJson]


class PairJson(TypedDict):
    """Two prompts, and the Jensen-Shannon divergence of their next-token distributions, in nats (0 to ln 2)."""

    a: str
    b: str
    js_divergence: float


class LevelJson(TypedDict):
    """One level; `prompts` and `pairs` only of the task card-prompts."""

    type: str
    metrics: dict[str, MetricJson]
    prompts: NotRequired[list[PromptJson]]
    pairs: NotRequired[list[PairJson]]


class DataJson(TypedDict):
    """The data set or file, the hash of its content (of the member, where it came in an archive), and how many items
    were measured: passages, questions, pairs, or windows of a text; whether special tokens were parsed in it, and notes
    on what of it is not as it looks (special tokens, CRLF line ends, a byte order mark)."""

    name: str
    sha256: str
    items: int
    parse_special: bool
    notes: list[str]


class TaskModel(TypedDict):
    """`source_sha256` hashes the checkpoint's content; null where MODEL is one file."""

    name: str
    source_sha256: str | None


class TaskJson(TypedDict):
    """One task. `context` is the length of what the model sees at once; `stride` is null but for texts."""

    task: str
    data: DataJson
    model: TaskModel
    context: int
    stride: int | None
    results: list[LevelJson]
    environment: Environment
