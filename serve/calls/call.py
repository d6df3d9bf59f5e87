"""One HTTP request in progress: its id, its time limit, and the counts for the access log and the metrics."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from dgpt2_quant.runtime import Event, RequestHandle

from .metrics import Metrics
from .models import Models, ServedModel
from .settings import Limits, Settings


@dataclass(eq=False)
class Call:
    """`prompt_tokens` counts those of all prompts, `cached_tokens` those of them that needed no computing."""

    id: str
    route: str
    models: Models
    settings: Settings
    metrics: Metrics
    started: float = field(default_factory=time.perf_counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    model: str | None = None
    left_early: bool = False  # the client left before the end of its answer
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    _latest: dict[int, float] = field(default_factory=dict)  # the time of each text's last event

    def __post_init__(self) -> None:
        self.deadline = asyncio.get_running_loop().time() + self.limits.request_seconds

    @property
    def limits(self) -> Limits:
        return self.settings.limits

    @property
    def seconds(self) -> float:
        """Since the request arrived."""
        return time.perf_counter() - self.started

    def began(self, served: ServedModel, handles: Sequence[RequestHandle]) -> None:
        """Counts texts that were submitted."""
        self.model = served.id
        self.prompt_tokens += sum(handle.timing.prompt_tokens for handle in handles)

    def saw(self, served: ServedModel, number: int, event: Event) -> None:
        """Observes the times of an event."""
        if not event.token_ids:
            return
        now = time.perf_counter()
        before = self._latest.get(number)
        self._latest[number] = now
        if before is not None:
            between = self.metrics.between_tokens.labels(served.id)
            for _ in event.token_ids:
                between.observe((now - before) / len(event.token_ids))
            return
        if self.first_token_seconds is None:
            self.first_token_seconds = now - self.started
        self.metrics.first_token.labels(served.id).observe(now - self.started)

    def ended(self, served: ServedModel, handles: Sequence[RequestHandle], generated: int) -> None:
        """Counts what these texts have computed, and the tokens that were sent or are in the answer."""
        self.completion_tokens += generated
        for handle in handles:
            timing = handle.timing
            self.cached_tokens += timing.prompt_cached
            if self.queue_seconds is None:
                self.queue_seconds = timing.waited_seconds
            self.metrics.queue.labels(served.id).observe(timing.waited_seconds)
        self.metrics.whole.labels(served.id).observe(self.seconds)
