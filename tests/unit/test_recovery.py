"""How often a lost learner group is started anew, without a cluster. With one: tests/ray/test_learner_group.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memr1.rllib import recovery as module
from memr1.rllib.learner_group import LearnersLost
from memr1.rllib.recovery import MAX_RESTARTS, WAIT_S, Recovery


class Training:
    """Stands for a trainer: steps are lost as often as `lost` says."""

    def __init__(self, lost: dict[int, int], every: int) -> None:
        self.lost, self.every = dict(lost), every
        self.state = SimpleNamespace(step=0)
        self.config = SimpleNamespace(run_dir=Path("run"))
        self.done: list[int] = []

    def step(self) -> int:
        step = self.state.step + 1
        if self.lost.get(step, 0) > 0:
            self.lost[step] -= 1
            raise LearnersLost(f"rank 0 died in step {step}")
        self.state = SimpleNamespace(step=step)
        self.done.append(step)
        return step

    def resume_from(self, checkpoint: Path) -> None:
        self.state = SimpleNamespace(step=int(checkpoint.name))

    def committed(self, run_dir: Path) -> list[Path]:
        return [run_dir / str(n) for n in range(self.every, self.state.step + 1, self.every)]


def recovery_of(training: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Recovery, list[float]]:
    waited: list[float] = []
    monkeypatch.setattr(module, "committed", training.committed)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waited.append))
    return Recovery(training), waited


def test_losses_in_different_steps_are_never_too_many(monkeypatch):
    training = Training(dict.fromkeys(range(5, 25), 1), every=2)
    recovery, waited = recovery_of(training, monkeypatch)
    assert [recovery.step(training.step) for _ in range(30)] == list(range(1, 31))
    assert training.state.step == 30 and recovery.restarts == 20
    assert waited == [0.0] * 20, "a new group is made at once the first time"
    assert [training.done.count(n) for n in (3, 5, 6)] == [1, 2, 1], "what the checkpoint has is not done again"


def test_a_step_that_is_lost_again_and_again_is_waited_for_longer_and_then_given_up(monkeypatch):
    training = Training({3: MAX_RESTARTS}, every=1)
    recovery, waited = recovery_of(training, monkeypatch)
    for _ in range(3):
        recovery.step(training.step)
    assert waited == [WAIT_S * n for n in range(MAX_RESTARTS)]
    training = Training({3: MAX_RESTARTS + 1}, every=1)
    recovery, _ = recovery_of(training, monkeypatch)
    assert [recovery.step(training.step) for _ in range(2)] == [1, 2]
    with pytest.raises(LearnersLost, match="step 3"):
        recovery.step(training.step)


def test_losses_while_catching_up_are_never_too_many_as_long_as_each_group_gets_further(monkeypatch):
    training = Training({}, every=10)
    recovery, waited = recovery_of(training, monkeypatch)
    for _ in range(19):
        recovery.step(training.step)
    training.lost = dict.fromkeys(range(12, 21), 1)
    recovery.step(training.step)
    assert training.state.step == 20 and recovery.restarts == 9 > MAX_RESTARTS
    assert waited == [0.0] * 9
    for _ in range(9):
        recovery.step(training.step)
    training.lost = {30: 1, 25: 1, 22: MAX_RESTARTS + 1}
    with pytest.raises(LearnersLost, match="step 22"):  # back and forth is no progress
        recovery.step(training.step)


def test_a_loss_before_the_first_checkpoint_ends_the_run(monkeypatch):
    training = Training({2: 1}, every=5)
    recovery, _ = recovery_of(training, monkeypatch)
    recovery.step(training.step)
    with pytest.raises(LearnersLost, match="step 2"):
        recovery.step(training.step)
