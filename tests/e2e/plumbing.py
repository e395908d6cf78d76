"""`memr1` with a model that can earn something: `python tests/e2e/plumbing.py train CONFIG ...`.

A random model never writes an answer that can be read, so every reward would be 0 and nothing would be learnt. Here
anything it writes is an operation or an answer, and every answer has a price of its own. The rest is the real program.

`MEMR1_TEST_SIGNAL=SIGKILL:3` sends that signal to the process itself in the middle of the step after step 3.
"""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from memr1.agents import roles
from memr1.agents.lines import LinesAnswerer, LinesManager
from memr1.agents.protocol import Answer, Decision, one_line
from memr1.memory.types import Event, MemoryEntry, MemoryOp
from memr1.rewards.base import RewardResult
from memr1.rollout import runner
from memr1.training.loop import Trainer

SIGNAL_VARIABLE = "MEMR1_TEST_SIGNAL"


class AnyManager(LinesManager):
    """Adds whatever the model wrote."""

    def parse(self, completion: str, entries: Mapping[str, MemoryEntry], facts: Sequence[str] = ()) -> Decision:
        """See `ManagerProtocol.parse`."""
        return Decision((MemoryOp(Event.ADD, text=one_line(completion) or "nothing"),))


class AnyAnswerer(LinesAnswerer):
    """Answers whatever the model wrote."""

    def parse(self, completion: str) -> Answer:
        """See `AnswererProtocol.parse`."""
        return Answer(one_line(completion) or "nothing", (1,))


class Price:
    """A reward from 0 to 1 that depends on every letter of the answer."""

    name, scope = "price", "trajectory"

    def begin(self, answer: str | None, gold: Any, question: str = "") -> None:
        """See `Reward`."""

    def __call__(self, answer: str | None, gold: Any, question: str = "") -> RewardResult:
        """See `Reward`."""
        return RewardResult(self.name, self.scope, zlib.crc32((answer or "").encode()) % 101 / 100)


def install(setattr_: Any = setattr) -> None:
    """Change the program. `setattr_` may be pytest's `monkeypatch.setattr`, which undoes it after the test."""
    setattr_(roles, "_PROTOCOLS", {**roles._PROTOCOLS, "lines": (AnyManager, AnyAnswerer)})
    setattr_(runner, "make_reward", lambda *_: Price())
    setattr_(Trainer, "_update", _interrupted(Trainer._update))


def _interrupted(update: Any) -> Any:
    def with_signal(self: Trainer, learners: Any, sequences: Sequence[Any], **kind: Any) -> dict[str, float]:
        name, _, step = os.environ.get(SIGNAL_VARIABLE, ":").partition(":")
        if step and self.state.step == int(step):
            os.kill(os.getpid(), signal.Signals[name])
        return dict(update(self, learners, sequences, **kind))

    return with_signal


if __name__ == "__main__":
    from memr1.cli import main

    install()
    main()
