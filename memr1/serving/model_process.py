"""The model of a uvicorn service in a process of its own: `python -m memr1.serving.model_process FD`, a child.

Beside a gateway under load a model gets next to no time in the same process: each of its many short steps has to win
the interpreter's lock back from the event loop and from the threads of the banks. The child runs an `Inference`; calls,
tokens, completions and cancellations are pickled through one pair of sockets, whose end is how either side learns of
the other's. A child that died is started again, and what it had under way is asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, Pipe
from typing import Any

from memr1.errors import MemR1Error
from memr1.rollout.engine import Completion, GenerationRequest
from memr1.serving.errors import ApiError, shutting_down
from memr1.serving.inference import MODEL_PATIENCE_S, MODEL_READY_S, Inference, RoundStats, wait_for_model
from memr1.serving.observe import log_to_stderr

logger = logging.getLogger(__name__)

RESTART_PAUSE_S = 2.0
"""Between two tries to start a child that cannot be."""
_CANCEL, _CLOSE = "cancel", "close"
"""What the child is told beside calls of `Inference`'s methods."""


class ModelAway(Exception):
    """The child ended before it had answered."""


@dataclass(eq=False)
class _Call:
    loop: asyncio.AbstractEventLoop
    heard: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def tell(self, what: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.heard.put_nowait, what)

    async def hear(self) -> Any:
        what = await self.heard.get()
        if isinstance(what, Exception):
            raise what
        return what


class ModelProcess:
    """See `Generator` and `Model` of `memr1.serving.inference`; in a child process, which close ends."""

    def __init__(self, load: Callable[[], Inference]) -> None:
        """load: called in the child, so a function of a module, or a `partial` of one. Returns when it has been.
        `MemR1Error` where it raises one, or the child ends."""
        self._load = load
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._up, self._closing = False, threading.Event()
        self._outbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._start()
        threading.Thread(target=self._write, name="memr1-to-model", daemon=True).start()
        self._thread = threading.Thread(target=self._look_after, name="memr1-from-model", daemon=True)
        self._thread.start()

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Generator.generate`. Generation changes nothing, so what a child took with it is asked for again."""
        end = time.monotonic() + MODEL_PATIENCE_S
        while True:
            try:
                with self._asked("generate", list(requests)) as call:
                    completions: list[Completion] = await call.hear()
                    return completions
            except ModelAway as error:
                await wait_for_model(error, end)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[int | Completion]:
        """See `Generator.stream`. Asked again as in `generate`, but not once somebody has heard a part."""
        end = time.monotonic() + MODEL_PATIENCE_S
        while True:
            try:
                with self._asked("stream", request) as call:
                    heard = None
                    while not isinstance(heard, Completion):
                        heard = await call.hear()
                        end = 0.0
                        yield heard
                    return
            except ModelAway as error:
                await wait_for_model(error, end)

    async def ready(self) -> bool:
        """See `Model.ready`."""
        return bool(await self._soon("ready", False))

    async def counts(self) -> Mapping[str, RoundStats]:
        """See `Model.counts`: since the child was started."""
        counts: Mapping[str, RoundStats] = await self._soon("counts", {})
        return counts

    def close(self, timeout_s: float = 30.0) -> None:
        """See `Model.close`. What is not finished after `timeout_s` is refused."""
        with self._lock:
            self._closing.set()
            if self._up:
                self._send(0, _CLOSE, timeout_s)
            else:
                self._process.kill()
        self._thread.join(timeout_s)
        self._process.kill()  # after its end this changes nothing
        self._thread.join()

    @contextmanager
    def _asked(self, method: str, *args: Any) -> Iterator[_Call]:
        """A call under way; one that has not been answered at the end is cancelled."""
        call, number = _Call(asyncio.get_running_loop()), next(self._numbers)
        with self._lock:
            if self._closing.is_set():
                raise shutting_down()
            if not self._up:
                raise ModelAway
            self._calls[number] = call
            self._send(number, method, *args)
        try:
            yield call
        finally:
            with self._lock:
                if self._calls.pop(number, None) is not None:
                    self._send(number, _CANCEL)

    async def _soon(self, method: str, otherwise: Any) -> Any:
        try:
            with self._asked(method) as call:
                return await asyncio.wait_for(call.hear(), MODEL_READY_S)
        except (TimeoutError, ModelAway, ApiError):
            return otherwise

    def _send(self, number: int, what: str, *args: Any) -> None:
        connection = self._connection
        self._outbox.put(lambda: connection.send((number, what, args)))

    # -- the threads --------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Apart from the event loop, which a child that hangs must not hold up."""
        for act in iter(self._outbox.get, None):
            with contextlib.suppress(OSError):  # the child is gone, which the other thread hears
                act()

    def _look_after(self) -> None:
        while self._up:
            self._listen()
            self._clear_up()
            while not self._up and not self._closing.is_set():
                try:
                    self._start()
                except MemR1Error as error:
                    if not self._closing.wait(RESTART_PAUSE_S):
                        logger.error("the model could not be started again: %s", error)
        self._outbox.put(None)

    def _clear_up(self) -> None:
        with self._lock:
            self._up = False
            left, self._calls = self._calls, {}
        self._outbox.put(self._connection.close)  # not here: the writer may be using it
        status = self._process.wait()
        closing = self._closing.is_set()
        if not closing:
            logger.warning("the model's process has ended with status %s; it is started again", status)
        for call in left.values():
            call.tell(shutting_down() if closing else ModelAway())

    def _listen(self) -> None:
        """Until the child's end."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, what = self._connection.recv()
                with self._lock:  # a token is not the last that is heard of a call; whatever else comes is
                    call = self._calls.get(number) if type(what) is int else self._calls.pop(number, None)
                if call is not None:
                    call.tell(what)

    def _start(self) -> None:
        """A child that has loaded its model."""
        here, there = Pipe()
        with there:
            command = [sys.executable, "-m", __name__, str(there.fileno())]
            # threads of OpenMP that spin while they wait take the cores from one another beside a gateway that is busy
            env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
            process = subprocess.Popen(command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, env=env)
        with self._lock:
            self._connection, self._process = here, process
            if self._closing.is_set():
                process.kill()
        try:
            here.send(self._load)
            refused = here.recv()
        except (EOFError, OSError):
            refused = MemR1Error(f"the model's process ended while it loaded, with status {process.wait()}")
        except BaseException:
            process.kill()
            raise
        if refused is not None:
            process.wait()
            here.close()
            raise refused
        with self._lock:
            self._up = True


# -- the child --------------------------------------------------------------------------------------------------


def main(connection: Connection) -> None:
    """Load a model and do as the parent says. Ends with the parent, at whatever it is."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal or a supervisor, for the parent, which needs an end
        signal.signal(number, signal.SIG_IGN)  # of its requests first
    log_to_stderr()
    asyncio.run(_work(connection))
    os._exit(0)  # whatever the model's thread still does


async def _work(connection: Connection) -> None:
    load = connection.recv()
    told: asyncio.Queue[Any] = asyncio.Queue()
    threading.Thread(target=_hear, args=(connection, asyncio.get_running_loop(), told), daemon=True).start()
    try:
        inference = load()
    except MemR1Error as error:
        connection.send(MemR1Error(str(error)))
        return
    connection.send(None)
    tasks: dict[int, asyncio.Task[None]] = {}
    while True:
        number, what, args = await told.get()
        if what == _CLOSE:
            await asyncio.to_thread(inference.close, *args)
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            return
        if what != _CANCEL:
            tasks[number] = asyncio.create_task(_answer(inference, connection, number, what, args))
            tasks[number].add_done_callback(partial(_forget, tasks, number))
        elif number in tasks:
            tasks[number].cancel()


def _hear(connection: Connection, loop: asyncio.AbstractEventLoop, told: asyncio.Queue[Any]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            loop.call_soon_threadsafe(told.put_nowait, connection.recv())
    os._exit(0)


def _forget(tasks: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    del tasks[number]


async def _answer(
    inference: Inference, connection: Connection, number: int, method: str, args: tuple[Any, ...]
) -> None:
    try:
        if method == "stream":
            async for heard in inference.stream(*args):
                connection.send((number, heard))
        else:
            answer: Awaitable[Any] = getattr(inference, method)(*args)
            connection.send((number, await answer))
    except ApiError as error:
        connection.send((number, error))
    except Exception as error:
        logger.exception("a call of the model failed")
        said = f"the model failed on this request ({type(error).__name__})"
        connection.send((number, ApiError(500, "generation_failed", said)))


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
