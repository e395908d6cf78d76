"""The negative control by shuffled rewards: what is kept, and what is lost.

Not covered: that training with it gains nothing (docs/results).
"""

from __future__ import annotations

import statistics
from collections import Counter

from memr1.training.controls import shuffle_rewards
from memr1.trajectory import Sequence, Step, Trajectory


def played(group: int, member: int, reward: float | None) -> Trajectory:
    step = Step("answerer", "answerer", True, Sequence.sampled((1,), (member + 2,), (-0.1,), 0), "", "", "stop")
    parts = {} if reward is None else {"em_set": reward}
    return Trajectory(f"t{group}", f"g{group}", member, (step,), reward, parts)


def test_rewards_stay_in_their_group_with_their_parts_and_leave_their_episode() -> None:
    before = [played(g, m, None if g == 3 or m == 5 else float(10 * g + m)) for g in range(4) for m in range(8)]
    after = shuffle_rewards(before, seed=1)
    assert [(t.group_id, t.seed, t.steps) for t in after] == [(t.group_id, t.seed, t.steps) for t in before]
    for g in range(4):
        of = [(a.reward, b.reward) for a, b in zip(after, before, strict=True) if b.group_id == f"g{g}"]
        assert Counter(a for a, _ in of) == Counter(b for _, b in of)
        assert all((a is None) == (b is None) for a, b in of)
    assert all(t.reward_parts == ({} if t.reward is None else {"em_set": t.reward}) for t in after)
    assert shuffle_rewards(before, seed=1) == after != shuffle_rewards(before, seed=2)


def test_what_a_member_did_says_nothing_about_its_reward() -> None:
    """The best of each group of eight is paid as often as any other: 1 / 8 of 2,000 draws, within 4 deviations."""
    group = [played(0, m, float(m == 0)) for m in range(8)]
    share = statistics.mean(shuffle_rewards(group, seed)[0].reward or 0.0 for seed in range(2000))
    assert abs(share - 1 / 8) < 4 * (1 / 8 * 7 / 8 / 2000) ** 0.5
