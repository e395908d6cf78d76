"""The `local` backend: everything in this process, for debugging and small runs. Needs no Ray."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from memr1.config import Config
from memr1.learner.group import LocalLearnerGroup
from memr1.rollout.pool import LocalPool
from memr1.training.loop import Trainer
from memr1.training.runlog import RunLog


class LocalSession:
    """A training session in this process; the Ray session (`memr1.rllib.session`) has the same face."""

    def __init__(self, config: Config, log: RunLog, resume: Path | None) -> None:
        pool = LocalPool(config)
        learners = partial(LocalLearnerGroup, beside=pool.runner.policies)
        self.trainer = Trainer(config, pool, learners, log, resume)

    def step(self) -> dict[str, float]:
        """One optimizer step."""
        return self.trainer.step()

    def close(self) -> None:
        """Release everything."""
        self.trainer.close()
