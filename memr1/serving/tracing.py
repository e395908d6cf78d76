"""Spans for OpenTelemetry, where the settings ask for them: one for each request, and below it one for each generation
and each call of the banks. They carry ids and counts, never what people said. Where they go is said by the variables
of OpenTelemetry (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, ...)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from memr1.errors import MemR1Error
from memr1.rollout.engine import Completion, GenerationRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

    from memr1.serving.banks import Banks
    from memr1.serving.inference import Generator


class Traces:
    """Makes spans and sends them in the background; close it to send the last ones."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        """exporter: default one that speaks OTLP over gRPC. `MemR1Error` where the packages are not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise MemR1Error(f"serving.traces: {error}; pip install 'memr1[otel]', or leave traces off") from error
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "memr1"}
        self._provider = TracerProvider(resource=Resource.create(named))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("memr1.serving")

    @contextmanager
    def request(self, headers: Mapping[str, str], method: str, request_id: str) -> Iterator[Span]:
        """The span of a request, below the caller's where its headers name one (W3C Trace Context)."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        above = TraceContextTextMapPropagator().extract({k.lower(): v for k, v in headers.items()})
        known = {"http.request.method": method, "memr1.request_id": request_id}
        with self._tracer.start_as_current_span(method, above, SpanKind.SERVER, known) as span:
            yield span

    @contextmanager
    def step(self, name: str, **known: Any) -> Iterator[Span]:
        """A span below the current one."""
        with self._tracer.start_as_current_span(
            name, attributes=known, record_exception=False, set_status_on_exception=False
        ) as span:  # messages of exceptions may hold what people said
            yield span

    def begin(self, name: str, **known: Any) -> Span:
        """Such a span that somebody has to end."""
        return self._tracer.start_span(name, attributes=known)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class TracedBanks:
    """See `memr1.serving.banks.Banks`; a span for each call."""

    def __init__(self, inner: Banks, traces: Traces) -> None:
        self._inner, self._traces = inner, traces

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `Banks.call`."""
        with self._traces.step(f"banks {method}"):
            return await self._inner.call(method, *args, **kwargs)


class TracedGenerator:
    """See `memr1.serving.inference.Generator`; a span for each call."""

    def __init__(self, inner: Generator, traces: Traces) -> None:
        self._inner, self._traces = inner, traces

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Generator.generate`."""
        policies = ", ".join(sorted({r.policy for r in requests}))
        tokens = sum(len(r.prompt_ids) for r in requests)
        with self._traces.step("generate", policy=policies, prompt_tokens=tokens) as span:
            completions = await self._inner.generate(requests)
            span.set_attribute("completion_tokens", sum(len(c.ids) for c in completions))
            return completions

    async def stream(self, request: GenerationRequest) -> AsyncIterator[int | Completion]:
        """See `Generator.stream`."""
        # a span that is current across yields could end in another context: this one only takes the time
        span = self._traces.begin("generate", policy=request.policy, prompt_tokens=len(request.prompt_ids))
        try:
            async for heard in self._inner.stream(request):
                if isinstance(heard, Completion):
                    span.set_attribute("completion_tokens", len(heard.ids))
                yield heard
        finally:
            span.end()
