"""What tests of the service share: an application over a store in a folder, and a scripted model."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from memr1.memory.embed import load_embedder
from memr1.rollout.engine import Completion, GenerationRequest
from memr1.serving.agents import AgentService
from memr1.serving.app import Services, make_app, observed
from memr1.serving.banks import BankService, InProcess
from memr1.serving.inference import Inference
from memr1.serving.keys import KeyFile
from memr1.serving.observe import Metrics
from memr1.serving.settings import ServingConfig
from tests.unit.scripted import Script, ScriptedEngine, is_answerer, make_world, shown_entries


class Watched(ScriptedEngine):
    """A scripted engine that tells of every token, as the service's engines do."""

    def generate(self, requests: Sequence[GenerationRequest], watch: Any = None) -> list[Completion]:
        """See `WatchedEngine.generate`."""
        completions = super().generate(requests)
        if watch is None:
            return completions
        out = []
        for i, completion in enumerate(completions):
            kept = 0
            for token in completion.ids:
                kept += 1
                if not watch(i, token):
                    break
            out.append(
                Completion(
                    completion.ids[:kept],
                    completion.logprobs[:kept],
                    completion.finish_reason,
                    completion.weight_version,
                )
            )
        return out


def sensible(prompt: str, _: GenerationRequest) -> str:
    """A manager that updates what is about the same person and adds the rest, an answerer that quotes the first."""
    shown = shown_entries(prompt)
    if is_answerer(prompt):
        return f"Use: 1\nAnswer: {shown['1'].split()[-1].rstrip('.')}" if shown else "Use: none\nAnswer: unknown"
    fact = re.findall(r"^New fact.*?: (.*?)(?:<\|.*)?$", prompt, flags=re.MULTILINE)[-1]
    for number, text in shown.items():
        if text == fact:
            return "NOOP"
        if text.split()[0] == fact.split()[0]:
            return f"UPDATE {number}"
    return "ADD"


@contextmanager
def serving(
    folder: Path, script: Script | None = sensible, keys: KeyFile | None = None, **changes: Any
) -> Iterator[TestClient]:
    """A client of an application over `folder/memory.db`; `client.app.state.services` are its services."""
    services = make_services(folder, script, keys, **changes)
    try:
        with local_client(services) as client:
            yield client
    finally:
        services.close()


def local_client(services: Services) -> TestClient:
    """A client on this machine."""
    return TestClient(
        make_app(services), "http://127.0.0.1", raise_server_exceptions=False, client=("127.0.0.1", 50000)
    )


def stop_jobs(client: TestClient) -> None:
    """From now on jobs are only accepted."""
    assert client.portal is not None
    client.portal.call(client.app.state.jobs.stop)  # type: ignore[attr-defined]


def make_services(
    folder: Path, script: Script | None = sensible, keys: KeyFile | None = None, **changes: Any
) -> Services:
    settings = ServingConfig(db=str(folder / "memory.db"), embedder="hash", **changes)
    service = BankService(settings, load_embedder("hash"))
    banks = InProcess(service)
    if script is None:
        return Services(settings, banks, keys=keys, stop=service.close)
    world = make_world()
    inference = Inference(Watched(script), max_queue=settings.max_queue, max_batch=settings.max_batch)
    metrics = Metrics()
    agents = AgentService(world.config, world.agents, observed(inference, metrics), banks, settings, "scripted")
    return Services(settings, banks, agents, inference, keys, metrics, stop=service.close)


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


def error_of(response: Any, status: int) -> dict[str, Any]:
    """The error of a refusal, whose shape is checked."""
    assert response.status_code == status, response.text
    error = json.loads(response.text)["error"]
    assert set(error) >= {"code", "message", "type", "param", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    return error


@contextmanager
def listening(services: Services) -> Iterator[str]:
    """The URL of an application that listens on a free port of loopback."""
    with running(services) as server:
        yield address(server)


def address(server: Any) -> str:
    """The URL of a server that was started."""
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@contextmanager
def running(services: Services) -> Iterator[Any]:
    """The server of `listening`; it stops when its `should_exit` is set, as a signal does."""
    from memr1.serving.server import Server

    server = Server(services, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end and thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(20)
        services.close()
