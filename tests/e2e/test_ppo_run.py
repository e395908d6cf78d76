"""A whole run of the `local` backend with a critic in both roles, and what a kill in the middle costs it: nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from memr1.training.checkpoints import committed
from memr1.training.runlog import read_metrics, read_rollouts, rollout_files
from tests.e2e import plumbing
from tests.e2e.test_local_run import assert_same_run, run_here, run_there, write_config

PPO = """
algo: {kl_coef: 0.05, kl_in: reward, critic: {warmup_steps: 1, learning_rate: 1e-2, gae_lambda: 0.95}}
stages:
  - {role: manager, objective: ppo, steps: 3, learning_rate: 2e-3, group_size: 1}
  - {role: answerer, objective: ppo, steps: 4, learning_rate: 2e-3, group_size: 1, epochs: 2}
"""


@pytest.fixture(autouse=True, scope="module")
def earning_model() -> Iterator[None]:
    """See `plumbing`; removed after this file, so that no other test meets it."""
    with pytest.MonkeyPatch.context() as patch:
        plumbing.install(patch.setattr)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config file, run folder) of a run that was never stopped."""
    path = write_config(tmp_path_factory.mktemp("ppo"), PPO)
    return path, run_here(path, "whole")[0]


def test_both_roles_train_with_a_critic_and_one_rollout_per_task(whole: tuple[Path, Path]) -> None:
    _, run = whole
    metrics = read_metrics(run)
    assert [m["stage"] for m in metrics] == ["manager-ppo"] * 3 + ["answerer-ppo"] * 4
    assert not any("learner/skipped" in m for m in metrics)
    for m in metrics:
        resting = m["stage_step"] == 1
        assert (m["learner/grad_norm"] == 0) == resting
        assert m["learner/critic_grad_norm"] > 0
        assert m["learner/value_loss"] > 0
        assert abs(m["learner/advantages"]) < 1e-4
        assert {"learner/returns", "learner/values", "learner/value_clip_fraction"} <= set(m)
    first, last = metrics[3], metrics[6]
    assert first["learner/values"] == 0 and first["learner/explained_variance"] == pytest.approx(0, abs=1e-6)
    assert last["learner/values"] != 0
    assert first["learner/reference_kl"] == pytest.approx(0, abs=1e-6) != last["learner/reference_kl"]
    for path in rollout_files(run).values():
        rollouts = read_rollouts(path)
        assert len({r["group_id"] for r in rollouts}) == len(rollouts) == 3
        assert all(r["advantage"] is None and r["reward"] is not None for r in rollouts)


def test_the_policy_that_is_pushed_in_the_warm_up_is_the_one_that_began(whole: tuple[Path, Path]) -> None:
    _, run = whole

    def weights(step: int, role: str) -> bytes:
        return (run / f"checkpoints/step_{step:06d}/policies/{role}/adapter_model.safetensors").read_bytes()

    assert [p.name for p in committed(run)] == ["step_000003", "step_000005", "step_000007"]
    assert weights(3, "answerer") != weights(5, "answerer") != weights(7, "answerer")
    assert weights(3, "manager") == weights(7, "manager")


@pytest.mark.parametrize("after", [2, 5])
def test_a_run_killed_in_the_middle_of_a_step_goes_on_with_its_critic(whole: tuple[Path, Path], after: int) -> None:
    path, run = whole
    killed = run_there(path, f"killed{after}", **{plumbing.SIGNAL_VARIABLE: f"SIGKILL:{after}"})
    assert killed.returncode == -signal.SIGKILL
    resumed, said = run_here(path, f"killed{after}", resume="auto")
    assert f"resumed from step_{after:06d}" in said
    assert_same_run(resumed, run)
