"""Sequence, the checked builder of what trains; Step and Trajectory hold no rules beyond which steps train."""

from __future__ import annotations

import math
from typing import Any

import pytest

from memr1.trajectory import Sequence, Step, Trajectory


def test_a_sampled_completion_trains_on_every_token_and_keeps_its_version() -> None:
    s = Sequence.sampled((1, 2), (3, 4, 5), (-0.1, -0.2, 0.0), 6)
    assert s.loss_mask == (True, True, True)
    assert (s.prompt_ids, s.completion_ids, s.logprobs, s.weight_version) == ((1, 2), (3, 4, 5), (-0.1, -0.2, 0.0), 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (3,), (-0.1,), (True,), 0), "at least one prompt token"),
        (((1,), (3, 4), (-0.1,), (True, True), 0), "must have one length; got 2, 1, 2"),
        (((1,), (3, 4), (-0.1, -0.1), (True,), 0), "must have one length; got 2, 2, 1"),
        (((1,), (3, 4), (-0.1, math.nan), (True, True), 0), "trainable token 1 needs a log-probability <= 0, got nan"),
        (((1,), (3,), (0.5,), (True,), 0), "trainable token 0 needs a log-probability <= 0, got 0.5"),
        (((1,), (3,), (math.inf,), (True,), 0), "trainable token 0 needs a log-probability <= 0, got inf"),
        (((1,), (3,), (-math.inf,), (True,), 0), "trainable token 0 needs a log-probability <= 0, got -inf"),
    ],
)
def test_a_sequence_that_cannot_be_trained_on_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sequence(*arguments)


def test_rounding_above_zero_is_tolerated_and_spliced_tokens_need_no_logprob() -> None:
    s = Sequence((1,), (3, 4), (1e-6, math.nan), (True, False), 0)
    assert s.loss_mask == (True, False)


def test_a_sequence_cannot_be_changed_afterwards() -> None:
    s = Sequence.sampled((1,), (2,), (-1.0,), 0)
    with pytest.raises(AttributeError):
        s.loss_mask = (False,)  # type: ignore[misc]


def test_only_trainable_steps_train() -> None:
    def step(role: str, trainable: bool) -> Step:
        return Step(role, role, trainable, Sequence.sampled((1,), (2,), (-1.0,), 0), "p", "c", "stop")

    steps = (step("manager", True), step("answerer", False), step("manager", True))
    t = Trajectory("t", "g", 0, steps, 1.0)
    assert t.trainable_steps == (steps[0], steps[2])
