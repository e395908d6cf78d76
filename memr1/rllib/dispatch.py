"""Work in parts for many runners: whoever is free takes the next one; what a lost runner had is cut up for the others.

Sampling is seeded by task, so it makes no difference to the results who played what.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from memr1.errors import MemR1Error
from memr1.rllib.env_runner import Answer
from memr1.rollout.runner import Play

if TYPE_CHECKING:
    from memr1.rllib.pool import RayPool

LOOK_S = 5.0
"""How often runners that were lost are looked for while others are at work."""
MAX_LOSSES = 5
"""Runners that may be lost during one call, and a tenth of all in addition, before it fails: something kills them."""


@dataclass(frozen=True)
class Part:
    """What one runner is asked to do."""

    place: int
    """Index of the first item among all."""
    items: list[Any]


@dataclass(frozen=True)
class Sent:
    """A part that a runner has."""

    runner: int
    part: Part
    began: float
    clock: float
    """The same moment in seconds since 1970."""


class Dispatch:
    """One call of a method for many items."""

    def __init__(self, pool: RayPool, method: str, kwargs: Mapping[str, Any], timeout_s: float) -> None:
        """timeout_s: a runner that takes longer over a part is taken for hung and is replaced."""
        self._pool, self._method, self._kwargs, self._timeout_s = pool, method, kwargs, timeout_s
        self._waiting: deque[Part] = deque()
        self._under_way: dict[ray.ObjectRef, Sent] = {}
        self._results: dict[int, list[Any]] = {}  # by the place of their part
        self._losses = 0
        self._error: BaseException | None = None
        self._looked = time.monotonic()

    def run(self, parts: Sequence[list[Any]]) -> list[Any]:
        """Results in the order of items. Raises what a runner raised, when nobody is at work any more, and MemR1Error
        when too many runners are lost."""
        places = itertools.accumulate(map(len, parts), initial=0)
        self._waiting.extend(itertools.starmap(Part, zip(places, parts, strict=False)))
        while (self._waiting and self._error is None) or self._under_way:
            if self._error is None:
                self._hand_out()
            for sent, answer in self._answers():
                self._take(sent, answer)
        if self._error is not None:
            raise self._error
        return [result for place in sorted(self._results) for result in self._results[place]]

    def _hand_out(self) -> None:
        """Give parts to the runners that have none; wait for a runner only when nobody is at work."""
        if not self._waiting:
            return
        if not self._under_way or self._pool.missing or time.monotonic() - self._looked >= LOOK_S:
            self._pool.ready()
            self._looked = time.monotonic()
        busy = {sent.runner for sent in self._under_way.values()}
        for runner in [i for i in self._pool.free() if i not in busy][: len(self._waiting)]:
            part = self._waiting.popleft()
            reference = self._pool.send(runner, self._method, part.items, self._kwargs)
            self._under_way[reference] = Sent(runner, part, time.monotonic(), time.time())

    def _answers(self) -> Iterator[tuple[Sent, Answer | None]]:
        """Wait for an answer; all that are there then, None for a runner that was lost or takes too long."""
        if not self._under_way:
            return
        references = list(self._under_way)
        left = min(sent.began for sent in self._under_way.values()) + self._timeout_s - time.monotonic()
        if self._waiting and self._error is None:
            left = min(left, LOOK_S)  # who comes back meanwhile takes a part at once
        ray.wait(references, num_returns=1, timeout=max(0.0, left))
        for reference in ray.wait(references, num_returns=len(references), timeout=0)[0]:
            sent = self._under_way.pop(reference)
            yield sent, self._pool.receive(sent.runner, self._method, sent.clock, reference)
        for reference, sent in list(self._under_way.items()):
            if time.monotonic() - sent.began >= self._timeout_s:
                del self._under_way[reference]
                self._pool.give_up(sent.runner, f"did not answer {self._method} within {self._timeout_s:.0f} s")
                yield sent, None

    def _take(self, sent: Sent, answer: Answer | None) -> None:
        part = sent.part
        if answer is None or not answer.armed:
            self._losses += 1
            self._waiting.extendleft(reversed(list(self._pieces(part))))
            if self._losses > MAX_LOSSES + self._pool.size // 10:
                raise MemR1Error(
                    f"{self._losses} runners died during one call of {self._method}; look for their reason in the logs "
                    "of Ray (often memory: fewer rollout.num_runners, or a smaller rollout.max_tokens_per_batch)"
                )
        elif answer.error is not None:
            answer.error.add_note(f"(runner {sent.runner})")
            self._error = answer.error
        else:
            self._results[part.place] = list(answer.value)
            if self._method == "play" and len(answer.value) != len(part.items):
                played, wanted = len(answer.value), len(part.items)
                self._error = RuntimeError(f"runner {sent.runner} played {played} of {wanted} rollouts")

    def _pieces(self, part: Part) -> Iterator[Part]:
        """A part that was lost, in as many pieces as there are runners to take them."""
        place = part.place
        for piece in split(part.items, max(1, self._pool.num_ready)):
            yield Part(place, piece)
            place += len(piece)


def split(items: Sequence[Any], parts: int) -> list[list[Any]]:
    """At most `parts` contiguous, about equal, non-empty parts in order; plays of one task are never separated."""
    keyed = [(item.task.id if isinstance(item, Play) else i, item) for i, item in enumerate(items)]
    groups = [[item for _, item in group] for _, group in itertools.groupby(keyed, key=lambda pair: pair[0])]
    cuts = [len(groups) * k // parts for k in range(parts + 1)]
    return [list(itertools.chain(*groups[a:b])) for a, b in itertools.pairwise(cuts) if a < b]
