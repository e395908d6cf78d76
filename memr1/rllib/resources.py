"""What runners and learners ask of the cluster, so that a default run fits on any machine: pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memr1.config import Config
from memr1.errors import MemR1Error

LEARNER_PART = 0.6
"""Share of a GPU that a learner claims next to runners. Above one half: NCCL refuses two ranks on one GPU."""


@dataclass(frozen=True)
class Shares:
    """Claims of one actor. They place actors; they do not limit what a process uses."""

    runner_cpus: float
    runner_gpus: float
    learner_cpus: float
    learner_gpus: float
    runners_per_node: int
    """Runners that share the cores of a node, at most."""


def shares(config: Config, cpus: float, gpus: float, nodes: int) -> Shares:
    """Claims for a cluster of `nodes` machines with `cpus` and `gpus` in total, all of them free.

    Actors get a CPU each where there are enough with one left for the driver, else equal fractions. GPUs are used
    unless `model.device` is `cpu`: one for each actor, or shared when there are fewer (`placement.gpus`). What
    `placement` names replaces that. Raises MemR1Error when there are fewer GPUs than learners.
    """
    fitted = _fitted(config, cpus, gpus, nodes)
    runner, learner = config.placement.runners, config.placement.learners

    def named(value: float | None, fit: float) -> float:
        return fit if value is None else value

    return Shares(
        named(runner.cpus, fitted.runner_cpus),
        named(runner.gpus, fitted.runner_gpus),
        named(learner.cpus, fitted.learner_cpus),
        named(learner.gpus, fitted.learner_gpus),
        fitted.runners_per_node,
    )


def by_collective(config: Config, claims: Shares) -> bool:
    """Whether weights go from learners to runners by a collective (`rollout.weight_transfer`)."""
    if config.rollout.weight_transfer == "auto":
        # NCCL takes no two processes on one GPU, and vLLM loads weights from the CPU
        return config.rollout.engine == "transformers" and min(claims.runner_gpus, claims.learner_gpus) >= 1
    return config.rollout.weight_transfer == "collective"


def _fitted(config: Config, cpus: float, gpus: float, nodes: int) -> Shares:
    runners, learners = config.rollout.num_runners, config.learner.num_learners
    actors = runners + learners
    # a cluster without CPUs has no workers yet: whole ones say what it needs
    cpu = 1.0 if cpus >= actors + 1 or cpus == 0 else _floor(cpus / (actors + 1))
    per_node = math.ceil(runners / max(nodes, 1))
    device = config.model.device
    if device == "cpu" or (device == "auto" and gpus == 0):
        return Shares(cpu, 0.0, cpu, 0.0, per_node)
    if gpus == 0:  # asked for by name: a cluster that grows on demand will bring them
        gpus = actors
    if gpus < learners and config.placement.learners.gpus is None:
        raise MemR1Error(
            f"learner.num_learners is {learners} and the cluster has {gpus:g} GPUs; every learner needs one of its own"
        )
    whole = int(gpus)
    if whole >= actors:
        return Shares(cpu, 1.0, cpu, 1.0, per_node)
    if config.placement.gpus == "apart" and whole <= learners and config.placement.runners.gpus is None:
        raise MemR1Error(
            f"placement.gpus is apart: {learners} learners and {runners} runners need at least {learners + 1} GPUs, "
            f"and the cluster has {gpus:g}; use shared, or fewer learners"
        )
    if whole > learners:
        return Shares(cpu, _floor(1 / math.ceil(runners / (whole - learners))), cpu, 1.0, per_node)
    return Shares(cpu, _floor((1 - LEARNER_PART) / math.ceil(runners / max(whole, 1))), cpu, LEARNER_PART, per_node)


def _floor(value: float) -> float:
    """Down to two decimals: Ray counts in ten-thousandths and rounds sums up."""
    return math.floor(value * 100 + 1e-9) / 100
