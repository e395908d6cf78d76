"""Where actors go: plain arithmetic over nodes, without Ray."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memr1.config import (
    AgentsConfig,
    AlgoConfig,
    ClaimConfig,
    Config,
    LearnerConfig,
    ModelConfig,
    PlacementConfig,
    RolloutConfig,
    StageConfig,
)
from memr1.config_file import load_config
from memr1.errors import MemR1Error
from memr1.rllib import placement
from memr1.rllib.placement import Node, actors, ensure, place, roles
from memr1.rllib.resources import Shares, shares
from memr1.rollout.endpoint import EndpointConfig


def config(num_runners: int, num_learners: int, **where: object) -> Config:
    return Config(
        rollout=RolloutConfig(num_runners=num_runners),
        learner=LearnerConfig(num_learners=num_learners),
        placement=PlacementConfig(**where),  # type: ignore[arg-type]
    )


def node(name: str, cpus: float, gpus: float = 0, used: float = 0, **labels: str) -> Node:
    total = {"CPU": cpus, "GPU": gpus}
    return Node(name, total, {"CPU": cpus - used, "GPU": gpus}, labels)


def claims_of(c: Config):  # type: ignore[no-untyped-def]
    def claims(nodes: list[Node]) -> Shares:
        return shares(c, sum(n.total["CPU"] for n in nodes), sum(n.total["GPU"] for n in nodes), len(nodes))

    return claims


def homes(c: Config, nodes: list[Node], strategy: str) -> object:
    found, without = place(actors(c, claims_of(c)(nodes)), nodes, strategy)
    return [a.name for a in without] or found


def test_learners_are_spread_packed_or_neither_if_that_is_strict():
    two = [node("a", 8), node("b", 8)]
    c = config(2, 2)
    spread, packed = homes(c, two, "spread"), homes(c, two, "pack")
    assert {spread["learner 0"], spread["learner 1"]} == {"a", "b"}  # type: ignore[index]
    assert packed["learner 0"] == packed["learner 1"]  # type: ignore[index]
    assert homes(config(1, 3), two, "strict-spread") == ["learner 2"]
    small = [node("a", 1), node("b", 1), node("c", 1), node("d", 1)]
    assert homes(config(1, 2), small, "strict-pack") == ["learner 0", "learner 1"]
    by_gpu = [node("a", 8, gpus=1), node("b", 4, gpus=2), node("c", 4, gpus=1)]
    found = homes(config(2, 2), by_gpu, "strict-pack")
    assert (found["learner 0"], found["learner 1"]) == ("b", "b")  # type: ignore[index]
    assert len(homes(config(1, 2), small, "pack")) == 3  # type: ignore[arg-type]


def test_labels_decide_which_nodes_come_into_question():
    c = config(2, 1, runners=ClaimConfig(labels={"pool": "rollout"}), learners=ClaimConfig(labels={"pool": "learn"}))
    nodes = [node("a", 8, pool="rollout"), node("b", 8, pool="learn"), node("c", 8)]
    assert homes(c, nodes, "spread") == {"learner 0": "b", "runner 1": "a", "runner 2": "a"}
    assert homes(c, nodes[1:], "spread") == ["runner 1", "runner 2"]


def test_gpus_are_shared_or_kept_apart_and_what_is_named_is_taken():
    c = config(2, 1)
    shared = shares(c, 8, 1, 1)
    assert (shared.runner_gpus, shared.learner_gpus) == (0.2, 0.6)
    with pytest.raises(MemR1Error, match="placement.gpus is apart: 1 learners and 2 runners need at least 2 GPUs"):
        shares(config(2, 1, gpus="apart"), 8, 1, 1)
    assert shares(config(2, 1, gpus="apart"), 8, 2, 1).runner_gpus == 0.5
    named = config(2, 1, runners=ClaimConfig(cpus=3, gpus=0.25), learners=ClaimConfig(gpus=0.5))
    assert shares(named, 8, 1, 1) == Shares(3, 0.25, 1.0, 0.5, 2)


@pytest.mark.parametrize(
    ("runners", "gpus", "where", "most"),
    [
        (41, 1, {}, 40),
        (101, 2, {}, 100),
        (101, 2, {"gpus": "apart"}, 100),
        (21, 1, {"num_embedders": 1, "embedders": ClaimConfig(gpus=0.2)}, 20),
        (41, 2, {"num_embedders": 1, "embedders": ClaimConfig(gpus=1)}, 40),
    ],
)
def test_more_runners_than_shares_of_a_gpu_are_refused_with_how_many_there_may_be(runners, gpus, where, most):
    assert shares(config(most, 1, **where), 64, gpus, 1).runner_gpus == 0.01
    told = (
        rf"rollout.num_runners: {runners} runners are wanted.* room for {most} with 0.01 .*placement.runners.gpus=0.001"
    )
    with pytest.raises(MemR1Error, match=told):
        shares(config(runners, 1, **where), 64, gpus, 1)
    assert shares(config(runners, 1, runners=ClaimConfig(gpus=0.001), **where), 64, gpus, 1).runner_gpus == 0.001


def test_the_plan_says_of_each_of_the_five_roles_where_it_lives():
    c = replace(
        config(2, 1, num_embedders=2, embedders=ClaimConfig(cpus=0.5, gpus=0.1, labels={"pool": "embed"})),
        algo=AlgoConfig(kl_coef=0.001),
        stages=(StageConfig(role="manager"),),
    )
    nodes = [node("a", 4, gpus=1), node("b", 3, gpus=1, pool="embed")]
    _, plan = ensure(c, claims_of(c), lambda: nodes)
    assert plan == [
        "a, 4 CPU + 1 GPU free: learner 0 (1 CPU + 1 GPU)",
        "b, 3 CPU + 1 GPU free: embedder 1 (0.5 CPU + 0.1 GPU), embedder 2 (0.5 CPU + 0.1 GPU), "
        "runner 1 (1 CPU + 0.4 GPU), runner 2 (1 CPU + 0.4 GPU)",
        "rollout: in 2 runners",
        "learner: in 1 learner",
        "reference: in every learner, a frozen adapter",
        "reward: in every runner; answers for the manager by the answerer there",
        "embedder: minilm in 2 embedders for all runners",
    ]
    served = replace(
        c,
        agents=AgentsConfig(answerer_endpoint=EndpointConfig("http://one:8000/v1", "qwen")),
        judge=EndpointConfig("http://two:8000/v1", "llama"),
    )
    assert roles(served)[3] == (
        "reward: in every runner; answers for the manager by qwen at http://one:8000/v1; "
        "judge llama at http://two:8000/v1"
    )


def test_a_share_of_a_gpu_lies_on_one_gpu():
    """As Ray has it: two GPUs that are half free are not one that is free."""
    c = config(1, 2, learners=ClaimConfig(gpus=0.6), runners=ClaimConfig(gpus=0.6))
    assert homes(c, [node("a", 8, gpus=2)], "pack") == ["runner 1"]
    assert len(homes(c, [node("a", 8, gpus=3)], "pack")) == 3  # type: ignore[arg-type]
    c = config(1, 1, learners=ClaimConfig(gpus=2), runners=ClaimConfig(gpus=0.5))
    partly = Node("a", {"CPU": 8, "GPU": 3}, {"CPU": 8, "GPU": 2.4})
    assert homes(c, [partly], "pack") == ["runner 1"]


def fits(gpus: int, *claims: tuple[float, int]) -> bool:
    """Whether claims (share, how many) fit on so many GPUs, each given the GPU where it leaves least; in hundredths."""
    free = [100] * gpus
    for share, times in claims:
        for _ in range(times):
            homes = [i for i in range(gpus) if free[i] >= round(share * 100)]
            if not homes:
                return False
            free[min(homes, key=lambda i: free[i])] -= round(share * 100)
    return True


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("count", "share"), [(1, 0.1), (2, 0.15), (2, 0.5), (3, 0.3), (1, 1.0), (2, 1.0)])
def test_what_embedders_claim_is_left_over_by_runners_and_learners(gpus, count, share):
    """Against a plain count of each GPU; refused is only what would not fit with next to nothing for the runners."""
    for learners in range(1, gpus + 1):
        for runners in (1, 2, 3, 5, 8):
            c = config(runners, learners, num_embedders=count, embedders=ClaimConfig(gpus=share))
            try:
                s = shares(c, 64, gpus, 1)
            except MemR1Error as error:
                assert "embedders" in str(error)
                assert not fits(gpus, (0.6, learners), (share, count), (0.01, runners))
                continue
            assert s.embedder_gpus == share and s.runner_gpus > 0
            assert fits(gpus, (s.learner_gpus, learners), (share, count), (s.runner_gpus, runners)), (learners, s)
            assert not place(actors(c, s), [node("a", 64, gpus)], "pack")[1]


def test_no_actor_is_placed_where_another_one_has_taken_the_room():
    """Against a plain count: on every node, what is placed fits into what was free."""
    nodes = [node("a", 4, 1), node("b", 8, 2, used=3), node("c", 2, 1)]
    c = config(5, 2)
    wanted = actors(c, claims_of(c)(nodes))
    found, without = place(wanted, nodes, "spread")
    assert not without and set(found) == {a.name for a in wanted}
    for n in nodes:
        for resource in ("CPU", "GPU"):
            assert sum(a.claim[resource] for a in wanted if found[a.name] == n.name) <= n.free[resource] + 1e-6


def test_what_does_not_fit_is_refused_with_what_is_wanted_and_what_is_free():
    c = config(1, 1, learners=ClaimConfig(cpus=4, labels={"pool": "learn"}))
    nodes = [node("10.0.0.1", 8, used=6, pool="learn")]
    nodes_now = [replace(nodes[0], total={"CPU": 2, "GPU": 0}, free={"CPU": 2, "GPU": 0})]
    with pytest.raises(MemR1Error) as error:
        ensure(c, claims_of(c), lambda: nodes_now)
    said = str(error.value)
    assert "placement: 1 of 2 actors do not fit. Wanted: learner 0: 4 CPU on {'pool': 'learn'}." in said
    assert "Free: 10.0.0.1: 2 CPU + 0 GPU of 2 CPU + 0 GPU, labels {'pool': 'learn'}" in said
    assert "Lower rollout.num_runners or learner.num_learners, claim less" in said
    assert "placement.wait_s" in said
    apart = replace(c, placement=replace(c.placement, num_embedders=2, embedders=ClaimConfig(cpus=2)))
    with pytest.raises(MemR1Error) as error:
        ensure(apart, claims_of(apart), lambda: [node("10.0.0.1", 6, pool="learn")])
    said = str(error.value)
    assert "placement: 2 of 4 actors do not fit. Wanted: embedder 2: 2 CPU; runner 1: " in said
    assert "Lower placement.num_embedders, rollout.num_runners or learner.num_learners, claim less" in said
    assert "placement.embedders.cpus=0.5" in said


def test_a_cluster_that_is_busy_for_a_moment_is_waited_for(monkeypatch):
    monkeypatch.setattr(placement, "POLL_S", 0.0)
    c = config(1, 1)
    states = [[node("a", 4, used=3.5)], [node("a", 4, used=2.5)], [node("a", 4)]]
    fitted, plan = ensure(c, claims_of(c), lambda: states.pop(0))
    assert states == [] and fitted.runner_cpus == 1.0
    assert plan == [
        "a, 4 CPU + 0 GPU free: learner 0 (1 CPU), runner 1 (1 CPU)",
        "rollout: in 1 runner",
        "learner: in 1 learner",
        "reference: not needed",
        "reward: in every runner",
        "embedder: minilm in every runner, on the CPU",
    ]


def test_nodes_that_are_still_to_come_are_waited_for_and_asked_of_an_autoscaler(monkeypatch):
    monkeypatch.setattr(placement, "POLL_S", 0.0)
    asked: list[int] = []
    monkeypatch.setattr(placement, "_ask_autoscaler", lambda wanted: asked.append(len(wanted)))
    c = config(2, 1, wait_s=60)
    states: list[list[Node]] = [[node("head", 0)], [node("head", 0)], [node("head", 0), node("b", 8)]]
    fitted, plan = ensure(c, claims_of(c), lambda: states.pop(0))
    assert states == [] and asked == [3, 0]  # asked once, and taken back when the actors are the demand themselves
    assert plan[0].startswith("b, 8 CPU") and fitted.runner_cpus == 1.0


def test_without_waiting_missing_nodes_fail_at_once():
    c = config(1, 1)
    calls = []
    with pytest.raises(MemR1Error, match="Free: head: 0 CPU"):
        ensure(c, claims_of(c), lambda: calls.append(1) or [node("head", 0)])
    assert len(calls) == 1


def test_gpus_asked_for_that_are_not_there_are_named():
    c = replace(config(1, 1), model=ModelConfig(device="cuda"))
    with pytest.raises(
        MemR1Error, match="Wanted: learner 0: 1 CPU \\+ 1 GPU; runner 1: 1 CPU \\+ 1 GPU. Free: a: 8 CPU"
    ):
        ensure(c, claims_of(c), lambda: [node("a", 8)])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("placement.runners.gpus=1.5", "placement.runners.gpus: must be whole above 1"),
        ("placement.learners.cpus=-1", "placement.learners.cpus: must be at least 0"),
        ("placement.embedders.gpus=-0.1", "placement.embedders.gpus: must be at least 0"),
        ("placement.num_embedders=-1", "placement.num_embedders: must be at least 0"),
        ("placement.strategy=together", "placement.strategy"),
        ("placement.runners.gpu=1", "did you mean gpus"),
    ],
)
def test_placement_settings_are_checked(setting, message):
    with pytest.raises(MemR1Error, match=message):
        load_config(None, [setting])


def test_a_node_that_has_been_told_to_go_is_no_place_for_an_actor(monkeypatch):
    import ray
    from ray._private import state

    names = {"aa": "10.0.0.1", "bb": "10.0.0.2", "cc": "10.0.0.3"}
    told = [
        {"NodeID": i, "Alive": i != "cc", "NodeManagerAddress": address, "Resources": {"CPU": 4.0}, "Labels": {}}
        for i, address in names.items()
    ]
    monkeypatch.setattr(ray, "nodes", lambda: told)
    monkeypatch.setattr(state, "available_resources_per_node", lambda: {i: {"CPU": 3.0} for i in names})
    monkeypatch.setattr(state.state, "get_draining_nodes", lambda: {"bb": 0})
    assert placement.leaving_nodes() == {"bb"}
    assert placement.cluster_nodes() == [Node("10.0.0.1", {"CPU": 4.0}, {"CPU": 3.0})]
