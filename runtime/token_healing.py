"""Token healing: the continuation of a prompt may begin with the rest of a word that the prompt has begun.

"The weath" ends in the tokens " we" and "ath", after which the model does not expect "er": it knows " weather" as one
token. And after "Hello " it cannot write " there", whose token has the blank. So the prompt is cut before its end, and
the first token must begin with the text that was cut off. Where several cuts are possible ("unh" may become "unhappy",
one token, or "un" + "heard"), the likeliest one counts: its probability is that of the tokens before it, times that of
all tokens that complete the text.
"""

import codecs
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
from dgpt2_quant.runtime.native.batch_token import Logits, TokenIds
from dgpt2_quant.runtime.native.model import NativeModel
from dgpt2_quant.runtime.sampling.candidates import Ids, log_total

_MOST = 16  # tokens to cut off at most


@dataclass(frozen=True)
class Cut:
    """Keeps `length` tokens of a prompt; the first token after them must begin with the bytes `rest`."""

    length: int
    rest: bytes = b""


def heal(model: NativeModel, prompt: list[int], positions: int) -> tuple[list[int], tuple[Cut, ...], bytes]:
    """A prompt up to its last possible cut, all possible cuts in order, and the bytes of an incomplete last character.

    Without a token that completes its end, the only cut is the end of the prompt.
    """
    last = model.piece(prompt[-1])[0]
    if len(last) > 1 and last.isspace() and len(prompt) < positions:
        # the last character of white space before a word is not in one token with the others
        parts = last[:-1].decode(), last[-1:].decode()
        prompt = [*prompt[:-1], *(token for part in parts for token in model.tokenize(part, special=False))]
    rest = b""
    cuts: list[Cut] = []
    for length in range(len(prompt) - 1, max(-1, len(prompt) - 1 - _MOST), -1):
        piece = model.piece(prompt[length])[0]
        if not piece or prompt[length] >= model.real_vocabulary:
            break
        rest = piece + rest
        if len(completing(model, rest)):
            cuts.append(Cut(length, rest))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(rest)
    incomplete = decoder.getstate()[0]
    if not cuts:
        return prompt, (Cut(len(prompt)),), incomplete
    if cuts[-1].length == 0:  # nothing would be left
        prompt = [model.bos, *prompt]
        cuts = [Cut(cut.length + 1, cut.rest) for cut in cuts]
    return prompt[: cuts[0].length], tuple(reversed(cuts)), incomplete


def completing(model: NativeModel, rest: bytes) -> Ids:
    """The ids of the tokens that begin with `rest`. A blank is completed by a word, not by itself or more blanks."""
    pieces, ids = model.sorted_pieces
    begin = bisect_left(pieces, rest)
    return ids[begin : bisect_right(pieces, rest, lo=begin, key=lambda piece: piece[: len(rest)])]


class CutChoice:
    """Chooses the likeliest of a prompt's cuts, from the logits after its last tokens."""

    def __init__(self, model: NativeModel, prompt: TokenIds, cuts: tuple[Cut, ...]) -> None:
        self.best = cuts[0]
        self._model, self._prompt = model, prompt
        self._cuts = {cut.length: cut for cut in cuts}
        self._before = 0.0  # log-probability of the tokens after the first cut
        self._most = -math.inf

    def improves(self, length: int, logits: Logits) -> bool:
        """Whether a cut after `length` tokens is the best so far. To be called for each length from the first cut on.

        `logits` are those after these tokens, shape (real vocabulary,).
        """
        cut = self._cuts.get(length)
        if len(self._cuts) == 1:
            return cut is not None
        total = log_total(logits)
        mass = -math.inf
        if cut is not None:
            mass = self._before + log_total(logits[completing(self._model, cut.rest)]) - total
        if length < len(self._prompt):
            self._before += float(logits[self._prompt[length]]) - total
        if cut is None or mass <= self._most:
            return False
        self.best, self._most = cut, mass
        return True


def keep_completing(model: NativeModel, rest: bytes, logits: Logits) -> None:
    """Forbids the tokens that do not begin with `rest`."""
    ids = completing(model, rest)
    kept = logits[ids]
    logits.fill(-np.inf)
    logits[ids] = kept
