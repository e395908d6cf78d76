"""The learning rate of a stage against values worked out by hand."""

from __future__ import annotations

import pytest

from memr1.config import StageConfig
from memr1.training.schedule import learning_rate


def rates(**fields: object) -> list[float]:
    stage = StageConfig(steps=6, learning_rate=1.0, warmup_steps=2, **fields)  # type: ignore[arg-type]
    return [learning_rate(stage, step) for step in range(stage.steps)]


def test_constant_after_the_warm_up() -> None:
    assert rates() == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_linear_falls_to_one_step_above_zero() -> None:
    assert rates(schedule="linear") == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rates(schedule="cosine") == pytest.approx([1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_a_stage_that_is_all_warm_up_rises_to_the_end() -> None:
    stage = StageConfig(steps=3, learning_rate=1.0, warmup_steps=3, schedule="linear")
    assert [learning_rate(stage, s) for s in range(3)] == pytest.approx([0.25, 0.5, 0.75])
