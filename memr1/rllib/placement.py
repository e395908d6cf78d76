"""Where the actors of a run fit on a cluster: worked out, shown, and refused before anything is started.

The plan is a forecast from what is free now (first fit in the order in which actors are started, the learners first
since they come as a gang). Ray decides in the end; what it cannot place, the plan finds out within seconds instead of a
start that waits for half an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memr1.config import ClaimConfig, Config
from memr1.errors import MemR1Error
from memr1.rllib.resources import Shares
from memr1.storage import url_of

SETTLE_S = 20.0
"""Ray takes a moment to count what actors of a run before have given back."""
RESERVE_S = 60.0
"""Ray places the learners' bundles within moments where there is room."""
POLL_S = 1.0
EPSILON = 1e-6


@dataclass(frozen=True)
class Node:
    """A node of a cluster: resources by Ray's names (CPU, GPU, ...)."""

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Actor:
    """What one actor asks for."""

    name: str
    claim: Mapping[str, float]
    labels: Mapping[str, str]


def actors(config: Config, shares: Shares) -> list[Actor]:
    """All actors of a run in the order in which they are started: learners, embedders, runners."""
    p = config.placement
    learner, runner = claim(shares.learner_cpus, shares.learner_gpus), claim(shares.runner_cpus, shares.runner_gpus)
    embedder = claim(shares.embedder_cpus, shares.embedder_gpus)
    return [
        *(Actor(f"learner {i}", learner, p.learners.labels) for i in range(config.learner.num_learners)),
        *(Actor(f"embedder {i + 1}", embedder, p.embedders.labels) for i in range(p.num_embedders)),
        *(Actor(f"runner {i + 1}", runner, p.runners.labels) for i in range(config.rollout.num_runners)),
    ]


def claim(cpus: float, gpus: float) -> dict[str, float]:
    """A claim by Ray's names."""
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


Room = tuple[float, tuple[float, ...]]
"""What is left of a node: CPUs, and of each GPU. Two GPUs that are half free have no room for a claim of 0.6."""


def room(resources: Mapping[str, float]) -> Room:
    """What a node offers. Of GPUs that are in use in part only the sum is known; they are taken for one."""
    whole, part = divmod(round(resources.get("GPU", 0.0), 4), 1)
    return resources.get("CPU", 0.0), (1.0,) * int(whole) + ((part,) if part else ())


def taken(left: Room, claim: Mapping[str, float]) -> Room | None:
    """What a claim leaves of a node, or None where it does not fit. A share of a GPU goes, as with Ray, where it leaves
    least; more than one takes whole ones."""
    cpus, gpus = left[0] - claim.get("CPU", 0.0), sorted(left[1])
    wanted = claim.get("GPU", 0.0)
    for share in [1.0] * int(wanted) if wanted >= 1 else [wanted] * (wanted > 0):
        home = next((i for i, free in enumerate(gpus) if free + EPSILON >= share), None)
        if home is None:
            return None
        gpus[home] -= share
        gpus.sort()
    return None if cpus < -EPSILON else (cpus, tuple(gpus))


def place(
    wanted: Sequence[Actor], nodes: Sequence[Node], strategy: str, amount: str = "free"
) -> tuple[dict[str, str], list[Actor]]:
    """Node by actor, and the actors that do not fit.

    strategy: of the learners, see `placement.strategy`; others go where most CPUs are left. amount: `free`, or
    `total` to ask whether they would fit on an empty cluster.
    """
    left = {n.name: room(n.total if amount == "total" else n.free) for n in nodes}
    homes: dict[str, str] = {}
    without: list[Actor] = []
    learners_on: list[str] = []
    learners = sum(a.name.startswith("learner") for a in wanted)

    def fits(actor: Actor, node: Node, times: int = 1) -> bool:
        after: Room | None = left[node.name]
        for _ in range(times):
            after = None if after is None else taken(after, actor.claim)
        return after is not None and all(node.labels.get(k) == v for k, v in actor.labels.items())

    for actor in wanted:
        is_learner = actor.name.startswith("learner")
        together = is_learner and strategy == "strict-pack"
        candidates = [n for n in nodes if fits(actor, n, learners - len(learners_on) if together else 1)]
        if together and learners_on:
            candidates = [n for n in candidates if n.name == learners_on[0]]
        if is_learner and strategy == "strict-spread":
            candidates = [n for n in candidates if n.name not in learners_on]
        if not candidates:
            without.append(actor)
            continue
        packs = is_learner and strategy.endswith("pack")
        used = {n.name: learners_on.count(n.name) * (-1 if packs else 1) if is_learner else 0 for n in candidates}
        home = min(candidates, key=lambda n: (used[n.name], -left[n.name][0])).name
        homes[actor.name] = home
        learners_on += [home] if is_learner else []
        after = taken(left[home], actor.claim)
        assert after is not None, "a candidate has room"
        left[home] = after
    return homes, without


def ensure(
    config: Config, claims: Callable[[Sequence[Node]], Shares], nodes: Callable[[], Sequence[Node]]
) -> tuple[Shares, list[str]]:
    """Wait until the actors of a run fit; the claims, and the plan in lines.

    claims: the claims on a cluster of given nodes. nodes: what the cluster has now; asked again while waiting.
    Raises MemR1Error, saying what is wanted and what is free, after `placement.wait_s`. A cluster that is only busy
    with what has just ended is given `SETTLE_S`.
    """
    start = time.monotonic()
    asked = False
    while True:
        there = nodes()
        error: MemR1Error
        try:
            shares = claims(there)
        except MemR1Error as refused:  # fewer GPUs than learners
            error, settles = refused, False
        else:
            wanted = actors(config, shares)
            homes, without = place(wanted, there, config.placement.strategy)
            if not without:
                if asked:
                    _ask_autoscaler([])  # from here on the actors themselves are the demand
                return shares, describe(config, homes, wanted, there)
            settles = not place(wanted, there, config.placement.strategy, "total")[1]
            error = _refusal(wanted, without, there)
            if config.placement.wait_s > 0 and not asked:
                _ask_autoscaler(wanted)
                asked = True
        limit = max(config.placement.wait_s, SETTLE_S if settles else 0.0)
        if time.monotonic() - start >= limit:
            if asked:
                _ask_autoscaler([])
            raise error
        time.sleep(POLL_S)


def room_for(config: Config, shares: Shares, nodes: Sequence[Node], runners: int) -> int:
    """How many of `runners` further ones fit on what is free."""
    runner = actors(config, shares)[-1]
    for count in range(runners, 0, -1):
        more = [Actor(f"runner {i}", runner.claim, runner.labels) for i in range(count)]
        if not place(more, nodes, config.placement.strategy)[1]:
            return count
    return 0


def describe(config: Config, homes: Mapping[str, str], wanted: Sequence[Actor], nodes: Sequence[Node]) -> list[str]:
    """A plan in lines: one for each node that gets something, then one for each role."""
    claims = {a.name: _amounts(a.claim) for a in wanted}
    lines = []
    for node in nodes:
        here = [f"{name} ({claims[name]})" for name, home in homes.items() if home == node.name]
        if here:
            lines.append(f"{node.name}, {_amounts(node.free)} free: {', '.join(here)}")
    return [*lines, *roles(config)]


def roles(config: Config) -> list[str]:
    """Where each of the five roles of a training lives, a line for each."""

    def count(number: int, name: str) -> str:
        return f"{number} {name}{'s' if number > 1 else ''}"

    embedders = config.placement.num_embedders
    copy = "adapter" if config.model.weights == "lora" else "model"
    rewards = ["in every runner"]
    if (answerer := config.agents.answerer_endpoint) is not None:
        rewards.append(f"answers for the manager by {answerer.model} at {answerer.url}")
    elif any(s.role == "manager" and s.objective != "sft" for s in config.stages):
        rewards.append("answers for the manager by the answerer there")
    if config.judge is not None:
        rewards.append(f"judge {config.judge.model} at {config.judge.url}")
    return [
        f"rollout: in {count(config.rollout.num_runners, 'runner')}",
        f"learner: in {count(config.learner.num_learners, 'learner')}",
        f"reference: in every learner, a frozen {copy}" if config.algo.kl_coef > 0 else "reference: not needed",
        f"reward: {'; '.join(rewards)}",
        f"embedder: {config.memory.embedder} in "
        + (f"{count(embedders, 'embedder')} for all runners" if embedders else "every runner, on the CPU"),
    ]


def _refusal(wanted: Sequence[Actor], without: Sequence[Actor], nodes: Sequence[Node]) -> MemR1Error:
    asked = "; ".join(f"{a.name}: {_amounts(a.claim)}" + (f" on {dict(a.labels)}" if a.labels else "") for a in without)
    there = "; ".join(
        f"{n.name}: {_amounts(n.free)} of {_amounts(n.total)}" + (f", labels {dict(n.labels)}" if n.labels else "")
        for n in nodes
    )
    fewer, less = ["rollout.num_runners", "learner.num_learners"], ["placement.runners.gpus=0.2"]
    if any(a.name.startswith("embedder") for a in wanted):
        fewer.insert(0, "placement.num_embedders")
        less.insert(0, "placement.embedders.cpus=0.5")
    return MemR1Error(
        f"placement: {len(without)} of {len(wanted)} actors do not fit. Wanted: {asked}. Free: {there or 'no node'}. "
        f"Lower {', '.join(fewer[:-1])} or {fewer[-1]}, claim less ({', '.join(less)}), change placement.strategy or "
        "the labels (placement.*.labels), or wait for nodes with placement.wait_s=600"
    )


def check_shared(config: Config, actor: str) -> None:
    """MemR1Error in an actor whose node does not see the run folder: its part of a checkpoint would be lost."""
    import ray

    if url_of(config.run_dir) is None and not (config.run_dir / "config.yaml").is_file():
        raise MemR1Error(
            f"output: {actor} on {ray.util.get_node_ip_address()} does not see {config.run_dir}, which the driver "
            "made; set output to a folder on storage that every node mounts at the same path, or to a bucket (s3://...)"
        )


def _ask_autoscaler(wanted: Sequence[Actor]) -> None:
    """Tell an autoscaler, if there is one, what is needed: before actors exist it sees no demand."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(a.claim) for a in wanted])


def cluster_nodes() -> list[Node]:
    """The living nodes of the cluster this process is connected to, but for those that have been told to go: Ray starts
    nothing there."""
    import ray
    from ray._private.state import available_resources_per_node  # ray has no public way to ask by node

    free, going = available_resources_per_node(), leaving_nodes()
    alive = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] not in going]
    addresses = [n["NodeManagerAddress"] for n in alive]
    return [
        Node(
            address if addresses.count(address) == 1 else f"{address} ({n['NodeID'][:6]})",
            _plain(n["Resources"]),
            _plain(free.get(n["NodeID"], {})),
            {k: v for k, v in (n.get("Labels") or {}).items() if k != "ray.io/node-id"},
        )
        for n, address in zip(alive, addresses, strict=True)
    ]


def leaving_nodes() -> set[str]:
    """Ids of the nodes that have been told to go (`ray drain-node`, an autoscaler) and are still there."""
    from ray._private.state import state  # ray has no public way to ask

    return set(state.get_draining_nodes())


def _plain(resources: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in resources.items() if k in ("CPU", "GPU")}


def _amounts(resources: Mapping[str, float]) -> str:
    return " + ".join(f"{round(v, 2):g} {k}" for k, v in resources.items()) or "nothing"


def runner_options(config: Config) -> dict[str, Any]:
    """Options of runner actors beside their claims. Inside a Tune trial its placement group decides."""
    import ray

    if ray.util.get_current_placement_group() is not None:
        return {}
    return _spread(config.placement.runners)


def embedder_options(config: Config, index: int) -> dict[str, Any]:
    """Options of an embedder beside its claims. Inside a Tune trial it goes into its own of the bundles, the last ones:
    elsewhere it could take a runner's room."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if (group := ray.util.get_current_placement_group()) is not None:
        bundle = group.bundle_count - config.placement.num_embedders + index
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)}
    return _spread(config.placement.embedders)


def _spread(wanted: ClaimConfig) -> dict[str, Any]:
    """Over the nodes that have the labels wanted."""
    return {"scheduling_strategy": "SPREAD"} | ({"label_selector": dict(wanted.labels)} if wanted.labels else {})


def reserve_learners(config: Config, shares: Shares) -> Any:
    """A placement group with a bundle for every rank: all are placed, or none. A run keeps it from start to end, so
    that no runner takes the learners' room between two stages, and Ray moves bundles off a node that is lost. None
    inside a Tune trial, which has reserved bundles of its own. Raises MemR1Error where somebody else was quicker."""
    import ray

    if ray.util.get_current_placement_group() is not None:
        return None
    bundle = claim(shares.learner_cpus, shares.learner_gpus)
    size, labels = config.learner.num_learners, config.placement.learners.labels
    group = ray.util.placement_group(
        [dict(bundle) for _ in range(size)],
        strategy=config.placement.strategy.upper().replace("-", "_"),
        bundle_label_selector=[dict(labels) for _ in range(size)] if labels else None,
    )
    if not group.wait(RESERVE_S):
        ray.util.remove_placement_group(group)
        raise MemR1Error(
            f"placement: {size} learners with {_amounts(bundle)} each got no room within {RESERVE_S:.0f} s, though "
            "there seemed to be some; submit the run again, or give it placement.wait_s=600"
        )
    return group


def in_bundle(group: Any, rank: int) -> dict[str, Any]:
    """Options that put a learner into its bundle of `reserve_learners`."""
    import ray

    if group is None:
        return {} if ray.util.get_current_placement_group() else {"scheduling_strategy": "SPREAD"}
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)}
