"""The training loop. One `step` is: take tasks, play groups, reward, advantage, pack, update, push weights, log, save.

It speaks to a pool of runners and a group of learners and does not know whether they are Ray actors
(`memr1.rllib`) or objects in this process (`memr1.training.local`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from memr1.algos.advantages import trajectory_advantages
from memr1.config import MAX_REFILL, Config, StageConfig
from memr1.data.sampler import ResumableSampler
from memr1.errors import MemR1Error
from memr1.learner.deepspeed_learner import UpdateSettings
from memr1.learner.group import LearnerFactory, LearnerGroup
from memr1.learner.packing import TrainSequence, plan_microbatches
from memr1.rollout.pool import RunnerPool
from memr1.rollout.runner import Play
from memr1.storage import copy, exists
from memr1.training.batch import BATCH_FILE, Batch, staleness
from memr1.training.checkpoints import TrainState, committed, discard, load_state, prune, save_checkpoint
from memr1.training.checks import check_first_update
from memr1.training.controls import shuffle_rewards
from memr1.training.metrics import learner_metrics, rollout_metrics, trajectory_record
from memr1.training.runlog import RunLog
from memr1.training.schedule import learning_rate
from memr1.training.tasks import TrainTask
from memr1.training.worlds import training_dialogues
from memr1.trajectory import Trajectory

_log = logging.getLogger(__name__)


class Trainer:
    """Runs the stages of a configuration one optimizer step at a time."""

    def __init__(
        self, config: Config, pool: RunnerPool, make_learners: LearnerFactory, log: RunLog, resume: Path | None = None
    ) -> None:
        self.config, self.pool, self.make_learners, self.log = config, pool, make_learners, log
        self.state = TrainState(versions={"manager": 0, "answerer": 0})
        self.learners: LearnerGroup | None = None
        self.tasks: list[TrainTask] = []
        self.sampler = ResumableSampler(1, config.seed)
        self.checkpoint: Path | None = None
        self.ahead: Future[Batch] | None = None
        """The next step's batch, where it is played ahead; complete between two steps."""
        self.unchecked = False
        """Whether the next update is the first of these learners; steps without a signal before it update nothing."""
        self.resumed = False
        """Whether these learners were made inside a stage."""
        if resume is not None:
            self.resume_from(resume)

    def resume_from(self, checkpoint: Path) -> None:
        """Go to a committed checkpoint: state, log and the runners' weights; learners are made anew."""
        self._end_stage()
        self.state = load_state(checkpoint)
        self.checkpoint = checkpoint
        if (checkpoint / BATCH_FILE).exists():
            self.ahead = Future()
            self.ahead.set_result(Batch.load(checkpoint / BATCH_FILE))
        for path in committed(self.config.run_dir):
            if load_state(path).step > self.state.step:  # an abandoned future: what comes now replaces it
                discard(path)
        self.log.truncate_after(self.state.step)
        self.pool.load_policies(str(checkpoint / "policies"))  # before anything is generated

    @property
    def done(self) -> bool:
        """True when all stages are through."""
        return self.state.stage >= len(self.config.stages)

    @property
    def stage(self) -> StageConfig:
        """The current stage."""
        return self.config.stages[self.state.stage]

    def step(self) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        began = time.perf_counter()
        learners = self.learners or self._begin_stage()
        start = time.perf_counter()
        stage, state = self.stage, self.state
        trajectories: list[dict[str, Any]] = []
        metrics: dict[str, float] = {}
        if stage.objective == "sft":
            sequences = self._demonstrations()
        else:
            batch = self._take_batch()
            sequences, trajectories, metrics = batch.sequences, batch.records, dict(batch.metrics)
        played = time.perf_counter()
        if sequences:
            metrics |= self._update(learners, sequences, late=metrics.get("rollout/staleness", 0.0) > 0)
        updated = time.perf_counter()
        if self.ahead is not None:
            self.ahead.result()  # runners take new weights when they have played, so they are never further ahead
        waited = time.perf_counter()
        if sequences:
            self._push(learners)
        pushed = time.perf_counter()
        state.step, state.stage_step = state.step + 1, state.stage_step + 1
        state.seconds += pushed - began
        metrics |= {
            "time/setup_s": start - began,
            "time/rollout_s": played - start + waited - updated,
            "time/update_s": updated - played,
            "time/sync_s": pushed - waited,
            "time/step_s": pushed - began,
        }
        if not sequences:
            metrics["learner/skipped"] = 1.0
            _log.warning(
                "step %d (%s): the rollouts of every group were rewarded alike, so there was nothing to learn from. If "
                "that goes on: a larger stages[].group_size, more rollout.resample_rounds, a higher "
                "rollout.temperature, or a longer warm start",
                state.step,
                stage.name,
            )
        self.log.metrics(state.step, stage.name, state.stage_step, metrics)
        if trajectories:
            self.log.rollouts(state.step, trajectories)
        self._after_step()
        return metrics

    def _take_batch(self) -> Batch:
        """This step's batch: played ahead during the last step, or now. Begins to play the next one's ahead."""
        limit, stage, state = self.config.rollout.max_staleness, self.stage, self.state
        batch = self._play_groups(state.step) if self.ahead is None else self.ahead.result()
        late = staleness(batch, stage.role, state.versions, limit)
        self.ahead = None
        if limit == 0:
            return batch
        if state.stage_step + 1 < stage.steps:
            self.ahead = self.pool.begin(partial(self._play_groups, state.step + 1))
        return replace(batch, metrics=batch.metrics | {"rollout/staleness": float(late)})

    def _play_groups(self, step: int) -> Batch:
        """Play groups of rollouts until `prompts_per_step` of them have a signal, or the rounds are used up."""
        r, a = self.config.rollout, self.config.algo
        objective = self.stage.objective
        trajectories: list[Trajectory] = []
        rewarded: list[Trajectory] = []
        groups: list[int] = []  # of each in `rewarded`; a task that comes again in another round is another group
        wanted = self._prompts_per_step
        for round_ in range(1 + r.resample_rounds):
            # a task that comes twice, as epochs end within a batch, is one group and is played as one
            slots = sorted(enumerate(self.sampler.take(wanted)), key=lambda slot: slot[1])
            plays = [
                Play(self.tasks[i].playable, self._seed(step, round_, slot, member))
                for slot, i in slots
                for member in range(self._group_size)
            ]
            # where only differences within a group count, groups that did all the same need no judge
            batch = self.pool.map(
                "play",
                plays,
                reward=self.stage.reward,
                temperature=r.temperature,
                judge_alike=objective != "grpo",
                evidence_reward=self.stage.evidence_reward,
            )
            check_play(batch, self.state.versions)
            if self.stage.shuffle_rewards:
                batch = shuffle_rewards(batch, plays[0].seed)
            names = {t.group_id: len(trajectories) + n for n, t in enumerate(batch)}
            trajectories += batch
            groups += [names[t.group_id] for t in batch if t.reward is not None]
            rewarded += [t for t in batch if t.reward is not None]
            # over all rounds: what is compared with the mean of the batch is compared with all of it
            scores, flat = trajectory_advantages(
                torch.tensor([t.reward for t in rewarded], dtype=torch.float64),
                torch.tensor(groups, dtype=torch.long),
                a.advantage if objective == "grpo" else objective,
            )
            kept = [(t, s) for t, s, dead in zip(rewarded, scores.tolist(), flat.tolist(), strict=True) if not dead]
            live, total = len({t.group_id for t, _ in kept}), len({t.group_id for t in trajectories})
            missing = self._prompts_per_step - live
            if missing <= 0:
                break
            # as many as it takes if the next tasks are like those so far, within a bound
            wanted = min(math.ceil(missing * total / max(live, 1)), MAX_REFILL * self._prompts_per_step)
        sequences = [
            TrainSequence(q.prompt_ids, q.completion_ids, q.loss_mask, score, q.logprobs, t.reward, n)
            for n, (t, score) in enumerate(kept)
            if t.reward is not None
            for q in (s.sequence for s in t.trainable_steps)
        ]
        metrics = rollout_metrics(trajectories) | {
            "groups/zero_variance_fraction": 1 - live / total,
            "groups/with_signal": float(live),
        }
        engine = self.pool.pop_timings()
        metrics |= {f"engine/{name}": value for name, value in engine.items()}
        # a critic's advantages are of tokens
        shown = {} if objective == "ppo" else {id(t): score for t, score in kept}
        records = [trajectory_record(t, shown.get(id(t))) for t in trajectories]
        return Batch(sequences, records, metrics, dict(self.state.versions))

    def _demonstrations(self) -> list[TrainSequence]:
        chosen = [self.tasks[i].demonstration for i in self.sampler.take(self.stage.examples_per_step)]
        return [d for d in chosen if d is not None]

    def _update(
        self, learners: LearnerGroup, sequences: Sequence[TrainSequence], *, late: bool = False
    ) -> dict[str, float]:
        """late: they were played with older weights."""
        stage, learner = self.stage, self.config.learner
        plan = plan_microbatches(
            sequences,
            num_ranks=learner.num_learners,
            max_tokens_per_microbatch=learner.max_tokens_per_microbatch,
            pad_id=0,
            share_prefixes=learners.supports_shared_prefixes(),
        )
        settings = UpdateSettings(
            objective=stage.objective,
            learning_rate=learning_rate(stage, self.state.stage_step),
            trained_tokens=plan.trained_tokens,
            trained_sequences=plan.trained_sequences,
            trained_trajectories=plan.trained_trajectories,
            temperature=1.0 if stage.objective == "sft" else self.config.rollout.temperature,
            epochs=stage.epochs,
            critic_only=stage.objective == "ppo" and self.state.stage_step < self.config.algo.critic.warmup_steps,
        )
        start = time.perf_counter()
        metrics = learner_metrics(learners.update(plan, settings))
        seconds = time.perf_counter() - start
        if self.unchecked:
            check_first_update(stage, metrics, plan, sequences, resumed=self.resumed, late=late)
            self.unchecked = False
        return metrics | {
            "learner/learning_rate": settings.learning_rate,
            "learner/computed_tokens": float(plan.computed_tokens),
            "learner/sharing_factor": plan.unshared_tokens / plan.computed_tokens,
            "tokens/per_second": plan.unshared_tokens / seconds,
        }

    def _push(self, learners: LearnerGroup) -> None:
        role = self.stage.role
        version = self.state.versions[role] + 1
        if self.pool.broadcast(learners, role, version):
            self.state.versions[role] = version
            return
        self.pool.push(learners.ship(version))
        self.state.versions[role] = version

    @property
    def _prompts_per_step(self) -> int:
        return self.stage.prompts_per_step or self.config.rollout.prompts_per_step

    @property
    def _group_size(self) -> int:
        return self.stage.group_size or self.config.rollout.group_size

    def _seed(self, step: int, round_: int, slot: int, member: int) -> int:
        """A seed of its own for every rollout of a run, the same on every run with one configuration."""
        slots, largest = seed_strides(self.config)
        index = ((step * (1 + self.config.rollout.resample_rounds) + round_) * slots + slot) * largest
        return (self.config.seed << 40) + index + member

    def _begin_stage(self) -> LearnerGroup:
        state = self.state
        self._prepare_tasks()
        self.learners = self._make_learners()
        if state.stage_step > 0 and self.checkpoint is not None:
            self.learners.restore(str(self.checkpoint / "learner"))
        return self.learners

    def _prepare_tasks(self) -> None:
        self.tasks = self._stage_tasks(self.stage)
        self.sampler = ResumableSampler(len(self.tasks), self.config.seed + self.state.stage)
        if self.state.sampler is not None:
            self.sampler.load_state_dict(self.state.sampler)

    def _make_learners(self) -> LearnerGroup:
        self.unchecked, self.resumed = True, self.state.stage_step > 0
        policies = None if self.checkpoint is None else str(self.checkpoint / "policies")
        config = self.config
        if self.stage.objective == "sft":  # measures no KL, so its learners need hold no reference
            config = replace(config, algo=replace(config.algo, kl_coef=0.0))
        return self.make_learners(config, self.stage.role, policies)

    def _stage_tasks(self, stage: StageConfig) -> list[TrainTask]:
        if stage.traces is not None:
            traces = self.pool.first("read_traces", stage.traces, stage.role, stage.traces_min_reward)
            return [TrainTask(None, trace) for trace in traces]
        dialogues = training_dialogues(self.config)
        tasks = self.pool.map("build_tasks", dialogues, role=stage.role, bank=stage.bank, replay=stage.replay)
        if stage.objective == "sft":
            usable = [t for t in tasks if t.demonstration is not None]
        else:
            usable = [t for t in tasks if stage.role == "answerer" or t.task.questions]
        if not usable:
            raise MemR1Error(
                f"stage {stage.name}: {len(dialogues)} dialogues gave no task to train on; an sft stage needs oracle "
                "operations, a manager stage needs questions with evidence"
            )
        return usable

    def _after_step(self) -> None:
        state, stage = self.state, self.stage
        state.sampler = self.sampler.state_dict()
        if state.stage_step >= stage.steps:
            name = f"{state.stage}-{stage.name}"
            state.stage_ends[name] = f"step_{state.step:06d}"
            state.stage, state.stage_step, state.sampler = state.stage + 1, 0, None
            self.save(with_learner=False)  # a finished stage never needs its optimizer again
            self._end_stage()
        elif state.stage_step % self.config.checkpoint.every_steps == 0:
            self.save()

    def save(self, with_learner: bool = True) -> Path:
        """Write a checkpoint of the state between two steps; one that is committed already is not written again."""
        for path in committed(self.config.run_dir):
            if load_state(path).step == self.state.step:
                self.checkpoint = path
                return path
        learner: Callable[[str], Any] | None = None
        if with_learner and self.learners is not None:
            learner = self.learners.save
        elif with_learner and self.checkpoint is not None and exists(self.checkpoint / "learner"):
            learner = partial(copy, self.checkpoint / "learner")  # just resumed: no learner was made yet
        self.checkpoint = save_checkpoint(
            self.config.run_dir,
            self.state,
            lambda folder: self.pool.first("save_policies", folder),
            learner,
            None if self.ahead is None else self.ahead.result().save,
        )
        prune(self.config.run_dir, self.config.checkpoint.keep, set(self.state.stage_ends.values()))
        return self.checkpoint

    def _end_stage(self) -> None:
        if self.ahead is not None:
            wait([self.ahead])  # whoever stops in the middle of a step must not leave the runners at work
            self.ahead = None
        if self.learners is not None:
            self.learners.close()
        self.learners = None

    def close(self) -> None:
        """Release learners and runners."""
        self.pool.close()  # first, so that nobody waits for what is played ahead
        self._end_stage()


def seed_strides(config: Config) -> tuple[int, int]:
    """How many slots a round of any stage may have, and how many members a group: what keeps all seeds apart."""
    r = config.rollout
    slots = MAX_REFILL * max(s.prompts_per_step or r.prompts_per_step for s in config.stages)
    return slots, max(s.group_size or r.group_size for s in config.stages)


MAX_FAILED_FRACTION = 0.1
"""Share of a batch's episodes that may fail. Beyond it, training on the rest would train on a biased sample."""


def check_play(batch: Sequence[Trajectory], versions: Mapping[str, int]) -> None:
    """Raise MemR1Error when too many episodes failed, or when one was played with weights that are not current."""
    failed = [t.error for t in batch if t.error is not None]
    if not batch or len(failed) > MAX_FAILED_FRACTION * len(batch):
        first = failed[0] if failed else "no trajectory came back"
        raise MemR1Error(f"{len(failed)} of {len(batch)} episodes failed; the first said: {first}")
    for s in (s for t in batch if t.error is None for s in t.steps):
        used, current = s.sequence.weight_version, versions.get(s.policy, s.sequence.weight_version)
        if used != current:
            raise MemR1Error(f"an episode used {s.policy} weights v{used}, and v{current} is current: stale weights")
