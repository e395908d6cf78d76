"""Runners that die, fall behind or fail: the pool's promises, with two runners. Not covered: lost nodes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from memr1.errors import MemR1Error
from memr1.rollout.engine import WeightUpdate
from memr1.rollout.runner import Play

recreated: list[int] = []
"""What RLlib's callback was told."""


@pytest.fixture(scope="module")
def algorithm(ray_cluster, make_config, tmp_path_factory) -> Iterator:
    from memr1.rllib.algorithm import MemoryR1Config

    config = make_config(
        tmp_path_factory.mktemp("pool"),
        "rollout.num_runners=2",
        "stages.0.objective=grpo",
        "rollout.answer_max_new_tokens=4",
    )
    builder = MemoryR1Config().experiment(config)
    builder.callbacks(on_env_runners_recreated=lambda env_runner_indices, **_: recreated.extend(env_runner_indices))
    algorithm = builder.build_algo()
    (algorithm.first_weights,) = algorithm.pool.first("export_weights", ("answerer",))
    yield algorithm
    algorithm.stop()


@pytest.fixture
def pool(algorithm):
    return algorithm.pool


def versions(pool) -> dict[int, int]:
    return {i: v["answerer"] for i, v in pool._everywhere("weight_versions", timeout_s=60).items()}


def perturbed(pool, version: int) -> WeightUpdate:
    (update,) = pool.first("export_weights", ("answerer",))
    rng = np.random.default_rng(version)
    return WeightUpdate.build(
        "answerer",
        version,
        {n: t + 0.05 * rng.standard_normal(t.shape).astype("f4") for n, t in update.tensors.items()},
    )


def push(pool, update: WeightUpdate) -> None:
    from memr1.rllib.shipment import Shipment

    pool.push(Shipment.send(update))


def plays(pool, config, members: int) -> list[Play]:
    from memr1.training.worlds import training_dialogues

    tasks = pool.map("build_tasks", training_dialogues(config), role="answerer", bank="oracle")
    return [Play(t.task, 100 * i + m) for i, t in enumerate(tasks[:6]) for m in range(members)]


def completions(trajectories) -> list[tuple[int, ...]]:
    return [s.sequence.completion_ids for t in trajectories for s in t.steps]


def die_in(pool, runner: int, method: str) -> None:
    """Make the next call of a method end the runner's process, as running out of memory would."""

    wait_for(lambda: len(pool.ready()) == 2)

    def inject(env_runner, method=method) -> None:
        setattr(env_runner.runner, method, lambda *args, **kwargs: os._exit(1))

    (result,) = pool._manager.foreach_actor(inject, remote_actor_ids=[runner])
    assert result.ok


def test_push_returns_when_both_runners_have_the_version(pool):
    push(pool, perturbed(pool, 3))
    assert versions(pool) == {1: 3, 2: 3}


def test_weights_that_travel_in_many_parts_arrive_whole(pool, monkeypatch):
    from memr1.rllib import shipment

    update = perturbed(pool, 1)
    monkeypatch.setattr(shipment, "PART_BYTES", 4096)
    push(pool, update)
    assert len(pool._weights["answerer"].parts) > 5
    checksums = [u.checksum for (u,) in pool._everywhere("export_weights", ("answerer",), timeout_s=60).values()]
    assert checksums == [update.checksum] * 2


def test_damaged_weights_are_refused_and_both_runners_keep_the_old_ones(pool):
    push(pool, perturbed(pool, 4))
    damaged = replace(perturbed(pool, 5), checksum="0" * 32)
    with pytest.raises(ValueError, match="answerer v5 were damaged on the way"):
        push(pool, damaged)
    assert versions(pool) == {1: 4, 2: 4}


def test_a_runner_that_dies_while_playing_is_replaced_and_its_part_played_again(pool, algorithm):
    push(pool, perturbed(pool, 6))
    work = plays(pool, algorithm.trainer.config, members=2)
    undisturbed = pool.map("play", work, reward="f1", temperature=1.0)
    before = pool.replaced
    die_in(pool, 1, "play")
    disturbed = pool.map("play", work, reward="f1", temperature=1.0)
    assert pool.replaced == before + 1
    assert [t.task_id for t in disturbed] == [p.task.id for p in work]
    assert completions(disturbed) == completions(undisturbed)
    assert {s.sequence.weight_version for t in disturbed for s in t.steps} == {6}
    wait_for(lambda: len(pool.ready()) == 2)
    assert versions(pool) == {1: 6, 2: 6}


def test_a_runner_replaced_between_calls_gets_the_current_weights_before_it_plays(pool, algorithm):
    """Ray restarts the process by itself; nothing was in flight, so nobody was told."""
    import ray

    push(pool, perturbed(pool, 7))
    work = plays(pool, algorithm.trainer.config, members=1)
    undisturbed = pool.map("play", work, reward="f1", temperature=1.0)
    before = pool.replaced
    actor = pool._manager.actors()[2]
    old = process_of(actor)
    ray.kill(actor, no_restart=False)
    wait_for(lambda: process_of(actor) not in (old, None))
    disturbed = pool.map("play", work, reward="f1", temperature=1.0)
    assert completions(disturbed) == completions(undisturbed)
    assert {s.sequence.weight_version for t in disturbed for s in t.steps} == {7}
    assert pool.replaced == before
    assert versions(pool) == {1: 7, 2: 7}


def test_a_runner_that_dies_during_a_push_has_the_new_version_when_the_push_returns(pool):
    push(pool, perturbed(pool, 8))
    update = perturbed(pool, 9)
    die_in(pool, 2, "load_weights")
    push(pool, update)
    wait_for(lambda: len(pool.ready()) == 2)
    assert versions(pool) == {1: 9, 2: 9}


@pytest.mark.parametrize("phase", ["build_tasks", "evaluate", "save_policies", "load_policies", "pop_timings"])
def test_a_runner_that_dies_in_any_other_phase_is_replaced_and_the_phase_completes(pool, algorithm, tmp_path, phase):
    from memr1.training.worlds import training_dialogues

    update = perturbed(pool, 20)
    push(pool, update)
    pool.first("save_policies", str(tmp_path / "before"))
    dialogues = training_dialogues(algorithm.trainer.config)
    calls = {
        "build_tasks": lambda: [t.task.id for t in pool.map("build_tasks", dialogues, role="answerer", bank="oracle")],
        "evaluate": lambda: [
            p.answer
            for predictions, _ in pool.map("evaluate", dialogues, system="add-everything", benchmark="factworld")
            for p in predictions
        ],
        "save_policies": lambda: pool.first("save_policies", str(tmp_path / "saved")),
        "load_policies": lambda: pool.load_policies(str(tmp_path / "before"), ("answerer",)),
        "pop_timings": lambda: (pool.pop_timings(), None)[1],  # what a dead runner measured is gone
    }
    undisturbed = calls[phase]()
    before = pool.replaced
    die_in(pool, 1, phase)
    assert calls[phase]() == undisturbed
    assert pool.replaced == before + 1
    wait_for(lambda: len(pool.ready()) == 2)
    assert versions(pool) == {1: 20, 2: 20}
    (weights,) = pool.first("export_weights", ("answerer",))
    assert weights.checksum == update.checksum
    if phase == "save_policies":
        saved = tmp_path / "saved" / "answerer" / "adapter_model.safetensors"
        assert saved.read_bytes() == (tmp_path / "before" / "answerer" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("apart", "said"), [(100.0, "behind"), (-100.0, "ahead of")])
def test_clocks_that_are_apart_are_reported_with_the_node(pool, monkeypatch, caplog, apart, said):
    from memr1.rllib import pool as pool_module

    driver = SimpleNamespace(time=lambda: time.time() + apart, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(pool_module, "time", driver)
    pool._unarmed.add(1)
    pool.ready()
    told = re.search(rf"runner (\d): the clock of \S+ is (\d+) s {said} the driver's.* by NTP", caplog.text)
    assert told is not None, caplog.text
    assert told[1] == "1" and 60 <= int(told[2]) <= 100, "less what the answer took on a busy machine"
    caplog.clear()
    monkeypatch.undo()
    pool._unarmed.add(1)
    pool.ready()
    assert "clock" not in caplog.text


def test_an_error_in_a_runner_comes_out_as_it_is_and_ends_no_runner(pool, tmp_path):
    before = pool.replaced
    with pytest.raises(MemR1Error, match=str(tmp_path)) as caught:
        pool.load_policies(str(tmp_path / "nothing"), ("answerer",))
    assert "in the runner" in "".join(caught.value.__notes__)
    assert len(pool.ready()) == 2
    assert pool.replaced == before


def test_training_goes_on_when_a_runner_dies_in_a_step(algorithm, pool):
    # other tests push weights that no learner made; training refuses to play with such
    push(pool, WeightUpdate.build("answerer", 10, algorithm.first_weights.tensors))
    algorithm.trainer.state.versions["answerer"] = 10
    die_in(pool, 2, "play")
    before = pool.replaced
    result = algorithm.train()
    assert pool.replaced == before + 1
    assert result["rollout"]["trajectories"] == 8
    assert result["rollout"]["error_fraction"] == 0
    recreated.clear()
    wait_for(lambda: len(pool.ready()) == 2)
    algorithm.train()
    assert recreated == [2]


def wait_for(condition, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.5)


def process_of(actor) -> int | None:
    """Process id of a runner, or None while there is none."""
    import ray

    try:
        return ray.get(actor.apply.remote(lambda env_runner: os.getpid()), timeout=5)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return None
