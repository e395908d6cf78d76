"""Batches of groups: played until enough of them have a signal, within a bound.

The pool is a script. Not covered: real episodes (test_episodes.py), the update (test_deepspeed_learner.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from memr1.config import MAX_REFILL
from memr1.data.sampler import ResumableSampler
from memr1.envs.answering import AnswerTask
from memr1.errors import MemR1Error
from memr1.rollout.runner import Play
from memr1.training.loop import Trainer
from memr1.training.tasks import TrainTask
from memr1.trajectory import Sequence, Step, Trajectory
from tests.unit.scripted import make_config


class ScriptedPool:
    """Pays the first member of every `live_every`-th task more than the others; the rest are equal, or not judged."""

    def __init__(self, live_every: int, error: str | None = None, judge_alike: bool = False) -> None:
        self.live_every, self.error, self.judge_alike = live_every, error, judge_alike
        self.plays: list[list[Play]] = []

    def map(self, method: str, items: list[Play], **kwargs: Any) -> list[Trajectory]:
        assert method == "play" and kwargs["judge_alike"] is self.judge_alike
        self.plays.append(items)
        first = {p.task.id: p.seed for p in reversed(items)}
        return [self.trajectory(p, p.seed == first[p.task.id]) for p in items]

    def trajectory(self, play: Play, best: bool) -> Trajectory:
        number = int(play.task.id)
        reward: float | None = float(best) if number % self.live_every == 0 else (0.5 if number % 2 else None)
        step = Step("answerer", "answerer", True, Sequence.sampled((1, number), (2,), (-0.1,), 0), "", "", "stop")
        return Trajectory(play.task.id, play.task.id, play.seed, (step,), reward, error=self.error)

    def pop_timings(self) -> dict[str, float]:
        return {}


def trainer(pool: ScriptedPool, *overrides: str) -> Trainer:
    config = make_config("algo.advantage=dr-grpo", "stages=[{objective: grpo}]", *overrides)
    made = Trainer(config, cast(Any, pool), cast(Any, None), cast(Any, None))
    made.tasks = [TrainTask(AnswerTask(str(i), "?", "x", "c", (), ()), None) for i in range(1000)]
    made.sampler = ResumableSampler(1000, seed=1)
    return made


def test_groups_without_a_signal_are_refilled_by_as_many_tasks_as_it_seems_to_take() -> None:
    pool = ScriptedPool(live_every=3)
    size = 4
    batch = trainer(
        pool, "rollout.prompts_per_step=12", f"rollout.group_size={size}", "rollout.resample_rounds=6"
    )._play_groups(0)
    sequences, metrics = batch.sequences, batch.metrics
    rounds = [len(plays) // size for plays in pool.plays]
    seen = live = 0
    for n, plays in zip(rounds, pool.plays, strict=True):
        assert n == (12 if not seen else min(-(-(12 - live) * seen // max(live, 1)), MAX_REFILL * 12))
        seen, live = seen + n, live + len({p.task.id for p in plays if int(p.task.id) % 3 == 0})
    assert live >= 12, "it goes on until the batch is full"
    assert metrics["groups/with_signal"] == live and len(sequences) == live * size
    assert metrics["groups/zero_variance_fraction"] == pytest.approx(1 - live / seen)
    assert sorted({round(q.advantage, 6) for q in sequences}) == [-0.25, 0.75]
    seeds = [p.seed for plays in pool.plays for p in plays]
    assert len(set(seeds)) == len(seeds), "no two rollouts share a seed"


def test_a_stage_may_have_a_batch_size_of_its_own() -> None:
    pool = ScriptedPool(live_every=1)
    stages = "stages=[{objective: grpo, prompts_per_step: 3}, {objective: grpo}]"
    made = trainer(pool, "rollout.prompts_per_step=5", "rollout.group_size=2", stages)
    assert made._play_groups(0).metrics["groups/with_signal"] == 3
    made.state.stage = 1
    assert made._play_groups(1).metrics["groups/with_signal"] == 5
    seeds = [p.seed for plays in pool.plays for p in plays]
    assert len(set(seeds)) == len(seeds), "no two rollouts share a seed"


@pytest.mark.parametrize("objective", ["ppo", "reinforce"])
def test_where_nothing_is_compared_within_groups_one_rollout_per_task_is_enough(objective: str) -> None:
    pool = ScriptedPool(live_every=2, judge_alike=True)
    stage = f"stages=[{{objective: {objective}, group_size: 1}}]"
    batch = trainer(pool, stage, "rollout.prompts_per_step=12", "rollout.resample_rounds=3")._play_groups(0)
    assert [len(plays) for plays in pool.plays] == [12], "nothing is refilled"
    rewards = [q.reward for q in batch.sequences]
    assert sorted(set(rewards)) == [0.5, 1.0] and len(rewards) == 12
    mean = sum(rewards) / len(rewards)
    expected = [0.0 if objective == "ppo" else r - mean for r in rewards]
    assert [q.advantage for q in batch.sequences] == pytest.approx(expected)
    assert [q.trajectory for q in batch.sequences] == list(range(12))
    shown = {r["advantage"] for r in batch.records}
    assert shown == {None} if objective == "ppo" else len(shown) == 2
    assert batch.metrics["groups/zero_variance_fraction"] == 0.0


def test_the_baseline_of_reinforce_is_the_mean_over_all_rounds_of_the_batch() -> None:
    class LateLuck(ScriptedPool):
        """Pays nothing in the first round, and every second rollout of the next."""

        def trajectory(self, play: Play, best: bool) -> Trajectory:
            paid = len(self.plays) > 1 and play.seed % 2 == 0
            return replace(super().trajectory(play, best), reward=float(paid))

    pool = LateLuck(live_every=1, judge_alike=True)
    stage = "stages=[{objective: reinforce, group_size: 1}]"
    batch = trainer(pool, stage, "rollout.prompts_per_step=4", "rollout.resample_rounds=3")._play_groups(0)
    assert [len(plays) for plays in pool.plays] == [4, 16], "the second round had a signal"
    rewards = [q.reward for q in batch.sequences]
    assert rewards[:4] == [0.0] * 4 and len(rewards) == 20 and sum(rewards[4:]) == 8
    assert [q.advantage for q in batch.sequences] == pytest.approx([r - 8 / 20 for r in rewards])
    assert batch.metrics["groups/zero_variance_fraction"] == 0.0


def test_a_task_that_comes_again_in_another_round_is_another_group() -> None:
    class EqualThenApart(ScriptedPool):
        def trajectory(self, play: Play, best: bool) -> Trajectory:
            return replace(super().trajectory(play, best), reward=float(best) if len(self.plays) > 1 else 1.0)

    pool = EqualThenApart(live_every=1)
    made = trainer(pool, "rollout.prompts_per_step=1", "rollout.group_size=2", "rollout.resample_rounds=1")
    made.tasks = made.tasks[:1]
    made.sampler = ResumableSampler(1, seed=1)
    batch = made._play_groups(0)
    played = len(pool.plays[1])
    assert sorted({q.advantage for q in batch.sequences}) == pytest.approx([-1 / played, 1 - 1 / played])
    assert len(batch.sequences) == played, "the equal group of the first round is left out"


@pytest.mark.parametrize("rounds", [0, 2])
def test_refilling_ends_with_its_rounds_and_may_leave_nothing_to_learn_from(rounds: int) -> None:
    pool = ScriptedPool(live_every=10_000)
    made = trainer(pool, "rollout.prompts_per_step=3", "rollout.group_size=2", f"rollout.resample_rounds={rounds}")
    made.tasks = made.tasks[1:]
    made.sampler = ResumableSampler(len(made.tasks), seed=1)
    batch = made._play_groups(0)
    sequences, metrics = batch.sequences, batch.metrics
    assert [len(plays) // 2 for plays in pool.plays] == [3, 9, MAX_REFILL * 3][: rounds + 1]
    assert sequences == [] and metrics["groups/zero_variance_fraction"] == 1.0


def test_too_many_failed_episodes_end_the_run_with_the_first_message() -> None:
    with pytest.raises(MemR1Error, match="24 of 24 episodes failed; the first said: the bank burnt down"):
        trainer(
            ScriptedPool(2, error="the bank burnt down"), "rollout.prompts_per_step=12", "rollout.group_size=2"
        )._play_groups(0)


def test_a_stage_with_shuffled_rewards_pays_groups_as_before_and_members_by_chance() -> None:
    size = 8
    options = ("rollout.prompts_per_step=40", f"rollout.group_size={size}")
    plain = trainer(ScriptedPool(live_every=1), *options)._play_groups(0)
    dealt = trainer(ScriptedPool(live_every=1), *options, "stages=[{shuffle_rewards: true}]")._play_groups(0)

    def groups(sequences: list[Any]) -> list[list[float]]:
        scores = [s.advantage for s in sequences]
        return [scores[i : i + size] for i in range(0, len(scores), size)]

    before, after = groups(plain.sequences), groups(dealt.sequences)
    assert [sorted(g) for g in after] == [sorted(g) for g in before]
    assert {g.index(max(g)) for g in before} == {0}, "the script pays the first member most"
    assert len({g.index(max(g)) for g in after}) == size
