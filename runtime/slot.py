"""A slot of the KV cache: the cells of one sequence, and the part of another prompt that they can replace.

The log-probabilities of a prompt's tokens (`echo` with `logprobs`) are kept with its cells: the logits are gone. With
them, requests that differ only in the end of their prompts (lm-evaluation-harness: one context, several continuations)
compute only that end.

llama.cpp rounds a row of a prompt in the same way in every decode of at least `SCORED_ROWS` rows that begins at a
multiple of `SCORED_UNIT`: the tiles of its flash attention have 64 rows (`GGML_FA_TILE_Q` in ggml-cpu/ops.cpp), its
matrix products take rows by fours. Prompts are scored in such decodes only, so their log-probabilities have the bits
of `Model.score`, whatever was reused.
"""

from dataclasses import dataclass, field

from dgpt2_quant.runtime.native.batch_token import Logits, TokenIds

from .completion import TokenLogprob
from .request import Request
from .sequence import Sequence

CHUNK = 128  # tokens of a prompt in one decode, and the unit of reuse
SCORED_ROWS = 64
SCORED_UNIT = 16
_MOST_KEPT = 20  # alternatives of each token that are kept after a request has ended; more take megabytes


@dataclass
class Slot:
    """A sequence's cells in the KV cache. The first hold `prompt`; if it is `entire`, `row` are the logits after it.

    An entire prompt ends at the cut that was chosen for the request with this `key`.

    `scores` are the log-probabilities of the first tokens, with `top` alternatives each.
    """

    number: int
    row: Logits
    entire: bool = False
    key: object = None
    prompt: list[int] = field(default_factory=list)
    scores: list[TokenLogprob] = field(default_factory=list)
    top: int = 0
    sequence: Sequence | None = None

    def forget(self) -> None:
        self.prompt, self.scores, self.entire = [], [], False

    def end_at(self, length: int, request: Request) -> None:
        """The prompt has been computed: keeps `length` tokens, to which `row` belongs."""
        del self.prompt[length:], self.scores[length:]
        self.key, self.entire = request.key, True

    def reusable(self, request: Request) -> int:
        """The number of a prompt's tokens that need no decode: all of an equal prompt, otherwise its beginning."""
        prompt, first, scored = request.prompt, request.cuts[0].length, request.scores_prompt
        if scored and self.top < (request.prompt_logprobs or 0):
            return 0
        if self.entire and self.key == request.key and scored == self._is_scored():
            return len(self.prompt)
        common = 0
        for one, other in zip(self.prompt, prompt, strict=False):
            if one != other:
                break
            common += 1
        if not scored:
            return min(common, first - 1) // CHUNK * CHUNK  # the row before the first cut must be computed
        # the first token after them must have its score: the row before it is not computed again
        common = min(common, len(self.scores)) - 1
        return max(0, min(common, len(prompt) - SCORED_ROWS)) // SCORED_UNIT * SCORED_UNIT

    def take(self, other: "Slot", kept: int, request: Request) -> None:
        """Begins a prompt with the first `kept` cells of another slot, which are copied to this one."""
        scores, top = other.scores[: kept + request.scores_prompt], request.prompt_logprobs or 0
        if request.scores_prompt:
            scores = scores if kept else [TokenLogprob(request.prompt[0], None)]
            if top < other.top:
                scores = [_fewer(score, top) for score in scores]
        else:
            top = other.top
        self.prompt, self.scores, self.top = other.prompt[:kept], scores, top
        self.entire, self.key = kept >= request.cuts[0].length, request.key
        if self.entire and other is not self:
            self.row[:] = other.row

    def step_back(self, request: Request) -> bool:
        """Forgets the end of a scored prompt if too few rows are left for a decode; returns whether it did."""
        if not request.scores_prompt or not self.prompt or len(request.prompt) - len(self.prompt) >= SCORED_ROWS:
            return False
        kept = max(0, len(request.prompt) - SCORED_ROWS) // SCORED_UNIT * SCORED_UNIT
        del self.prompt[kept:], self.scores[kept + 1 :]
        return True

    def next_chunk(self, request: Request, others: bool) -> TokenIds:
        """The tokens of the prompt to decode now: few if they are scored and `others` wait for their next tokens."""
        begin = len(self.prompt)
        left = len(request.prompt) - begin
        size = CHUNK
        is_few = others and left >= SCORED_ROWS + SCORED_UNIT
        if request.scores_prompt and (is_few or CHUNK < left < CHUNK + SCORED_ROWS):
            size = SCORED_ROWS
        return request.prompt[begin : begin + size]

    def become(self, other: "Slot") -> None:
        """Takes over a sequence, whose cells are copied to this slot."""
        self.row[:] = other.row
        self.prompt, self.scores, self.top = list(other.prompt), other.scores, other.top
        self.entire, self.key, self.sequence = other.entire, other.key, other.sequence
        other.sequence = None

    def leave(self) -> None:
        """The sequence has ended; its prompt can be reused."""
        self.sequence = None
        if self._is_scored() and self.top > _MOST_KEPT:
            self.forget()

    def _is_scored(self) -> bool:
        return len(self.scores) >= len(self.prompt)


def _fewer(score: TokenLogprob, top: int) -> TokenLogprob:
    return TokenLogprob(score.token, score.logprob, dict(list(score.top.items())[:top]))
