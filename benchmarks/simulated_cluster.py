"""A cluster in simulated time beneath the real controller: a discrete-event model of what drivers use of Ray's API.

`Cluster` stands in for the module `ray` in the modules that speak to actors. Everything above it is the real code:
RLlib's actor manager, `RayPool`, `RayLearnerGroup`, the training loop. A call to an actor runs at once in this process
and is given a place in simulated time: actors work side by side, each on one call after the other. The controller's own
CPU time is real, is measured, and moves the simulated clock, since nothing goes on in a driver while it computes.
"""

from __future__ import annotations

import pickle
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from ray.exceptions import GetTimeoutError, RayActorError

_references: weakref.WeakValueDictionary[int, Reference] = weakref.WeakValueDictionary()


class Reference:
    """What a call will have given at `ready`: a pickled value, as it travels, or an error."""

    def __init__(self, ready: float, payload: bytes = b"", error: Exception | None = None) -> None:
        self.ready, self.payload, self.error = ready, payload, error
        _references[id(self)] = self

    def __reduce__(self) -> Any:
        return _find, (id(self),)


def _find(key: int) -> Reference:
    return _references[key]


class Clock:
    """Simulated seconds; takes the place of the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.cpu = 0.0
        """Seconds of CPU that the controller has used."""
        self._mark = time.process_time()
        self._inside = False  # whether an actor is at work, whose CPU time is nobody's

    def count(self) -> None:
        """Book the CPU time since the last call to the controller."""
        used = time.process_time() - self._mark
        self._mark += used
        if not self._inside:
            self.cpu += used
            self.now += used

    def forget(self) -> None:
        """Book the CPU time since the last call to nobody: this model has used it."""
        self._mark = time.process_time()

    @contextmanager
    def elsewhere(self, start: float) -> Iterator[None]:
        """What is done inside is done by somebody else, from `start` on; this clock stands still."""
        self.count()
        here, inside, self.now, self._inside = self.now, self._inside, start, True
        try:
            yield
        finally:
            self.count()
            self.now, self._inside = here, inside

    def monotonic(self) -> float:
        self.count()
        return self.now

    perf_counter = time = monotonic

    def sleep(self, seconds: float) -> None:
        self.count()
        self.now += seconds


class Actor:
    """A process somewhere: handle and process in one. `actor.method.remote(...)` calls it."""

    def __init__(self, cluster: Cluster, make: Callable[[], Any], lifetimes: Iterator[float], restart_s: float) -> None:
        """lifetimes: how long each process of this actor lives. restart_s: from a death to the next process."""
        self._cluster, self._make, self._lifetimes, self._restart_s = cluster, make, lifetimes, restart_s
        self._free = 0.0
        self._begin(cluster.clock.now)

    def _begin(self, at: float) -> None:
        self._up, self._death = at, at + next(self._lifetimes)
        with self._cluster.clock.elsewhere(at):
            self._instance = self._make()

    def __getattr__(self, method: str) -> Any:
        def options(num_returns: int) -> Any:
            return SimpleNamespace(remote=lambda *args, **kwargs: self._call(method, args, kwargs, num_returns))

        return SimpleNamespace(remote=lambda *args, **kwargs: self._call(method, args, kwargs)[0], options=options)

    def _call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], returns: int = 1) -> list[Reference]:
        """References to what the method gave; it is a generator where they are several."""
        clock = self._cluster.clock
        function = kwargs.pop("func", None)  # RLlib's way: `apply(func, ...)`
        sent = pickle.dumps((args, kwargs))
        clock.count()
        start = max(clock.now, self._free)
        while self._death <= start:  # died in between, when nothing was asked of it
            self._free = self._death + self._restart_s
            self._begin(self._free)
        if start < self._up:
            error = RayActorError(error_msg="the actor is being restarted")
            return [Reference(clock.now, error=error) for _ in range(returns)]
        with clock.elsewhere(start):
            args, kwargs = pickle.loads(sent)
            target = self._instance if function is None else function
            given = (self._instance, *args) if function is not None else args
            value = (target if function is not None else getattr(target, method))(*given, **kwargs)
            payloads, end = [pickle.dumps(v) for v in (value if returns > 1 else [value])], clock.now
        if self._death < end:
            died, self._free = self._death, self._death + self._restart_s
            self._begin(self._free)
            return [Reference(died, error=RayActorError(error_msg="the actor died")) for _ in range(returns)]
        self._free = end
        return [Reference(end, payload) for payload in payloads]


class Cluster:
    """Takes the place of the module `ray` where the driver speaks to actors."""

    util = SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1", get_current_placement_group=lambda: None)
    get_runtime_context = staticmethod(lambda: SimpleNamespace(get_node_id=lambda: "a"))
    ObjectRef = Reference

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def put(self, value: Any) -> Reference:
        payload = pickle.dumps(value)
        self.clock.count()
        return Reference(self.clock.now, payload)

    def get(self, references: Reference | Sequence[Reference], timeout: float | None = None) -> Any:
        if not isinstance(references, Reference):
            return [self.get(r, timeout) for r in references]
        if not self.wait([references], timeout=timeout)[0]:
            raise GetTimeoutError("not there yet")
        if references.error is not None:
            raise references.error
        return pickle.loads(references.payload)

    def wait(
        self, references: Sequence[Reference], num_returns: int = 1, timeout: float | None = None, **_: Any
    ) -> tuple[list[Reference], list[Reference]]:
        self.clock.count()
        due = sorted(r.ready for r in references)[num_returns - 1]
        limit = due if timeout is None else min(due, self.clock.now + timeout)
        self.clock.now = max(self.clock.now, limit)
        ready = [r for r in references if r.ready <= self.clock.now][:num_returns]
        taken = set(map(id, ready))
        left = [r for r in references if id(r) not in taken]
        self.clock.forget()
        return ready, left

    def kill(self, actor: Actor, no_restart: bool = True) -> None:
        self.clock.count()
        actor._death = self.clock.now

    def remote(self, kind: type) -> Any:
        def make(*args: Any) -> Actor:
            return Actor(self, lambda: kind(*args), iter(lambda: float("inf"), None), 0.0)

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))


class Background:
    """Takes the place of the thread that plays ahead: does the work at once, in a time of its own that began now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        self._clock.count()
        began = self._clock.now
        value = work()
        self._clock.count()
        ended, self._clock.now = self._clock.now, began
        return _Later(self._clock, ended, value)

    def shutdown(self) -> None:
        """Nothing is left to do."""


class _Later(Future):  # type: ignore[type-arg]
    def __init__(self, clock: Clock, ended: float, value: Any) -> None:
        super().__init__()
        self._clock, self._ended = clock, ended
        self.set_result(value)

    def result(self, timeout: float | None = None) -> Any:
        self._clock.count()
        self._clock.now = max(self._clock.now, self._ended)
        return super().result(timeout)
