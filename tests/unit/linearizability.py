"""Is a recorded history of concurrent calls linearizable? The search of Wing and Gong (1993), with memory of what was
tried (Lowe 2017)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call with the moments before it began and after it returned, and what it returned."""

    began: float
    ended: float
    op: Any
    result: Any


def linearizable(history: Sequence[Call], state: Hashable, step: Callable[[Any, Any], tuple[Hashable, Any]]) -> bool:
    """Whether some order of the calls that respects their times explains all results.

    step: (state, op) to (next state, result), the sequential specification.
    """
    calls = sorted(history, key=lambda c: c.began)
    tried: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, Hashable]] = [(0, state)]  # calls that have taken effect, as bits, and the state they made
    everything = (1 << len(calls)) - 1
    while stack:
        done, now = stack.pop()
        if done == everything:
            return True
        if (done, now) in tried:
            continue
        tried.add((done, now))
        waiting = [i for i in range(len(calls)) if not done >> i & 1]
        first_end = min(calls[i].ended for i in waiting)
        for i in waiting:
            if calls[i].began > first_end:  # another call was over before this one began
                break
            after, result = step(now, calls[i].op)
            if result == calls[i].result:
                stack.append((done | 1 << i, after))
    return False
