"""Bounds: what is too large, too slow or too much is refused in JSON, and what was being written is written."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from memr1.memory.scopes import Scope
from memr1.serving.app import make_app
from memr1.serving.keys import KeyFile
from memr1.serving.proxy import JsonErrors
from memr1.serving.refs import BankRef
from tests.unit.serving_cases import (
    bearer,
    error_of,
    listening,
    local_client,
    make_services,
    sensible,
    serving,
    stop_jobs,
)

NOTES = "/v1/banks/notes"
MARA = {"user_id": "mara"}
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/answer",
    "raw_path": b"/v1/answer",
    "query_string": b"",
    "headers": [(b"content-length", b"10"), (b"host", b"127.0.0.1:80")],
    "client": ("127.0.0.1", 1),
    "http_version": "1.1",
    "scheme": "http",
    "server": ("127.0.0.1", 80),
}
"""Of a request whose body is announced, for an application that is called by hand."""


def test_large_bodies_are_refused_and_imports_may_be_larger(tmp_path: Path) -> None:
    with serving(tmp_path, None, max_body_bytes=2000) as client:
        big = client.post(f"{NOTES}/memories", params=MARA, json={"text": "x" * 3000, "infer": False})
        assert error_of(big, 413)["code"] == "body_too_large"

        def parts() -> Iterator[bytes]:  # without a length that is told
            yield b'{"text": "'
            for _ in range(10):
                yield b"x" * 500

        assert error_of(client.post(f"{NOTES}/memories", params=MARA, content=parts()), 413)
        small = {"text": "y" * 900, "infer": False}
        for n in range(3):
            client.post(f"{NOTES}/memories", params=MARA, json={**small, "text": f"{n}" * 900})
        exported = client.get(f"{NOTES}/export", params=MARA).content
        assert len(exported) > 2000
        assert client.post("/v1/banks/copy/import", params=MARA, content=exported).status_code == 201


def test_without_the_right_to_it_nobody_makes_the_service_hold_a_large_body(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json", create=True)
    sent: list[Any] = []
    read, admin = (bearer(keys.create(right, right=right)[0]) for right in ("read", "admin"))
    services = make_services(tmp_path, None, keys, max_body_bytes=2000)
    with listening(services) as url, httpx.Client(base_url=url, timeout=20) as client:
        large = b"x" * 3000
        assert client.post("/v1/banks/copy/import", params=MARA, content=large, headers=read).status_code == 413
        assert client.post("/v1/banks/copy/import", params=MARA, content=large, headers=admin).status_code == 422
        for path, status in (("/console/import", 405), ("/healthz/import", 401), ("/v1/banks/copy/import", 401)):
            assert client.post(path, content=large).status_code == status, path

    async def ask() -> int:
        """A public path whose body never comes."""

        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {**SCOPE, "path": "/healthz", "raw_path": b"/healthz", "headers": [(b"content-length", b"10")]}
        await asyncio.wait_for(make_app(services)(scope, receive, send), 10)
        return sent[0]["status"]

    assert asyncio.run(ask()) == 405


def test_methods_that_a_client_makes_up_do_not_grow_the_metrics(tmp_path: Path) -> None:
    with serving(tmp_path, None) as client:
        for n in range(5):
            assert client.request(f"MADEUP{n}", "/healthz").status_code == 405
        shown = client.get("/metrics").text
    assert "MADEUP" not in shown
    assert 'memr1_requests_total{method="any",route="/healthz",status="405"} 5.0' in shown


def test_a_tenant_has_so_many_banks_and_no_more(tmp_path: Path) -> None:
    with serving(tmp_path, None, max_banks=2) as client:
        for n, status in enumerate((200, 200, 413)):
            made = client.post(f"/v1/banks/b{n}/memories", params=MARA, json={"text": "x", "infer": False})
            assert made.status_code == status
        exported = client.get("/v1/banks/b0/export", params=MARA).content
        refused = client.post("/v1/banks/b3/import", params=MARA, content=exported)
        assert error_of(refused, 413)["code"] == "too_many_banks"
        client.delete("/v1/banks/b0", params=MARA)
        assert client.post("/v1/banks/b3/import", params=MARA, content=exported).status_code == 201


def test_every_response_carries_its_id_and_the_security_headers(tmp_path: Path) -> None:
    with serving(tmp_path, None) as client:
        for path in ("/healthz", "/v1/banks", "/v1/nothing", "/metrics"):
            response = client.get(path, headers={"X-Request-Id": "abc-1"})
            assert response.headers["x-request-id"] == "abc-1"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["cache-control"] == "no-store"
            assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
            assert "server" not in response.headers
        forged = client.get("/healthz", headers={"X-Request-Id": "a b\t" + "x" * 200})
        assert len(forged.headers["x-request-id"]) == 32


def test_a_stream_may_be_listened_to_for_longer_than_the_model_may_take(tmp_path: Path) -> None:
    services = make_services(tmp_path)
    ref = BankRef(Scope(tenant="local", user_id="mara"), "notes")

    async def listen() -> list[Any]:
        loop, later = asyncio.get_running_loop(), 0.0
        clock = loop.time
        loop.time = lambda: clock() + later  # type: ignore[method-assign]
        told = []
        async for part in services.agent().answer_in_parts(ref.scope, [ref], "Where does Mara live?"):
            later += 2 * services.settings.timeout_s
            await asyncio.sleep(0.01)
            told.append(part)
        return told

    try:
        with local_client(services) as client:
            said = {"text": "Mara lives in Oslo.", "infer": False}
            assert client.post(f"{NOTES}/memories", params=MARA, json=said).status_code == 200
            *parts, whole = asyncio.run(listen())
        assert "".join(parts) == whole.text == "Oslo" and len(parts) > 1
    finally:
        services.close()


def test_a_model_that_takes_too_long_is_given_up_and_what_was_written_stays(tmp_path: Path) -> None:
    release, calls = threading.Event(), []

    def script(prompt: str, request: Any) -> str:
        calls.append(prompt)
        if len(calls) == 2:
            release.wait(20)
        return sensible(prompt, request)

    with serving(tmp_path, script, timeout_s=0.3) as client:
        messages = [{"content": "Mara lives in Oslo."}, {"content": "Ben plays the cello."}]
        headers = {"Idempotency-Key": "k"}
        late = client.post(f"{NOTES}/memories", params=MARA, json={"messages": messages}, headers=headers)
        assert error_of(late, 504)["code"] == "timeout"
        assert client.get(NOTES, params=MARA).json()["live"] == 1
        release.set()
        again = client.post(f"{NOTES}/memories", params=MARA, json={"messages": messages}, headers=headers).json()
        assert [d["replayed"] for d in again["decisions"]] == [True, False]
        assert client.get(NOTES, params=MARA).json()["live"] == 2


def _client(services: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(make_app(services), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def test_more_requests_than_there_is_room_for_are_told_when_to_come_back(tmp_path: Path) -> None:
    release = threading.Event()

    def script(*_: Any) -> str:
        release.wait(20)
        return "ADD"

    async def ask() -> None:
        services = make_services(tmp_path, script, max_in_flight=2)
        async with _client(services) as client:
            body = {"text": "Mara lives in Oslo."}
            under_way = [
                asyncio.create_task(client.post(f"/v1/banks/b{n}/memories", params=MARA, json=body)) for n in range(2)
            ]
            await asyncio.sleep(0.1)
            refused = await client.get("/v1/banks")
            assert error_of(refused, 429)["code"] == "overloaded" and refused.headers["retry-after"] == "1"
            assert (await client.get("/healthz")).status_code == 200, "it lives, busy or not"
            release.set()
            assert [r.status_code for r in await asyncio.gather(*under_way)] == [200, 200]
            assert (await client.get("/v1/banks")).status_code == 200
        services.close()

    asyncio.run(ask())


def test_a_client_that_goes_away_stops_the_model_and_no_commit(tmp_path: Path) -> None:
    asking, gone, tokens = threading.Event(), threading.Event(), []

    def script(*_: Any) -> str:
        asking.set()
        gone.wait(20)
        return "Use: none\nAnswer: " + "long " * 5

    async def ask() -> None:
        services = make_services(tmp_path, script)
        async with _client(services) as client:
            seed = {"text": "Mara lives in Oslo.", "infer": False}
            await client.post(f"{NOTES}/memories", params=MARA, json=seed)
            body = {"question": "Where?", **MARA}
            asked = asyncio.create_task(client.post("/v1/answer", json=body))
            assert await asyncio.to_thread(asking.wait, 20)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            gone.set()
            await asyncio.to_thread(services.model.close, 20)  # type: ignore[union-attr]
            tokens.append(services.model.snapshot())  # type: ignore[union-attr]
        services.close()

    asyncio.run(ask())
    assert tokens[0].cancelled == 1 and tokens[0].completion_tokens == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_hangs_up_on_a_real_server_stops_the_model(tmp_path: Path, streamed: bool) -> None:
    asked, gone = threading.Event(), threading.Event()

    def script(*_: Any) -> str:
        asked.set()
        gone.wait(20)
        return "Use: none\nAnswer: " + "long " * 5

    services = make_services(tmp_path, script)
    with listening(services) as url, httpx.Client(base_url=url) as client:
        seed = {"text": "Mara lives in Oslo.", "infer": False}
        assert client.post(f"{NOTES}/memories", params=MARA, json=seed, timeout=20).status_code == 200
        if streamed:
            question = [{"role": "user", "content": "Where?"}]
            chat = {"model": "memr1", "messages": question, "stream": True, "user": "mara"}
            with client.stream("POST", "/v1/chat/completions", json=chat, timeout=20) as response:
                lines = response.iter_lines()  # letting go of it would hang up
                assert "assistant" in next(lines)
                assert asked.wait(20)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/answer", json={"question": "Where?", **MARA}, timeout=httpx.Timeout(20, read=0.5))
            assert asked.wait(20)
        end = time.monotonic() + 20
        while 'status="499"' not in client.get("/metrics", timeout=20).text:
            assert time.monotonic() < end, "the server did not notice"
        gone.set()
        services.model.close(20)  # type: ignore[union-attr]
        stats = services.model.snapshot()  # type: ignore[union-attr]
        assert (stats.cancelled, stats.completion_tokens) == (1, 1)
        assert client.get(NOTES, params=MARA, timeout=20).json()["live"] == 1


def test_a_client_that_does_not_read_its_answer_is_left(tmp_path: Path) -> None:
    services = make_services(tmp_path, None, send_timeout_s=0.3)
    with listening(services) as url, httpx.Client(base_url=url, timeout=30) as client:
        for n in range(10):
            many = [{"content": f"{n}-{i} " + "x" * 4000} for i in range(100)]
            client.post(f"{NOTES}/memories", params=MARA, json={"messages": many, "infer": False})
        exported = client.get(f"{NOTES}/export", params=MARA).content
        assert len(exported) > 4e6
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        slow.sendall(f"GET {NOTES}/export?user_id=mara HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        left = 'memr1_requests_total{method="GET",route="/v1/banks/{bank}/export",status="499"} 1.0'
        end = time.monotonic() + 20
        while left not in client.get("/metrics").text:
            assert time.monotonic() < end, "it is still being sent to"
        slow.close()
        assert client.get(f"{NOTES}/export", params=MARA).content == exported, "others get theirs whole"


def test_a_cancelled_write_is_whole_and_can_be_asked_for_again(tmp_path: Path) -> None:
    async def ask() -> None:
        services = make_services(tmp_path, None)
        async with _client(services) as client:
            body = {"messages": [{"content": f"fact {n}"} for n in range(50)], "infer": False}
            headers = {"Idempotency-Key": "k"}
            for delay in (0.0, 0.002, 0.004, 0.008, 0.016):
                task = asyncio.create_task(client.post(f"{NOTES}/memories", params=MARA, json=body, headers=headers))
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            done = await client.post(f"{NOTES}/memories", params=MARA, json=body, headers=headers)
            assert done.status_code == 200 and len(done.json()["decisions"][0]["operations"]) == 50
            info = (await client.get(NOTES, params=MARA)).json()
            assert (info["live"], info["seq"]) == (50, 1)
        services.close()

    asyncio.run(ask())


def test_banks_in_memory_and_jobs_that_are_done_are_bounded(tmp_path: Path) -> None:
    with serving(tmp_path, None, max_open_banks=3, job_days=1e-9) as client:
        for n in range(12):
            body = {"text": f"fact {n}", "infer": False, "wait": n % 2 == 0}
            made = client.post(f"/v1/banks/b{n}/memories", params=MARA, json=body)
            assert made.status_code in (200, 202)
        end = time.monotonic() + 20
        while client.get("/v1/banks/b11", params=MARA).status_code != 200:
            assert time.monotonic() < end
        stop_jobs(client)
        shown = client.get("/metrics").text
        assert "memr1_banks_open 3.0" in shown and "memr1_index_lag_entries 3.0" in shown
        store = client.app.state.services.banks._service._store  # type: ignore[attr-defined]
        with store.transaction("counting") as connection:
            done = connection.exec_driver_sql("SELECT count(*) FROM memr1_serving_jobs WHERE state = 'done'").scalar()
        assert done == 0
        for n in range(12):
            found = client.get(f"/v1/banks/b{n}/memories", params=MARA).json()["memories"]
            assert [m["text"] for m in found] == [f"fact {n}"]


def test_a_job_that_was_forgotten_and_is_asked_for_again_changes_nothing_twice(tmp_path: Path) -> None:
    with serving(tmp_path, None, job_days=1e-9) as client:
        body = {"text": "Mara lives in Oslo.", "infer": False, "wait": False}
        ids = set()
        for _ in range(2):
            made = client.post(f"{NOTES}/memories", params=MARA, json=body, headers={"Idempotency-Key": "k"})
            ids.add(made.json()["id"])
            end = time.monotonic() + 20
            while client.get(f"/v1/jobs/{made.json()['id']}").status_code == 200:
                assert time.monotonic() < end, "it is forgotten as soon as it is done"
        info = client.get(NOTES, params=MARA).json()
        assert (len(ids), info["live"], info["seq"]) == (1, 1, 1)


def test_readiness_ends_when_the_service_stops(tmp_path: Path) -> None:
    services = make_services(tmp_path)
    with local_client(services) as client:
        assert client.get("/readyz").json()["serves"] == "scripted"
        services.stopping = True
        assert error_of(client.get("/readyz"), 503)["code"] == "not_ready"
        assert client.get("/healthz").status_code == 200
    services.close()


def test_a_store_that_fails_is_the_servers_fault_and_says_so(tmp_path: Path) -> None:
    services = make_services(tmp_path, None)
    with local_client(services) as client:
        seed = {"text": "Mara lives in Oslo.", "infer": False}
        client.post(f"{NOTES}/memories", params=MARA, json=seed)
        service = services.banks._service  # type: ignore[attr-defined]
        with service._store.transaction("setting a limit") as connection:
            connection.exec_driver_sql("PRAGMA query_only = 1")
        refused = client.post(f"{NOTES}/memories", params=MARA, json={**seed, "text": "Ben plays."})
        assert error_of(refused, 503)["code"] == "storage_unavailable"
        assert refused.headers["retry-after"] == "5" and "memory.db" not in refused.text
        assert client.get(NOTES, params=MARA).json()["live"] == 1
    services.close()


def test_a_slow_body_is_not_waited_for(tmp_path: Path) -> None:
    async def ask() -> dict[str, Any]:
        services = make_services(tmp_path, None, body_timeout_s=0.05)
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(5)

        async def send(message: Any) -> None:
            sent.append(message)

        await make_app(services)(dict(SCOPE), receive, send)
        services.close()
        assert sent[0]["status"] == 408
        return json.loads(sent[1]["body"])

    assert asyncio.run(ask())["error"]["code"] == "body_timeout"


def test_a_body_that_comes_in_drops_is_not_waited_for(tmp_path: Path) -> None:
    async def ask() -> int:
        services = make_services(tmp_path, None, body_timeout_s=0.3)
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0.05)  # every drop comes in time
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        await asyncio.wait_for(make_app(services)(dict(SCOPE), receive, send), 10)
        services.close()
        return sent[0]["status"]

    assert asyncio.run(ask()) == 408


def test_without_keys_only_this_machine_may_ask(tmp_path: Path) -> None:
    services = make_services(tmp_path, None)
    app = make_app(services)
    for client, host, status in (
        ("127.0.0.1", "127.0.0.1:8000", 200),
        ("127.0.0.1", "localhost", 200),
        ("::1", "[::1]:8000", 200),
        ("127.0.0.1", "evil.example", 403),
        ("127.0.0.1", "127.0.0.1.evil.example:80", 403),
        ("10.0.0.7", "127.0.0.1", 403),
        ("127.0.0.1", "", 403),
    ):

        async def ask(client: str = client, host: str = host) -> httpx.Response:
            transport = httpx.ASGITransport(app, client=(client, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as asking:
                return await asking.get("/v1/banks", headers={"Host": host})

        response = asyncio.run(ask())
        assert response.status_code == status, (client, host)
    services.close()


def test_what_ray_serve_refuses_in_plain_text_is_refused_in_json() -> None:
    async def plain(scope: Any, receive: Any, send: Any) -> None:
        status = int(scope["path"].rsplit("/", 1)[1])
        kind = b"application/json" if scope["path"].startswith("/ours") else b"text/plain"
        headers = [(b"content-type", kind), (b"content-length", b"6"), (b"x-request-id", b"r-1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}", "more_body": True})
        await send({"type": "http.response.body", "body": b"    "})

    async def ask(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(JsonErrors(plain))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)

    for status, code, shown in ((404, "not_found", 404), (408, "timeout", 504), (500, "unavailable", 503)):
        refused = asyncio.run(ask(f"/v1/{status}"))
        error = error_of(refused, shown)
        assert (error["code"], error["request_id"]) == (code, "r-1")
    assert asyncio.run(ask("/memories/503")).json().keys() == {"detail", "code", "request_id"}
    for path in ("/v1/200", "/ours/500"):
        assert asyncio.run(ask(path)).text == "{}    "


@pytest.mark.parametrize("end", ["returns", "raises", "raises in the middle"])
def test_a_request_whose_replica_of_ray_serve_is_gone_gets_an_answer_in_json(end: str) -> None:
    async def gone(scope: Any, receive: Any, send: Any) -> None:
        if end == "raises in the middle":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
        if end != "returns":
            raise ConnectionError("the replica is gone")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(JsonErrors(gone))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/v1/banks", headers={"X-Request-Id": "r-2"})

    if end == "raises in the middle":
        with pytest.raises(ConnectionError):
            asyncio.run(ask())
        return
    refused = asyncio.run(ask())
    error = error_of(refused, 503)
    assert (error["code"], error["request_id"], refused.headers["Retry-After"]) == ("unavailable", "r-2", "1")
