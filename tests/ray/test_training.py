"""The `ray` backend trains what the `local` backend trains; RLlib's face of it; saving and going on."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from memr1.errors import MemR1Error

LEARNABLE = (
    "model.weights=full",
    "rollout.group_size=6",
    "stages.0.steps=60",
    "stages.0.learning_rate=5e-3",
    "stages.0.examples_per_step=8",
    "checkpoint.every_steps=1000",
)
"""Settings under which the random model learns its two worlds by heart, so that rewards differ within groups."""

UNEQUAL = ("time/", "engine/", "tokens/per_second")
"""Metrics that are measurements of the machine."""


def with_grpo(config, steps: int):
    from dataclasses import replace

    from memr1.config import StageConfig

    grpo = StageConfig(role="answerer", objective="grpo", steps=steps, learning_rate=1e-3, reward="f1")
    return replace(config, stages=(*config.stages, grpo))


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(UNEQUAL)}


def train_locally(config) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    from memr1.training.local import LocalSession
    from memr1.training.run import prepare_folder
    from memr1.training.runlog import RunLog

    prepare_folder(config, "never")
    session = LocalSession(config, RunLog(config.run_dir), None)
    try:
        metrics = []
        while not session.trainer.done:
            metrics.append(numbers(session.step()))
        weights = session.trainer.pool.runner.policies.weights("answerer")
        return metrics, {name: t.float().numpy() for name, t in weights.items()}
    finally:
        session.close()


def weights_of(algorithm) -> dict[str, np.ndarray]:
    (update,) = algorithm.pool.first("export_weights", ("answerer",))
    return dict(update.tensors)


def assert_equal_weights(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    gap = max(float(np.abs(got[name] - expected[name]).max()) for name in got)
    assert gap <= tolerance


def test_one_runner_and_one_learner_give_the_metrics_and_weights_of_the_local_backend(
    ray_cluster, make_config, tmp_path
):
    from memr1.rllib.algorithm import MemoryR1Config
    from memr1.training.runlog import read_metrics

    expected, expected_weights = train_locally(with_grpo(make_config(tmp_path, "name=local", *LEARNABLE), 2))
    heard: list[Any] = []
    config = with_grpo(make_config(tmp_path, "name=ray", *LEARNABLE), 2)
    builder = (
        MemoryR1Config()
        .experiment(config)
        .callbacks(
            on_algorithm_init=lambda algorithm, **_: heard.append("init"),
            on_train_result=lambda result, **_: heard.append(result["learner"]["loss"]),
        )
    )
    algorithm = builder.build_algo()
    try:
        got, results = [], []
        while not algorithm.trainer.done:
            results.append(algorithm.train())
            got.append(numbers(algorithm.step_metrics))
        weights = weights_of(algorithm)
        with pytest.raises(MemR1Error, match="all stages are through"):
            algorithm.train()
    finally:
        algorithm.stop()

    assert len(got) == 62
    for step, (mine, reference) in enumerate(zip(got, expected, strict=True), start=1):
        assert mine == pytest.approx(reference, rel=1e-5, abs=1e-6, nan_ok=True), f"step {step}"
    assert_equal_weights(weights, expected_weights, tolerance=1e-6)
    # a test in which nothing is rewarded or learnt would prove little
    assert 0.05 < got[-1]["reward/mean"] < 0.999
    assert "learner/skipped" not in got[-2]
    # RLlib's face
    assert "reward" not in results[0]
    assert results[-1]["reward"]["mean"] == got[-1]["reward/mean"]
    assert [r["done"] for r in results] == [False] * 61 + [True]
    assert results[-1]["training_iteration"] == 62
    assert heard == ["init", *[m["learner/loss"] for m in got]]
    assert [line["step"] for line in read_metrics(config.run_dir)] == list(range(1, 63))


def test_train_four_equals_train_two_then_save_and_go_on_from_the_rllib_checkpoint(ray_cluster, make_config, tmp_path):
    from ray.rllib.algorithms.algorithm import Algorithm

    from memr1.rllib.algorithm import MemoryR1Config
    from memr1.training.runlog import read_metrics

    expected, expected_weights = train_locally(make_config(tmp_path, "name=local", "stages.0.learning_rate=1e-2"))
    config = make_config(tmp_path, "name=ray", "stages.0.learning_rate=1e-2")
    algorithm = MemoryR1Config().experiment(config).build_algo()
    try:
        got = [algorithm.train()["learner"]["loss"] for _ in range(2)]
        folder = algorithm.save_to_path(str(tmp_path / "saved"))
        algorithm.train()  # a step that is thrown away
    finally:
        algorithm.stop()
    again = Algorithm.from_checkpoint(folder)
    try:
        assert again.training_iteration == 2
        got += [again.train()["learner"]["loss"] for _ in range(2)]
        assert again.training_iteration == 4
        weights = weights_of(again)
    finally:
        again.stop()
    assert got == pytest.approx([m["learner/loss"] for m in expected], abs=1e-6)
    assert_equal_weights(weights, expected_weights, tolerance=1e-6)
    assert [line["step"] for line in read_metrics(config.run_dir)] == [1, 2, 3, 4]


def test_memr1_train_goes_on_where_it_was_stopped(ray_cluster, make_config, tmp_path):
    """Through `memr1 train --resume auto`, with the other role's weights carried along."""
    from dataclasses import replace

    from rich.console import Console
    from safetensors.numpy import load_file

    from memr1.training.checkpoints import committed
    from memr1.training.run import train
    from memr1.training.runlog import read_metrics

    quiet = Console(quiet=True)
    whole = make_config(tmp_path, "name=ray", "stages.0.steps=2")
    expected, expected_weights = train_locally(make_config(tmp_path, "name=local", "stages.0.steps=2"))
    first = replace(whole, output=str(tmp_path / "runs"))
    session_end = train(first, console=quiet)
    for path in committed(session_end)[1:]:  # as if it had died after the first checkpoint
        (path / "COMMITTED").unlink()
    train(first, resume="auto", console=quiet)
    lines = read_metrics(session_end)
    assert [line["step"] for line in lines] == [1, 2]
    assert [line["learner/loss"] for line in lines] == pytest.approx([m["learner/loss"] for m in expected], abs=1e-6)
    saved = load_file(committed(session_end)[-1] / "policies" / "answerer" / "adapter_model.safetensors")
    assert len(saved) == len(expected_weights)
    gap = max(float(np.abs(saved[name] - expected_weights[name]).max()) for name in saved)
    assert gap <= 1e-6


def test_an_experiment_is_required_and_checked(ray_cluster, tmp_path):
    from memr1.config import Config
    from memr1.rllib.algorithm import MemoryR1Config

    with pytest.raises(MemR1Error, match=r"call \.experiment"):
        MemoryR1Config().build_algo()
    with pytest.raises(MemR1Error, match="stages: the configuration has none"):
        MemoryR1Config().experiment(Config(output=str(tmp_path))).build_algo()


def test_a_start_that_fails_late_leaves_no_actors_behind(ray_cluster, make_config, tmp_path):
    import ray

    from memr1.rllib.algorithm import MemoryR1Config

    def refuse(**_: Any) -> None:
        raise ZeroDivisionError("a callback of the user's")

    whole = ray.cluster_resources()["CPU"]
    builder = MemoryR1Config().experiment(make_config(tmp_path, "rollout.num_runners=2"))
    with pytest.raises(ZeroDivisionError, match="a callback of the user's"):
        builder.callbacks(on_algorithm_init=refuse).build_algo()
    end = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < whole and time.monotonic() < end:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == whole


@pytest.mark.timeout(600)
def test_playing_ahead_overlaps_with_the_update_and_gives_what_the_local_backend_gives(
    ray_cluster, make_config, tmp_path
):
    from threading import Event, get_ident

    from memr1.rllib.algorithm import MemoryR1Config

    ahead = (*LEARNABLE, "rollout.max_staleness=1")
    expected, expected_weights = train_locally(with_grpo(make_config(tmp_path, "name=local", *ahead), 4))
    algorithm = MemoryR1Config().experiment(with_grpo(make_config(tmp_path, "name=ray", *ahead), 4)).build_algo()
    trainer, pool = algorithm.trainer, algorithm.pool
    playing, updating, driver = Event(), Event(), get_ident()
    overlaps = 0

    def play(method, items, play=pool.map, **kwargs):
        if get_ident() == driver:
            return play(method, items, **kwargs)
        playing.set()
        assert updating.wait(60), "the learner waits until the groups are played"
        return play(method, items, **kwargs)

    def update(learners, sequences, update=trainer._update, **kind):
        nonlocal overlaps
        if trainer.ahead is not None:
            updating.set()
            assert playing.wait(60), "the groups wait until the learner has updated"
            overlaps += 1
        metrics = update(learners, sequences, **kind)
        if trainer.ahead is not None:
            trainer.ahead.result()
        playing.clear()
        updating.clear()
        return metrics

    pool.map, trainer._update = play, update
    try:
        got = []
        while not trainer.done:
            algorithm.train()
            got.append(numbers(algorithm.step_metrics))
        weights = weights_of(algorithm)
    finally:
        algorithm.stop()
    for step, (mine, reference) in enumerate(zip(got, expected, strict=True), start=1):
        assert mine == pytest.approx(reference, rel=1e-5, abs=1e-6, nan_ok=True), f"step {step}"
    assert_equal_weights(weights, expected_weights, tolerance=1e-6)
    assert overlaps == 3  # the last step of a stage has nothing to play ahead
    assert [m["rollout/staleness"] for m in got[60:]] == [0, 1, 1, 1]
    assert got[-1]["learner/max_rollout_mismatch"] > 1e-3  # older weights sampled, so there is something to correct
