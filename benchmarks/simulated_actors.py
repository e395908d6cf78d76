"""Runners and learners of the simulated cluster: they take as long as was measured, and answer what real ones would.

`measure` plays groups of FactWorld questions on a real runner, one after the other, loads weights and updates; its
result is kept in `results/controller_measured.json`. Tasks and prompts are made by a real runner over a random model.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from simulated_cluster import Clock

from memr1.config import Config, MemoryConfig, ModelConfig
from memr1.data.factworld import FactWorldConfig
from memr1.rollout.channel import Manifest
from memr1.rollout.engine import WeightUpdate
from memr1.training.runlog import machine_info
from memr1.trajectory import Sequence as Tokens
from memr1.trajectory import Step, Trajectory

MEASURED = Path(__file__).parent / "results" / "controller_measured.json"
GROUP_SIZE = 8
NO_SIGNAL = 0.4
"""Share of groups whose members all earn the same, so that the loop has to play further ones."""


@cache
def measured() -> dict[str, Any]:
    """What groups took on a real runner, and updates and new weights."""
    return json.loads(MEASURED.read_text())  # type: ignore[no-any-return]


class SimulatedRunner:
    """Plays groups one after the other, each for as long as some measured group took."""

    def __init__(self, clock: Clock, seed: int, factor: float) -> None:
        """factor: how many times slower than measured."""
        self._clock, self._seed, self._factor = clock, seed, factor
        self._versions = {"manager": 0, "answerer": 0}

    def build_tasks(self, dialogues: Sequence[Any], **_: Any) -> list[Any]:
        return [task for d in dialogues for task in tasks_of(d)]

    def play(self, plays: Sequence[Any], **_: Any) -> list[Trajectory]:
        return [t for _, group in itertools.groupby(plays, key=lambda p: p.task.id) for t in self._group(list(group))]

    def _group(self, plays: Sequence[Any]) -> Iterator[Trajectory]:
        task = plays[0].task
        rng = random.Random(f"{self._seed} {task.id} {plays[0].seed}")
        group = rng.choice(measured()["groups"])
        self._clock.sleep(group["seconds"] * self._factor)
        prompt, text = prompt_of(task)
        flat = rng.random() < NO_SIGNAL
        for n, play in enumerate(plays):
            reward = 1.0 if flat or n == 0 else 0.0 if n == 1 else float(rng.random() < 0.5)
            ids = tuple(rng.choices(range(1000, 9000), k=group["completion_tokens"][n % GROUP_SIZE]))
            tokens = Tokens.sampled(prompt, ids, (-0.5,) * len(ids), self._versions["answerer"])
            step = Step("answerer", "answerer", True, tokens, text, group["text"], "stop", {"answer": task.gold})
            outcome = {"question": task.question, "answer": task.gold, "gold": task.gold}
            yield Trajectory(task.id, task.id, play.seed, (step,), reward, {"em": reward}, outcome)

    def load_weights(self, update: Any) -> int:
        self._clock.sleep(measured()["load_weights_s"])
        self._versions[update.policy] = update.version
        return int(update.version)

    def weight_versions(self) -> dict[str, int]:
        return self._versions

    def pop_timings(self) -> dict[str, float]:
        return {}


class SimulatedLearner:
    """Updates for as long as its tokens took where they were measured."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._weights = {"adapter": np.zeros(measured()["adapter_numbers"], dtype=np.float32)}
        self._update = WeightUpdate.build("answerer", 0, self._weights)

    def update(self, microbatches: Sequence[Any], settings: Any) -> dict[str, float]:
        self._clock.sleep(sum(m.input_ids.size for m in microbatches) * measured()["update_s_per_token"])
        return {"loss": 0.0, "tokens": float(sum(len(m.targets) for m in microbatches)), "max_low_precision": 0.0}

    def manifest(self) -> Manifest:
        return self._update.manifest

    def ship(self, version: int, parts: Sequence[Sequence[str]], checked: bool) -> Iterator[Any]:
        yield self._weights
        yield replace(self._update, version=version, tensors={})

    def attend(self) -> None:
        pass

    def supports_shared_prefixes(self) -> bool:
        return True


@cache
def real_runner() -> Any:
    """A runner over a random model, for tasks and prompts as they are."""
    from memr1.rollout.runner import Runner

    return Runner(Config(model=ModelConfig(name="tiny-random"), memory=MemoryConfig(embedder="hash")))


_tasks: dict[str, Any] = {}
_prompts: dict[str, Any] = {}


def tasks_of(dialogue: Any) -> Any:
    """The tasks of a dialogue, made once in this process."""
    if dialogue.id not in _tasks:
        _tasks[dialogue.id] = real_runner().build_tasks([dialogue], role="answerer", bank="oracle")
    return _tasks[dialogue.id]


def prompt_of(task: Any) -> tuple[tuple[int, ...], str]:
    """Prompt of a task, in tokens and as text, made once in this process; repetitions (`id#2`) share it."""
    from memr1.training.tasks import task_prompt

    name = task.id.partition("#")[0]
    if name not in _prompts:
        prompt = task_prompt(task, real_runner().world)
        _prompts[name] = prompt.ids, prompt.text
    return _prompts[name]  # type: ignore[no-any-return]


def measure(model: str, groups: int) -> dict[str, Any]:
    """Play groups one at a time on a real runner with one thread, load weights, and update on what was played.

    Seconds are of CPU time, which on one thread is what an idle machine would take; a busy one changes them little.
    """
    from memr1.data.load import load_dialogues
    from memr1.learner.deepspeed_learner import UpdateSettings
    from memr1.learner.group import LocalLearnerGroup
    from memr1.learner.packing import TrainSequence, plan_microbatches
    from memr1.rollout.runner import Play, Runner

    config = replace(
        Config(), model=ModelConfig(name=model, threads=1), memory=MemoryConfig(embedder="hash", answerer_top_k=5)
    )
    runner = Runner(config)
    dialogues = load_dialogues("factworld", None, "train", FactWorldConfig(num_worlds=-(-groups // 10)))
    tasks = runner.build_tasks(dialogues, role="answerer", bank="oracle")[:groups]
    lines, sequences = [], []
    for n, task in enumerate(tasks):
        plays = [Play(task.task, GROUP_SIZE * n + m) for m in range(GROUP_SIZE)]
        began = time.process_time()
        played = runner.play(plays, "em_set", 1.0)
        seconds = time.process_time() - began
        steps = [t.steps[0] for t in played]
        lengths = [max(1, len(s.sequence.completion_ids)) for s in steps]
        lines.append({"seconds": round(seconds, 4), "completion_tokens": lengths, "text": steps[0].completion_text})
        sequences += [TrainSequence(s.sequence.prompt_ids, s.sequence.completion_ids, s.sequence.loss_mask, 0.5 - m % 2,
                                    s.sequence.logprobs) for m, s in enumerate(steps)]  # fmt: skip
    learners = LocalLearnerGroup(config, "answerer", None)
    plan = plan_microbatches(
        sequences[: 4 * GROUP_SIZE],
        num_ranks=1,
        max_tokens_per_microbatch=config.learner.max_tokens_per_microbatch,
        pad_id=0,
        share_prefixes=learners.supports_shared_prefixes(),
    )
    settings = UpdateSettings("grpo", 1e-6, plan.trained_tokens, plan.trained_sequences, temperature=1.0)
    updates, loads = [], []
    for version in range(1, 4):
        began = time.process_time()
        learners.update(plan, settings)
        updated = time.process_time()
        update = WeightUpdate.build("answerer", version, learners.learner.weights())
        loading = time.process_time()
        runner.load_weights(update)
        loads.append(time.process_time() - loading)
        updates.append(updated - began)
    return {
        "machine": machine_info(),
        "model": model,
        "update_s_per_token": statistics.median(updates) / sum(m.input_ids.size for m in plan.ranks[0]),
        "load_weights_s": statistics.median(loads),
        "adapter_numbers": sum(t.size for t in update.tensors.values()),
        "groups": lines,
    }
