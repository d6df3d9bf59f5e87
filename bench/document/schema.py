"""`bench.json`: what each key means. Bytes are whole bytes; times are seconds unless the key ends in `_ms`.

Keys that are `NotRequired` came later: `bench` always writes them, and a document without them is read too.
"""

from typing import NotRequired, TypedDict

SCHEMA_VERSION = 1


class Environment(TypedDict):
    """Where and how it was measured; `loadavg` is the machine's one-minute load before the run (null where unknown).
    Of `rounds_asked` rounds some are left out on a busy machine, where disturbed measurements took
    `disturbed_seconds`."""

    cpu: str
    cores: int
    threads: int
    ram_bytes: int | None
    os: str
    python: str
    llama_cpp_python: str
    dgpt2_quant: str
    loadavg: float | None
    rounds_asked: NotRequired[int]
    disturbed_seconds: NotRequired[float]


class BenchedModel(TypedDict):
    """`source_sha256` hashes the checkpoint's content (names and hashes of its files)."""

    name: str
    source_sha256: str
    parameters: int


class TextInfo(TypedDict):
    """`tokens` of the whole text; `context` is the length of the chunks that it was cut into, `method` how it was
    scored, `stride` that of the strided method (null for llama.cpp's). Older documents lack the last two: they read
    special tokens as letters; `notes` say what of the text is not as it looks."""

    name: str
    sha256: str
    tokens: int
    context: int
    method: str
    stride: int | None
    parse_special: NotRequired[bool]
    notes: NotRequired[list[str]]


class RateJson(TypedDict):
    """Tokens per second over interleaved rounds; or the ratio of two such speeds, round by round."""

    median: float
    min: float
    max: float
    rounds: int


class Interval(TypedDict):
    """A value with its 95 % interval, by bootstrap."""

    value: float
    low: float
    high: float


class ConfidenceJson(TypedDict):
    """The tokens for which the reference's likeliest token has a probability from `low` to `high`; figures are null
    where there is no such token."""

    low: float
    high: float
    tokens: int
    kld_mean: float | None
    top1_agreement: float | None


class WrongToken(TypedDict):
    """A token that a level changed much: the text `before` it, what the reference and the level found likeliest, and
    the probability that each gave to the token that came."""

    before: str
    token: str
    kld: float
    reference_top: str
    level_top: str
    reference_p: float
    level_p: float


class SpeedPoint(TypedDict):
    """One setting of the speed grid: `measure` is prompt or decode, `tokens` how many each sequence had, `depth` how
    many were in its cache before, `batch` how many sequences went together; `tps` counts the tokens of all."""

    measure: str
    tokens: int
    depth: int
    batch: int
    threads: int
    tps: RateJson
    joules_per_token: float | None
    disturbed: bool | None


class Result(TypedDict):
    """One level. KL divergences are in nats, against the reference; `kld_interval` and `ppl_ratio_interval` are 95 %
    intervals by bootstrap; `ppl_ratio` is to the reference's perplexity; `top1_agreement`, `mean_dp` and `rms_dp` are
    fractions of 1; `nll_correlation` is that of the tokens' negative log-likelihoods with the reference's (null where
    they do not vary); `prompt_ratio` and `decode_ratio` are the speeds over the reference's in the same round;
    `joules_per_token` those of decoding (null where the machine does not tell); `disturbed` says that other
    programs used the machine while it was timed (null where unknown), and `load_disturbed` the same of `load_ms` and
    `first_token_ms`; `run` is the index in `runs`."""

    type: str
    recipe: str
    path: str
    sha256: str
    run: int
    bytes: int
    bits_per_weight: float
    load_ms: float
    peak_rss_bytes: int
    perplexity: float
    perplexity_stderr: float
    ppl_ratio: float
    ppl_ratio_interval: Interval
    kld_mean: float
    kld_stderr: float
    kld_interval: Interval
    kld_median: float
    kld_p90: float
    kld_p95: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    top1_agreement: float
    mean_dp: float
    rms_dp: float
    nll_correlation: float | None
    by_confidence: list[ConfidenceJson]
    worst: list[WrongToken]
    prompt_tps: RateJson
    decode_tps: RateJson
    prompt_ratio: RateJson
    decode_ratio: RateJson
    first_token_ms: float
    joules_per_token: float | None
    disturbed: bool | None
    load_disturbed: NotRequired[bool | None]
    speed: list[SpeedPoint]


class Reference(TypedDict):
    """What the levels are compared with; `disturbed` as a level's."""

    type: str
    bytes: int
    perplexity: float
    perplexity_stderr: float
    tokens_scored: int
    prompt_tps: RateJson
    decode_tps: RateJson
    disturbed: NotRequired[bool | None]


class NoiseFloor(TypedDict):
    """The reference against itself by another road (`how`): what differs no more than this is no difference."""

    how: str
    kld_mean: float
    kld_p99: float
    kld_max: float
    top1_agreement: float
    rms_dp: float
    ppl_ratio: float


class Pair(TypedDict):
    """How much worse the level `b` is than `a` on the same tokens: KL divergence and negative log-likelihood, in nats a
    token, with intervals by paired bootstrap. Levels go by type, and by recipe where that is not `stock`."""

    a: str
    b: str
    kld_difference: Interval
    nll_difference: Interval


class PeerJson(TypedDict):
    """What else could run these weights, timed in the same rounds as the levels. `precision` is that of its weights;
    `decode_ratio` is over the reference's speed in the same round; `sane` whether its greedy tokens are ones that the
    reference also finds likely; load time and memory are null where they could not be told."""

    name: str
    version: str
    precision: str
    load_ms: float | None
    peak_rss_bytes: int | None
    prompt_tps: RateJson | None
    decode_tps: RateJson
    decode_ratio: RateJson
    sane: bool | None
    disturbed: bool | None


class SkippedPeer(TypedDict):
    """A peer that was asked for and is not there, and why."""

    name: str
    reason: str


class Recommended(TypedDict):
    """The smallest file, and the one that decodes fastest, of those within 1 % of the reference's perplexity;
    `fastest_disturbed` says that the choice of the fastest rests on disturbed timings (null where unknown)."""

    smallest_within_1pct_ppl: str | None
    fastest_within_1pct_ppl: str | None
    fastest_disturbed: NotRequired[bool | None]


class BenchJson(TypedDict):
    """The whole document. `runs` has the environment of each run that it was merged from, `environment` the first
    one's; `advice` is the recommendation in words. The noise floor is null where it was not measured."""

    schema_version: int
    environment: Environment
    runs: list[Environment]
    model: BenchedModel
    text: TextInfo
    reference: Reference
    noise_floor: NoiseFloor | None
    results: list[Result]
    pairs: list[Pair]
    peers: list[PeerJson]
    skipped_peers: list[SkippedPeer]
    recommended: Recommended
    advice: list[str]


class ScoredText(TypedDict):
    """`sha256` is that of the text's bytes, unpacked and otherwise as they were read; `tokens` of the whole text, whose
    special tokens were parsed or read as letters; `notes` on what of it is not as it looks."""

    name: str
    sha256: str
    tokens: int
    parse_special: bool
    notes: list[str]


class PerplexityJson(TypedDict):
    """`perplexity --json`. `nll` is the mean negative log-likelihood of a scored token, in nats; `tps` counts the
    tokens of all windows, those that only give context too, over the time of scoring alone."""

    model: str
    text: ScoredText
    method: str
    context: int
    stride: int | None
    tokens_scored: int
    nll: float
    perplexity: float
    perplexity_stderr: float
    tps: float
    threads: int
