"""A model in a process of its own does what one in this process does, is back after kills, and ends with its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from memr1.errors import MemR1Error
from memr1.rollout.engine import Completion, GenerationRequest, SamplingParams
from memr1.serving import inference, model_process
from memr1.serving.app import start
from memr1.serving.errors import ApiError
from memr1.serving.model_process import ModelProcess
from memr1.serving.settings import ServingConfig
from memr1.serving.source import find_source, load_model
from tests.unit.paced import BROKEN, load
from tests.unit.test_export import DONE, make_run

ROOT = Path(__file__).parents[2]


def asked(n: int, policy: str = "answerer") -> GenerationRequest:
    return GenerationRequest((5, 6, n), policy, SamplingParams(8))


def rounds(folder: Path) -> list[tuple[int, list[int]]]:
    """(process, last tokens of the prompts) of each round."""
    at = folder / "rounds"
    lines = at.read_text().splitlines() if at.exists() else []
    return [(int(pid), [int(n) for n in last]) for pid, *last in (line.split() for line in lines)]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


async def until_ready(model: ModelProcess) -> None:
    async with asyncio.timeout(30):
        while not await model.ready():
            await asyncio.sleep(0.02)


def pid_of(model: ModelProcess) -> int:
    """Of the child that is there now."""
    (child,) = (p for p in psutil.Process().children() if "memr1.serving.model_process" in p.cmdline())
    return child.pid


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # of another parent's, which may not reap it
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """In children: what they are to load."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(model_process, "RESTART_PAUSE_S", 0.05)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[ModelProcess]:
    model = ModelProcess(partial(load, tmp_path, 40))
    yield model
    (tmp_path / "hold").unlink(missing_ok=True)
    model.close(20)


def test_a_real_model_says_in_its_process_what_it_says_in_this_one(tiny_random: Path) -> None:
    ready_to_load = partial(load_model, find_source("tiny-random"), ServingConfig(threads=1))
    policies = ("answerer", "manager", "base")
    requests = [
        GenerationRequest(tuple(range(40 + n, 60 + 3 * n)), policies[n % 3], SamplingParams(12)) for n in range(6)
    ]

    async def all_of(model: Any) -> tuple[Any, ...]:
        completions = await model.generate(requests)
        streamed = [part async for part in model.stream(requests[0])]
        (counts,) = (await model.counts()).values()
        return completions, streamed, (counts.requests, counts.prompt_tokens, counts.completion_tokens, counts.rounds)

    here, there = ready_to_load(), ModelProcess(ready_to_load)
    try:
        assert asyncio.run(all_of(there)) == asyncio.run(all_of(here))
        assert pid_of(there) != os.getpid()
    finally:
        here.close()
        there.close()


def test_a_stream_is_heard_token_by_token_and_a_child_leaves_what_nobody_waits_for(
    model: ModelProcess, tmp_path: Path
) -> None:
    (tmp_path / "hold").touch()

    async def ask() -> None:
        stream = model.stream(asked(10))
        assert await anext(stream) == 10, "while the rest is held back"
        waiting = asyncio.create_task(model.generate([asked(20)]))
        async with asyncio.timeout(30):
            while (await model.counts())[""].waiting < 1:
                await asyncio.sleep(0.005)
        await stream.aclose()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await model.counts()  # calls are heard in order: who gave up is known
        (tmp_path / "hold").unlink()
        assert [c.ids for c in await model.generate([asked(30)])] == [(30, 31, 32)]
        assert [part async for part in model.stream(asked(40))][:-1] == [40, 41, 42]
        stats = (await model.counts())[""]
        assert (stats.cancelled, stats.completion_tokens) == (2, 2 + 3 + 3)

    asyncio.run(ask())
    assert [last for _, last in rounds(tmp_path)] == [[10], [30], [40]]


def test_refusals_are_those_of_the_model_with_status_code_and_headers(model: ModelProcess) -> None:
    async def refusal(requests: list[GenerationRequest]) -> tuple[int, str, bool]:
        with pytest.raises(ApiError) as error:
            await model.generate(requests)
        assert "out of memory" not in str(error.value)
        return error.value.status, error.value.code, "Retry-After" in error.value.headers

    async def ask() -> None:
        assert await refusal([asked(n) for n in range(41)]) == (429, "overloaded", True)
        assert await refusal([GenerationRequest((), "base", SamplingParams(8))]) == (400, "invalid_request", False)
        assert await refusal([asked(BROKEN)]) == (500, "generation_failed", False)
        with pytest.raises(ApiError, match="failed on this request"):
            _ = [part async for part in model.stream(asked(BROKEN))]
        assert await model.ready()

    asyncio.run(ask())


def test_what_a_killed_child_had_under_way_is_asked_again_but_no_stream_that_was_heard(
    model: ModelProcess, tmp_path: Path
) -> None:
    (tmp_path / "hold").touch()
    first = pid_of(model)

    async def whole(n: int) -> list[int | Completion]:
        return [part async for part in model.stream(asked(n))]

    async def ask() -> None:
        heard = model.stream(asked(10))
        assert await anext(heard) == 10
        waiting = [asyncio.create_task(model.generate([asked(20)])), asyncio.create_task(whole(30))]
        async with asyncio.timeout(30):
            while (await model.counts())[""].waiting < 2:
                await asyncio.sleep(0.005)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(ApiError, match="ask again") as refused:
            await anext(heard)
        assert (refused.value.status, refused.value.code) == (503, "model_unavailable")
        (tmp_path / "hold").unlink()
        (completion,), streamed = await asyncio.gather(*waiting)
        assert completion.ids == (20, 21, 22) and streamed[:-1] == [30, 31, 32]  # type: ignore[union-attr]
        assert await model.ready()

    asyncio.run(ask())
    again = pid_of(model)
    assert again != first and {pid for pid, _ in rounds(tmp_path)} == {first, again}


def test_while_the_child_is_away_the_model_is_not_ready_and_waited_for_within_bounds(
    model: ModelProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "refused").write_text("the adapter is missing")

    async def ask() -> None:
        waiting = asyncio.create_task(model.generate([asked(10)]))
        assert (await waiting)[0].ids == (10, 11, 12)
        os.kill(pid_of(model), signal.SIGKILL)
        await until(lambda: not model._up)
        assert not await model.ready() and await model.counts() == {}
        waiting = asyncio.create_task(model.generate([asked(20)]))
        await asyncio.sleep(0)
        with monkeypatch.context() as patch:
            patch.setattr(model_process, "MODEL_PATIENCE_S", 0.1)
            for refused in (model.generate([asked(30)]), anext(model.stream(asked(30)))):
                with pytest.raises(ApiError, match="restarted") as error:
                    await refused
                assert error.value.status == 503 and error.value.headers["Retry-After"]
        (tmp_path / "refused").unlink()
        await until_ready(model)
        assert (await waiting)[0].ids == (20, 21, 22)

    asyncio.run(ask())
    assert inference.MODEL_PATIENCE_S >= 10, "a model needs some seconds to load"


def test_signals_for_everybody_leave_the_child_at_its_work(model: ModelProcess, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal, and supervisors send SIGTERM to all of a service."""
    (tmp_path / "hold").touch()
    child = pid_of(model)

    async def ask() -> None:
        waiting = asyncio.create_task(model.generate([asked(10)]))
        await until(lambda: bool(rounds(tmp_path)))
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(child, number)
        (tmp_path / "hold").unlink()
        assert (await waiting)[0].ids == (10, 11, 12)

    asyncio.run(ask())
    assert [pid for pid, _ in rounds(tmp_path)] == [child]


def test_closing_finishes_what_was_begun_refuses_what_comes_and_leaves_no_process(
    model: ModelProcess, tmp_path: Path
) -> None:
    (tmp_path / "hold").touch()
    child = pid_of(model)

    async def ask() -> None:
        waiting = asyncio.create_task(model.generate([asked(10)]))
        await until(lambda: bool(rounds(tmp_path)))
        closing = asyncio.create_task(asyncio.to_thread(model.close, 30))
        await until(model._closing.is_set)
        assert not await model.ready()
        with pytest.raises(ApiError, match="stops") as refused:
            await model.generate([asked(20)])
        assert refused.value.status == 503
        (tmp_path / "hold").unlink()
        assert (await waiting)[0].ids == (10, 11, 12)
        await closing

    asyncio.run(ask())
    assert gone(child)


def test_closing_in_vain_ends_the_child_and_refuses_what_it_had(model: ModelProcess, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    child = pid_of(model)

    async def ask() -> None:
        waiting = asyncio.create_task(model.generate([asked(10)]))
        await until(lambda: bool(rounds(tmp_path)))
        await asyncio.to_thread(model.close, 0.1)
        with pytest.raises(ApiError) as refused:
            await waiting
        assert (refused.value.status, refused.value.code) == (503, "shutting_down")

    asyncio.run(ask())
    assert gone(child) and (tmp_path / "hold").exists()


def test_closing_waits_for_no_child_that_loads(model: ModelProcess, tmp_path: Path) -> None:
    first = pid_of(model)
    (tmp_path / "endless").touch()
    os.kill(first, signal.SIGKILL)
    end = time.monotonic() + 30
    while (tmp_path / "loading").read_text() in ("", str(first)):
        assert time.monotonic() < end
        time.sleep(0.005)
    model.close(1e6)
    assert gone(int((tmp_path / "loading").read_text()))


def test_a_child_that_hangs_holds_up_nobody_else(
    model: ModelProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is sent meanwhile is more than sockets hold."""
    monkeypatch.setattr(model_process, "MODEL_READY_S", 0.2)
    child = pid_of(model)
    os.kill(child, signal.SIGSTOP)
    rescue = threading.Timer(20, os.kill, (child, signal.SIGCONT))
    rescue.start()

    async def ask() -> None:
        long = [GenerationRequest((*range(100_000), n), "base", SamplingParams(8)) for n in range(10)]
        waiting = [asyncio.create_task(model.generate([r])) for r in long]
        assert not await model.ready()
        assert not rescue.finished.is_set(), "the event loop stood still"
        os.kill(child, signal.SIGCONT)
        assert [(await w)[0].ids[0] for w in waiting] == list(range(10))

    try:
        asyncio.run(ask())
    finally:
        rescue.cancel()


def test_a_model_that_cannot_be_loaded_is_refused_in_its_own_words(tmp_path: Path, tiny_random: Path) -> None:
    run, _ = make_run(tmp_path, "lora", DONE)
    (adapter,) = run.glob("checkpoints/*/policies/manager/adapter_model.safetensors")
    adapter.unlink()
    settings = ServingConfig(source=str(run), db=str(tmp_path / "memory.db"), embedder="hash", threads=1)
    with pytest.raises(MemR1Error, match="manager.*adapter_model"):
        start(settings, own_process=True)
    assert not (tmp_path / "memory.db.owner").exists(), "the store was given up"
    (tmp_path / "crash").touch()
    with pytest.raises(MemR1Error, match="ended while it loaded, with status 7"):
        ModelProcess(partial(load, tmp_path))


PARENT = """
import asyncio, sys
from functools import partial
from pathlib import Path
from memr1.rollout.engine import GenerationRequest, SamplingParams
from memr1.serving.model_process import ModelProcess
from tests.unit.paced import load

model = ModelProcess(partial(load, Path(sys.argv[1])))
asyncio.run(model.generate([GenerationRequest((5, 6, 7), "base", SamplingParams(8))]))
"""


@pytest.mark.parametrize("at", ["loading", "rounds"])
def test_the_child_of_a_killed_parent_ends_whatever_it_is_at(tmp_path: Path, at: str) -> None:
    (tmp_path / "hold").touch()
    if at == "loading":
        (tmp_path / "endless").touch()
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    try:
        end = time.monotonic() + 60
        while not (tmp_path / at).exists() or not (tmp_path / at).read_text():
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.01)
        child = int((tmp_path / "loading").read_text())
        assert not gone(child)
    finally:
        parent.kill()
        parent.wait()
    end = time.monotonic() + 30
    while not gone(child):
        assert time.monotonic() < end, "it outlives its parent"
        time.sleep(0.01)
