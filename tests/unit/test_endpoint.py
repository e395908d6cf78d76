"""Roles that speak through a server: the client against a real one on this machine, and episodes that meet it."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from memr1.config_file import load_config
from memr1.errors import MemR1Error
from memr1.rollout import endpoint as endpoint_module
from memr1.rollout.endpoint import Endpoint, EndpointConfig, EndpointEngine, RoutedEngine
from memr1.rollout.engine import GenerationRequest, SamplingParams
from memr1.rollout.pool import LocalPool
from memr1.rollout.runner import Play, Runner
from memr1.training.tasks import build_tasks
from tests.unit.scripted import ScriptedEngine, fact_worlds, make_config

Reply = tuple[int, dict[str, str], Any]
"""Status, headers, body (JSON unless it is text)."""


class Server:
    """A server of `/v1/chat/completions` whose replies are a function of the request's body and its number."""

    def __init__(self) -> None:
        self.script: Callable[[dict[str, Any], int], Reply] = lambda body, number: said("fine")
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = self.most_running = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                    server.running += 1
                    server.most_running = max(server.running, server.most_running)
                    number = len(server.bodies)
                status, headers, reply = server.script(body, number)
                data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
                with server._lock:
                    server.running -= 1
                self.send_response(status if self.path == "/v1/chat/completions" else 404)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def said(text: str | None, reason: str = "stop") -> Reply:
    return 200, {}, {"choices": [{"message": {"content": text}, "finish_reason": reason}]}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "LONGEST_PAUSE_S", 0.01)


def client(server: Server, **options: Any) -> Endpoint:
    return Endpoint(EndpointConfig(server.url, "big", **options))


def engine(server: Server, **options: Any) -> EndpointEngine:
    return EndpointEngine(client(server, **options), "answerer", lambda text: list(text.encode()), 0)


def ask(text: str, *, policy: str = "answerer", n: int = 9, t: float = 0.0, seed: int = 0) -> GenerationRequest:
    return GenerationRequest((1,), policy, SamplingParams(n, t, seed, ("\n\n",)), (("system", "s"), ("user", text)))


def test_a_request_says_what_the_engine_was_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    (found,) = engine(server, api_key_variable="SOME_KEY").generate([ask("hello", n=7, t=0.5, seed=(3 << 40) + 5)])
    assert server.bodies == [
        {
            "model": "big", "max_tokens": 7, "temperature": 0.5, "seed": 5, "stop": ["\n\n"],
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}],
        }
    ]  # fmt: skip
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert (found.ids, found.finish_reason, found.weight_version) == ((*b"fine", 0), "stop", 0)
    assert all(math.isnan(p) for p in found.logprobs) and len(found.logprobs) == 5


def test_replies_come_in_the_order_of_requests_and_equal_greedy_ones_are_asked_once(server: Server) -> None:
    server.script = lambda body, _: said(body["messages"][1]["content"].upper(), "length")
    found = engine(server).generate([ask("a"), ask("b"), ask("a"), ask("c", t=1.0), ask("c", t=1.0)])
    assert [bytes(c.ids) for c in found] == [b"A", b"B", b"A", b"C", b"C"]
    assert all(c.finish_reason == "length" for c in found)
    assert sorted(b["messages"][1]["content"] for b in server.bodies) == ["a", "b", "c", "c"]


def test_no_more_requests_run_at_once_than_allowed(server: Server) -> None:
    gate = threading.Barrier(3)

    def script(body: dict[str, Any], number: int) -> Reply:
        gate.wait(10)  # goes on when three are here, so fewer at a time would break it
        return said("x")

    server.script = script
    engine(server, concurrency=3).generate([ask(str(i)) for i in range(9)])
    assert server.most_running == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(server: Server, status: int) -> None:
    server.script = lambda body, number: (status, {"Retry-After": "0.01"}, "busy") if number < 3 else said("at last")
    assert client(server).chat([], SamplingParams(3)) == ("at last", "stop")
    assert len(server.bodies) == 3


def test_a_reply_that_cannot_be_decoded_is_asked_for_again(server: Server) -> None:
    garbled = (200, {"Content-Encoding": "gzip"}, "not gzip")
    server.script = lambda body, number: garbled if number < 2 else said("at last")
    assert client(server).chat([], SamplingParams(3)) == ("at last", "stop")
    server.script = lambda body, number: garbled
    with pytest.raises(MemR1Error, match="no answer in 2 attempts; the last said: DecodingError"):
        client(server, attempts=2).chat([], SamplingParams(3))


def test_a_server_that_stays_busy_is_given_up_with_what_it_said(server: Server) -> None:
    server.script = lambda body, number: (503, {}, f"no room {number}")
    with pytest.raises(MemR1Error, match=rf"{server.url}: no answer in 2 attempts; the last said: 503 no room 2"):
        client(server, attempts=2).chat([], SamplingParams(3))


def test_a_server_that_is_not_there_is_told_by_its_url(server: Server) -> None:
    server.close()
    with pytest.raises(
        MemR1Error, match=rf"{server.url}: no answer in 2 attempts; .*Connect.*Check that the server runs"
    ):
        client(server, attempts=2).chat([], SamplingParams(3))


def test_a_slow_server_is_given_up_after_its_time(server: Server) -> None:
    gate = threading.Event()
    server.script = lambda body, number: said("late") if gate.wait(5) else said("later")
    with pytest.raises(MemR1Error, match="no answer in 1 attempts; the last said: ReadTimeout"):
        client(server, attempts=1, timeout_s=0.05).chat([], SamplingParams(3))
    gate.set()


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_tried_again(server: Server, status: int) -> None:
    server.script = lambda body, number: (status, {}, {"error": "wrong key"})
    with pytest.raises(MemR1Error, match=rf"refused with {status} .*wrong key.* the key in OPENAI_API_KEY"):
        client(server).chat([], SamplingParams(3))
    assert len(server.bodies) == 1


@pytest.mark.parametrize("reply", ["<html>", {}, {"choices": []}, {"choices": [{"message": None}]}])
def test_what_is_no_chat_completion_is_refused(server: Server, reply: Any) -> None:
    server.script = lambda body, number: (200, {}, reply)
    with pytest.raises(MemR1Error, match="the answer is no chat completion .*OpenAI-compatible"):
        client(server).chat([], SamplingParams(3))


def test_an_answer_without_text_is_an_empty_one(server: Server) -> None:
    server.script = lambda body, number: said(None)
    assert engine(server).generate([ask("x")])[0].ids == (0,)


def test_requests_go_where_their_policy_lives(server: Server) -> None:
    server.script = lambda body, number: said("from the server")
    local = ScriptedEngine(lambda prompt, request: f"from {request.policy}")
    local.pop_timings = lambda: {"decode_s": 1.0}  # type: ignore[attr-defined]
    routed = RoutedEngine(local, {"answerer": engine(server)})  # type: ignore[arg-type]
    found = routed.generate([ask("a", policy=p, n=40) for p in ("manager", "answerer", "base", "answerer")])
    assert [bytes(c.ids[:-1]) for c in found] == [b"from manager", b"from the server", b"from base", b"from the server"]
    assert routed.weight_versions() == {"base": 0, "manager": 3, "answerer": 0}
    assert routed.pop_timings()["endpoint_requests"] == 1  # equal and greedy
    with pytest.raises(MemR1Error, match=r"answerer speaks through http.* cannot take new weights"):
        routed.load_weights(type("Update", (), {"policy": "answerer"})())  # type: ignore[arg-type]


def test_a_manager_is_paid_for_what_a_server_answers(server: Server) -> None:
    """The frozen answerer of a real episode: messages go out, the reply is scored, and its step can never train."""
    golds: dict[str, str] = {}

    def script(body: dict[str, Any], number: int) -> Reply:
        question = body["messages"][-1]["content"].rsplit("Question: ", 1)[1].split("\n")[0]
        return said(f"Use: none\nAnswer: {golds[question]}")

    server.script = script
    config = make_config(
        f"agents.answerer_endpoint={{url: '{server.url}', model: big}}", "rollout.manager_max_new_tokens=4"
    )
    runner = Runner(config)
    tasks = build_tasks(
        [w.dialogue for w in fact_worlds(1)], runner.world, runner.engine, role="manager", bank="oracle"
    )
    asked = [t.task for t in tasks if t.task.questions][:2]
    golds.update({q.text: q.gold for task in asked for q in task.questions})
    assert len(golds) == sum(len(task.questions) for task in asked)  # no question has two answers here
    played = runner.play([Play(task, seed) for task in asked for seed in range(2)], "em_set", 1.0)
    assert [t.reward for t in played] == [1.0] * 4
    for trajectory in played:
        manager, *answers = trajectory.steps
        assert manager.trainable and all(manager.sequence.loss_mask)
        assert answers and not any(s.trainable or any(s.sequence.loss_mask) for s in answers)
    assert {b["model"] for b in server.bodies} == {"big"}


def test_a_closed_pool_leaves_no_thread_and_no_connection_to_a_server(server: Server) -> None:
    there = f"{{url: '{server.url}', model: big}}"
    pool = LocalPool(make_config(f"agents.answerer_endpoint={there}", f"judge={there}"))
    routed, judge = pool.runner.engine, pool.runner._judge
    assert isinstance(routed, RoutedEngine) and judge is not None
    before = set(threading.enumerate())
    routed.generate([ask(text) for text in "ab"])
    asking = [t for t in set(threading.enumerate()) - before if t.name.startswith("endpoint-answerer")]
    assert asking
    pool.close()
    for thread in asking:
        thread.join(10)
    assert not any(thread.is_alive() for thread in asking)
    assert [e._http.is_closed for e in (routed.routes["answerer"].endpoint, judge._endpoint)] == [True, True]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["agents.answerer_endpoint={url: 'localhost:8000', model: m}"], "needs a url such as http://localhost:8000/v1"),
        (["agents.answerer_endpoint={url: 'http://x/v1', model: ''}"], "and a model"),
        (["agents.answerer_endpoint={url: 'http://x/v1', model: m, attempts: 0}"], "attempts and concurrency of at"),
        (["agents.answerer_endpoint={url: 'http://x/v1', model: m, key: k}"], "key is not a field"),
        (["agents.extractor_endpoint={url: 'http://x/v1', model: m}"], r"needs agents\.extractor=llm"),
        (
            ["agents.answerer_endpoint={url: 'http://x/v1', model: m}", "stages=[{role: answerer}]"],
            r"stages\.0\.role: an answerer that speaks through agents\.answerer_endpoint cannot be trained",
        ),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(MemR1Error, match=message):
        load_config(None, overrides)
