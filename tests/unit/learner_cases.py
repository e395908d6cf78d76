"""Configurations and batches that the learner's tests share, in this process and in the programs of tests/e2e."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from memr1.config import AlgoConfig, Config, LearnerConfig, ModelConfig
from memr1.learner.deepspeed_learner import UpdateSettings
from memr1.learner.packing import Plan, TrainSequence, plan_microbatches
from memr1.models.adapters import LoraSettings

ROLE = "answerer"
LEARNING_RATE = 1e-4


def make_config(
    *,
    zero_stage: int = 0,
    kl_coef: float = 0.0,
    weights: str = "lora",
    dtype: str = "float32",
    algo: dict[str, Any] | None = None,
    **learner: Any,
) -> Config:
    """tiny-random on one CPU thread. algo, learner: further settings of those sections."""
    return Config(
        model=ModelConfig(
            name="tiny-random",
            weights=weights,
            dtype=dtype,
            device="cpu",
            threads=1,
            lora=LoraSettings(rank=4, alpha=8),
        ),
        algo=AlgoConfig(kl_coef=kl_coef, **(algo or {})),
        learner=replace(LearnerConfig(zero_stage=zero_stage, collective_timeout_s=60.0), **learner),
    )


def make_sequences(step: int = 0) -> list[TrainSequence]:
    """Three prompts of different length with three completions each, some tokens not to be trained on."""
    rng = random.Random(100 + step)
    out = []
    for length in (30, 8, 12):
        prompt = tuple(rng.randrange(256) for _ in range(length))
        for n in (6, 1, 4):
            completion = tuple(rng.randrange(256) for _ in range(n))
            mask = tuple(i == 0 or rng.random() < 0.75 for i in range(n))
            advantage, logprobs = rng.gauss(0, 1), tuple(-5 - rng.random() for _ in range(n))
            reward = (length + n + step) % 4 / 3
            out.append(TrainSequence(prompt, completion, mask, advantage, logprobs, reward))
    return out


def make_plan(step: int = 0, *, num_ranks: int = 1, budget: int = 48, share: bool = True) -> Plan:
    """The work of one optimizer step, in more than one micro-batch."""
    return plan_microbatches(
        make_sequences(step), num_ranks=num_ranks, max_tokens_per_microbatch=budget, pad_id=0, share_prefixes=share
    )


def make_settings(plan: Plan, objective: str = "grpo", *, lr: float = LEARNING_RATE, t: float = 1.0) -> UpdateSettings:
    """Settings with the denominators of a plan."""
    return UpdateSettings(objective, lr, plan.trained_tokens, plan.trained_sequences, t)
