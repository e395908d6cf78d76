"""Advantages against plain loops. Does not cover how the training loop builds groups; see the tests of the loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memr1.algos.advantages import (
    explained_variance,
    gae,
    group_advantages,
    grpo_advantages,
    moments,
    rloo_advantages,
    trajectory_advantages,
    variance,
    whiten,
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


def test_reinforce_compares_with_the_mean_of_the_batch_whatever_the_groups() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 0.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 2, 2])
    advantages, flat = trajectory_advantages(rewards, groups, "reinforce")
    assert advantages.tolist() == [0.0, -1.0, -1.0, 1.0, 1.0]
    assert not flat.any(), "a group of one, or of equal rewards, still says something"
    advantages, flat = trajectory_advantages(torch.full((3,), 0.7), groups[:3], "reinforce")
    assert advantages.tolist() == [0.0] * 3 and flat.all()


def test_with_a_critic_no_rollout_is_left_out() -> None:
    advantages, flat = trajectory_advantages(torch.ones(3), torch.tensor([0, 0, 1]), "ppo")
    assert advantages.tolist() == [0.0] * 3 and not flat.any()
    advantages, flat = trajectory_advantages(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 1]), "dr-grpo")
    assert advantages.tolist() == [-1.0, 1.0, 0.0] and flat.tolist() == [False, False, True]


# -- with a critic ----------------------------------------------------------------------------------------------


def gae_by_plain_loops(rewards: list[float], values: list[float], discount: float, lam: float) -> list[float]:
    """Schulman et al. eq. 16, term by term; behind the last token nothing is expected."""
    n = len(values)
    surprises = [rewards[t] + (discount * values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((discount * lam) ** (u - t) * surprises[u] for u in range(t, n)) for t in range(n)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_gae_equals_a_plain_loop_over_each_sequence(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    discount, lam = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    number = st.floats(-3, 3, width=32)
    rewards, values, ids, expected = [], [], [], []
    for i, n in enumerate(lengths):
        r = data.draw(st.lists(number, min_size=n, max_size=n))
        v = data.draw(st.lists(number, min_size=n, max_size=n))
        rewards, values, ids = rewards + r, values + v, ids + [i] * n
        expected += gae_by_plain_loops(r, v, discount, lam)
    found = gae(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(ids),
        discount=discount,
        gae_lambda=lam,
    )
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_at_discount_and_lambda_one_the_advantage_is_the_outcome_less_the_value() -> None:
    rewards, values = torch.tensor([0.0, 0.0, 1.0, 0.25]), torch.tensor([0.5, -0.25, 2.0, 0.75])
    assert gae(rewards, values, torch.tensor([0, 0, 0, 1])).tolist() == [0.5, 1.25, -1.0, -0.5]


def test_gae_of_no_token_is_empty() -> None:
    nothing = torch.zeros(0)
    assert gae(nothing, nothing, torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_whitening_goes_over_all_parts_and_equals_a_plain_loop() -> None:
    parts = [torch.tensor([1.0, 4.0, -2.0]), torch.tensor([]), torch.tensor([0.5, 7.0])]
    together = torch.stack([moments(p) for p in parts]).sum(0)
    everything = [x for p in parts for x in p.tolist()]
    mean = sum(everything) / len(everything)
    std = math.sqrt(sum((x - mean) ** 2 for x in everything) / (len(everything) - 1))
    found = [x for p in parts for x in whiten(p, together).tolist()]
    assert found == pytest.approx([(x - mean) / std for x in everything], abs=1e-6)
    assert sum(found) == pytest.approx(0.0, abs=1e-6)
    assert float(variance(together)) == pytest.approx(std**2, rel=1e-12)


def test_whitening_makes_no_signal_of_rounding() -> None:
    nearly_equal = torch.tensor([0.1 + 0.2, 0.3, 0.3], dtype=torch.float64)
    assert whiten(nearly_equal, moments(nearly_equal)).abs().max() < 1e-12
    one = torch.tensor([5.0])
    assert whiten(one, moments(one)).tolist() == [0.0]


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one() -> None:
    returns = torch.tensor([0.0, 1.0, 0.0, 3.0])
    assert explained_variance(moments(returns - returns), moments(returns)) == 1.0
    assert explained_variance(moments(returns - 0.7), moments(returns)) == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(moments(returns + returns), moments(returns)) == pytest.approx(-3.0, abs=1e-6)
    assert math.isnan(explained_variance(moments(torch.ones(3)), moments(torch.ones(3))))
