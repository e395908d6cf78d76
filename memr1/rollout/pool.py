"""Pools of runners: where work is sent without knowing whether Ray is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from memr1.config import Config
from memr1.rollout.engine import Outgoing, WeightUpdate
from memr1.rollout.runner import ROLES, Runner

T = TypeVar("T")


class RunnerPool(Protocol):
    """What the training loop and evaluation need of a pool."""

    def map(self, method: str, items: Sequence[Any], **kwargs: Any) -> list[Any]:
        """Call `runner.method(part_of_items, **kwargs)` on every runner; results in the order of items.

        A runner that dies is replaced, and its part is played again by another.
        """

    def first(self, method: str, *args: Any) -> Any:
        """Call a method of one runner."""

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """Do work that calls this pool, at the same time as the caller goes on where runners are other processes.

        Nothing else may be asked of the pool before the work is done, except `close`.
        """

    def load_policies(self, folder: str, roles: Sequence[str] = ROLES) -> None:
        """Have every runner read the weights of some roles from a folder."""

    def broadcast(self, learners: Any, policy: str, version: int) -> bool:
        """Send the learners' weights to every runner from device to device, where there is such a way; as `push`
        otherwise. False where nothing was sent or not all have it: then they have to be pushed."""

    def push(self, update: Any) -> None:
        """Send what `LearnerGroup.ship` gave to every runner; returns when every one has acknowledged the version."""

    def pop_timings(self) -> dict[str, float]:
        """Sums over runners of the engine's seconds and tokens since the last call."""

    def close(self) -> None:
        """Release everything."""


class LocalPool:
    """One runner in this process."""

    def __init__(self, config: Config) -> None:
        self.runner = Runner(config)

    def map(self, method: str, items: Sequence[Any], **kwargs: Any) -> list[Any]:
        """See `RunnerPool.map`."""
        return list(getattr(self.runner, method)(items, **kwargs))

    def first(self, method: str, *args: Any) -> Any:
        """See `RunnerPool.first`."""
        return getattr(self.runner, method)(*args)

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """See `RunnerPool.begin`; one process does one thing after the other, so this one returns when it is done."""
        future: Future[T] = Future()
        future.set_result(work())
        return future

    def load_policies(self, folder: str, roles: Sequence[str] = ROLES) -> None:
        """See `RunnerPool.load_policies`."""
        self.runner.load_policies(folder, roles)

    def broadcast(self, learners: Any, policy: str, version: int) -> bool:
        """See `RunnerPool.broadcast`; within one process nothing has to travel."""
        return False

    def push(self, update: WeightUpdate) -> None:
        """See `RunnerPool.push`. The runner copies them into its own from where they lie."""
        check_acknowledged(update, [self.runner.load_weights(update)])

    def pop_timings(self) -> dict[str, float]:
        """See `RunnerPool.pop_timings`."""
        return self.runner.pop_timings()

    def close(self) -> None:
        """See `RunnerPool.close`."""
        self.runner.close()


def check_acknowledged(update: Outgoing, versions: Sequence[int]) -> None:
    """A version counts only when every receiver has it."""
    if any(v != update.version for v in versions):
        raise RuntimeError(f"weights of {update.policy} v{update.version} were acknowledged as {list(versions)}")
