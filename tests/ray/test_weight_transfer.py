"""Weights that go from learner to runners by a collective: gloo between CPUs here, NCCL where GPUs are."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

from tests.ray.test_training import numbers, train_locally, weights_of


def build(config: Any) -> Any:
    from memr1.rllib.algorithm import MemoryR1Config

    return MemoryR1Config().experiment(config).build_algo()


def held(algorithm: Any) -> dict[int, dict[str, np.ndarray]]:
    """The answerer's weights by runner."""
    answers = algorithm.pool._everywhere("export_weights", ("answerer",), timeout_s=60)
    return {runner: dict(update.tensors) for runner, (update,) in answers.items()}


@pytest.mark.timeout(600)
def test_a_broadcast_gives_every_runner_the_learner_s_weights_and_a_lost_one_does_not_stop_it(
    ray_cluster, make_config, tmp_path, monkeypatch
):
    settings = ("stages.0.steps=5", "stages.0.learning_rate=1e-2", "checkpoint.every_steps=1000")
    expected, expected_weights = train_locally(make_config(tmp_path, "name=local", *settings))
    ray_settings = ("rollout.num_runners=2", "rollout.weight_transfer=collective", "rollout.push_timeout_s=75")
    algorithm = build(make_config(tmp_path, "name=ray", *settings, *ray_settings))
    pool, trainer = algorithm.pool, algorithm.trainer
    assert pool._push_timeout_s == 75
    pushed: list[int] = []
    push = pool.push
    monkeypatch.setattr(pool, "push", lambda shipment: (pushed.append(shipment.version), push(shipment)))
    try:
        got = []
        for _ in range(2):
            algorithm.train()
            got.append(numbers(algorithm.step_metrics))
        first = pool._channel
        assert pushed == [] and first is not None
        for weights in held(algorithm).values():
            mine = trainer.learners.ship(0).receive().tensors
            assert weights.keys() == mine.keys()
            assert all(np.array_equal(weights[name], mine[name]) for name in mine)

        def die(env_runner) -> None:
            env_runner.runner.receive_weights = lambda update: os._exit(1)

        pool._manager.foreach_actor(die, remote_actor_ids=[pool.ready()[0]])
        for _ in range(3):
            algorithm.train()
            got.append(numbers(algorithm.step_metrics))
            end = time.monotonic() + 180
            while len(pool.ready()) < 2 and time.monotonic() < end:
                time.sleep(0.5)
        assert pushed == [3], "the step in which a runner died went through the object store"
        assert pool.replaced == 1 and pool._channel is not None and pool._channel is not first
        runners = held(algorithm)
        assert len(runners) == 2
        for weights in runners.values():
            gap = max(float(np.abs(weights[name] - expected_weights[name]).max()) for name in expected_weights)
            assert gap <= 1e-6
    finally:
        algorithm.stop()
    for mine, reference in zip(got, expected, strict=True):
        assert mine == pytest.approx(reference, rel=1e-5, abs=1e-6, nan_ok=True)


def test_a_runner_that_comes_after_a_broadcast_gets_its_weights(ray_cluster, make_config, tmp_path):
    import ray

    settings = ("stages.0.steps=3", "stages.0.learning_rate=1e-2", "rollout.weight_transfer=collective")
    algorithm = build(make_config(tmp_path, *settings))
    try:
        algorithm.train()
        before = weights_of(algorithm)
        (runner,) = algorithm.pool.ready()
        ray.kill(algorithm.pool._manager.actors()[runner], no_restart=False)
        assert algorithm.pool.first("weight_versions")["answerer"] == 1
        after = weights_of(algorithm)
        assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
        assert any(np.abs(w).max() > 0 for name, w in after.items() if "lora_B" in name), "they are trained ones"
    finally:
        algorithm.stop()


def test_collectives_are_taken_where_every_process_has_a_gpu_of_its_own(make_config, tmp_path):
    from dataclasses import replace

    from memr1.rllib.resources import Shares, by_collective

    config = make_config(tmp_path)

    def taken(transfer: str, runner: float, learner: float, engine: str = "transformers") -> bool:
        rollout = replace(config.rollout, weight_transfer=transfer, engine=engine)
        return by_collective(replace(config, rollout=rollout), Shares(1, runner, 1, learner, 1))

    assert taken("auto", 1, 1) and taken("collective", 0, 0)
    assert not taken("auto", 0.4, 0.6) and not taken("auto", 0, 1) and not taken("auto", 1, 1, "vllm")
    assert not taken("objects", 1, 1)


@pytest.mark.gpu
def test_weights_on_a_gpu_reach_runners_on_another_either_way(ray_cluster, make_config, tmp_path):
    import ray

    if ray.cluster_resources().get("GPU", 0) < 2:
        pytest.skip("needs two CUDA devices: NCCL takes no two processes on one")
    for transfer in ("objects", "collective"):
        settings = (f"name={transfer}", "model.device=cuda", "model.weights=full", "stages.0.learning_rate=1e-4")
        algorithm = build(make_config(tmp_path, *settings, f"rollout.weight_transfer={transfer}"))
        try:
            for _ in range(3):
                algorithm.train()
            assert (algorithm.pool._channel is not None) == (transfer == "collective")
            theirs, ours = weights_of(algorithm), algorithm.trainer.learners.ship(0).receive().tensors
            assert theirs.keys() == ours.keys()
            assert all(np.array_equal(theirs[name], ours[name]) for name in ours)
        finally:
            algorithm.stop()
