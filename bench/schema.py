"""`bench.json`: what each key means. Bytes are whole bytes; times are seconds unless the key ends in `_ms`."""

from typing import TypedDict

SCHEMA_VERSION = 1


class Environment(TypedDict):
    """Where it was measured; `loadavg` is the machine's one-minute load before the run (null where unknown)."""

    cpu: str
    cores: int
    threads: int
    ram_bytes: int | None
    os: str
    python: str
    llama_cpp_python: str
    dgpt2_quant: str
    loadavg: float | None


class BenchedModel(TypedDict):
    """`source_sha256` hashes the checkpoint's content (names and hashes of its files)."""

    name: str
    source_sha256: str
    parameters: int


class TextInfo(TypedDict):
    """`tokens` of the whole text; `context` is the length of the chunks that it was cut into."""

    name: str
    sha256: str
    tokens: int
    context: int


class RateJson(TypedDict):
    """Tokens per second over interleaved rounds."""

    median: float
    min: float
    max: float
    rounds: int


class Result(TypedDict):
    """One level. KL divergences are in nats, against the reference; `ppl_ratio` is to its perplexity;
    `top1_agreement` and `rms_dp` are fractions of 1; `disturbed` tells of other load while it was timed (null where
    unknown)."""

    type: str
    recipe: str
    path: str
    bytes: int
    bits_per_weight: float
    load_ms: float
    peak_rss_bytes: int
    perplexity: float
    perplexity_stderr: float
    ppl_ratio: float
    kld_mean: float
    kld_stderr: float
    kld_median: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    top1_agreement: float
    rms_dp: float
    prompt_tps: RateJson
    decode_tps: RateJson
    first_token_ms: float
    disturbed: bool | None


class Reference(TypedDict):
    """What the levels are compared with."""

    type: str
    perplexity: float
    perplexity_stderr: float
    tokens_scored: int


class Recommended(TypedDict):
    """The smallest file, and the one that decodes fastest, of those within 1 % of the reference's perplexity."""

    smallest_within_1pct_ppl: str | None
    fastest_within_1pct_ppl: str | None


class BenchJson(TypedDict):
    """The whole document."""

    schema_version: int
    environment: Environment
    model: BenchedModel
    text: TextInfo
    reference: Reference
    results: list[Result]
    recommended: Recommended
