"""Negative controls: what a method must not gain from. A result that survives one was an artefact."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from memr1.trajectory import Trajectory


def shuffle_rewards(trajectories: Sequence[Trajectory], seed: int) -> list[Trajectory]:
    """The same episodes, the rewards of each group dealt anew among its members.

    A group's rewards keep their mean and their spread, so that updates are as many and as large as before, but what a
    member did no longer has to do with what it is paid: in expectation nothing can be learned. Episodes without a
    reward keep none. Deterministic in `seed`.
    """
    rng = random.Random(seed)
    members: dict[str, list[int]] = {}
    for i, trajectory in enumerate(trajectories):
        if trajectory.reward is not None:
            members.setdefault(trajectory.group_id, []).append(i)
    out = list(trajectories)
    for places in members.values():
        payers = rng.sample(places, len(places))
        for to, of in zip(places, payers, strict=True):
            paid = trajectories[of]
            out[to] = replace(trajectories[to], reward=paid.reward, reward_parts=paid.reward_parts)
    return out
