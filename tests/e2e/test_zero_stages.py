"""ZeRO stages with one rank in this process: they change no update, and what holds at stage 0 holds at the others.

They are no unit tests: stage 3 changes torch's linear layers for the whole process, and takes seconds. More ranks, each
in a process of its own, are in test_learner_ranks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memr1.learner.group import LocalLearnerGroup
from tests.unit import test_critic as critic
from tests.unit import test_learner as learner
from tests.unit.test_critic import far, ppo_config

MakeGroup = Callable[..., LocalLearnerGroup]


@pytest.mark.parametrize(("zero_stage", "offload"), [(1, False), (2, False), (3, False), (1, True), (3, True)])
def test_zero_stages_give_the_updates_of_stage_0_with_the_optimizer_offloaded_or_not(
    make_group: MakeGroup, zero_stage: int, offload: bool
) -> None:
    kl_coef = 0.5
    plain = make_group(zero_stage=0, kl_coef=kl_coef)
    sharded = make_group(zero_stage=zero_stage, kl_coef=kl_coef, offload_optimizer=offload)
    a, b = learner.train(plain, 2), learner.train(sharded, 2)
    assert far(plain.learner.weights(), sharded.learner.weights()) < 1e-6
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("zero_stage", "weights", "backbone"),
    [(1, "lora", "policy"), (2, "lora", "own"), (3, "lora", "own"), (3, "full", "own")],
)
def test_zero_stages_give_the_updates_of_stage_0_with_a_critic(
    make_group: MakeGroup, zero_stage: int, weights: str, backbone: str
) -> None:
    options: dict[str, Any] = {"weights": weights, "backbone": backbone, "kl_coef": 0.3, "kl_in": "reward"}
    plain, sharded = make_group(ppo_config(**options)), make_group(ppo_config(zero_stage=zero_stage, **options))
    a, b = critic.train(plain, 2, warmup=1), critic.train(sharded, 2, warmup=1)
    assert far(plain.learner.weights(), sharded.learner.weights()) < 2e-5
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("backbone", "zero_stage"), [("own", 3), ("policy", 2)])
def test_a_sharded_group_goes_on_bit_for_bit_with_its_critic(
    make_group: MakeGroup, tmp_path: Path, backbone: str, zero_stage: int
) -> None:
    critic.test_a_restored_group_goes_on_bit_for_bit_with_its_critic(make_group, tmp_path, backbone, zero_stage)


@pytest.mark.usefixtures("learner_process")
@pytest.mark.parametrize(("zero_stage", "offload"), [(1, False), (2, False), (3, False), (1, True), (3, True)])
def test_gradients_of_bf16_weights_are_added_up_in_fp32_at_every_stage(zero_stage: int, offload: bool) -> None:
    learner.test_gradients_of_bf16_weights_are_added_up_in_fp32(zero_stage, offload)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_sharded_group_with_full_weights_in_bf16_goes_on_bit_for_bit(
    make_group: MakeGroup, tmp_path: Path, zero_stage: int
) -> None:
    learner.test_a_restored_group_goes_on_bit_for_bit_and_keeps_its_reference(
        make_group, tmp_path, "full", "bfloat16", zero_stage
    )


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_sharded_group_refuses_a_loss_that_is_no_number(
    make_group: MakeGroup, tmp_path: Path, zero_stage: int
) -> None:
    learner.test_a_loss_that_is_no_number_is_refused_with_its_rows_and_moves_nothing(
        make_group, tmp_path, "grpo", zero_stage
    )
