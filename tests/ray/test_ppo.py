"""A stage with a critic on Ray: what one process computes; a checkpoint inside the stage carries the critic along."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.ray.test_training import LEARNABLE, assert_equal_weights, numbers, train_locally, weights_of

CRITIC = (
    "algo.kl_coef=0.05",
    "algo.kl_in=reward",
    "algo.critic.warmup_steps=1",
    "algo.critic.learning_rate=1e-2",
    "algo.critic.gae_lambda=0.95",
)


@pytest.fixture(scope="module")
def taught(make_config, tmp_path_factory):
    """A model that has learnt its two worlds by heart, so that it earns something: rewards differ."""
    from memr1.training.checkpoints import committed

    config = make_config(tmp_path_factory.mktemp("taught"), *LEARNABLE)
    train_locally(config)
    return committed(config.run_dir)[-1] / "policies" / "answerer"


def with_ppo(config):
    """Four steps with a critic, which warms up in the first of them."""
    from memr1.config import StageConfig

    ppo = StageConfig(
        role="answerer", objective="ppo", steps=4, learning_rate=1e-3, reward="f1", group_size=1, epochs=2
    )
    return replace(config, stages=(ppo,))


@pytest.mark.timeout(600)
def test_a_critic_trains_on_ray_as_in_one_process_and_goes_on_from_a_checkpoint(
    ray_cluster, make_config, taught, tmp_path
):
    from ray.rllib.algorithms.algorithm import Algorithm

    from memr1.rllib.algorithm import MemoryR1Config
    from memr1.training.runlog import read_metrics

    settings = (*CRITIC, f"model.name={taught}", "checkpoint.every_steps=1000", "rollout.prompts_per_step=8")
    expected, expected_weights = train_locally(with_ppo(make_config(tmp_path, "name=local", *settings)))
    config = with_ppo(make_config(tmp_path, "name=ray", *settings))
    algorithm = MemoryR1Config().experiment(config).build_algo()
    got = []
    try:
        for _ in range(2):
            algorithm.train()
            got.append(numbers(algorithm.step_metrics))
        folder = algorithm.save_to_path(str(tmp_path / "saved"))
        assert (algorithm.trainer.checkpoint / "learner" / "critic").is_dir()
        algorithm.train()  # a step that is thrown away
    finally:
        algorithm.stop()
    again = Algorithm.from_checkpoint(folder)
    try:
        while not again.trainer.done:
            again.train()
            got.append(numbers(again.step_metrics))
        weights = weights_of(again)
    finally:
        again.stop()

    assert [line["step"] for line in read_metrics(config.run_dir)] == [1, 2, 3, 4]
    for step, (mine, reference) in enumerate(zip(got, expected, strict=True), start=1):
        assert mine == pytest.approx(reference, rel=1e-4, abs=1e-5, nan_ok=True), f"step {step}"
    assert_equal_weights(weights, expected_weights, tolerance=1e-5)
    # a test in which nothing is rewarded, or the critic expects nothing, would prove little
    assert [m["learner/grad_norm"] > 0 for m in got] == [False, True, True, True], "the policy rests in the warm-up"
    assert all(m["learner/critic_grad_norm"] > 0 and m["learner/value_loss"] > 0 for m in got)
    assert got[0]["learner/values"] == 0 != got[3]["learner/values"]
    assert max(m["reward/mean"] for m in got) > 0.05 and len({m["reward/mean"] for m in got}) > 1
    assert got[3]["learner/reference_kl"] != 0
