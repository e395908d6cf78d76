"""Advantage estimators: from rewards of trajectories to one scalar per trajectory."""

from __future__ import annotations

import torch
from torch import Tensor


def grpo_advantages(
    rewards: Tensor, group_ids: Tensor, *, normalize_std: bool = True, eps: float = 1e-6, min_range: float = 1e-6
) -> Tensor:
    """Group-relative advantages (DeepSeekMath, arXiv 2402.03300, eq. 3).

    rewards: (num_trajectories,) one scalar per trajectory.
    group_ids: (num_trajectories,) integer; trajectories with one id were played from the same snapshot.
    normalize_std: divide by the unbiased standard deviation of the group; False is Dr.GRPO (arXiv 2503.20783).
    Returns (num_trajectories,). A group of one, or one whose rewards differ by at most `min_range`, gets 0: it
    carries no signal, and dividing rounding noise by its tiny deviation would invent one.
    """
    advantages = torch.zeros_like(rewards)
    for group in group_ids.unique():
        members = group_ids == group
        r = rewards[members]
        if r.numel() < 2 or (r.max() - r.min()) <= min_range:
            continue
        centred = r - r.mean()
        advantages[members] = centred / (r.std(unbiased=True) + eps) if normalize_std else centred
    return advantages


def rloo_advantages(rewards: Tensor, group_ids: Tensor, *, min_range: float = 1e-6) -> Tensor:
    """Leave-one-out advantages: the reward less the mean reward of the others of its group (arXiv 2402.14740, eq. 7).

    Shapes and the treatment of groups without a signal as in `grpo_advantages`. Equal to Dr.GRPO's times G / (G - 1).
    """
    centred = grpo_advantages(rewards, group_ids, normalize_std=False, min_range=min_range)
    _, place, counts = group_ids.unique(return_inverse=True, return_counts=True)
    size = counts[place].to(rewards.dtype)
    return centred * size / (size - 1).clamp(min=1)  # a group of one is 0 already


def group_advantages(rewards: Tensor, group_ids: Tensor, estimator: str) -> Tensor:
    """Advantages by the name of an estimator, as in `algo.advantage`; ValueError for a name that is none."""
    if estimator == "grpo":
        return grpo_advantages(rewards, group_ids)
    if estimator == "dr-grpo":
        return grpo_advantages(rewards, group_ids, normalize_std=False)
    if estimator == "rloo":
        return rloo_advantages(rewards, group_ids)
    raise ValueError(f"unknown estimator {estimator!r}; use grpo, dr-grpo or rloo")


def zero_variance_groups(rewards: Tensor, group_ids: Tensor, *, min_range: float = 1e-6) -> Tensor:
    """True for trajectories whose group has rewards within `min_range` of each other. Shapes (num_trajectories,)."""
    out = torch.zeros_like(group_ids, dtype=torch.bool)
    for group in group_ids.unique():
        members = group_ids == group
        r = rewards[members]
        out[members] = bool((r.max() - r.min()) <= min_range)
    return out
