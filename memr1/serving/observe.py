"""Metrics for Prometheus and one line of log for each request. Neither ever holds what people said, or a key."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from memr1.memory.state import reason_code
from memr1.rollout.engine import Completion, GenerationRequest

if TYPE_CHECKING:
    from memr1.serving.inference import Generator, RoundStats
    from memr1.serving.refs import Applied

access_log = logging.getLogger("memr1.serving.access")

_ROUND_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "memr1_requests", "Requests by route and status.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "memr1_request_seconds",
            "Time to the end of the response.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("memr1_in_flight", "Requests worked on now.", registry=self.registry)
        self.generation_seconds = Histogram(
            "memr1_generation_seconds",
            "Time from asking the model to its completion, waiting for a round included.",
            ("role",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.operations = Counter(
            "memr1_operations", "Operations that banks applied.", ("event",), registry=self.registry
        )
        self.rejected = Counter(
            "memr1_operations_rejected", "Operations that banks rejected.", ("reason",), registry=self.registry
        )
        self.refused = Counter(
            "memr1_decisions_refused", "Decisions of the manager that were refused.", ("code",), registry=self.registry
        )
        self.held = Counter(
            "memr1_decisions_held", "Decisions that the guards held.", ("reason",), registry=self.registry
        )
        self.held_writes = Gauge("memr1_held_writes", "Held decisions that wait now.", registry=self.registry)
        self.banks_open = Gauge("memr1_banks_open", "Banks in memory.", registry=self.registry)
        self.index_lag = Gauge(
            "memr1_index_lag_entries", "Entries that indexes have not seen yet.", registry=self.registry
        )
        self._rounds = _Rounds()
        self.registry.register(self._rounds)

    def count(self, applied: Applied) -> None:
        """Count the operations of a decision, or why it is held."""
        for code in applied.suspicions:
            self.held.labels(code).inc()
        for result in applied.results:
            if result.ok:
                self.operations.labels(result.op.event).inc()
            else:
                self.rejected.labels(reason_code(result.reason or "")).inc()

    def show(self, gauges: Mapping[str, int], models: Mapping[str, RoundStats]) -> None:
        """Show what the store says of itself (`BankService.gauges`), and the model's replicas (`Model.counts`)."""
        self._rounds.models = models
        self.banks_open.set(gauges["banks_open"])
        self.index_lag.set(gauges["index_lag_entries"])
        self.held_writes.set(gauges["held_writes"])


class _Rounds(Collector):
    def __init__(self) -> None:
        self.models: Mapping[str, RoundStats] = {}

    def collect(self) -> Iterator[Metric]:
        labels = ("replica",)
        queue = GaugeMetricFamily("memr1_generation_queue", "Generations that wait for a round.", labels=labels)
        rounds = HistogramMetricFamily("memr1_round_size", "Generations in a round of the model.", labels=labels)
        for replica, stats in self.models.items():
            queue.add_metric([replica], stats.waiting)
            upto = [(f"{b:.1f}", sum(n for size, n in stats.rounds.items() if size <= b)) for b in _ROUND_SIZES]
            rounds.add_metric([replica], [*upto, ("+Inf", stats.rounds.total())], stats.requests)
        yield from (queue, rounds)
        for name, what, field in (
            ("generations_cancelled", "Generations given up.", "cancelled"),
            ("prompt_tokens", "Tokens read.", "prompt_tokens"),
            ("completion_tokens", "Tokens written.", "completion_tokens"),
            ("model_busy_seconds", "Time in rounds.", "busy_s"),
        ):
            family = CounterMetricFamily(f"memr1_{name}", what, labels=labels)
            for replica, stats in self.models.items():
                family.add_metric([replica], getattr(stats, field))
            yield family


class TimedGenerator:
    """See `memr1.serving.inference.Generator`; metrics are told how long the model took, by role."""

    def __init__(self, inner: Generator, metrics: Metrics) -> None:
        self._inner, self._seconds = inner, metrics.generation_seconds

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Generator.generate`."""
        start = time.perf_counter()
        completions = await self._inner.generate(requests)
        for request in requests:
            self._seconds.labels(request.policy).observe(time.perf_counter() - start)
        return completions

    async def stream(self, request: GenerationRequest) -> AsyncIterator[int | Completion]:
        """See `Generator.stream`. The inner one is heard out however slowly this one is: the time that whoever listens
        takes is not the model's."""
        heard: asyncio.Queue[int | Completion | Exception | None] = asyncio.Queue()

        async def listen() -> None:
            start = time.perf_counter()
            try:
                async for what in self._inner.stream(request):
                    if isinstance(what, Completion):
                        self._seconds.labels(request.policy).observe(time.perf_counter() - start)
                    heard.put_nowait(what)
                heard.put_nowait(None)
            except Exception as error:
                heard.put_nowait(error)

        listening = asyncio.create_task(listen())
        try:
            while (what := await heard.get()) is not None:
                if isinstance(what, Exception):
                    raise what
                yield what
        finally:
            listening.cancel()


def log_to_stderr() -> None:
    """Write this process's log, requests included, to standard error, one line each."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def log_request(fields: dict[str, Any], clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
    """One JSON line: time, request id, method, route (its template, never the ids in it), status, milliseconds, key."""
    access_log.info(json.dumps({"time": clock().isoformat(timespec="milliseconds"), **fields}))
