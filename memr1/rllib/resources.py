"""What runners, learners and embedders ask of the cluster, so that a default run fits on any machine: arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memr1.config import Config
from memr1.errors import MemR1Error

LEARNER_PART = 0.6
"""Share of a GPU that a learner claims next to runners. Above one half: NCCL refuses two ranks on one GPU."""

LEAST_SHARE = 0.01
"""Of a GPU, that a runner is given unasked."""


@dataclass(frozen=True)
class Shares:
    """Claims of one actor. They place actors; they do not limit what a process uses."""

    runner_cpus: float
    runner_gpus: float
    learner_cpus: float
    learner_gpus: float
    runners_per_node: int
    """Runners that share the cores of a node, at most."""
    embedder_cpus: float = 0.0
    embedder_gpus: float = 0.0


def shares(config: Config, cpus: float, gpus: float, nodes: int) -> Shares:
    """Claims for a cluster of `nodes` machines with `cpus` and `gpus` in total, all of them free.

    Actors get a CPU each where there are enough with one left for the driver, else equal fractions. GPUs are used
    unless `model.device` is `cpu`: one for each actor, or shared when there are fewer (`placement.gpus`). Embedders use
    none unless `placement` says so, and what they claim is taken off what runners get. What `placement` names replaces
    that. Raises MemR1Error when there are fewer GPUs than learners.
    """
    runner, learner, embedder = config.placement.runners, config.placement.learners, config.placement.embedders
    actors = config.rollout.num_runners + config.learner.num_learners + config.placement.num_embedders
    # a cluster without CPUs has no workers yet: whole ones say what it needs
    cpu = 1.0 if cpus >= actors + 1 or cpus == 0 else _floor(cpus / (actors + 1))
    runner_gpus, learner_gpus = _gpus(config, gpus)

    def named(value: float | None, fit: float) -> float:
        return fit if value is None else value

    return Shares(
        named(runner.cpus, cpu),
        named(runner.gpus, runner_gpus),
        named(learner.cpus, cpu),
        named(learner.gpus, learner_gpus),
        math.ceil(config.rollout.num_runners / max(nodes, 1)),
        named(embedder.cpus, cpu) if config.placement.num_embedders else 0.0,
        named(embedder.gpus, 0.0) if config.placement.num_embedders else 0.0,
    )


def by_collective(config: Config, claims: Shares) -> bool:
    """Whether weights go from learners to runners by a collective (`rollout.weight_transfer`)."""
    if config.rollout.weight_transfer == "auto":
        # NCCL takes no two processes on one GPU, and vLLM loads weights from the CPU
        return config.rollout.engine == "transformers" and min(claims.runner_gpus, claims.learner_gpus) >= 1
    return config.rollout.weight_transfer == "collective"


def _gpus(config: Config, gpus: float) -> tuple[float, float]:
    """GPUs of a runner, and of a learner."""
    runners, learners, p = config.rollout.num_runners, config.learner.num_learners, config.placement
    device = config.model.device
    if device == "cpu" or (device == "auto" and gpus == 0):
        return 0.0, 0.0
    embedders = _Stack(p.num_embedders, p.embedders.gpus or 0.0)
    if gpus == 0:  # asked for by name: a cluster that grows on demand will bring them
        gpus = runners + learners + embedders.alone
    whole, taken = int(gpus), ""
    if embedders.share >= 1:
        whole, taken = max(0, whole - embedders.alone), f" beside the {embedders.alone} that embedders take"
        embedders = _Stack(0, 0.0)
    if whole < learners and p.learners.gpus is None:
        raise MemR1Error(
            f"learner.num_learners is {learners} and the cluster has {whole} GPUs{taken}; every learner needs one of "
            "its own"
        )
    if whole >= runners + learners + embedders.alone:
        return 1.0, 1.0
    own = whole - learners
    # GPUs for runners, and what each of them has for runners: none with embedders, or all with them
    ways = [(own - embedders.alone, 1.0), (own, 1 - embedders.on(1.0))] if own >= embedders.alone else []
    runner, most = _fit(ways, runners)
    if runner > 0:
        return runner, 1.0
    if p.gpus == "apart" and p.runners.gpus is None:
        if most > 0:
            raise _too_many(runners, most, f"on the {own} GPUs that {learners} learners leave{taken}")
        raise MemR1Error(
            f"placement.gpus is apart: {learners} learners and {runners} runners need at least {learners + 1} GPUs, "
            f"and the cluster has {whole}{taken}; use shared, or fewer learners"
        )
    rest, shared = 1 - LEARNER_PART, max(1, min(whole, learners))
    runner, beside = _fit([(shared, rest - embedders.on(rest))], runners)
    most = max(most, beside)
    room = embedders.most(rest) * shared + embedders.most(1.0) * max(0, own)
    if runner == 0 and most > 0 and room >= embedders.count and p.runners.gpus is None:
        raise _too_many(runners, most, f"on {whole} GPUs beside {learners} learners{taken}")
    if (runner == 0 or room < embedders.count) and p.runners.gpus is None:
        raise MemR1Error(
            f"placement.embedders.gpus: {embedders.count} embedders with {embedders.share:g} each leave no GPU to the "
            f"runners: the cluster has {whole}, and each of {learners} learners takes {LEARNER_PART} of one. Claim "
            "less, or leave it out, which has embedders compute on the CPU"
        )
    return runner, LEARNER_PART


@dataclass(frozen=True)
class _Stack:
    """Embedders with a share of a GPU each. Ray puts a share where it leaves least of a GPU, so they gather."""

    count: int
    share: float

    def most(self, room: float) -> int:
        """How many fit into so much of one GPU."""
        return min(self.count, int(room / self.share + 1e-9)) if self.share else self.count

    def on(self, room: float) -> float:
        """What they take of it at most."""
        return self.most(room) * self.share

    @property
    def alone(self) -> int:
        """GPUs that they need where nobody else is on them."""
        if self.share >= 1:
            return self.count * int(self.share)
        return math.ceil(self.count / self.most(1.0)) if self.count and self.share else 0


def _fit(ways: Sequence[tuple[int, float]], runners: int) -> tuple[float, int]:
    """Of ways to place runners, each (GPUs, what is left of each): the largest share that a runner can have, 0.0 where
    there are too many, and how many there may be at most."""
    possible = [(gpus, left) for gpus, left in ways if gpus > 0]
    share = max((_floor(left / math.ceil(runners / gpus)) for gpus, left in possible), default=0.0)
    return share, max((gpus * round(_floor(left) / LEAST_SHARE) for gpus, left in possible), default=0)


def _too_many(wanted: int, most: int, where: str) -> MemR1Error:
    return MemR1Error(
        f"rollout.num_runners: {wanted} runners are wanted, and {where} there is room for {most} with {LEAST_SHARE} of "
        f"a GPU each; set it to {most} at most, or claim less by name, for example "
        f"placement.runners.gpus={LEAST_SHARE / 10:g}"
    )


def _floor(value: float) -> float:
    """Down to two decimals: Ray counts in ten-thousandths and rounds sums up."""
    return math.floor(value * 100 + 1e-9) / 100
