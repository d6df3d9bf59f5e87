"""The schema of `bench.json`. Times are in seconds unless the key ends in `_ms`.

Keys that are `NotRequired` were added later: `bench` always writes them, and documents without them are valid.
"""

from typing import NotRequired, TypedDict

SCHEMA_VERSION = 1


class Environment(TypedDict):
    """The machine and versions of a run; `loadavg` is the one-minute load before it (null if unknown). On a busy
    machine fewer rounds than `rounds_asked` are measured; `disturbed_seconds` is the time of disturbed measurements."""

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
    """The checkpoint; `source_sha256` hashes the names and hashes of its files."""

    name: str
    source_sha256: str
    parameters: int


class TextInfo(TypedDict):
    """The scored text: `tokens` of the whole text, `context` length of its windows, `method` llama.cpp or strided,
    `stride` of the strided method (null for llama.cpp), `notes` on changes to the text. Documents without
    `parse_special` read special tokens as letters."""

    name: str
    sha256: str
    tokens: int
    context: int
    method: str
    stride: int | None
    parse_special: NotRequired[bool]
    notes: NotRequired[list[str]]


class RateJson(TypedDict):
    """Tokens per second over interleaved rounds, or the ratio of two such speeds in the same round."""

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
    """Tokens where the reference's highest probability is from `low` to `high`; figures are null if there are none."""

    low: float
    high: float
    tokens: int
    kld_mean: float | None
    top1_agreement: float | None


class WrongToken(TypedDict):
    """A token that the file changed much: the text `before` it, the likeliest tokens of the reference and the file
    (`level_top`), and the probability that each gave to the token of the text."""

    before: str
    token: str
    kld: float
    reference_top: str
    level_top: str
    reference_p: float
    level_p: float


class SpeedPoint(TypedDict):
    """One point of the speed grid: `measure` is prompt or decode, `tokens` the number per sequence, `depth` the tokens
    in the cache before, `batch` the number of sequences; `tps` counts the tokens of all sequences."""

    measure: str
    tokens: int
    depth: int
    batch: int
    threads: int
    tps: RateJson
    joules_per_token: float | None
    disturbed: bool | None


class Result(TypedDict):
    """One file. KL divergences are from the reference, in nats; `kld_interval` and `ppl_ratio_interval` are 95 %
    intervals by bootstrap; `ppl_ratio` is to the reference's perplexity; `top1_agreement`, `mean_dp` and `rms_dp` are
    fractions of 1; `nll_correlation` is the correlation of the tokens' negative log-likelihoods with the reference's
    (null if they do not vary); `prompt_ratio` and `decode_ratio` are speeds divided by the reference's in the same
    round; `joules_per_token` is for decoding (null if not reported); `disturbed` is whether other programs disturbed
    the speed measurement (null if unknown), `load_disturbed` the same for `load_ms` and `first_token_ms`; `run` is the
    index in `runs`."""

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
    """The file that the others are compared with."""

    type: str
    bytes: int
    perplexity: float
    perplexity_stderr: float
    tokens_scored: int
    prompt_tps: RateJson
    decode_tps: RateJson
    disturbed: NotRequired[bool | None]


class NoiseFloor(TypedDict):
    """The reference compared with itself, computed in another way (`how`): smaller differences are rounding."""

    how: str
    kld_mean: float
    kld_p99: float
    kld_max: float
    top1_agreement: float
    rms_dp: float
    ppl_ratio: float


class Pair(TypedDict):
    """How much worse file `b` is than `a` on the same tokens: KL divergence and negative log-likelihood, in nats per
    token, with intervals by paired bootstrap. Names are the type, and the recipe unless that is `stock`."""

    a: str
    b: str
    kld_difference: Interval
    nll_difference: Interval


class PeerJson(TypedDict):
    """Another program with the same weights, timed in the same rounds. `precision` is that of its weights;
    `decode_ratio` is relative to the reference in the same round; `sane` is whether the reference finds its greedy
    tokens likely; load time and memory are null if unknown."""

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
    """A requested peer that was not measured, and the reason."""

    name: str
    reason: str


class Recommended(TypedDict):
    """The smallest file, and the fastest to decode, of those within 1 % of the reference's perplexity;
    `fastest_disturbed` is whether the choice of the fastest depends on disturbed timings (null if unknown)."""

    smallest_within_1pct_ppl: str | None
    fastest_within_1pct_ppl: str | None
    fastest_disturbed: NotRequired[bool | None]


class BenchJson(TypedDict):
    """The whole document. `runs` has the environment of each merged run, `environment` that of the first; `advice` is
    the recommendation in words; `noise_floor` is null if it was not measured."""

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
    """The scored text: `sha256` of its unpacked bytes, `tokens` of the whole text, `parse_special` whether special
    tokens were parsed, `notes` on changes to the text."""

    name: str
    sha256: str
    tokens: int
    parse_special: bool
    notes: list[str]


class PerplexityJson(TypedDict):
    """The result of `perplexity`. `nll` is the mean negative log-likelihood of a scored token, in nats; `tps` is all
    tokens of all windows, including context, divided by the time of scoring."""

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
