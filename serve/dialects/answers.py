"""The shapes of the answers, for the OpenAPI document. The routes make plain dictionaries; a test checks them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Number = float | None


class Answer(BaseModel):
    """A JSON object with these fields and no others; those with a default may be absent."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Status(Answer):
    """The server is ready."""

    status: Literal["ok"]


class ModelFacts(Answer):
    """What llama.cpp's server says of a model, and its quant type."""

    quant_type: str
    n_vocab: int
    n_ctx_train: int
    n_embd: int
    size: int


class ModelEntry(Answer):
    """A model of the server."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    meta: ModelFacts


class ModelList(Answer):
    """All models of the server."""

    object: Literal["list"]
    data: list[ModelEntry]


class CachedTokens(Answer):
    """The tokens of a prompt that were not computed again."""

    cached_tokens: int


class Usage(Answer):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Logprobs(Answer):
    """Log-probabilities of a text's tokens, an entry of each list for each; null for a text's first token."""

    tokens: list[str]
    token_logprobs: list[Number]
    top_logprobs: list[dict[str, Number] | None]
    text_offset: list[int]
    top_token_ids: list[list[tuple[int, Number]]]


class PromptLogprob(Answer):
    """A token in the shape of vLLM's `prompt_logprobs`."""

    logprob: Number
    rank: int | None
    decoded_token: str


class CompletionChoice(Answer):
    """A text. The fields with a default are there if the request asks for them."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: list[dict[str, PromptLogprob] | None] = []
    token_ids: list[int] = []
    prompt_token_ids: list[int] | None = None


class OpenAIAnswer(Answer):
    """The fields that completions and chat completions share."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class CompletionAnswer(OpenAIAnswer):
    """OpenAI's completion."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class TokenProbability(Answer):
    """A token with its bytes."""

    token: str
    bytes: list[int]
    logprob: Number


class TokenProbabilities(TokenProbability):
    """A token of the text, with the likeliest in its place."""

    top_logprobs: list[TokenProbability]


class ChatLogprobs(Answer):
    """Log-probabilities of a message."""

    content: list[TokenProbabilities]
    refusal: None


class ChatMessage(Answer):
    """A message that the model wrote."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    """A message, and why it ends."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(OpenAIAnswer):
    """OpenAI's chat completion."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Embedding(Answer):
    """A vector, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    """Tokens of an embedding request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answer):
    """The vectors of the inputs, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ComparedToken(Answer):
    """A token of a text; the offset counts characters."""

    id: int
    text: str
    offset: int


class TopToken(Answer):
    """One of the likeliest tokens."""

    id: int
    text: str
    logprob: Number


class ComparedModel(Answer):
    """A model's log-probabilities of a text, and its KL divergence from the reference, which has none itself."""

    id: str
    logprobs: list[Number]
    top: list[list[TopToken]]
    kld: list[Number] | None
    mean_nll: Number
    perplexity: Number
    mean_kld: Number
    same_top: Number
    positions: int


class Comparison(Answer):
    """A text, scored by several models. The first token of a text has no probability."""

    object: Literal["comparison"]
    context: int
    stride: int
    tokens: list[ComparedToken]
    models: list[ComparedModel]


class Interval(Answer):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Speed(Answer):
    """Tokens per second over some rounds."""

    median: float
    min: float
    max: float
    rounds: int


class Measurement(Answer):
    """A file of the server, and what was measured of it; null for what was not."""

    id: str
    quant_type: str
    bytes: int
    bits_per_weight: float
    reference: str | None
    text: str | None
    tokens_scored: int | None
    kld: Interval | None
    same_top: Number
    ppl_ratio: Interval | None
    prompt_tps: Speed | None
    decode_tps: Speed | None
    source: Literal["bench.json", "measured here"] | None
    measured_at: int | None


class Measurements(Answer):
    """All files of the server, and whether a measurement is running."""

    object: Literal["list"]
    measuring: bool
    data: list[Measurement]


LlamaAnswer = dict[str, Any] | list[dict[str, Any]]
"""llama.cpp's completion, or a list of them for several prompts; `response_fields` chooses its fields."""


class Piece(Answer):
    """A token with its text, or its bytes where they are not a text."""

    id: int
    piece: str | list[int]


class Tokens(Answer):
    """The tokens of a text, in the shapes of llama.cpp and vLLM."""

    tokens: list[int] | list[Piece]
    count: int
    max_model_len: int
    token_strs: list[str] = []


class Text(Answer):
    """The text of tokens, under llama.cpp's name and vLLM's."""

    content: str
    prompt: str


class TokenizerInfo(Answer):
    """A tokenizer, in vLLM's shape."""

    tokenizer_class: str
    bos_token: str
    eos_token: str
    unk_token: str
    pad_token: str
    add_bos_token: bool
    model_max_length: int
    vocab_size: int
    chat_template: str | None


class GenerationSettings(Answer):
    """The default model's context."""

    n_ctx: int


class Props(Answer):
    """Facts about the default model, in llama.cpp's shape."""

    default_generation_settings: GenerationSettings
    total_slots: int
    model_path: str
    model_alias: str
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str
    models: list[str]


class Slot(Answer):
    """A slot of a model."""

    id: int
    model: str
    n_ctx: int
    is_processing: bool


AzureAnswer = list[str] | list[list[dict[str, str]]] | list[dict[str, str]]
"""The texts in one of Azure ML's shapes."""


class GeneratedText(Answer):
    """Text Generation Inference's text; `details` if the request asks for them."""

    generated_text: str
    details: dict[str, Any] = {}
