"""How work is split over runners and what actors ask of a cluster: arithmetic, no cluster needed."""

from __future__ import annotations

import pytest

from memr1.config import Config, LearnerConfig, ModelConfig, RolloutConfig
from memr1.envs.answering import AnswerTask
from memr1.errors import MemR1Error
from memr1.rllib.dispatch import split
from memr1.rllib.resources import shares
from memr1.rollout.runner import Play


def plays(*tasks: str) -> list[Play]:
    return [
        Play(AnswerTask(id=t, question="", gold="", category="", entries=(), evidence=()), seed)
        for seed, t in enumerate(tasks)
    ]


def config(runners: int, learners: int, device: str = "auto") -> Config:
    return Config(
        model=ModelConfig(device=device),
        rollout=RolloutConfig(num_runners=runners),
        learner=LearnerConfig(num_learners=learners),
    )


def test_split_keeps_order_and_every_item_and_makes_parts_about_equal():
    parts = split(list(range(10)), 4)
    assert parts == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]


def test_split_never_separates_the_rollouts_of_a_task():
    parts = split(plays("a", "a", "a", "b", "b", "b", "c", "c", "c"), 2)
    assert [[p.task.id for p in part] for part in parts] == [["a"] * 3, ["b"] * 3 + ["c"] * 3]


def test_split_has_no_empty_parts_when_runners_outnumber_tasks():
    assert split([1, 2], 4) == [[1], [2]]
    assert split([], 4) == []


@pytest.mark.parametrize(
    ("runners", "learners", "cpus", "gpus", "expected"),
    [
        (1, 1, 2, 0, (0.66, 0.0, 0.66, 0.0)),  # a laptop
        (4, 2, 16, 0, (1.0, 0.0, 1.0, 0.0)),
        (1, 1, 8, 1, (1.0, 0.4, 1.0, 0.6)),  # one GPU for both
        (4, 2, 32, 8, (1.0, 1.0, 1.0, 1.0)),
        (4, 2, 32, 4, (1.0, 0.5, 1.0, 1.0)),  # two GPUs for four runners
        (4, 2, 32, 2, (1.0, 0.2, 1.0, 0.6)),
    ],
)
def test_actors_fit_on_the_cluster(runners, learners, cpus, gpus, expected):
    s = shares(config(runners, learners), cpus, gpus, nodes=1)
    assert (s.runner_cpus, s.runner_gpus, s.learner_cpus, s.learner_gpus) == pytest.approx(expected)
    assert runners * s.runner_cpus + learners * s.learner_cpus <= cpus
    assert runners * s.runner_gpus + learners * s.learner_gpus <= gpus + 1e-9


def test_device_cpu_leaves_gpus_alone_and_cuda_without_gpus_asks_an_autoscaler():
    assert shares(config(1, 1, "cpu"), 8, 4, 1).learner_gpus == 0
    assert shares(config(1, 1, "cuda"), 8, 0, 1).learner_gpus == 1


def test_two_learners_on_one_gpu_are_refused():
    with pytest.raises(MemR1Error, match="num_learners is 2 and the cluster has 1 GPUs"):
        shares(config(1, 2), 8, 1, 1)


def test_runners_of_one_node_are_counted_together():
    assert shares(config(5, 1), 64, 0, nodes=2).runners_per_node == 3
