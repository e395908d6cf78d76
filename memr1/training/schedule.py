"""The learning rate at every step of a stage."""

from __future__ import annotations

import math

from memr1.config import StageConfig


def learning_rate(stage: StageConfig, step: int) -> float:
    """Learning rate of the step with this index, counted from 0: a linear warm-up, then the stage's schedule.

    The warm-up never spends a step at 0, and neither does the last step of a falling schedule.
    """
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / (stage.warmup_steps + 1)
    progress = (step - stage.warmup_steps) / max(stage.steps - stage.warmup_steps, 1)
    if stage.schedule == "linear":
        return stage.learning_rate * (1 - progress)
    if stage.schedule == "cosine":
        return stage.learning_rate * (1 + math.cos(math.pi * progress)) / 2
    return stage.learning_rate
