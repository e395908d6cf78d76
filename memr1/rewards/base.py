"""RewardResult, Reward, and how a config names one: a metric (`em_set`) or weights of several (`{em_set: 1, f1: 0.5}`).

Environments call a reward with (answer, gold) and put its value and parts into the trajectory. A reward never guesses:
what it cannot compute is an error that drops the trajectory and is counted, never a silent 0.0.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from memr1.errors import MemR1Error
from memr1.rewards.match import METRICS


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

    def __call__(self, answer: str | None, gold: Any) -> RewardResult:
        """answer: None where the completion could not be parsed. gold: text, or a number, which is cast to text."""
        ...


@dataclass(frozen=True)
class AnswerReward:
    """One metric of the answer (arXiv 2508.19828 uses exact match).

    An answer of None scores 0.0: an unreadable completion is the agent's failure. A gold that is missing or blank is an
    error: nothing can be said about the answer.
    """

    metric: str = "em_set"
    """A key of `memr1.rewards.match.METRICS`."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise MemR1Error(_unknown(self.metric))

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.metric

    @property
    def scope(self) -> str:
        """The answer ends the trajectory."""
        return "trajectory"

    def __call__(self, answer: str | None, gold: Any) -> RewardResult:
        """Value in 0.0 to 1.0, or the error that the question has no gold."""
        if gold is None or not str(gold).strip():
            return RewardResult(self.name, self.scope, None, "the question has no gold answer")
        value = 0.0 if answer is None else METRICS[self.metric](answer, gold)
        return RewardResult(self.name, self.scope, value, parts={self.metric: value})


@dataclass(frozen=True)
class WeightedReward:
    """Weighted sum of answer metrics, for example {"em_set": 1.0, "f1": 0.5}. Weights need not add up to 1."""

    weights: dict[str, float]

    def __post_init__(self) -> None:
        if not self.weights:
            raise MemR1Error(f"reward: the weights are empty; name at least one of {', '.join(METRICS)}")
        for metric, weight in self.weights.items():
            if metric not in METRICS:
                raise MemR1Error(_unknown(metric))
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise MemR1Error(f"reward: the weight of {metric} must be a finite number, found {weight!r}")

    @property
    def name(self) -> str:
        """For example `em_set+0.5*f1`."""
        return "+".join(m if w == 1 else f"{w:g}*{m}" for m, w in self.weights.items())

    @property
    def scope(self) -> str:
        """The answer ends the trajectory."""
        return "trajectory"

    def __call__(self, answer: str | None, gold: Any) -> RewardResult:
        """The weighted sum, or the first component's error."""
        parts: dict[str, float] = {}
        for metric in self.weights:
            result = AnswerReward(metric)(answer, gold)
            if result.value is None:
                return RewardResult(self.name, self.scope, None, result.error)
            parts[metric] = result.value
        value = float(sum(weight * parts[metric] for metric, weight in self.weights.items()))
        return RewardResult(self.name, self.scope, value, parts=parts)


def make_reward(spec: str | Mapping[str, float]) -> Reward:
    """The reward that a config names: a metric, or a mapping of metrics to weights.

    Raises MemR1Error for unknown names (with the nearest known one), bad weights and other types.
    """
    if isinstance(spec, str):
        return AnswerReward(spec)
    if isinstance(spec, Mapping):
        return WeightedReward({str(metric): weight for metric, weight in spec.items()})
    raise MemR1Error(f"reward: expected a metric name or a mapping of names to weights, found {spec!r}")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"reward: {name!r} is not one of {', '.join(METRICS)}{hint}"
