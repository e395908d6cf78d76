"""Advantages against plain loops. Does not cover how the training loop builds groups; see the tests of the loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memr1.algos.advantages import (
    group_advantages,
    grpo_advantages,
    rloo_advantages,
    zero_variance_groups,
)


def by_plain_loops(rewards: list[float], groups: list[int], normalize_std: bool, eps: float = 1e-6) -> list[float]:
    """DeepSeekMath eq. 3 with Python floats: (R - mean) / (unbiased std + eps)."""
    out = []
    for reward, group in zip(rewards, groups, strict=True):
        members = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        if len(members) < 2 or max(members) - min(members) <= 1e-6:
            out.append(0.0)
            continue
        mean = sum(members) / len(members)
        std = math.sqrt(sum((m - mean) ** 2 for m in members) / (len(members) - 1))
        out.append((reward - mean) / (std + eps) if normalize_std else reward - mean)
    return out


REWARDS = [1.0, 0.0, 0.0, 1.0, 0.3, 0.9, 0.1, 5.0, 2.0, 2.0]
GROUPS = [7, 7, 7, 7, 3, 3, 3, 9, 1, 1]


def test_a_known_group_gets_the_values_worked_out_by_hand() -> None:
    # rewards 1 0 0 1: mean 1/2, unbiased variance 4 * 1/4 / 3 = 1/3
    advantages = grpo_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64), torch.zeros(4).long())
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert advantages.tolist() == pytest.approx([expected, -expected, -expected, expected], abs=1e-12)


@pytest.mark.parametrize("normalize_std", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_advantages_equal_a_plain_loop_in_both_precisions(
    normalize_std: bool, dtype: torch.dtype, tolerance: float
) -> None:
    found = grpo_advantages(torch.tensor(REWARDS, dtype=dtype), torch.tensor(GROUPS), normalize_std=normalize_std)
    assert found.dtype == dtype
    assert found.tolist() == pytest.approx(by_plain_loops(REWARDS, GROUPS, normalize_std), abs=tolerance)


def test_dr_grpo_centres_without_dividing_by_the_deviation() -> None:
    found = grpo_advantages(torch.tensor([4.0, 0.0]), torch.tensor([0, 0]), normalize_std=False)
    assert found.tolist() == [2.0, -2.0]


def test_leave_one_out_equals_a_plain_loop() -> None:
    expected = []
    for i, (reward, group) in enumerate(zip(REWARDS, GROUPS, strict=True)):
        others = [r for j, (r, g) in enumerate(zip(REWARDS, GROUPS, strict=True)) if g == group and j != i]
        flat = all(abs(o - reward) <= 1e-6 for o in others)
        expected.append(0.0 if flat else reward - sum(others) / len(others))
    found = rloo_advantages(torch.tensor(REWARDS, dtype=torch.float64), torch.tensor(GROUPS))
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_estimators_are_had_by_name() -> None:
    rewards, groups = torch.tensor([4.0, 0.0]), torch.tensor([0, 0])
    assert group_advantages(rewards, groups, "rloo").tolist() == [4.0, -4.0]
    assert group_advantages(rewards, groups, "dr-grpo").tolist() == [2.0, -2.0]
    assert group_advantages(rewards, groups, "grpo").tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-6)
    with pytest.raises(ValueError, match="unknown estimator 'gae'"):
        group_advantages(rewards, groups, "gae")


def test_a_group_of_one_gets_zero() -> None:
    assert grpo_advantages(torch.tensor([3.0, 1.0, 0.0]), torch.tensor([5, 2, 2]))[0] == 0.0


def test_equal_rewards_get_zero_even_when_they_differ_by_rounding() -> None:
    rewards = torch.tensor([0.1 + 0.2, 0.3, 0.3, 0.3], dtype=torch.float64)  # 0.1 + 0.2 is not 0.3
    groups = torch.zeros(4).long()
    assert grpo_advantages(rewards, groups).tolist() == [0.0] * 4
    assert zero_variance_groups(rewards, groups).tolist() == [True] * 4


def test_zero_variance_is_told_for_the_trajectories_of_flat_groups_only() -> None:
    flat = zero_variance_groups(torch.tensor(REWARDS), torch.tensor(GROUPS))
    assert flat.tolist() == [False] * 7 + [True] * 3


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_advantages_sum_to_zero_per_group_and_do_not_depend_on_order(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 20))
    rewards = data.draw(st.lists(st.floats(-3, 3, width=32), min_size=n, max_size=n))
    groups = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    order = data.draw(st.permutations(range(n)))
    r, g = torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups)
    advantages = grpo_advantages(r, g)
    for group in set(groups):
        assert abs(float(advantages[g == group].sum())) < 1e-9
    shuffled = grpo_advantages(r[list(order)], g[list(order)])
    assert torch.allclose(shuffled, advantages[list(order)], atol=1e-9)
    assert advantages.tolist() == pytest.approx(by_plain_loops(rewards, groups, True), abs=1e-9)


def test_a_reward_scale_does_not_change_normalised_advantages() -> None:
    r, g = torch.tensor(REWARDS, dtype=torch.float64), torch.tensor(GROUPS)
    assert torch.allclose(grpo_advantages(100 * r + 5, g), grpo_advantages(r, g), atol=1e-4)
