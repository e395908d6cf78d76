"""A lost learner group is started anew from the newest checkpoint, and catches up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from memr1.rllib.learner_group import LearnersLost
from memr1.training.checkpoints import committed
from memr1.training.loop import Trainer

_log = logging.getLogger(__name__)

MAX_RESTARTS = 5
"""Times in a row that a lost learner group is started anew from the newest checkpoint and does not get further than
those before it."""
WAIT_S = 10.0
"""Longer by so much before each further one: Ray takes a while to notice that a node is dead, and places learners there
until then."""

T = TypeVar("T")


class Recovery:
    """Steps of a trainer that survive the loss of its learners."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.restarts = 0
        """Learner groups started anew so far."""

    def step(self, once: Callable[[], T]) -> T:
        """One optimizer step, and what `once`, which takes one, returned for it. When learners are lost, go back to the
        newest checkpoint and catch up first. Raises LearnersLost where there is none, or after too many losses."""
        target = self._trainer.state.step + 1
        losses = 0
        furthest: int | None = None  # that a group which was started anew got to
        while True:
            try:
                result = once()
            except LearnersLost as error:
                reached = self._trainer.state.step
                if furthest is not None and reached > furthest:
                    losses, furthest = 0, reached
                losses += 1
                self._restart_learners(error, losses)
                if furthest is None:
                    furthest = self._trainer.state.step
                continue
            if self._trainer.state.step >= target:
                return result

    def _restart_learners(self, error: LearnersLost, losses: int) -> None:
        checkpoints = committed(self._trainer.config.run_dir)
        if losses > MAX_RESTARTS or not checkpoints:
            raise error
        self.restarts += 1
        _log.warning("learners lost, going back to %s: %s", checkpoints[-1].name, error)
        time.sleep(WAIT_S * (losses - 1))
        self._trainer.resume_from(checkpoints[-1])
