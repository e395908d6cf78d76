"""Plain uvicorn as the service runs it: slow and odd clients are left in time, stopping is told before it is done."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from memr1.memory.scopes import Scope
from memr1.serving import adding, jobs_worker
from memr1.serving.server import MAX_HEAD_BYTES
from tests.unit.serving_cases import address, listening, make_services, running, sensible

MARA = {"user_id": "mara"}
NOTES = "/v1/banks/notes/memories"
PATIENCE_S = 0.4


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    services = make_services(tmp_path_factory.mktemp("server"), None, body_timeout_s=PATIENCE_S)
    with listening(services) as url:
        yield url


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        yield client


@contextmanager
def narrow(server: Any) -> Iterator[socket.socket]:
    """A client for whom, and from whom, the system holds a few KB only: the rest of an answer waits in the server."""
    with socket.socket(fileno=os.dup(server.servers[0].sockets[0].fileno())) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as client:
        client.settimeout(20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(address(server).rsplit(":", 1)[1])))
        yield client


def heard(client: socket.socket) -> bytes:
    """Everything until the server hangs up."""
    said = b""
    try:
        while piece := client.recv(65536):
            said += piece
    except ConnectionResetError:  # it hung up while this side was still talking
        pass
    return said


def refusal(said: bytes) -> tuple[int, str]:
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    error = json.loads(body)["error"]
    assert error["request_id"].encode() in head
    return int(head.split()[1]), error["code"]


def answer(client: socket.socket) -> bytes:
    """One answer in JSON, after which the server need not hang up."""
    said = b""
    while not said.endswith(b"}"):
        piece = client.recv(65536)
        assert piece, f"it hung up after {said!r}"
        said += piece
    return said


def get(client: socket.socket, path: str) -> int:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return int(answer(client).split()[1])


def until_gone(url: str) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            httpx.get(f"{url}/healthz")
        except httpx.TransportError:  # refused, or taken by the system and never read
            return
        assert time.monotonic() < end, "it still takes connections"


@contextmanager
def trickling(client: socket.socket, piece: bytes) -> Iterator[None]:
    """The client goes on sending the piece, now and then, until the other side hangs up."""
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.02):
            try:
                client.sendall(piece)
            except OSError:
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


def test_who_says_nothing_is_left(url: str) -> None:
    with connected(url) as client:
        assert heard(client) == b""


@pytest.mark.parametrize("before", [0, 2])
def test_a_head_that_comes_too_slowly_is_refused_on_a_new_connection_and_on_an_old_one(url: str, before: int) -> None:
    with connected(url) as client:
        assert [get(client, "/healthz") for _ in range(before)] == [200] * before
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        begun = time.monotonic()
        with trickling(client, b"a: b\r\n"):
            said = heard(client)
        assert refusal(said) == (408, "head_timeout") and time.monotonic() - begun >= 0.9 * PATIENCE_S


def test_a_connection_that_rests_between_requests_is_kept(url: str) -> None:
    with connected(url) as client:
        for _ in range(3):
            assert get(client, "/healthz") == 200
            time.sleep(1.5 * PATIENCE_S)


def test_a_client_that_goes_on_with_a_refused_body_is_left(url: str) -> None:
    with connected(url) as client:
        client.sendall(b"POST /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999\r\n\r\n")
        with trickling(client, b"x"):
            assert heard(client).startswith(b"HTTP/1.1 405")


def test_a_head_without_end_is_refused_and_so_is_what_is_no_http(url: str) -> None:
    with connected(url) as client:
        sent = 0
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        try:
            while sent < 8 * MAX_HEAD_BYTES:
                client.sendall(b"a: " + b"b" * 8000 + b"\r\n")
                sent += 8005
                time.sleep(0.002)
        except OSError:
            pass
        assert refusal(heard(client)) == (431, "head_too_large") and sent < 8 * MAX_HEAD_BYTES
    with connected(url) as client:
        client.sendall(b"nonsense\r\n\r\n")
        assert refusal(heard(client)) == (400, "invalid_request")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz?" + b"q" * 200 * 1024 + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\na: " + b"b" * 200 * 1024 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 33_000 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\na: " + b"b" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n",
    ],
    ids=["url", "header", "headers", "just_too_large"],
)
def test_a_head_that_is_too_large_is_refused_however_few_pieces_it_comes_in(url: str, head: bytes) -> None:
    with connected(url) as client:
        client.sendall(head)
        assert refusal(heard(client)) == (431, "head_too_large")


def test_large_but_honest_heads_pass(url: str) -> None:
    assert httpx.get(f"{url}/healthz", headers={"X-Large": "y" * 60_000}).status_code == 200
    with connected(url) as client:  # the bound is for each request, not for a connection
        assert [get(client, "/healthz?" + "y" * 30_000) for _ in range(4)] == [200] * 4


CHUNKED = b"POST /v1/banks HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"


@pytest.mark.parametrize("piece", [b"t: " + b"u" * 8000 + b"\r\n", b"t" * 8000], ids=["many", "one"])
def test_trailers_without_end_are_refused(tmp_path: Path, piece: bytes) -> None:
    with listening(make_services(tmp_path, None)) as url, connected(url) as client:  # in time for a body all along
        sent = 0
        client.sendall(CHUNKED + b"0\r\n")
        try:
            while sent < 8 * MAX_HEAD_BYTES:
                client.sendall(piece)
                sent += len(piece)
                time.sleep(0.002)
        except OSError:
            pass
        assert refusal(heard(client)) == (431, "head_too_large") and sent < 8 * MAX_HEAD_BYTES


def test_trailers_are_no_headers(url: str) -> None:
    with connected(url) as client:
        client.sendall(CHUNKED.replace(b"/v1/banks", b"/healthz") + b"0\r\nX-Request-Id: trailer\r\n\r\n")
        said = answer(client)
        assert said.startswith(b"HTTP/1.1 405") and b"x-request-id: " in said.lower() and b"trailer" not in said


def test_a_broken_body_is_refused_at_once(tmp_path: Path) -> None:
    with listening(make_services(tmp_path, None)) as url, connected(url) as client:
        client.sendall(CHUNKED)
        client.sendall(b"no size\r\n")
        assert refusal(heard(client)) == (400, "invalid_request")


@pytest.mark.parametrize("rest", [b"body", b"bo", b"body\r\n"], ids=["whole", "half", "whole_and_more"])
def test_who_was_refused_early_and_sends_the_rest_is_left_all_the_same(url: str, rest: bytes) -> None:
    with connected(url) as client:
        client.sendall(b"POST /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\n\r\n")
        assert answer(client).startswith(b"HTTP/1.1 405")
        client.sendall(rest)
        assert heard(client) == b""


def test_an_empty_line_after_an_answer_holds_nothing(url: str) -> None:
    with connected(url) as client:
        assert get(client, "/healthz") == 200
        client.sendall(b"\r\n")
        assert heard(client) == b""
    with connected(url) as client:  # nor does it spoil the next request
        assert get(client, "/healthz") == 200
        client.sendall(b"\r\n")
        assert get(client, "/healthz") == 200
        time.sleep(1.5 * PATIENCE_S)
        assert get(client, "/healthz") == 200


@pytest.mark.parametrize(
    ("second", "then"),
    [(b"GET /healthz HTTP/1.1\r\n", (408, "head_timeout")), (b"nonsense\r\n\r\n", None)],
    ids=["slow", "no_http"],
)
def test_what_is_wrong_with_a_request_never_answers_the_one_before(
    tmp_path: Path, second: bytes, then: tuple[int, str] | None
) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(prompt: str, request: Any) -> str:
        begun.set()
        assert go.wait(20)
        return sensible(prompt, request)

    body = json.dumps({"question": "Where?", **MARA}).encode()
    services = make_services(tmp_path, slow, body_timeout_s=PATIENCE_S)
    seed = {"text": "Mara lives in Oslo.", "infer": False}
    with listening(services) as url:
        assert httpx.post(f"{url}{NOTES}", params=MARA, json=seed).status_code == 200
        with connected(url) as client:
            head = "POST /v1/answer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + second)
            assert begun.wait(20)
            client.settimeout(2.5 * PATIENCE_S)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(20)
            go.set()
            first, ok, rest = heard(client).partition(b'"Oslo"')
            assert first.startswith(b"HTTP/1.1 200") and ok
            at = rest.find(b"HTTP/1.1 ")
            assert (refusal(rest[at:]) if at >= 0 else None) == then


@pytest.mark.parametrize(
    "asked",
    [
        "GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        f"GET {NOTES}?user_id=mara HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nnonsense\r\n\r\n",
    ],
    ids=["whole", "in_pieces", "before_a_refusal"],
)
def test_who_takes_nothing_of_an_answer_is_cut_off(tmp_path: Path, asked: str) -> None:
    services = make_services(tmp_path, None, send_timeout_s=PATIENCE_S, guards=False)
    with running(services) as server:
        said = {"messages": [{"content": f"{n} " + "x" * 4000} for n in range(100)], "infer": False}
        assert httpx.post(f"{address(server)}{NOTES}", params=MARA, json=said, timeout=60).status_code == 200
        with narrow(server) as client:
            client.sendall(asked.encode())
            assert client.recv(12) == b"HTTP/1.1 200"
            end = time.monotonic() + 20
            while server.server_state.connections:
                assert time.monotonic() < end, "the server waits for it"
                time.sleep(0.02)
            assert len(heard(client)) < 50_000


def test_who_takes_an_answer_late_gets_it_whole(tmp_path: Path) -> None:
    with running(make_services(tmp_path, None)) as server, narrow(server) as client:
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        time.sleep(PATIENCE_S)
        head, _, body = heard(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and len(body) > 100_000 and json.loads(body)


def test_a_service_that_stops_finishes_what_is_under_way_and_says_so_to_others(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(prompt: str, request: Any) -> str:
        begun.set()
        assert go.wait(20)
        return sensible(prompt, request)

    answers: list[httpx.Response] = []
    services = make_services(tmp_path, slow)
    with running(services) as server, httpx.Client(base_url=address(server), timeout=20) as client:
        url = address(server)
        seed = {"text": "Mara lives in Oslo.", "infer": False}
        assert client.post(NOTES, params=MARA, json=seed).status_code == 200
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{url}/v1/answer", json={"question": "Where?", **MARA}, timeout=20)
            )
        )
        asking.start()
        assert begun.wait(20)
        server.should_exit = True
        while (ready := client.get("/readyz")).status_code == 200:
            time.sleep(0.01)
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
        late = httpx.post(f"{url}{NOTES}", params=MARA, json=seed)  # on a connection of its own
        assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down") and late.headers[
            "retry-after"
        ]
        assert client.get("/healthz").status_code == 200
        go.set()
        asking.join(20)
        assert [(a.status_code, a.json()["answer"]) for a in answers] == [(200, "Oslo")]
        until_gone(url)


def test_a_service_that_stops_takes_no_new_jobs_and_the_next_one_does_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, at_job, answer_now, job_now = (threading.Event() for _ in range(4))

    def slow(prompt: str, request: Any) -> str:
        asked.set()
        assert answer_now.wait(20)
        return sensible(prompt, request)

    async def slow_add(*arguments: Any, **how: Any) -> Any:
        at_job.set()
        assert await asyncio.to_thread(job_now.wait, 20)
        return await adding.add(*arguments, **how)

    monkeypatch.setattr(jobs_worker, "add", slow_add)
    services = make_services(tmp_path, slow)
    with running(services) as server, httpx.Client(base_url=address(server), timeout=20) as client:
        url = address(server)
        said = {"text": "Mara lives in Oslo.", "infer": False}
        assert client.post(NOTES, params=MARA, json=said).status_code == 200
        bodies = [{"text": f"fact {n}", "infer": False, "wait": False} for n in range(3)]
        jobs = [client.post(NOTES, params=MARA, json=body).json()["id"] for body in bodies]
        question = {"question": "Where?", **MARA}
        asking = threading.Thread(
            target=httpx.post, args=(f"{url}/v1/answer",), kwargs={"json": question, "timeout": 20}
        )
        asking.start()
        assert at_job.wait(20) and asked.wait(20)

        def states() -> list[str]:
            scope, service = Scope(tenant="local"), services.banks._service  # type: ignore[attr-defined]
            return [service.job(scope, job).state for job in jobs]

        server.should_exit = True
        while client.get("/readyz").status_code == 200:
            time.sleep(0.01)
        job_now.set()
        end = time.monotonic() + 20
        while states()[0] != "done":
            assert time.monotonic() < end, "what it has is finished"
            time.sleep(0.01)
        answer_now.set()
        asking.join(20)
        until_gone(url)
        assert states() == ["done", "queued", "queued"]
    with listening(make_services(tmp_path)) as url, httpx.Client(base_url=url, timeout=20) as client:
        while client.get(f"/v1/jobs/{jobs[2]}").json()["state"] != "done":
            assert time.monotonic() < end + 20
            time.sleep(0.01)
        found = client.get(NOTES, params=MARA).json()["memories"]
        assert [m["text"] for m in found] == ["Mara lives in Oslo.", "fact 0", "fact 1", "fact 2"]
