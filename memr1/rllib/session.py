"""RaySession: the `ray` backend of `memr1 train`."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import ray

from memr1.config import Config
from memr1.rllib.algorithm import MemoryR1, MemoryR1Config
from memr1.rllib.cluster import connect
from memr1.rllib.learner_group import LearnersLost
from memr1.training.checkpoints import committed
from memr1.training.runlog import RunLog

_log = logging.getLogger(__name__)

MAX_RESTARTS = 5
"""Times in a row that a lost learner group is started anew from the newest checkpoint and does not get further than
those before it."""
WAIT_S = 10.0
"""Longer by so much before each further one: Ray takes a while to notice that a node is dead, and places learners there
until then."""


class RaySession:
    """A training session on a Ray cluster; `LocalSession` has the same face."""

    def __init__(self, config: Config, log: RunLog, resume: Path | None) -> None:
        """log: closed here and reopened by the algorithm, which owns it from then on."""
        self._connected = connect()
        self.restarts = 0
        """Learner groups started anew so far."""
        log.close()
        try:
            builder = MemoryR1Config().experiment(config, resume="never" if resume is None else str(resume))
            builder.validate()
            for line in ("placement:", *builder.placement_plan):
                print(line, flush=True)
            self.algorithm: MemoryR1 = builder.build_algo()
            self.trainer = self.algorithm.trainer
        except BaseException:
            self._disconnect()
            raise

    def step(self) -> dict[str, float]:
        """One optimizer step. When learners are lost, go back to the newest checkpoint and catch up first."""
        target = self.trainer.state.step + 1
        losses = 0
        furthest: int | None = None  # that a group which was started anew got to
        while True:
            try:
                self.algorithm.train()
            except LearnersLost as error:
                reached = self.trainer.state.step
                if furthest is not None and reached > furthest:
                    losses, furthest = 0, reached
                losses += 1
                self._restart_learners(error, losses)
                if furthest is None:
                    furthest = self.trainer.state.step
                continue
            if self.trainer.state.step >= target:
                return self.algorithm.step_metrics

    def _restart_learners(self, error: LearnersLost, losses: int) -> None:
        checkpoints = committed(self.trainer.config.run_dir)
        if losses > MAX_RESTARTS or not checkpoints:
            raise error
        self.restarts += 1
        _log.warning("learners lost, going back to %s: %s", checkpoints[-1].name, error)
        time.sleep(WAIT_S * (losses - 1))
        self.trainer.resume_from(checkpoints[-1])

    def close(self) -> None:
        """Stop what this session started."""
        try:
            self.algorithm.stop()
        finally:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connected:
            ray.shutdown()
