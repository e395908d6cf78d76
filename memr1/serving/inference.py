"""One model for all clients and roles: whatever waits is generated together, in short rounds.

Gateways see two protocols, since the model of a service is in another process than they are. There, a thread of its own
runs the engine, which is not thread-safe. While a round runs, requests gather for the next one; a round lasts as long
as its longest completion, some dozens of tokens. Requests that nobody waits for any more are dropped before their
round, or at their next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from memr1.rollout.engine import Completion, GenerationRequest
from memr1.serving.errors import ApiError, overloaded, shutting_down

if TYPE_CHECKING:
    from memr1.rollout.engine import Engine, Watch

logger = logging.getLogger(__name__)

LINGER_S = 0.004
"""A round that could start waits this long for one more request, and again after each that comes: tokens cost far less
in company."""
LONGEST_LINGER_S = 0.04
LINGER_SHARE = 0.1
"""While fewer wait than the last round had, whose clients are about to come again, they are waited for from its end for
this share of what it took. Otherwise some clients would be a round behind for ever, in rounds half full."""
MODEL_PATIENCE_S = 30.0
"""How long a generation waits for a model that died to be back."""
MODEL_READY_S = 2.0
"""Time in which a model in another process has to say that it lives."""


class WatchedEngine(Protocol):
    """An engine that tells of every token."""

    def generate(self, requests: Sequence[GenerationRequest], watch: Watch | None = None) -> list[Completion]:
        """See `memr1.rollout.transformers_engine.TransformersEngine.generate`."""


def watched(engine: Engine) -> WatchedEngine:
    """The engine itself, or one in front of it that tells its tokens when they are all there."""
    from memr1.rollout.transformers_engine import TransformersEngine

    return engine if isinstance(engine, TransformersEngine) else _ToldLate(engine)


class _ToldLate:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def generate(self, requests: Sequence[GenerationRequest], watch: Watch | None = None) -> list[Completion]:
        completions = self._engine.generate(requests)
        if watch is not None:
            for i, completion in enumerate(completions):
                all(watch(i, token) for token in completion.ids)
        return completions


class Generator(Protocol):
    """What the service needs of a model, wherever it runs."""

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """One completion for each request, in order. `ApiError` 429 when too many wait already."""

    def stream(self, request: GenerationRequest) -> AsyncIterator[int | Completion]:
        """Tokens of one completion as they are sampled, then the completion."""


class Model(Generator, Protocol):
    """A model from the side of whoever looks after it, wherever it runs."""

    async def ready(self) -> bool:
        """Whether it generates."""

    async def counts(self) -> Mapping[str, RoundStats]:
        """Of each replica, by its name; a model that has none is "". Those that do not answer are left out."""

    def close(self, timeout_s: float) -> None:
        """Finish what was begun and stop, if it is this program's."""


async def wait_for_model(error: Exception, end: float) -> None:
    """A moment; `ApiError` 503 after the end."""
    if time.monotonic() > end:
        logger.warning("the model is away: %s", type(error).__name__)
        said = "the model is restarted; ask again"
        raise ApiError(503, "model_unavailable", said, headers={"Retry-After": "2"}) from None
    await asyncio.sleep(0.2)


@dataclass
class RoundStats:
    """Counts since the start, for metrics and benchmarks."""

    waiting: int = 0
    """Generations that no round has taken yet, when this was told."""
    rounds: Counter[int] = field(default_factory=Counter)
    """By the number of generations in them."""
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cancelled: int = 0
    busy_s: float = 0.0


@dataclass(eq=False)
class _Waiting:
    request: GenerationRequest
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Completion]
    heard: asyncio.Queue[int | Completion | Exception] | None = None
    """Of a stream: its tokens, and in the end what `done` gets."""
    told: int = 0
    """Tokens of a stream that are out; a round that is played again does not tell them twice."""
    given_up: bool = False

    def tell(self, what: int | Completion | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._hear, what)

    def _hear(self, what: int | Completion | Exception) -> None:
        if self.heard is not None:
            self.heard.put_nowait(what)
        elif self.done.done() or isinstance(what, int):
            return
        elif isinstance(what, Exception):
            self.done.set_exception(what)
        else:
            self.done.set_result(what)


class Inference:
    """See `Generator` and `Model`; in this process. Close it: its thread outlives forgotten ones."""

    def __init__(self, engine: WatchedEngine, *, max_queue: int = 256, max_batch: int = 64) -> None:
        self._engine, self._max_queue, self._max_batch = engine, max_queue, max_batch
        self._queue: deque[_Waiting] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self.stats = RoundStats()
        self._last_count, self._expected_until = 0, 0.0
        self._thread = threading.Thread(target=self._work, name="memr1-inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether rounds are played."""
        return self._thread.is_alive() and not self._closing

    async def ready(self) -> bool:
        """See `Model.ready`."""
        return self.alive

    async def counts(self) -> Mapping[str, RoundStats]:
        """See `Model.counts`."""
        return {"": self.snapshot()}

    def snapshot(self) -> RoundStats:
        """The counts of this moment."""
        return replace(self.stats, waiting=len(self._queue), rounds=self.stats.rounds.copy())

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Generator.generate`."""
        items = self._submit(requests)
        try:
            return list(await asyncio.gather(*(item.done for item in items)))
        finally:
            for item in items:
                item.given_up = True  # after a result this changes nothing

    async def stream(self, request: GenerationRequest) -> AsyncIterator[int | Completion]:
        """See `Generator.stream`."""
        (item,) = self._submit([request], streamed=True)
        assert item.heard is not None
        try:
            while True:
                heard = await item.heard.get()
                if isinstance(heard, Exception):
                    raise heard
                yield heard
                if isinstance(heard, Completion):
                    return
        finally:
            item.given_up = True

    def close(self, timeout_s: float = 30.0) -> None:
        """Finish what was begun and stop. What still waits after `timeout_s` is refused."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(timeout_s)
        for item in list(self._queue):
            item.tell(shutting_down())

    def _submit(self, requests: Sequence[GenerationRequest], streamed: bool = False) -> list[_Waiting]:
        loop = asyncio.get_running_loop()
        for request in requests:
            if not request.prompt_ids:
                raise ApiError(400, "invalid_request", "an empty prompt cannot be continued")
        with self._wake:
            if self._closing:
                raise shutting_down()
            if len(self._queue) + len(requests) > self._max_queue:
                raise overloaded(f"{len(self._queue)} generations wait for the model already", self._wait_s())
            items = [_Waiting(r, loop, loop.create_future(), asyncio.Queue() if streamed else None) for r in requests]
            self._queue.extend(items)
            self._wake.notify_all()
        return items

    def _wait_s(self) -> float:
        """Seconds until those that wait now have been generated, by the rounds so far."""
        per_request = self.stats.busy_s / max(1, self.stats.requests)
        return min(60.0, 1 + per_request * len(self._queue))

    # -- the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while items := self._next_round():
            start = time.monotonic()
            self.stats.rounds[len(items)] += 1
            self.stats.requests += len(items)  # before anybody has an answer: who was answered has been counted
            self._play(items)
            ended = time.monotonic()
            self._last_count, self._expected_until = len(items), ended + LINGER_SHARE * (ended - start)
            self.stats.busy_s += ended - start

    def _next_round(self) -> list[_Waiting]:
        """What is generated next; empty when the service stops and nothing is left."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return []
                self._linger()
                taken = [self._queue.popleft() for _ in range(min(self._max_batch, len(self._queue)))]
            wanted = [item for item in taken if not item.given_up]
            self.stats.cancelled += len(taken) - len(wanted)
            if wanted:
                return wanted

    def _linger(self) -> None:
        began = time.monotonic()
        while len(self._queue) < self._max_batch and not self._closing:
            before = len(self._queue)
            now = time.monotonic()
            expected = self._expected_until - now if before < self._last_count else 0.0
            usual = min(LINGER_S, began + LONGEST_LINGER_S - now)
            if max(expected, usual) <= 0:
                return
            self._wake.wait_for(partial(self._more_than, before), max(expected, usual))
            if len(self._queue) == before:
                return

    def _more_than(self, count: int) -> bool:
        return len(self._queue) > count or self._closing

    def _play(self, items: list[_Waiting]) -> None:
        sampled = [0] * len(items)

        def watch(i: int, token: int) -> bool:
            item = items[i]
            sampled[i] += 1
            if item.heard is not None and sampled[i] > item.told:
                item.told += 1
                item.tell(token)
            return not item.given_up

        try:
            completions = self._engine.generate([item.request for item in items], watch)
        except Exception as error:
            if len(items) > 1:  # one of them may be at fault, and the others should not suffer for it
                for item in items:
                    if not item.given_up:
                        self._play([item])
                return
            logger.exception("a generation failed")
            failure = ApiError(500, "generation_failed", f"the model failed on this request ({type(error).__name__})")
            items[0].tell(failure)
            return
        for item, completion in zip(items, completions, strict=True):
            self.stats.cancelled += item.given_up
            self.stats.prompt_tokens += len(item.request.prompt_ids)
            self.stats.completion_tokens += len(completion.ids)
            item.tell(completion)
