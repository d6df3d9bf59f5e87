"""Sampling a token from a row of logits: candidates by NumPy first, then llama.cpp's samplers on these."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from dgpt2_quant.core.errors import RuntimeFailure, UsageError
from dgpt2_quant.runtime.native.batch_token import Logits, TokenIds
from dgpt2_quant.runtime.native.model import NativeModel
from dgpt2_quant.runtime.native.sampler import NativeSampler

from .candidates import Ids, at_least, log_total, nucleus, top_k, top_k_candidates, typical
from .grammar import check_grammar
from .settings import Sampling

_BLOCK = 256  # tokens; without a filter, a block is sampled first, then a token in it
_CHECKED = 64  # tokens that C checks against a grammar in one call


class Sampler:
    """The sampler of one sequence: its random numbers, and the state of its penalties and grammar.

    `positions` bounds the number of tokens; the penalties apply to the tokens of `prompt` too. Free it with `close`.
    Raises `UsageError` for a bias or a grammar that names a token outside the vocabulary.
    """

    def __init__(
        self, model: NativeModel, sampling: Sampling, seed: int, positions: int, prompt: TokenIds = ()
    ) -> None:
        self.sampling = sampling
        self.grammar_seconds = math.inf  # for a token; after that `sample` raises
        self._penalties = self._grammar = self._chain = None
        for token in sampling.logit_bias:
            if not 0 <= token < model.real_vocabulary:
                is_pad = model.real_vocabulary <= token < model.vocabulary
                raise UsageError(
                    f"token ids of `logit_bias` must be 0-{model.real_vocabulary - 1}, not {token}"
                    + (", a pad token, which is never sampled" if is_pad else "")
                )
        self._vocabulary = model.real_vocabulary
        self._bias_ids = np.array(list(sampling.logit_bias), np.intp)
        self._bias = np.array(list(sampling.logit_bias.values()), np.float32)
        self._surprise_limit = 2 * sampling.mirostat_tau  # mirostat's mu, in bits
        penalties = sampling.penalties(model.vocabulary, positions + 1)
        if penalties:
            self._history = np.zeros(positions + 1, np.intp)  # the last sampled token needs no position
            self._length = 0
            self._penalties = NativeSampler(model, penalties)
        if sampling.grammar:
            _check_tokens(sampling.grammar, model)
            self._grammar = NativeSampler(model, [("grammar", sampling.grammar, "root")])
        if not sampling.is_greedy:
            self._chain = NativeSampler(model, _chain_steps(sampling, seed))
        self._filters_only = not (len(self._bias) or penalties or sampling.grammar)
        self.remember(prompt)

    def sample(self, logits: Logits) -> int | None:
        """Samples the next token from logits, shape (real vocabulary,), which it changes.

        None if no token is allowed. Raises `RuntimeFailure` for logits that are not finite, and `UsageError` for a slow
        grammar.
        """
        if self._filters_only:
            return self._pick(logits)
        started = time.perf_counter()
        if len(self._bias):
            logits[self._bias_ids] += self._bias
        if self._penalties and self._length:
            # the penalties change earlier tokens only
            recent = self._history[: self._length]
            self._penalties.apply(recent, logits[recent])
            logits[self._penalties.ids[: len(recent)]] = self._penalties.logits[: len(recent)]
        token = self._pick(logits)
        if self._grammar and token is not None and not self._fits(token):
            # as in llama.cpp's tools, other tokens are checked only if the first choice does not fit
            self._keep_fitting(logits, started)
            token = self._pick(logits)
        if token is not None:
            self.remember((token,))
            if self._grammar:
                self._grammar.accept(token)
                self._check_time(started)
        return token

    def close(self) -> None:
        for part in (self._penalties, self._grammar, self._chain):
            if part:
                part.close()
        self._penalties = self._grammar = self._chain = None

    def _pick(self, logits: Logits) -> int | None:
        if self._chain is None:
            token = int(logits.argmax())
            return token if self._possible(logits.item(token)) else None
        settings = self.sampling
        if settings.top_k and not settings.mirostat:
            found = top_k_candidates(logits, settings.top_k)
            # finite logits leave some candidates, not all; many -inf leave all
            if 0 < len(found) < len(logits) or self._possible(float(logits.max())):
                return self._draw(found, logits[found])
            return None
        top = float(logits.max())
        if not self._possible(top):
            return None
        if settings.mirostat:
            return self._pick_by_surprise(logits)
        if settings.typical_p < 1:
            found = typical(logits, settings.typical_p)
        elif settings.top_p < 1 or settings.min_p:
            least = top + math.log(settings.min_p) if settings.min_p else -math.inf
            found = nucleus(logits, settings.top_p, least) if settings.top_p < 1 else at_least(logits, least)
        else:
            return self._pick_of_all(logits)
        return self._draw(found, logits[found])

    def _possible(self, top: float) -> bool:
        """Whether any token is allowed, by the largest logit. Raises for NaN, on which samplers end the process."""
        if math.isfinite(top):
            return True
        if top == -math.inf and not self._filters_only:
            return False
        raise overflowed()

    def _draw(self, ids: Ids, logits: Logits) -> int:
        chain = self._chain
        assert chain
        index = chain.apply(ids, logits)
        probability = chain.probabilities.item(index)
        if not probability >= 0:  # NaN, from an infinite logit
            self._possible(math.inf)
        if self.sampling.mirostat:
            surprise = -math.log2(probability or 1)
            self._surprise_limit -= self.sampling.mirostat_eta * (surprise - self.sampling.mirostat_tau)
        return int(chain.ids[index])

    def _pick_of_all(self, logits: Logits) -> int:
        """Samples without a filter: first a block of tokens by its total probability, then a token in it."""
        scaled = (logits - logits.max()) / np.float32(self.sampling.temperature)
        starts = np.arange(0, len(logits), _BLOCK)
        with np.errstate(divide="ignore"):  # a block without probability
            blocks = np.log(np.add.reduceat(np.exp(scaled), starts))
        start = self._draw(starts, blocks)
        return self._draw(np.arange(start, min(start + _BLOCK, len(logits))), scaled[start : start + _BLOCK])

    def _pick_by_surprise(self, logits: Logits) -> int:
        """Mirostat 2 (Basu et al. 2020, arXiv:2007.14966), without the tokens that C would drop as too surprising."""
        scaled = logits / np.float32(self.sampling.temperature)
        found = at_least(scaled, log_total(scaled) - self._surprise_limit * math.log(2))
        return self._draw(found, scaled[found])

    def _keep_fitting(self, logits: Logits, started: float) -> None:
        """Forbids the tokens that do not fit the grammar: the most likely first, until `top_k` are found that fit.

        C checks few at a time, because a slow grammar takes minutes for all, and its call cannot be interrupted.
        """
        assert self._grammar
        settings = self.sampling
        missing = 1 if settings.is_greedy else len(logits) if settings.mirostat else settings.top_k or len(logits)
        likely = top_k(logits, _BLOCK)
        found = []
        for start in range(0, len(logits), _CHECKED):
            if start == _BLOCK:
                likely = np.argsort(-logits, kind="stable")
            ids = likely[start : start + _CHECKED]
            self._grammar.apply(ids, np.zeros(len(ids), np.float32))
            found.append(ids[self._grammar.logits[: len(ids)] == 0])
            missing -= len(found[-1])
            if missing <= 0:
                break
            self._check_time(started)
        fitting = np.concatenate(found)
        kept = logits[fitting]
        logits.fill(-np.inf)
        logits[fitting] = kept

    def _check_time(self, started: float) -> None:
        if (seconds := time.perf_counter() - started) > self.grammar_seconds:
            raise UsageError(
                f"`grammar` must take at most {self.grammar_seconds:g} s for a token, not {seconds:.2g} s",
                "Write it so that a text fits it in one way only.",
            )

    def _fits(self, token: int) -> bool:
        assert self._grammar
        self._grammar.apply(np.array([token]), np.zeros(1, np.float32))
        return bool(self._grammar.logits[0] > -np.inf)

    def remember(self, tokens: TokenIds) -> None:
        """The penalties apply to these tokens from now on."""
        if self._penalties is None:
            return
        for token in tokens:
            if token < self._vocabulary:  # a prompt may have pad tokens, which have no logit
                self._history[self._length] = token
                self._length += 1
            self._penalties.accept(token)


def overflowed() -> RuntimeFailure:
    """The error for logits that are not finite."""
    return RuntimeFailure(
        "the logits are not finite: the model's weights are so large that sums overflow",
        "The file or its checkpoint is damaged; convert it again with `dgpt2-quant convert`.",
    )


def _check_tokens(grammar: str, model: NativeModel) -> None:
    """Raises `UsageError` for a token of the grammar that the vocabulary lacks."""
    for name in check_grammar(grammar):
        if name.startswith("<["):
            known = len(name) < 16 and int(name[2:-2]) < model.real_vocabulary
        else:
            known = len(model.tokenize(name, special=True)) == 1
        if not known:
            raise UsageError(f"`grammar` names the token {name[:40]}, which this vocabulary lacks")


def _chain_steps(settings: Sampling, seed: int) -> Sequence[tuple[Any, ...]]:
    """The steps of llama.cpp's sampler chain that run on the candidates."""
    if settings.mirostat:
        return [("mirostat_v2", seed, settings.mirostat_tau, settings.mirostat_eta)]
    steps: list[tuple[Any, ...]] = []
    if settings.top_k:
        steps.append(("top_k", settings.top_k))
        if settings.typical_p < 1:
            steps.append(("typical", settings.typical_p, 1))
    if settings.top_k or settings.typical_p < 1:
        if settings.top_p < 1:
            steps.append(("top_p", settings.top_p, 1))
        if settings.min_p:
            steps.append(("min_p", settings.min_p, 1))
    if steps or settings.typical_p < 1 or settings.top_p < 1 or settings.min_p:
        steps.append(("temp", settings.temperature))
    return [*steps, ("dist", seed)]  # without a filter, the temperature is applied before
