"""What the driver itself costs: CPU time of the training loop and the pool with 1, 8, 64 and 256 simulated runners.

    python benchmarks/controller.py --runners 1 8 64 256 --step-seconds 10

The loop, the pool, packing, logging and (with cloudpickle, as Ray does) the pickling of what goes to runners and comes
back are the real ones. Runners and learners are objects here whose own work is left out of the clock. Every runner
plays the same number of groups, so the work of a step grows with the runners. Prints CPU time of the driver for a step
and for a trajectory, where it goes, and its share of a step in which runners and learners work for `--step-seconds`,
the reference. The first step of each size is not counted. Not measured: Ray's own processes and the network.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from memr1.config import CheckpointConfig, Config, RolloutConfig, StageConfig
from memr1.envs.answering import AnswerTask
from memr1.learner.packing import Plan
from memr1.rollout.runner import Play
from memr1.training.loop import Trainer
from memr1.training.runlog import RunLog, machine_info
from memr1.training.tasks import TrainTask
from memr1.trajectory import Sequence as Tokens
from memr1.trajectory import Step, Trajectory


class Clock:
    """CPU time of this process, without what simulated runners and learners spend."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.left_out = 0.0

    def now(self) -> float:
        """Seconds of the controller so far."""
        return time.process_time() - self.left_out

    @contextmanager
    def simulated(self) -> Iterator[None]:
        """Work of somebody else."""
        start = time.process_time()
        try:
            yield
        finally:
            self.left_out += time.process_time() - start

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Work of the controller under a name of its own."""
        start = self.now()
        try:
            yield
        finally:
            self.spent[name] += self.now() - start


class SimulatedRunners:
    """The face of RLlib's actor manager that `RayPool` uses, over runners that answer at once."""

    def __init__(self, count: int, clock: Clock, prompt_tokens: int, completion_tokens: int) -> None:
        self.count, self.clock = count, clock
        self.prompt, self.completion = prompt_tokens, completion_tokens
        self.answered = 0
        self.bytes = 0
        """Pickled, to runners and back, since the last `SimulatedRunners.bytes = 0`."""

    def actor_ids(self) -> list[int]:
        """See RLlib."""
        return list(range(1, self.count + 1))

    healthy_actor_ids = actor_ids

    def num_actors(self) -> int:
        """See RLlib."""
        return self.count

    num_healthy_actors = num_actors

    def probe_unhealthy_actors(self, **kwargs: Any) -> list[int]:
        """Nobody dies here."""
        return []

    def clear(self) -> None:
        """Nothing to end."""

    def foreach_actor(
        self,
        func: Sequence[str],
        *,
        kwargs: Sequence[dict[str, Any]],
        remote_actor_ids: Sequence[int],
        timeout_seconds: float,
    ) -> list[Any]:
        """What goes out and comes back is pickled by the one side and read by the other, as between processes."""
        from ray import cloudpickle
        from ray.rllib.utils.actor_manager import CallResult, ResultOrError

        from memr1.rllib.env_runner import Answer

        results = []
        for name, arguments, actor in zip(func, kwargs, remote_actor_ids, strict=True):
            with self.clock.phase("pickling"):
                sent = cloudpickle.dumps(arguments)
            with self.clock.simulated():
                answer = Answer(self._answer(name, cloudpickle.loads(sent)))
                packed = cloudpickle.dumps(answer)
            with self.clock.phase("pickling"):
                received = cloudpickle.loads(packed)
            self.bytes += len(sent) + len(packed)
            results.append(CallResult(actor, ResultOrError(received), None))
        return results

    def _answer(self, name: str, arguments: Mapping[str, Any]) -> Any:
        if name == "arm":
            return {"manager": 0, "answerer": 0}
        method, args = arguments["method"], arguments["args"]
        if method == "play":
            return [self._trajectory(play) for play in args[0]]
        if method == "build_tasks":
            return [
                TrainTask(AnswerTask(f"{d.id}/{q}", "Where does Ada live?", "Oslo", "one", ()), None)
                for d in args[0]
                for q in range(40)
            ]
        if method == "load_weights":
            self.version = args[0].receive().version
            return self.version
        return {}

    def _trajectory(self, play: Play) -> Trajectory:
        rng = np.random.default_rng(play.seed)
        prompt = np.random.default_rng(abs(hash(play.task.id)) % 2**32).integers(5, 40000, self.prompt)
        completion = tuple(rng.integers(5, 40000, self.completion).tolist())
        tokens = Tokens.sampled(
            tuple(prompt.tolist()), completion, tuple((-rng.random(self.completion)).tolist()), self.version
        )
        step = Step("answerer", "answerer", True, tokens, "word " * self.prompt, "word " * self.completion, "stop")
        outcome = {"question": play.task.question, "gold": play.task.gold, "answer": "Oslo", "retrieved": []}
        reward = float(rng.random() < 0.5)
        return Trajectory(play.task.id, play.task.id, play.seed, (step,), reward, {"em_set": reward}, outcome)

    version = 0


class SimulatedLearners:
    """A learner group that has always just finished."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.tensors = {f"layer{i}.lora_{side}": np.zeros((16, 576), np.float32) for i in range(210) for side in "AB"}

    def supports_shared_prefixes(self) -> bool:
        """See `LearnerGroup`."""
        return True

    def update(self, plan: Plan, settings: Any) -> list[dict[str, float]]:
        """See `LearnerGroup`."""
        tokens = float(plan.trained_tokens)
        return [{"tokens": tokens, "loss": 0.0, "grad_norm": 1.0, "max_low_precision": 0.0}]

    def weights(self) -> dict[str, np.ndarray]:
        """See `LearnerGroup`."""
        return self.tensors

    def close(self) -> None:
        """See `LearnerGroup`."""


def measure(runners: int, options: argparse.Namespace) -> dict[str, float]:
    """CPU seconds of the controller in a step with so many runners, by phase."""
    from memr1.rllib.pool import RayPool

    clock = Clock()
    config = Config(
        rollout=RolloutConfig(
            num_runners=runners, prompts_per_step=options.groups * runners, group_size=options.group_size
        ),
        stages=(StageConfig(role="answerer", objective="grpo", steps=options.steps + 2),),
        checkpoint=CheckpointConfig(every_steps=10**9),
    )
    simulated = SimulatedRunners(runners, clock, options.prompt_tokens, options.completion_tokens)
    pool = RayPool(SimpleNamespace(_worker_manager=simulated))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(folder)
        trainer = Trainer(config, pool, lambda role, policies: SimulatedLearners(clock), log)  # type: ignore[arg-type,return-value]
        _timed(trainer, "_update", clock, "packing and update")
        _timed(trainer, "_push", clock, "weights")
        _timed(log, "rollouts", clock, "run log")
        _timed(log, "metrics", clock, "run log")
        trainer.step()
        clock.spent.clear()
        simulated.bytes = 0
        start = clock.now()
        for _ in range(options.steps):
            trainer.step()
        total = clock.now() - start
        trainer.close()
    trajectories = options.groups * runners * options.group_size
    phases = {name: seconds / options.steps for name, seconds in clock.spent.items()}
    other = total / options.steps - sum(phases.values())
    return {
        "runners": runners, "trajectories": trajectories, "cpu_s_per_step": total / options.steps,
        "cpu_ms_per_trajectory": 1000 * total / options.steps / trajectories,
        "mb_pickled_per_step": simulated.bytes / options.steps / 1e6,
        **{f"{name}_s": seconds for name, seconds in phases.items()}, "loop and pool_s": other,
        "share_of_step": total / options.steps / (total / options.steps + options.step_seconds),
    }  # fmt: skip


def _timed(owner: Any, method: str, clock: Clock, name: str) -> None:
    inner = getattr(owner, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        pickled = clock.spent["pickling"]
        start = clock.now()
        result = inner(*args, **kwargs)
        # what was pickled inside is counted once, as pickling
        clock.spent[name] += clock.now() - start - (clock.spent["pickling"] - pickled)
        return result

    setattr(owner, method, timed)


def main() -> None:
    """Parse options, measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runners", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--groups", type=int, default=2, help="groups that each runner plays in a step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=480)
    parser.add_argument("--completion-tokens", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--step-seconds", type=float, default=10.0, help="what runners and learners take for a step")
    options = parser.parse_args()
    from memr1.rllib.cluster import connect

    connect()  # new weights go through its object store
    machine = machine_info()
    print(f"machine: {machine}")
    print(f"{options.groups} groups of {options.group_size} for each runner, steps of {options.step_seconds:g} s")
    rows = [measure(n, options) for n in options.runners]
    names = list(rows[-1])
    print("  ".join(f"{n:>22}" for n in names))
    for row in rows:
        print("  ".join(f"{row.get(n, 0.0):>22.4g}" for n in names))
    print(json.dumps({"machine": machine, "options": vars(options), "rows": rows}))


if __name__ == "__main__":
    main()
