"""Metrics for Prometheus and one line of log for each request. Neither ever holds what people said, or a key."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from memr1.memory.state import reason_code

if TYPE_CHECKING:
    from memr1.serving.inference import Inference
    from memr1.serving.refs import Applied

access_log = logging.getLogger("memr1.serving.access")

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
            "Time from asking the model to its completion, waiting included.",
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

    def count(self, applied: Applied) -> None:
        """Count the operations of a decision, or why it is held."""
        for code in applied.suspicions:
            self.held.labels(code).inc()
        for result in applied.results:
            if result.ok:
                self.operations.labels(result.op.event).inc()
            else:
                self.rejected.labels(reason_code(result.reason or "")).inc()

    def show(self, gauges: Mapping[str, int]) -> None:
        """Show what the store says of itself (`BankService.gauges`)."""
        self.banks_open.set(gauges["banks_open"])
        self.index_lag.set(gauges["index_lag_entries"])
        self.held_writes.set(gauges["held_writes"])

    def watch(self, inference: Inference) -> None:
        """Show the queue and the rounds of a model in this process."""
        self.registry.register(_Rounds(inference))


class _Rounds(Collector):
    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def collect(self) -> Iterator[Metric]:
        stats = self._inference.stats
        yield GaugeMetricFamily("memr1_generation_queue", "Generations that wait.", value=self._inference.waiting)
        for name, what, value in (
            ("rounds", "Rounds of the model.", stats.rounds),
            ("generations", "Generations in them.", stats.requests),
            ("generations_cancelled", "Generations given up.", stats.cancelled),
            ("prompt_tokens", "Tokens read.", stats.prompt_tokens),
            ("completion_tokens", "Tokens written.", stats.completion_tokens),
            ("model_busy_seconds", "Time in rounds.", stats.busy_s),
        ):
            yield CounterMetricFamily(f"memr1_{name}", what, value=value)


def log_to_stderr() -> None:
    """Write this process's log, requests included, to standard error, one line each."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def log_request(fields: dict[str, Any], clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
    """One JSON line: time, request id, method, route (its template, never the ids in it), status, milliseconds, key."""
    access_log.info(json.dumps({"time": clock().isoformat(timespec="milliseconds"), **fields}))
