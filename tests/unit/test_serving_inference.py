"""Rounds of the model: everybody gets what they would get alone, whoever gives up costs nothing, and too many wait in
vain."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memr1.rollout.engine import Completion, GenerationRequest, SamplingParams
from memr1.serving.errors import ApiError
from memr1.serving.inference import Inference
from tests.unit.scripted import make_config


def asked(n: int, policy: str = "answerer") -> GenerationRequest:
    return GenerationRequest((5, 6, n), policy, SamplingParams(8))


class Slow:
    """An engine that plays a round when it is let, and says what the rounds were."""

    def __init__(self) -> None:
        self.rounds: list[list[GenerationRequest]] = []
        self.go = threading.Semaphore(0)
        self.broken: set[int] = set()

    def generate(self, requests: Sequence[GenerationRequest], watch: Any = None) -> list[Completion]:
        self.rounds.append(list(requests))
        assert self.go.acquire(timeout=20)
        if any(r.prompt_ids[-1] in self.broken for r in requests):
            raise RuntimeError("out of memory")
        out = []
        for i, r in enumerate(requests):
            ids = []
            for token in range(r.prompt_ids[-1], r.prompt_ids[-1] + 3):
                ids.append(token)
                if not watch(i, token):
                    break
            out.append(Completion(tuple(ids), tuple(-1.0 for _ in ids), "stop", 1))
        return out


@pytest.fixture
def engine() -> Slow:
    return Slow()


def test_a_round_waits_for_the_clients_of_the_last_one_to_come_again(engine: Slow) -> None:
    """They come one after the other; the first alone would begin a round that all others had to sit out."""

    async def ask() -> None:
        inference = Inference(engine)
        inference._last_count, inference._expected_until = 4, time.monotonic() + 3.0
        tasks = []
        for n in range(10, 14):
            tasks.append(asyncio.create_task(inference.generate([asked(n)])))
            await asyncio.sleep(0.02)
        engine.go.release()
        await asyncio.gather(*tasks)
        await asyncio.to_thread(inference.close)

    asyncio.run(ask())
    assert [len(r) for r in engine.rounds] == [4]


def test_nobody_waits_for_clients_of_a_round_that_is_long_past(engine: Slow) -> None:
    async def ask() -> None:
        inference = Inference(engine)
        inference._last_count, inference._expected_until = 32, time.monotonic() - 1.0
        engine.go.release()
        await asyncio.wait_for(inference.generate([asked(10)]), 20)
        await asyncio.to_thread(inference.close)

    asyncio.run(ask())
    assert [len(r) for r in engine.rounds] == [1]


def test_what_waits_is_generated_together_whoever_asked(engine: Slow) -> None:
    async def ask() -> None:
        inference = Inference(engine, max_batch=3)
        first = asyncio.create_task(inference.generate([asked(10)]))
        while not engine.rounds:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(inference.generate([asked(n, "manager")])) for n in range(20, 25)]
        while inference.snapshot().waiting < 5:
            await asyncio.sleep(0.001)
        engine.go.release(3)
        results = [await t for t in (first, *others)]
        assert [c.ids for (c,) in results] == [(n, n + 1, n + 2) for n in (10, 20, 21, 22, 23, 24)]
        assert [len(r) for r in engine.rounds] == [1, 3, 2]
        assert (inference.stats.requests, inference.stats.completion_tokens) == (6, 18)
        inference.close()

    asyncio.run(ask())


def test_more_than_may_wait_are_refused_with_a_time_to_come_back(engine: Slow) -> None:
    async def ask() -> None:
        inference = Inference(engine, max_queue=2)
        waiting = [asyncio.create_task(inference.generate([asked(10)]))]
        while not engine.rounds:
            await asyncio.sleep(0.001)
        waiting += [asyncio.create_task(inference.generate([asked(n)])) for n in (20, 30)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="wait for the model") as refusal:
            await inference.generate([asked(40)])
        assert refusal.value.status == 429 and int(refusal.value.headers["Retry-After"]) >= 1
        engine.go.release(9)
        assert len(await asyncio.gather(*waiting)) == 3
        inference.close()

    asyncio.run(ask())


def test_who_gives_up_is_dropped_before_the_round_or_at_the_next_token(engine: Slow) -> None:
    async def ask() -> None:
        inference = Inference(engine)
        running = asyncio.create_task(inference.generate([asked(10)]))
        while not engine.rounds:
            await asyncio.sleep(0.001)
        queued = asyncio.create_task(inference.generate([asked(20)]))
        while not inference.snapshot().waiting:
            await asyncio.sleep(0.001)
        for task in (running, queued):
            task.cancel()
        await asyncio.gather(running, queued, return_exceptions=True)
        engine.go.release(9)
        assert [c.ids for c in await inference.generate([asked(30)])] == [(30, 31, 32)]
        assert [[r.prompt_ids[-1] for r in round_] for round_ in engine.rounds] == [[10], [30]]
        assert inference.stats.cancelled == 2 and inference.stats.completion_tokens == 1 + 3
        inference.close()

    asyncio.run(ask())


def test_a_stream_gives_every_token_and_then_the_completion(engine: Slow) -> None:
    async def ask() -> None:
        inference = Inference(engine)
        engine.go.release(9)
        heard = [part async for part in inference.stream(asked(10))]
        assert heard[:3] == [10, 11, 12] and isinstance(heard[3], Completion) and len(heard) == 4
        inference.close()

    asyncio.run(ask())


def test_one_request_that_breaks_the_model_fails_alone(engine: Slow) -> None:
    engine.broken = {20}

    async def ask() -> None:
        inference = Inference(engine)
        engine.go.release(99)
        results = await asyncio.gather(*(inference.generate([asked(n)]) for n in (10, 20, 30)), return_exceptions=True)
        assert [isinstance(r, ApiError) for r in results] == [False, True, False]
        assert results[1].status == 500 and "out of memory" not in str(results[1])  # type: ignore[union-attr]
        inference.close()

    asyncio.run(ask())


def test_a_stream_in_a_round_that_fails_tells_no_token_twice(engine: Slow) -> None:
    """The round breaks at its second member, when the first one's tokens are out; it is played again alone."""

    class Breaking(Slow):
        def generate(self, requests: Sequence[GenerationRequest], watch: Any = None) -> list[Completion]:
            if len(requests) == 1:
                return super().generate(requests, watch)
            self.rounds.append(list(requests))
            for token in (10, 11):
                watch(0, token)
            raise RuntimeError("out of memory")

    breaking = Breaking()

    async def ask() -> None:
        inference = Inference(breaking)
        breaking.go.release(9)

        async def stream() -> list[Any]:
            return [part async for part in inference.stream(asked(10))]

        heard, (other,) = await asyncio.gather(stream(), inference.generate([asked(20)]))
        assert [len(r) for r in breaking.rounds] == [2, 1, 1], "they were in one round"
        assert heard[:-1] == [10, 11, 12] and heard[-1].ids == (10, 11, 12) and other.ids == (20, 21, 22)
        inference.close()

    asyncio.run(ask())


def test_closing_finishes_what_waits_and_refuses_what_comes(engine: Slow) -> None:
    async def ask() -> None:
        inference = Inference(engine)
        waiting = asyncio.create_task(inference.generate([asked(10)]))
        while not engine.rounds:
            await asyncio.sleep(0.001)
        engine.go.release(9)
        await asyncio.to_thread(inference.close)
        assert (await waiting)[0].ids == (10, 11, 12)
        with pytest.raises(ApiError, match="stops") as refusal:
            await inference.generate([asked(20)])
        assert refusal.value.status == 503 and not inference.alive

    asyncio.run(ask())


def test_a_real_model_gives_in_company_what_it_gives_alone(tiny_random: Path) -> None:
    from memr1.rollout.runner import Runner

    runner = Runner(make_config())
    prompts = [tuple(range(40 + n, 60 + 3 * n)) for n in range(6)]
    requests = [
        GenerationRequest(p, ("answerer", "manager", "base")[n % 3], SamplingParams(12)) for n, p in enumerate(prompts)
    ]
    alone = [runner.engine.generate([r])[0] for r in requests]

    async def ask() -> None:
        inference = Inference(runner.engine)
        together = await asyncio.gather(*(inference.generate([r]) for r in requests))
        assert [c.ids for (c,) in together] == [c.ids for c in alone]
        streamed = [part async for part in inference.stream(requests[0])]
        assert tuple(streamed[:-1]) == alone[0].ids
        inference.close()

    asyncio.run(ask())
    heard: list[tuple[int, int]] = []

    def watch(i: int, token: int) -> bool:
        heard.append((i, token))
        return i != 0 or sum(j == 0 for j, _ in heard) < 3

    same = [replace(r, policy="base") for r in requests[:2]]
    cut, whole = runner.engine.generate(same, watch)
    assert cut.ids == runner.engine.generate([same[0]])[0].ids[:3]
    assert tuple(t for i, t in heard if i == 1) == whole.ids == runner.engine.generate([same[1]])[0].ids
