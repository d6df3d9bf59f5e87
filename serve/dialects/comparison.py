"""`POST /v1/compare`: one given text, scored token by token by several quant types, for the writing page.

The first model is the reference. Windows, losses and KL divergences are those of `bench` with the strided method, by
the same functions: a window is the shortest context of the models, and advances by half of it. Log-probabilities leave
out pad tokens, as `Model.score` does; `mean_nll`, `kld` and `same_top` count them, as `bench` does.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from dgpt2_quant.bench.quality import logit_rows as rows
from dgpt2_quant.bench.quality.compare_files import visit
from dgpt2_quant.bench.quality.divergence import summarize
from dgpt2_quant.bench.quality.windows import Window, Windowing
from dgpt2_quant.runtime.sampling.candidates import top_k
from dgpt2_quant.runtime.token_text import TokenTexts, prompt_offsets
from dgpt2_quant.serve.calls.call import Call
from dgpt2_quant.serve.calls.errors import overloaded, refused, timed_out, unavailable
from dgpt2_quant.serve.calls.json_body import Body, Items
from dgpt2_quant.serve.calls.models import ServedModel
from pydantic import Field

MOST_MODELS = 4
MOST_CONTEXTS = 16  # of a text
MOST_TOPS = 1 << 17  # entries of all `top` lists of an answer, some MB of JSON
MOST_COMPARISONS = 8  # that compute or wait
_DIGITS = 6  # of log-probabilities, in nats
_KLD_DIGITS = 9


class ComparisonBody(Body):
    """A text, and the models that score it."""

    text: str
    models: Annotated[Items[str], Field(min_length=1, max_length=MOST_MODELS)] | None = Field(
        None, description=f"Ids of /v1/models, the reference first; by default the first {MOST_MODELS} that are served."
    )
    top: int = Field(10, ge=0, le=20, description="The number of likeliest tokens at each position.")
    parse_special: bool = Field(False, description="Read `<|endoftext|>` in the text as the special token.")


@dataclass
class _Scores:
    """A model's scores of all tokens of a text; those of the first token mean nothing, as it has no predecessor."""

    served: ServedModel
    tokens: int
    top: int
    logprobs: rows.FloatArray = field(init=False)
    nll: rows.FloatArray = field(init=False)
    kld: rows.FloatArray = field(init=False)
    likeliest: rows.IntArray = field(init=False)
    top_ids: rows.IntArray = field(init=False)
    top_logprobs: rows.FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.logprobs, self.nll, self.kld = (np.zeros(self.tokens) for _ in range(3))
        self.likeliest = np.zeros(self.tokens, np.int64)
        self.top_ids = np.zeros((self.tokens, self.top), np.int64)
        self.top_logprobs = np.zeros((self.tokens, self.top))

    def add(self, window: Window, first: int, reference: rows.Logits, *, is_reference: bool) -> None:
        """Scores a window, whose first target is the text's token `first`, in the model's thread.

        The reference fills `reference`, (targets, vocabulary), with its logits; the others are compared with them.
        """
        targets, vocabulary = window.targets, self.served.model.real_vocabulary

        def see(start: int, logits: rows.Logits) -> None:
            def compute(block: slice) -> None:
                here = slice(start + block.start, start + block.start + len(logits[block]))
                there = slice(first + here.start, first + here.stop)
                every, real, wanted = logits[block], logits[block, :vocabulary], targets[here]
                if is_reference:
                    if len(reference):
                        reference[here] = real
                    own: rows.TokenScores | rows.FileScores = rows.reference_rows(real, wanted, _at_once)
                else:
                    own = rows.no_scores(len(wanted))
                    rows.compare(every, rows.reference_rows(reference[here], wanted, _at_once), 0, own, _at_once)
                    self.kld[there] = own.kld
                self.nll[there], self.likeliest[there] = own.nll, own.top
                nll = own.nll if every.shape == real.shape else rows.nll(real, wanted, _at_once)
                self.logprobs[there] = -nll
                totals = nll + real[np.arange(len(real)), wanted] if self.top else ()
                for row, total in enumerate(totals):
                    ids = top_k(real[row], self.top)
                    self.top_ids[there.start + row], self.top_logprobs[there.start + row] = ids, real[row, ids] - total

            for_blocks(len(logits), compute)

        with rows.on_threads(self.served.model.threads) as for_blocks:
            visit(self.served.model, window, see)


def _at_once(count: int, function: Callable[[slice], None]) -> None:
    function(slice(0, count))


async def compare(call: Call, body: ComparisonBody) -> dict[str, Any]:
    """Scores a text with up to four models, and compares each token with the first. Raises `HTTPError`."""
    base = call.models.find(body.models[0] if body.models else None)
    names = list(call.models.loaded)[:MOST_MODELS] if body.models is None else body.models
    chosen = [call.models.find(name) for name in names]
    if call.models.comparisons >= MOST_COMPARISONS:
        raise overloaded("too many comparisons are waiting")
    call.models.comparisons += 1
    try:
        async with asyncio.timeout_at(call.deadline):
            context = min(served.model.positions for served in chosen)
            windowing = Windowing("strided", context).fitted(context)
            tokens = await _tokens(chosen, body, MOST_CONTEXTS * context)
            call.model, call.prompt_tokens = base.id, len(tokens) * len(chosen)
            top = min(body.top, base.model.real_vocabulary)
            scores = [_Scores(served, len(tokens), top) for served in chosen]
            # two tokens are too few for a standard error, and enough for a probability
            short = [Window(tokens, 0)] if len(tokens) == 2 else []
            windows = windowing.windows(tokens) if len(tokens) > 2 else short
            first = 1
            for window in windows:
                await _score(call, scores, window, first)
                first += len(window.targets)
            return await asyncio.to_thread(_answer, scores, tokens, windowing)
    except TimeoutError:
        raise timed_out(call.limits.request_seconds) from None
    finally:
        call.models.comparisons -= 1


async def _tokens(chosen: Sequence[ServedModel], body: ComparisonBody, most: int) -> list[int]:
    """The tokens of the text, which all models agree on. Raises `HTTPError`."""
    base = chosen[0]
    tokens = await base.tokenize(body.text, special=body.parse_special)
    if len(tokens) > most:
        raise refused(f"`text` must have at most {most} tokens ({MOST_CONTEXTS} contexts), not {len(tokens)}", "text")
    if len(tokens) * len(chosen) * body.top > MOST_TOPS:
        fits = MOST_TOPS // (len(tokens) * len(chosen))
        raise refused(f"`top` must be at most {fits} for {len(tokens)} tokens and {len(chosen)} models", "top")
    for served in chosen[1:]:
        same = served.model.real_vocabulary == base.model.real_vocabulary
        if not same or await served.tokenize(body.text, special=body.parse_special) != tokens:
            raise refused(f"`models` must have one vocabulary: {served.id} lacks that of {base.id}", "models")
    return tokens


async def _score(call: Call, scores: Sequence[_Scores], window: Window, first: int) -> None:
    """Scores a window with each model. Other comparisons wait for its end."""
    if call.models.ending:
        raise unavailable("the server is shutting down")
    async with call.models.comparing:  # one at a time has the reference's logits in memory
        count = len(window.targets) if len(scores) > 1 else 0
        reference = np.empty((count, scores[0].served.model.real_vocabulary), np.float32)
        for one in scores:
            await one.served.in_thread(one.add, window, first, reference, is_reference=one is scores[0])


def _answer(scores: Sequence[_Scores], tokens: Sequence[int], windowing: Windowing) -> dict[str, Any]:
    model = scores[0].served.model
    texts = TokenTexts(model)
    adds_first = bool(tokens) and tokens[0] == model.first_token
    offsets = prompt_offsets(texts, tokens, skips_first=adds_first)
    strings = {
        token: texts.string(token) for token in {*tokens, *(t for one in scores for t in one.top_ids.ravel().tolist())}
    }
    return {
        "object": "comparison",
        "context": windowing.context,
        "stride": windowing.stride,
        "tokens": [
            {"id": token, "text": strings[token], "offset": offset}
            for token, offset in zip(tokens, offsets, strict=True)
        ],
        "models": [_of_model(one, scores[0], strings) for one in scores],
    }


def _of_model(one: _Scores, base: _Scores, strings: dict[int, str]) -> dict[str, Any]:
    scored = slice(1, None)
    count = max(0, one.tokens - 1)
    is_reference = one is base
    found = summarize(one.nll[scored]) if count else None
    logprobs = np.round(one.top_logprobs, _DIGITS).tolist()
    tops = [
        [{"id": t, "text": strings[t], "logprob": value} for t, value in zip(ids, values, strict=True)]
        for ids, values in zip(one.top_ids[scored].tolist(), logprobs[scored], strict=True)
    ]
    unscored: list[Any] = [None] * min(1, one.tokens)
    return {
        "id": one.served.id,
        "logprobs": [*unscored, *np.round(one.logprobs[scored], _DIGITS).tolist()],
        "top": [*([] for _ in unscored), *tops],
        "kld": None if is_reference else [*unscored, *np.round(one.kld[scored], _KLD_DIGITS).tolist()],
        "mean_nll": found and found.nll,
        "perplexity": found and found.perplexity,
        "mean_kld": float(one.kld[scored].mean()) if count and not is_reference else None,
        "same_top": float((one.likeliest == base.likeliest)[scored].mean()) if count and not is_reference else None,
        "positions": count,
    }
