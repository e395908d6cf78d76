"""The service on Ray Serve: the same answers as under uvicorn, one owner, nothing lost when it dies or is replaced."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from memr1.serving import proxy
from memr1.serving.settings import ServingConfig

# Serve kills a proxy that takes more than five seconds to start, as it does on a busy machine. The cluster's processes
# read this when they start, so it is set before the session's cluster is.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "60")

os.environ.setdefault(proxy.VARIABLE, proxy.CALLBACK)

MARA = {"user_id": "mara"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_random: Path) -> ServingConfig:
    folder = tmp_path_factory.mktemp("serve")
    return ServingConfig(source="tiny-random", db=str(folder / "memory.db"), embedder="hash", threads=1)


@pytest.fixture(scope="module")
def url(ray_cluster: str, settings: ServingConfig) -> Iterator[str]:
    from memr1.serving import on_ray

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    try:
        on_ray.start(settings, "127.0.0.1", port)
        yield f"http://127.0.0.1:{port}"
    finally:
        on_ray.stop(settings)


def add(url: str, text: str, key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    body = {"text": text, "infer": False}
    return httpx.post(f"{url}/v1/banks/notes/memories", params=MARA, json=body, headers=headers, timeout=60)


def texts(url: str) -> list[str]:
    page = httpx.get(f"{url}/v1/banks/notes/memories", params={**MARA, "limit": 1000}, timeout=60)
    assert page.status_code == 200, page.text
    return [m["text"] for m in page.json()["memories"]]


def test_it_answers_as_the_plain_application_does(url: str, settings: ServingConfig, tmp_path: Path) -> None:
    from memr1.memory.embed import load_embedder
    from memr1.serving.app import make_app
    from memr1.serving.app import start as start_here

    here = start_here(ServingConfig(source="tiny-random", db=str(tmp_path / "m.db"), embedder="hash", threads=1))
    assert load_embedder("hash").name == "hash-256"

    async def both() -> None:
        transport = httpx.ASGITransport(make_app(here))
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as plain,
            httpx.AsyncClient(base_url=url, timeout=60) as served,
        ):
            calls: list[tuple[str, str, Any]] = [
                (
                    "POST",
                    "/v1/banks/same/memories",
                    {"text": "Mara lives in Oslo.", "infer": False, "time": "2024-01-01"},
                ),
                ("POST", "/v1/banks/same/search", {"query": "Mara"}),
                ("POST", "/v1/answer", {"question": "Where does Mara live?", "bank": "same", **MARA}),
                ("POST", "/v1/banks/same/memories", {"text": "Mara has a cat."}),
                ("GET", "/v1/banks/same/memories/m9", None),
                ("GET", "/v1/jobs/none", None),
                ("POST", "/v1/banks/same/search", {"query": "Mara", "filters": {"colour": 1}}),
            ]
            for method, path, body in calls:
                params = MARA if "same" in path else None
                # turn ids name the request
                asked = {"params": params, "json": body, "headers": {"X-Request-Id": "r", "Idempotency-Key": path[-8:]}}
                one, other = [await c.request(method, path, **asked) for c in (plain, served)]
                assert (one.status_code, one.json()) == (other.status_code, other.json()), path

    asyncio.run(both())
    here.close()


def test_a_stream_comes_through(url: str) -> None:
    add(url, "Ada paints.")
    body = {"model": "memr1", "messages": [{"role": "user", "content": "Who paints?"}], "stream": True, "user": "mara"}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and len(lines) >= 3


def test_metrics_show_the_replicas_of_the_model(url: str) -> None:
    def tokens() -> dict[str, float]:
        shown = httpx.get(f"{url}/metrics", timeout=30).text
        found = re.findall(r'^memr1_completion_tokens_total{replica="(\w+)"} (\S+)$', shown, re.MULTILINE)
        assert re.search(r'^memr1_generation_seconds_count{role="answerer"} [1-9]', shown, re.MULTILINE)
        assert re.search(r'^memr1_round_size_count{replica="\w+"} [1-9]', shown, re.MULTILINE)
        return {replica: float(count) for replica, count in found}

    add(url, "Ada paints.")
    used = []
    for _ in range(2):
        answer = httpx.post(f"{url}/v1/answer", json={"question": "Who paints?", "bank": "notes", **MARA}, timeout=60)
        used.append((answer.json()["usage"]["completion_tokens"], tokens()))
    ((_, before), (more, after)) = used
    assert len(after) == 1 and after.keys() == before.keys()
    assert sum(after.values()) - sum(before.values()) == more > 0


def test_what_serve_itself_refuses_is_json_too(url: str) -> None:
    """Serve answers a path of its own in plain text, and one whose replica dies as well."""
    processes = psutil.Process().children(recursive=True)
    (gateway,) = [p for p in processes if "ServeReplica:memr1:gateway" in " ".join(p.cmdline())]
    gateway.kill()
    odd, end = [], time.monotonic() + 60
    while time.monotonic() < end:
        try:
            answer = httpx.get(f"{url}/v1/banks", timeout=30)
        except httpx.HTTPError:
            continue
        if answer.status_code == 200:
            break
        if answer.headers["content-type"] != "application/json" or "code" not in answer.json()["error"]:
            odd.append(answer.text)
    assert odd == [] and answer.status_code == 200


def test_what_is_no_http_is_refused_below_us_in_plain_text(url: str) -> None:
    """As docs/serving.md says: nothing of ours sees it."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"nonsense\r\n\r\n")
        said = client.recv(65536)
    assert said.startswith(b"HTTP/1.1 400") and b"content-type: text/plain" in said.lower()


def test_answers_wait_for_a_replica_of_the_model_that_died(url: str) -> None:
    add(url, "Ada paints.")
    body = {"question": "Who paints?", "bank": "notes", **MARA}

    def ask() -> httpx.Response:
        return httpx.post(f"{url}/v1/answer", json=body, timeout=90)

    before = ask()
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def go_on_asking() -> None:
        while not stop.is_set():
            answers.append(ask())

    askers = [threading.Thread(target=go_on_asking) for _ in range(3)]
    for asker in askers:
        asker.start()
    time.sleep(0.5)
    processes = psutil.Process().children(recursive=True)
    (model,) = [p for p in processes if "ServeReplica:memr1:model" in " ".join(p.cmdline())]
    model.kill()
    end, asked = time.monotonic() + 60, len(answers)
    while len(answers) < asked + 12 and time.monotonic() < end:
        time.sleep(0.1)
    stop.set()
    for asker in askers:
        asker.join(90)
    assert len(answers) >= asked + 12, "nobody answers any more"
    assert {r.status_code for r in answers} <= {before.status_code, 503}
    assert all(r.json()["error"]["code"] for r in answers if r.status_code == 503)
    after = ask()
    assert (after.status_code, after.json().get("answer")) == (before.status_code, before.json().get("answer"))
    assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200


def test_others_than_this_machine_are_refused_without_keys(url: str) -> None:
    refused = httpx.get(f"{url}/v1/banks", headers={"Host": "evil.example"})
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "keys_needed"


def test_nothing_acknowledged_is_lost_when_the_owner_dies_or_the_service_is_redeployed(
    url: str, settings: ServingConfig
) -> None:
    import ray
    from ray import serve

    from memr1.serving import on_ray

    acknowledged: list[str] = []
    odd: list[str] = []
    stop = threading.Event()

    def write(start: int) -> None:
        n = start
        while not stop.is_set():
            try:
                done = add(url, f"fact number {n}", key=f"k{n}")
            except httpx.HTTPError:
                continue  # nobody knows: the same again, under the same key
            if done.status_code == 200:
                acknowledged.append(f"fact number {n}")
                n += 3
            elif done.status_code not in (429, 503):
                odd.append(done.text)
                return
            else:
                time.sleep(0.1)

    writers = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for writer in writers:
        writer.start()

    def wait_for(more: int) -> None:
        end, before = time.monotonic() + 60, len(acknowledged)
        while len(acknowledged) < before + more and not odd:
            assert time.monotonic() < end, "no more writes are acknowledged"
            time.sleep(0.05)

    wait_for(10)
    owner = ray.get_actor(on_ray.owner_name(settings.db), namespace=on_ray.NAMESPACE)
    ray.kill(owner, no_restart=False)
    wait_for(10)
    serve.run(on_ray.build({**vars(settings), "max_queue": 99}), name="memr1", route_prefix="/")
    wait_for(10)
    stop.set()
    for writer in writers:
        writer.join(60)
    assert odd == []
    kept = [t for t in texts(url) if t.startswith("fact")]
    assert len(kept) == len(set(kept)) and set(acknowledged) <= set(kept)
