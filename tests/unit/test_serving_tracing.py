"""Spans: one for each request with its id, the steps below it, the caller's trace above it, and no word of users."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from memr1.errors import MemR1Error
from memr1.serving.tracing import TracedBanks, TracedGenerator, Traces
from tests.unit.serving_cases import local_client, make_services

MARA = {"user_id": "mara"}
ABOVE = "0af7651916cd43dd8448eb211c80319c"


def test_a_request_is_a_span_with_its_steps_below_it(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    services = make_services(tmp_path)
    services.traces = traces
    services.banks = TracedBanks(services.banks, traces)
    agents = services.agent()
    agents._banks, agents._generator = services.banks, TracedGenerator(agents._generator, traces)
    with local_client(services) as client:
        headers = {"traceparent": f"00-{ABOVE}-b7ad6b7169203331-01", "X-Request-Id": "r-1"}
        said = {"text": "Mara lives in Oslo."}
        assert client.post("/v1/banks/notes/memories", params=MARA, json=said, headers=headers).status_code == 200
        assert client.get("/v1/banks/notes/memories/m9", params=MARA).status_code == 404
        chat = {"model": "memr1", "messages": [{"role": "user", "content": "Where?"}], "stream": True, "user": "mara"}
        assert "[DONE]" in client.post("/v1/chat/completions", json=chat).text
    services.close()
    spans: list[Any] = [s for s in exporter.get_finished_spans() if s.parent is None or s.context.trace_id]
    first = [s for s in spans if f"{s.context.trace_id:032x}" == ABOVE]
    (request,) = [s for s in first if s.name == "POST /v1/banks/{bank}/memories"]
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert request.attributes["memr1.request_id"] == "r-1"
    assert request.attributes["http.response.status_code"] == 200
    below = [s for s in first if s.parent.span_id == request.context.span_id]
    assert [s.name for s in below] == ["banks related", "generate", "banks apply"]
    generate = below[1].attributes
    assert generate["policy"] == "manager" and generate["prompt_tokens"] > 10 and generate["completion_tokens"] == 4
    (missing,) = [s for s in spans if s.name == "GET /v1/banks/{bank}/memories/{memory_id}"]
    assert missing.attributes["http.response.status_code"] == 404 and missing.parent is None
    (stream,) = [s for s in spans if s.name == "POST /v1/chat/completions"]
    assert {s.name for s in spans if s.context.trace_id == stream.context.trace_id} >= {"generate", "banks search"}
    assert not [s for s in spans if "Oslo" in s.to_json() or "mara" in s.to_json()]


def test_without_the_packages_the_error_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(MemR1Error, match=r"serving.traces: .*pip install 'memr1\[otel\]'"):
        Traces()
