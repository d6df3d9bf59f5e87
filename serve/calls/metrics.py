"""`GET /metrics` for Prometheus: llama.cpp's names for its dashboards, and histograms by model."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from .models import Models, ServedModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters and histograms of one server. Labels have fixed sets of values."""

    def __init__(self, models: "Models") -> None:
        self.started = time.time()
        self.registry = CollectorRegistry()
        self.first_token = self._histogram("time_to_first_token", "From a request's arrival to its first token", _LONG)
        self.between_tokens = self._histogram("inter_token", "Between two tokens of a text", _SHORT)
        self.queue = self._histogram("queue", "From a request's arrival to the computing of its prompt", _LONG)
        self.whole = self._histogram("request", "From a request's arrival to the end of its answer", _LONG)
        self.requests = Counter(
            "dgpt2_quant_requests",
            "Answers by route and status; 499: the client left.",
            ["route", "code"],
            registry=self.registry,
        )
        self.registry.register(_LlamaCpp(models))

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"dgpt2_quant_{name}_seconds", f"{what}, in seconds.", ["model"], buckets=buckets, registry=self.registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _LlamaCpp(Collector):
    """The metrics of llama.cpp's server, summed over the models, and the same by model."""

    def __init__(self, models: "Models") -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        loaded = list(self.models.loaded.values())
        stats = [served.scheduler.stats for served in loaded]
        counters: dict[str, tuple[str, list[float]]] = {
            "prompt_tokens": ("Prompt tokens that were computed", [s.totals.prompt_tokens for s in stats]),
            "prompt_tokens_cached": ("Prompt tokens that were reused", [s.totals.cached_tokens for s in stats]),
            "prompt_seconds": ("Time of computing prompts", [s.totals.prompt_seconds for s in stats]),
            "tokens_predicted": ("Tokens that were generated", [s.totals.decode_tokens for s in stats]),
            "tokens_predicted_seconds": ("Time of generating", [s.totals.decode_seconds for s in stats]),
            "n_decode": ("Calls of llama_decode", [s.totals.prompt_steps + s.totals.steps for s in stats]),
        }
        for name, (what, values) in counters.items():
            family = CounterMetricFamily(f"llamacpp:{name}", f"{what}.")
            family.add_metric([], sum(values))
            yield family
        prompt_seconds, seconds = (sum(counters[name][1]) for name in ("prompt_seconds", "tokens_predicted_seconds"))
        steps = sum(s.totals.steps for s in stats)
        gauges = {
            "prompt_tokens_seconds": sum(counters["prompt_tokens"][1]) / prompt_seconds if prompt_seconds else 0,
            "predicted_tokens_seconds": sum(counters["tokens_predicted"][1]) / seconds if seconds else 0,
            "requests_processing": sum(s.active for s in stats),
            "requests_deferred": sum(s.waiting for s in stats),
            "n_busy_slots_per_decode": sum(counters["tokens_predicted"][1]) / steps if steps else 0,
        }
        for name, value in gauges.items():
            yield GaugeMetricFamily(f"llamacpp:{name}", f"As in llama.cpp's server: {name}.", value)
        yield from self._by_model(loaded)

    def _by_model(self, loaded: "list[ServedModel]") -> Iterator[Metric]:
        waiting = GaugeMetricFamily("dgpt2_quant_requests_waiting", "Texts in the queue.", labels=["model"])
        active = GaugeMetricFamily("dgpt2_quant_requests_active", "Texts that are computed.", labels=["model"])
        tokens = CounterMetricFamily("dgpt2_quant_tokens_generated", "Tokens that were generated.", labels=["model"])
        for served in loaded:
            stats = served.scheduler.stats
            waiting.add_metric([served.id], stats.waiting)
            active.add_metric([served.id], stats.active)
            tokens.add_metric([served.id], stats.totals.decode_tokens)
        yield from (waiting, active, tokens)
