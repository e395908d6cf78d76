"""The controller of a run against simulated clusters of 1 to 1,024 runners and 1 to 64 learners.

    python benchmarks/controller.py [--quick] [--measure] [--plot docs/images/controller.png]

The real training loop, pool of runners, group of learners and actor manager work over `simulated_cluster.py`; runners
and learners are models that take as long as was measured (`benchmarks/results/controller_measured.json`, made anew by
`--measure`). Printed are CPU time of the controller for each trajectory, and the time of a step against an ideal one,
in which all runners play without a pause and the update is cut in equal parts. Seeds vary what is drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ray.rllib.utils.actor_manager import FaultTolerantActorManager

sys.path.insert(0, str(Path(__file__).parent))
from simulated_actors import GROUP_SIZE, MEASURED, NO_SIGNAL, SimulatedLearner, SimulatedRunner, measure, measured
from simulated_cluster import Actor, Background, Clock, Cluster

from memr1.config import Config, MemoryConfig, ModelConfig, StageConfig
from memr1.data.factworld import FactWorldConfig
from memr1.rllib.env_runner import DialogueEnvRunner
from memr1.rllib.learner_group import RayLearnerGroup
from memr1.rllib.pool import RayPool
from memr1.rllib.resources import Shares
from memr1.training.loop import Trainer
from memr1.training.runlog import RunLog, machine_info

RESTART_S = 60.0
"""From the death of a runner to the moment its next process has its model loaded."""
TIMED = ("memr1.rllib.pool", "memr1.rllib.dispatch", "memr1.rllib.env_runner", "memr1.rllib.learner_group")
"""Modules of the driver and of actors that look at the clock; they speak to Ray as well."""


@dataclass(frozen=True)
class Scenario:
    """A cluster and what is wrong with it."""

    runners: int
    learners: int = 1
    prompts: int = 64
    """Groups with a signal that a step asks for."""
    stragglers: float = 0.0
    """Share of runners that take `slower` times as long."""
    slower: float = 3.0
    losses: float = 0.0
    """Runners that die during a step of ideal length, on average."""
    parts: int = 1
    """`rollout.parts_per_runner`."""
    ahead: bool = False
    """Whether the next step's groups are played during the update."""
    seed: int = 0
    steps: int = 1
    """Measured after a first one, in which tasks are made."""


@dataclass(frozen=True)
class Result:
    """Means over the steps of a scenario, the first left out."""

    step_s: float
    ideal_s: float
    cpu_s: float
    """CPU time of the controller in a step."""
    trajectories: float
    groups: float
    replaced: int

    @property
    def cpu_us(self) -> float:
        """Microseconds of the controller's CPU for each trajectory."""
        return self.cpu_s / self.trajectories * 1e6


def experiment(folder: Path, scenario: Scenario) -> Config:
    """The configuration of a run with a GRPO stage over as many tasks as a few steps need."""
    base = Config()
    worlds = max(4, -(-4 * scenario.prompts // 15))
    return replace(
        base,
        name="simulated",
        output=str(folder),
        stuck_after_s=0.0,
        model=ModelConfig(name="tiny-random"),
        memory=MemoryConfig(embedder="hash"),
        data=replace(base.data, factworld=FactWorldConfig(num_worlds=worlds, questions_per_world=15)),
        rollout=replace(
            base.rollout,
            num_runners=scenario.runners,
            parts_per_runner=scenario.parts,
            prompts_per_step=scenario.prompts,
            group_size=GROUP_SIZE,
            resample_rounds=1,
            max_staleness=int(scenario.ahead),
        ),
        learner=replace(base.learner, num_learners=scenario.learners),
        checkpoint=replace(base.checkpoint, every_steps=1000),
        stages=(StageConfig(role="answerer", objective="grpo", steps=1000),),
    )


@contextlib.contextmanager
def simulated(scenario: Scenario, folder: Path) -> Iterator[tuple[Trainer, RayPool, Clock]]:
    """The real controller over a simulated cluster."""
    clock = Clock()
    cluster = Cluster(clock)
    config = experiment(folder, scenario)
    rng = random.Random(scenario.seed)
    slow = set(rng.sample(range(scenario.runners), round(scenario.stragglers * scenario.runners)))
    between = ideal_step_s(scenario) * scenario.runners / scenario.losses if scenario.losses else float("inf")

    def lifetimes() -> Iterator[float]:
        while True:
            yield rng.expovariate(1 / between) if scenario.losses else float("inf")

    def process(index: int) -> DialogueEnvRunner:
        shell: Any = DialogueEnvRunner.__new__(DialogueEnvRunner)  # its constructor would load a model
        shell.runner = SimulatedRunner(clock, scenario.seed, scenario.slower if index in slow else 1.0)
        shell.worker_index, shell._token, shell._node, shell._watch = index, None, f"10.0.0.{index}", (0.0, folder)
        return shell  # type: ignore[no-any-return]

    with contextlib.ExitStack() as stack:
        for module in (*TIMED, "memr1.training.loop"):
            stack.enter_context(mock.patch(f"{module}.time", clock))
        for module in (*TIMED, "memr1.rllib.shipment", "ray.rllib.utils.actor_manager"):
            stack.enter_context(mock.patch(f"{module}.ray", cluster))
        stack.enter_context(mock.patch("memr1.rllib.learner_group.in_bundle", lambda *_: {}))
        stack.enter_context(
            mock.patch("memr1.rllib.learner_group.DeepSpeedLearner", lambda *_: SimulatedLearner(clock))
        )
        actors: list[Any] = [
            Actor(cluster, lambda i=i: process(i), lifetimes(), RESTART_S)  # type: ignore[misc]
            for i in range(scenario.runners)
        ]
        group: Any = SimpleNamespace(_worker_manager=FaultTolerantActorManager(actors, init_id=1))
        pool = RayPool(group, parts_per_runner=scenario.parts)
        pool._background.shutdown()
        pool._background = Background(clock)  # type: ignore[assignment]
        shares = Shares(1.0, 0.0, 1.0, 0.0, 1)
        with RunLog(config.run_dir) as log:
            (config.run_dir / "config.yaml").touch()
            yield Trainer(config, pool, lambda *a: RayLearnerGroup(*a, shares), log), pool, clock


def ideal_step_s(scenario: Scenario) -> float:
    """About what a step takes on healthy runners without a pause; used to scale lifetimes."""
    usual = statistics.fmean(g["seconds"] for g in measured()["groups"])
    return usual * scenario.prompts / (1 - NO_SIGNAL) / scenario.runners


def run(scenario: Scenario) -> Result:
    """Some steps of a scenario."""
    usual = statistics.fmean(g["seconds"] for g in measured()["groups"])
    rows = []
    with tempfile.TemporaryDirectory() as folder, simulated(scenario, Path(folder)) as (trainer, pool, clock):
        for _ in range(1 + scenario.steps):
            clock.count()
            began, cpu = clock.now, clock.cpu
            metrics = trainer.step()
            clock.count()
            played = metrics["rollout/trajectories"] / GROUP_SIZE
            update = metrics["learner/computed_tokens"] * measured()["update_s_per_token"] / scenario.learners
            rollout = played * usual / scenario.runners
            ideal = max(rollout, update) if scenario.ahead else rollout + update
            rows.append((clock.now - began, ideal, clock.cpu - cpu, metrics["rollout/trajectories"], played))
        means = [statistics.fmean(column) for column in zip(*rows[1:], strict=True)]
        return Result(*means, replaced=pool.replaced)


Rows = list[tuple[Scenario, Result]]


def overhead(sizes: Sequence[int]) -> Rows:
    """A step that grows with the cluster."""
    print("\nA step of two groups a runner, one learner for 16 runners")
    print("runners  learners  trajectories  CPU s a step  CPU us a trajectory  step s  ideal s  of ideal")
    rows = []
    for s in (Scenario(n, max(1, n // 16), prompts=max(8, 2 * n)) for n in sizes):
        r = run(s)
        rows.append((s, r))
        print(f"{s.runners:7d} {s.learners:9d} {r.trajectories:13.0f} {r.cpu_s:13.3f} {r.cpu_us:20.0f} {r.step_s:7.1f} "
              f"{r.ideal_s:8.1f} {r.ideal_s / r.step_s:9.0%}", flush=True)  # fmt: skip
    return rows


def fixed(sizes: Sequence[int], learners: Sequence[int], prompts: int) -> Rows:
    """The same step on more and more runners and learners, in turns and playing ahead."""
    print(f"\nA step of {prompts} groups")
    print("runners  learners  ahead  step s  ideal s  of ideal  CPU s a step")
    rows = []
    for n, ahead in itertools.product(sizes, (False, True)):
        rows.append(Scenario(n, max(1, n // 16), prompts, ahead=ahead))
    rows += [Scenario(sizes[-1], n, prompts) for n in learners]
    done = []
    for s in rows:
        r = run(s)
        done.append((s, r))
        print(f"{s.runners:7d} {s.learners:9d} {s.ahead!s:>6} {r.step_s:7.1f} {r.ideal_s:8.1f} "
              f"{r.ideal_s / r.step_s:9.0%} {r.cpu_s:13.3f}", flush=True)  # fmt: skip
    return done


Trouble = dict[str, dict[int, list[float]]]
"""Case -> parts a runner -> step time by seed."""


def trouble(runners: int, groups: int, seeds: int) -> Trouble:
    """Step time against that of equal runners that nothing happens to and that play their share in one part."""
    base = Scenario(runners, max(1, runners // 16), runners * groups, steps=2)
    cases = {"nothing": base}
    cases |= {f"{share:.0%} of runners 3 times slower": replace(base, stragglers=share) for share in (0.01, 0.05)}
    rates = [n for n in (0.25, 1.0, 4.0) if n <= runners / 8]  # with more, a run ends and says why
    cases |= {f"{n:g} runners lost a step": replace(base, losses=n) for n in rates}
    print(
        f"\n{runners} runners, {groups} groups each, {seeds} seeds: step time (1: nothing happens, one part a runner)"
    )
    print(f"{'':32s} parts  mean  least   most  lost")
    told: Trouble = {}
    one = 0.0
    for (name, case), parts in itertools.product(cases.items(), (1, groups)):
        results = [run(replace(case, seed=seed, parts=parts)) for seed in range(seeds)]
        one = one or statistics.fmean(r.step_s for r in results)
        told.setdefault(name, {})[parts] = values = [r.step_s / one for r in results]
        print(f"{name:32s} {parts:5d} {statistics.fmean(values):5.2f} {min(values):6.2f} {max(values):6.2f} "
              f"{sum(r.replaced for r in results):5d}", flush=True)  # fmt: skip
    return told


def plot(path: Path, growing: Rows, same: Rows, troubled: Trouble) -> None:
    """Three panels: controller's CPU, share of the ideal, and what trouble costs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    left.plot([s.runners for s, _ in growing], [r.cpu_us for _, r in growing], marker="o")
    left.set(
        xscale="log", xlabel="runners", ylabel="µs of CPU", title="Controller, for each trajectory", ylim=(0, None)
    )
    for ahead, label in ((False, "in turns"), (True, "playing ahead")):
        points = [
            (s.runners, r.ideal_s / r.step_s)
            for s, r in same
            if s.ahead == ahead and s.learners == max(1, s.runners // 16)
        ]
        middle.plot(*zip(*points, strict=True), marker="o", label=f"{same[0][0].prompts} groups, {label}")
    middle.plot(
        [s.runners for s, _ in growing],
        [r.ideal_s / r.step_s for _, r in growing],
        marker="s",
        label="two groups a runner",
    )
    middle.set(
        xscale="log", xlabel="runners", ylabel="ideal / step time", title="Step time against the ideal", ylim=(0, 1.05)
    )
    middle.legend(fontsize=8)
    names = list(troubled)[::-1]
    for offset, parts in enumerate(next(iter(troubled.values()))):
        values = [troubled[name][parts] for name in names]
        means = [statistics.fmean(v) for v in values]
        spread = [[m - min(v) for m, v in zip(means, values, strict=True)],
                  [max(v) - m for m, v in zip(means, values, strict=True)]]  # fmt: skip
        places = [n - 0.4 * offset for n in range(len(names))]
        right.barh(places, means, 0.38, xerr=spread, label=f"parts_per_runner={parts}")
    right.set_yticks([n - 0.2 for n in range(len(names))], names)
    right.set(title="Step time with trouble (1: none)")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the machine, then the tables; draw them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument(
        "--measure", action="store_true", help=f"measure durations on this machine into {MEASURED.name}"
    )
    parser.add_argument("--model", default="smollm2-135m", help="of --measure")
    parser.add_argument("--plot", type=Path, help="PNG file to draw")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # every lost runner is reported
    if args.measure:
        MEASURED.write_text(json.dumps(measure(args.model, 4 if args.quick else 48)) + "\n")
    took = [g["seconds"] for g in measured()["groups"]]
    print(f"{machine_info()}; runners and learners as measured with {measured()['model']}: a group takes "
          f"{min(took):.2f} to {max(took):.2f} s, {statistics.fmean(took):.2f} on average")  # fmt: skip
    growing = overhead((1, 4) if args.quick else (1, 8, 64, 256, 1024))
    same = fixed((4, 8), (1,), 16) if args.quick else fixed((8, 64, 256, 1024), (1, 4, 16), 512)
    troubled = trouble(8, 2, 2) if args.quick else trouble(128, 4, 3)
    if args.plot:
        plot(args.plot, growing, same, troubled)


if __name__ == "__main__":
    main()
