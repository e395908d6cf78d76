"""What `/metrics` tells of the model: rounds and how full they were, tokens, and time by role."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from memr1.errors import MemR1Error
from memr1.rollout.engine import Completion, GenerationRequest, SamplingParams
from memr1.serving import observe
from memr1.serving.app import observed
from memr1.serving.inference import RoundStats
from memr1.serving.observe import Metrics
from memr1.serving.tracing import Traces
from tests.unit.serving_cases import sensible, serving

MARA = {"user_id": "mara"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as client:
        yield client


def values(text: str, name: str, label: str) -> dict[str, float]:
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return {s.labels.get(label, ""): s.value for s in samples if s.name == name}


def ask(client: TestClient, question: str = "Where does Mara live?") -> Any:
    reply = client.post("/v1/answer", json={"question": question, **MARA})
    assert reply.status_code == 200, reply.text
    return reply.json()


def remember(client: TestClient, *texts: str, **more: Any) -> None:
    said = {"messages": [{"content": text} for text in texts], **more}
    assert client.post("/v1/banks/notes/memories", params=MARA, json=said).status_code == 200


def test_time_by_role_is_that_of_the_model_without_banks_and_turn_taking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(prompt: str, request: Any) -> str:
        time.sleep(0.2)
        return sensible(prompt, request)

    with serving(tmp_path, slow) as client:
        remember(client, "Mara lives in Oslo.", "Ben plays the cello.")
        service = client.app.state.services.banks._service  # type: ignore[attr-defined]
        search = service.search

        def slow_search(*args: Any, **kwargs: Any) -> Any:
            time.sleep(0.5)
            return search(*args, **kwargs)

        monkeypatch.setattr(service, "search", slow_search)
        ask(client)
        chat = {"model": "memr1", "messages": [{"role": "user", "content": "Who plays?"}], "user": "mara"}
        for stream in (False, True):
            assert client.post("/v1/chat/completions", json={**chat, "stream": stream}).status_code == 200
        text = client.get("/metrics").text
    assert values(text, "memr1_generation_seconds_count", "role") == {"manager": 2, "answerer": 3}
    took = values(text, "memr1_generation_seconds_sum", "role")
    whole = values(text, "memr1_request_seconds_sum", "route")
    assert took["manager"] >= 0.4 and took["answerer"] >= 0.6
    assert took["answerer"] <= whole["/v1/answer"] + whole["/v1/chat/completions"] - 3 * 0.5


class _Model:
    """Tells two tokens and a completion; each takes a second of the clock."""

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock

    async def stream(self, request: GenerationRequest) -> AsyncIterator[int | Completion]:
        """See `Generator.stream`."""
        for heard in (1, 2, Completion((1, 2), (0.0, 0.0), "stop", 0)):
            self._clock[0] += 1
            yield heard


def test_the_time_of_whoever_listens_to_a_stream_is_not_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, metrics, exporter = [0.0], Metrics(), InMemorySpanExporter()
    monkeypatch.setattr(observe.time, "perf_counter", lambda: clock[0])
    traces = Traces(exporter)
    first = 0

    async def listen() -> list[int | Completion]:
        nonlocal first
        told = []
        model: Any = _Model(clock)
        async for heard in observed(model, metrics, traces).stream(
            GenerationRequest((7,), "answerer", SamplingParams(8))
        ):
            first = first or time.time_ns()
            clock[0] += 100
            told.append(heard)
        return told

    assert len(asyncio.run(listen())) == 3 and clock[0] == 303
    traces.close()
    text = generate_latest(metrics.registry).decode()
    assert values(text, "memr1_generation_seconds_sum", "role") == {"answerer": 3}
    (span,) = exporter.get_finished_spans()
    assert span.end_time is not None and span.end_time <= first, "nor is it in the model's span"


@pytest.mark.parametrize("after", [0, 1])
def test_what_a_stream_fails_with_reaches_whoever_listens(after: int) -> None:
    class Failing(_Model):
        async def stream(self, request: GenerationRequest) -> AsyncIterator[int | Completion]:
            for token in range(after):
                yield token
            raise MemR1Error("the model is gone")

    async def listen() -> None:
        model: Any = Failing([0.0])
        told = []
        with pytest.raises(MemR1Error, match="the model is gone"):
            async for heard in observed(model, Metrics()).stream(
                GenerationRequest((7,), "answerer", SamplingParams(8))
            ):
                told.append(heard)
        assert len(told) == after

    asyncio.run(listen())


def test_rounds_are_counted_by_how_many_generations_they_hold(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def script(prompt: str, request: Any) -> str:
        begun.set()
        assert go.wait(20)
        return sensible(prompt, request)

    with serving(tmp_path, script) as client:
        remember(client, "Mara lives in Oslo.", infer=False)
        asking = [threading.Thread(target=ask, args=(client,)) for _ in range(4)]
        asking[0].start()
        assert begun.wait(20)
        for thread in asking[1:]:
            thread.start()
        while values(client.get("/metrics").text, "memr1_generation_queue", "replica") != {"": 3}:
            time.sleep(0.01)
        go.set()
        for thread in asking:
            thread.join(20)
        text = client.get("/metrics").text
    assert values(text, "memr1_round_size_bucket", "le") == {
        **{"1.0": 1, "2.0": 1},
        **dict.fromkeys(("4.0", "8.0", "16.0", "32.0", "64.0", "128.0", "+Inf"), 2),
    }
    assert values(text, "memr1_round_size_count", "replica") == {"": 2}
    assert values(text, "memr1_round_size_sum", "replica") == {"": 4}
    assert values(text, "memr1_generation_queue", "replica") == {"": 0}
    assert values(text, "memr1_generations_cancelled_total", "replica") == {"": 0}


def test_tokens_are_those_that_answers_tell_of(client: TestClient) -> None:
    remember(client, "Mara lives in Oslo.", infer=False)
    told: Counter[str] = Counter()
    for question in ("Where does Mara live?", "Who is Mara?"):
        told.update(ask(client, question)["usage"])
    text = client.get("/metrics").text
    for name in ("prompt_tokens", "completion_tokens"):
        assert values(text, f"memr1_{name}_total", "replica") == {"": told[name]} and told[name] > 0


def test_every_replica_of_a_model_elsewhere_is_shown_by_its_name() -> None:
    from prometheus_client import generate_latest

    metrics = Metrics()
    models = {
        "one": RoundStats(waiting=2, rounds=Counter({3: 5}), requests=15, prompt_tokens=700),
        "two": RoundStats(rounds=Counter({64: 1, 200: 1}), requests=264, busy_s=1.5),
    }
    metrics.show({"banks_open": 1, "index_lag_entries": 0, "held_writes": 0}, models)
    text = generate_latest(metrics.registry).decode()
    assert values(text, "memr1_generation_queue", "replica") == {"one": 2, "two": 0}
    assert values(text, "memr1_round_size_sum", "replica") == {"one": 15, "two": 264}
    assert values(text, "memr1_round_size_count", "replica") == {"one": 5, "two": 2}
    assert values(text, "memr1_prompt_tokens_total", "replica") == {"one": 700, "two": 0}
    assert values(text, "memr1_model_busy_seconds_total", "replica") == {"one": 0, "two": 1.5}


def test_without_a_model_nothing_is_told_of_one(tmp_path: Path) -> None:
    with serving(tmp_path, None) as client:
        text = client.get("/metrics").text
    assert values(text, "memr1_round_size_count", "replica") == {} and "memr1_banks_open 0.0" in text
