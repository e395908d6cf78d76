"""The real loop and pool over many runners in simulated time (benchmarks/simulated_cluster.py); no cluster, no model.

Not covered: what Ray itself does; that is in test_pool.py, with two real runners.
"""

from __future__ import annotations

import logging
import math
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError

from memr1.data.factworld import FactWorldConfig
from memr1.data.load import load_dialogues
from memr1.errors import MemR1Error
from memr1.rllib.dispatch import LOOK_S
from memr1.rllib.learner_group import LearnersLost
from memr1.rllib.shipment import Shipment
from memr1.rollout.runner import Play

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import controller

    return controller


def tasks(count: int) -> list[Any]:
    """The tasks of a few worlds, again and again under other names."""
    from simulated_actors import tasks_of

    dialogues = load_dialogues("factworld", None, "train", FactWorldConfig(num_worlds=4))
    some = [t.playable for d in dialogues for t in tasks_of(d)]
    return [replace(some[n % len(some)], id=f"{some[n % len(some)].id}#{n}") for n in range(count)]


def played(controller: Any, folder: Path, scenario: Any) -> tuple[list[Any], float, Any]:
    """All groups of a scenario played once: trajectories, simulated seconds, and the pool."""
    with controller.simulated(scenario, folder) as (_, pool, clock):
        plays = [Play(task, 100 * n + m) for n, task in enumerate(tasks(scenario.prompts)) for m in range(8)]
        began = clock.monotonic()
        trajectories = pool.map("play", plays, reward="em_set", temperature=1.0)
        return trajectories, clock.monotonic() - began, pool


def same(a: list[Any], b: list[Any]) -> bool:
    return [(t.task_id, t.seed, t.reward) for t in a] == [(t.task_id, t.seed, t.reward) for t in b]


def test_a_slow_runner_is_named_with_its_node_and_the_waiting_of_the_others_is_counted(controller, tmp_path, caplog):
    scenario = controller.Scenario(8, prompts=32, stragglers=1 / 8, slower=4.0)
    with caplog.at_level(logging.WARNING):
        _, seconds, pool = played(controller, tmp_path, scenario)
        balance = pool._balance()
    busiest = max(pool.last_busy, key=lambda key: pool.last_busy[key])
    assert f"runner {busiest[0]} on {busiest[1]} played for {balance['busiest_runner_s']:.1f} s" in caplog.text
    assert balance["busiest_runner_s"] == pytest.approx(seconds, abs=0.5)
    busy = sum(pool.last_busy.values())
    assert balance["runner_idle_fraction"] == pytest.approx(1 - busy / (8 * seconds), abs=0.02)
    assert 0.5 < balance["runner_idle_fraction"] < 0.75, "seven of eight wait three quarters of the time"
    caplog.clear()
    _, _, pool = played(controller, tmp_path / "even", controller.Scenario(8, prompts=32))
    assert pool._balance()["runner_idle_fraction"] < 0.25
    assert "played for" not in caplog.text


def test_more_parts_even_out_a_slow_runner_and_change_no_rollout(controller, tmp_path):
    slow = {"prompts": 64, "stragglers": 1 / 16, "slower": 4.0}
    whole, seconds, _ = played(controller, tmp_path / "1", controller.Scenario(16, **slow))
    parts, fewer, _ = played(controller, tmp_path / "4", controller.Scenario(16, parts=4, **slow))
    assert same(whole, parts)
    assert fewer < 0.6 * seconds


@pytest.mark.parametrize("parts", [1, 4])
def test_runners_that_die_lose_nothing_and_hold_up_nobody_for_long(controller, tmp_path, parts):
    calm, seconds, _ = played(controller, tmp_path / "calm", controller.Scenario(64, prompts=256, parts=parts))
    scenario = controller.Scenario(64, prompts=256, parts=parts, losses=3.0)
    troubled, more, pool = played(controller, tmp_path / "troubled", scenario)
    assert pool.replaced >= 1
    assert same(calm, troubled)
    assert more < 1.7 * seconds, "what was lost is cut up and shared"


def test_a_runner_that_comes_back_takes_a_part_while_the_other_is_still_at_work(controller, tmp_path):
    scenario = controller.Scenario(2, prompts=2)
    with controller.simulated(scenario, tmp_path) as (_, pool, clock):
        plays = [Play(task, n) for n, task in enumerate(tasks(120))]
        began = clock.monotonic()
        pool.map("play", plays, reward="em_set", temperature=1.0)
        calm = clock.monotonic() - began
        pool._manager.actors()[1]._death = clock.monotonic() + 1.0
        began = clock.monotonic()
        assert len(pool.map("play", plays, reward="em_set", temperature=1.0)) == 120
        late = clock.monotonic() - began - calm
    assert calm > 3 * controller.RESTART_S, "else waiting for the other one would cost no more"
    assert late < controller.RESTART_S + LOOK_S + 0.2 * calm


def test_a_runner_that_stays_away_is_asked_once_and_holds_up_nobody(controller, tmp_path, monkeypatch):
    from simulated_cluster import Reference

    with controller.simulated(controller.Scenario(2, prompts=2), tmp_path) as (_, pool, clock):
        asked: list[Reference] = []

        def ping() -> Reference:  # of an actor that Ray finds no room for
            asked.append(Reference(math.inf, b""))
            return asked[-1]

        away = pool._manager.actors()[2]
        monkeypatch.setattr(away, "ping", SimpleNamespace(remote=ping), raising=False)
        pool._lost(2, ActorDiedError())
        began = clock.monotonic()
        assert [pool.ready() for _ in range(100)] == [[1]] * 100
        assert clock.monotonic() - began < 50, "simulated seconds: not one for each call"
        assert len(asked) == 1
        asked[0].ready, asked[0].payload = clock.monotonic(), pickle.dumps("pong")
        assert sorted(pool.ready()) == [1, 2]


def test_a_runner_that_cannot_be_made_is_left_out_with_the_reason(controller, tmp_path, monkeypatch, caplog):
    from simulated_cluster import Reference

    with controller.simulated(controller.Scenario(2, prompts=2), tmp_path) as (_, pool, clock):
        why = MemR1Error("output: runner 2 on 10.0.0.7 does not see the run folder")
        refused = ActorDiedError(RayTaskError("__init__", "", why, ip="10.0.0.7"))
        ping = SimpleNamespace(remote=lambda: Reference(clock.monotonic(), error=refused))
        monkeypatch.setattr(pool._manager.actors()[2], "ping", ping, raising=False)
        pool._lost(2, ActorDiedError())
        with caplog.at_level(logging.WARNING):
            assert [pool.ready() for _ in range(5)] == [[1]] * 5
    said = "runner 2 cannot be made, and the others go on without it: output: runner 2 on 10.0.0.7"
    assert caplog.text.count(said) == 1


def test_weights_that_went_with_a_learners_node_cost_the_steps_since_the_checkpoint(controller, tmp_path, monkeypatch):
    from simulated_actors import SimulatedRunner
    from simulated_cluster import Reference

    monkeypatch.setattr(SimulatedRunner, "load_policies", lambda self, folder, roles: None, raising=False)
    with controller.simulated(controller.Scenario(2, prompts=2), tmp_path) as (_, pool, clock):
        monkeypatch.setattr(pool, "first", lambda method, roles: [])
        gone = Reference(clock.monotonic(), error=ObjectLostError("ab" * 28, None, ""))
        pool._weights["answerer"] = Shipment("answerer", 7, gone, (gone,))
        pool._unarmed.add(1)
        with pytest.raises(LearnersLost, match="no runner can join any more: the weights of answerer are lost"):
            pool.ready()
        pool.load_policies("checkpoint")
        assert sorted(pool.ready()) == [1, 2] and not pool._unarmed


def test_a_way_that_never_works_is_tried_twice_and_what_costs_a_runner_is_not_its_fault(
    controller, tmp_path, monkeypatch, caplog
):
    with controller.simulated(controller.Scenario(2, prompts=2), tmp_path) as (_, pool, _):
        pool._collective = True
        deaths = iter([0, 1, 0])
        tried: list[int] = []

        def fails(*_: Any) -> None:
            tried.append(next(deaths))
            pool.replaced += tried[-1]

        monkeypatch.setattr(pool, "_open_channel", fails)
        with caplog.at_level(logging.WARNING):
            assert [pool.broadcast(None, "answerer", n) for n in range(5)] == [False] * 5
    assert tried == [0, 1, 0], "after two failures the object store is used"
    assert caplog.text.count("Set rollout.weight_transfer=objects") == 1 and "NCCL_SOCKET_IFNAME" in caplog.text


def test_a_thousand_runners_play_every_rollout_once(controller, tmp_path):
    trajectories, _, pool = played(controller, tmp_path, controller.Scenario(1024, prompts=1100))
    assert len(trajectories) == 8 * 1100 and pool.num_ready == 1024
    assert len({(t.task_id, t.seed) for t in trajectories}) == 8 * 1100


def test_playing_ahead_hides_the_update_in_simulated_time_as_it_would_in_real(controller):
    turns = controller.run(controller.Scenario(8, prompts=16))
    ahead = controller.run(controller.Scenario(8, prompts=16, ahead=True))
    assert ahead.step_s < turns.step_s
    assert ahead.step_s >= ahead.ideal_s - 0.5
