"""Sequence, Step, Trajectory: the one vocabulary that everything after the environment speaks.

A memory agent rewrites its context between calls, so a trajectory is several independent sequences that share a
reward, not one growing text. Built by `memr1.envs`, consumed by rewards, algorithms, the learner and the viewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sequence:
    """One prompt and one completion in token ids, exactly as the engine saw and sampled them."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each completion token under the sampling distribution (after temperature), as sampled."""
    loss_mask: tuple[bool, ...]
    """True where the model wrote the token and it trains; False for tokens spliced in by the environment."""
    weight_version: int

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("a Sequence needs at least one prompt token")
        n = len(self.completion_ids)
        if len(self.logprobs) != n or len(self.loss_mask) != n:
            raise ValueError(
                f"completion_ids, logprobs and loss_mask must have one length; got {n}, {len(self.logprobs)}, "
                f"{len(self.loss_mask)}"
            )
        for i, (lp, trains) in enumerate(zip(self.logprobs, self.loss_mask, strict=True)):
            if trains and not -math.inf < lp <= 1e-4:  # also catches NaN; at most 0 up to rounding
                raise ValueError(f"trainable token {i} needs a log-probability <= 0, got {lp}")

    @classmethod
    def sampled(
        cls, prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...], logprobs: tuple[float, ...], version: int
    ) -> Sequence:
        """A sequence whose whole completion was written by the model."""
        return cls(prompt_ids, completion_ids, logprobs, (True,) * len(completion_ids), version)


@dataclass(frozen=True)
class Step:
    """One model call inside an episode."""

    role: str
    """manager, answerer or extractor."""
    policy: str
    """Name of the weights that were used (`base`, or the adapter of a role)."""
    trainable: bool
    """True when the sequence is to be trained on; the frozen answerer's step in a manager episode is not."""
    sequence: Sequence
    prompt_text: str
    completion_text: str
    finish_reason: str
    """stop or length; a completion cut at its length is scored as it stands."""
    parsed: dict[str, Any] = field(default_factory=dict)
    """What the protocol read out of the completion: operations and results, or selected ids and answer; `error` where
    parsing was rejected."""


@dataclass(frozen=True)
class Trajectory:
    """One played episode."""

    task_id: str
    group_id: str
    """Trajectories with one group id were played from the same snapshot and are compared with one another."""
    seed: int
    steps: tuple[Step, ...]
    reward: float | None
    """Total reward; None when it could not be computed (then `error` says why and the trajectory is dropped), or when
    its whole group did the same and was not judged."""
    reward_parts: dict[str, float] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    """For people and reports: question, answer, gold, bank before and after, retrieved entries."""
    error: str | None = None

    @property
    def trainable_steps(self) -> tuple[Step, ...]:
        """Steps whose sequences train."""
        return tuple(s for s in self.steps if s.trainable)
