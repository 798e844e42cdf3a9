"""The engine's books as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from fastpower.integrations.server.engine import Engine

_COUNTERS = {
    "requests": "Requests taken",
    "answers": "Answers finished",
    "failures": "Answers that ended in an error",
    "cancelled": "Answers cancelled by their client",
    "refused": "Requests refused because too many waited",
    "prompt_tokens": "Tokens of prompts answered",
    "kept_tokens": "Tokens of answers",
    "decoded_tokens": "Tokens decoded, rejected ones included",
    "moves": "Markov-chain moves",
    "accepted": "Moves accepted",
}
_FORWARDS = {"steps": "Forwards of a decode batch", "rows": "Rows of all forwards", "tokens": "Tokens fed"}


class EngineCollector:
    """Reads the engine's totals whenever it is asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Any]:
        """All metrics, each with the prefix ``fastpower_``."""
        totals = self.engine.totals
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"fastpower_{name}", text, value=getattr(totals, name))
        work = self.engine.scheduler.totals
        for name, text in _FORWARDS.items():
            yield CounterMetricFamily(f"fastpower_forward_{name}", text, value=getattr(work, name))
        yield GaugeMetricFamily("fastpower_running", "Answers under way", value=totals.running)
        yield GaugeMetricFamily("fastpower_waiting", "Answers waiting for a row", value=totals.waiting)
        for name, value in self.engine.cache.items():
            yield GaugeMetricFamily(f"fastpower_cache_{name}", "Of the K/V cache", value=value)


def exposition(engine: Engine) -> bytes:
    """All metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineCollector(engine))
    return generate_latest(registry)
