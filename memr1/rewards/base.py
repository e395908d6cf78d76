"""RewardResult, Reward, and how a config names one: a measure (`em_set`) or a weighted sum (`0.5*em_set+0.5*f1`).

Environments call a reward with (answer, gold) and put its value and parts into the trajectory. A reward never guesses:
what it cannot compute is an error that drops the trajectory and is counted, never a silent 0.0.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from memr1.errors import MemR1Error
from memr1.rewards.match import METRICS

JUDGE = "judge"
"""Name of the measure that a language model gives."""


@dataclass(frozen=True)
class RewardResult:
    """A value or an error, never both."""

    name: str
    scope: str
    """What the value judges: `step`, `trajectory` or `pair`."""
    value: float | None
    error: str | None = None
    """Why there is no value; None where there is one."""
    parts: dict[str, float] = field(default_factory=dict)
    """Unweighted value of each component, for `Trajectory.reward_parts`."""

    def __post_init__(self) -> None:
        if (self.value is None) == (self.error is None):
            raise ValueError(f"reward {self.name}: give a value or an error, got {self.value!r} and {self.error!r}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"reward {self.name}: the value must be finite, got {self.value}")


class Judge(Protocol):
    """Says whether an answer means what the gold says, where that cannot be told from the two texts."""

    def begin(self, question: str, answer: str, gold: str) -> None:
        """Begin to think about what a later call will ask, without waiting for it."""
        ...

    def __call__(self, question: str, answer: str, gold: str) -> tuple[float | None, str | None]:
        """1.0 or 0.0 and None, or None and why there is no verdict."""
        ...


class Reward(Protocol):
    """Judges an answer against its gold."""

    @property
    def name(self) -> str:
        """Name in logs."""
        ...

    @property
    def scope(self) -> str:
        """What the value judges: `step`, `trajectory` or `pair`."""
        ...

    def begin(self, answer: str | None, gold: Any, question: str = "") -> None:
        """Begin with what takes long in a later call with the same arguments, without waiting for it."""
        ...

    def __call__(self, answer: str | None, gold: Any, question: str = "") -> RewardResult:
        """answer: None where the completion could not be parsed. gold: text, or a number, which is cast to text."""
        ...


@dataclass(frozen=True)
class AnswerReward:
    """A weighted sum of measures of the answer, for example `em_set`, or `0.5*em_set+0.5*f1`.

    An answer of None scores 0.0: an unreadable completion is the agent's failure. A gold that is missing or blank is an
    error, since nothing can be said about the answer, and so is a judge without a verdict.
    """

    weights: dict[str, float]
    """By name: a key of `memr1.rewards.match.METRICS`, or `judge`. They add up to 1, so that a right answer pays 1."""
    judge: Judge | None = None

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in METRICS and name != JUDGE:
                raise MemR1Error(_unknown(name))
            if not weight > 0:
                raise MemR1Error(f"reward: the weight of {name} must be above 0, is {weight:g}")
        total = math.fsum(self.weights.values())
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise MemR1Error(
                f"reward: the weights of {self.name} add up to {total:g}; make them 1, so that a right answer pays 1"
            )
        if JUDGE in self.weights and self.judge is None:
            raise MemR1Error("reward: judge needs a model that judges; set judge.url and judge.model")

    @property
    def name(self) -> str:
        """As a config writes it, for example `em_set` or `0.5*em_set+0.5*f1`."""
        return "+".join(m if w == 1 else f"{w:g}*{m}" for m, w in self.weights.items())

    @property
    def scope(self) -> str:
        """The answer ends the trajectory."""
        return "trajectory"

    def begin(self, answer: str | None, gold: Any, question: str = "") -> None:
        """Have the judge, if there is one, begin with its verdict."""
        if JUDGE in self.weights and self.judge is not None and answer is not None and not _blank(gold):
            self.judge.begin(question, answer, str(gold))

    def __call__(self, answer: str | None, gold: Any, question: str = "") -> RewardResult:
        """Value in 0.0 to 1.0, or why there is none."""
        if _blank(gold):
            return RewardResult(self.name, self.scope, None, "the question has no gold answer")
        parts: dict[str, float] = {}
        for name in self.weights:
            value: float | None = 0.0
            if answer is not None and name in METRICS:
                value = METRICS[name](answer, gold)
            elif answer is not None and self.judge is not None:
                value, error = self.judge(question, answer, str(gold))
                if value is None:
                    return RewardResult(self.name, self.scope, None, f"no verdict of the judge: {error}")
            parts[name] = value or 0.0
        value = math.fsum(weight * parts[name] for name, weight in self.weights.items())
        return RewardResult(self.name, self.scope, min(value, 1.0), parts=parts)


def make_reward(spec: str, judge: Judge | None = None) -> AnswerReward:
    """The reward that a config names: a measure such as `em_set`, or a weighted sum such as `0.5*em_set+0.5*judge`.

    Raises MemR1Error for unknown names (with the nearest known one), weights that are none or do not add up to 1, and
    `judge` without one.
    """
    weights: dict[str, float] = {}
    for term in spec.split("+"):
        weight, star, name = term.rpartition("*")
        try:
            number = float(weight) if star else 1.0
        except ValueError:
            raise MemR1Error(f"reward: {weight.strip()!r} is no weight; write sums like 0.5*em_set+0.5*f1") from None
        weights[name.strip()] = weights.get(name.strip(), 0.0) + number
    return AnswerReward(weights, judge)


def _blank(gold: Any) -> bool:
    return gold is None or not str(gold).strip()


def _unknown(name: str) -> str:
    known = (*METRICS, JUDGE)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"reward: {name!r} is not one of {', '.join(known)}{hint}"
