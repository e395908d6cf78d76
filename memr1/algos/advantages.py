"""Advantage estimators: from rewards to a scalar per trajectory, or with a critic to a value per token."""

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


def trajectory_advantages(rewards: Tensor, group_ids: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """Advantages of trajectories, and which of them carry no signal and are left out; both (num_trajectories,).

    estimator: one of `group_advantages`, which leave out groups whose rewards agree; `reinforce`, the reward less the
    mean of the whole batch, which is left out when all of its rewards agree; or `ppo`, 0 for every one and none left
    out, since a critic will say what each is worth.
    """
    if estimator == "ppo":
        return torch.zeros_like(rewards), torch.zeros_like(group_ids, dtype=torch.bool)
    if estimator == "reinforce":
        group_ids, estimator = torch.zeros_like(group_ids), "dr-grpo"
    return group_advantages(rewards, group_ids, estimator), zero_variance_groups(rewards, group_ids)


def zero_variance_groups(rewards: Tensor, group_ids: Tensor, *, min_range: float = 1e-6) -> Tensor:
    """True for trajectories whose group has rewards within `min_range` of each other. Shapes (num_trajectories,)."""
    out = torch.zeros_like(group_ids, dtype=torch.bool)
    for group in group_ids.unique():
        members = group_ids == group
        r = rewards[members]
        out[members] = bool((r.max() - r.min()) <= min_range)
    return out


def gae(
    rewards: Tensor, values: Tensor, sequence_ids: Tensor, *, discount: float = 1.0, gae_lambda: float = 1.0
) -> Tensor:
    """Generalised advantage estimate (arXiv 1506.02438, eq. 16) over the trained tokens of several sequences.

    rewards: (num_tokens,) what each token earned. values: (num_tokens,) what the critic expected before each token.
    sequence_ids: (num_tokens,) which sequence a token belongs to; tokens of a sequence are adjacent and in order.
    Only trained tokens are given: what the environment wrote in between is no action, takes no discount and does not
    interrupt the sum. Each sequence ends with its last token. Returns (num_tokens,).
    """
    lengths = torch.bincount(sequence_ids)
    place = torch.arange(len(sequence_ids), device=sequence_ids.device) - (lengths.cumsum(0) - lengths)[sequence_ids]
    width = int(lengths.max()) if len(sequence_ids) else 0

    def by_sequence(x: Tensor) -> Tensor:
        grid = x.new_zeros(len(lengths), width + 1)  # behind the end nothing is earned and nothing expected
        grid[sequence_ids, place] = x
        return grid

    earned, expected = by_sequence(rewards), by_sequence(values)
    advantages = torch.zeros_like(expected)
    for t in reversed(range(width)):
        surprise = earned[:, t] + discount * expected[:, t + 1] - expected[:, t]
        advantages[:, t] = surprise + discount * gae_lambda * advantages[:, t + 1]
    return advantages[sequence_ids, place]


def moments(values: Tensor) -> Tensor:
    """(3,) float64: how many values, their sum, the sum of their squares. Those of parts add up to those of all."""
    x = values.double()
    return torch.stack([torch.tensor(float(x.numel()), dtype=x.dtype, device=x.device), x.sum(), (x * x).sum()])


def variance(of: Tensor) -> Tensor:
    """() unbiased variance of what has the moments `of`; 0 for fewer than two values."""
    count, total, squares = of
    return ((squares - total * total / count.clamp(min=1)) / (count - 1).clamp(min=1)).clamp(min=0)


def whiten(advantages: Tensor, of_all: Tensor, *, min_std: float = 1e-6) -> Tensor:
    """Advantages shifted and scaled to mean 0 and deviation 1 over all tokens of the optimizer step; (num_tokens,).

    of_all: `moments` of the advantages of all trained tokens, over all micro-batches and ranks. Where they all but
    agree (a deviation of at most `min_std`) they are shifted only: scaling would blow rounding up to a signal.
    """
    std = variance(of_all).sqrt()
    mean = of_all[1] / of_all[0].clamp(min=1)
    scale = 1 / std if std > min_std else torch.ones_like(std)
    return ((advantages.double() - mean) * scale).to(advantages.dtype)


def explained_variance(errors: Tensor, returns: Tensor) -> float:
    """1 - Var(return - value) / Var(return), from `moments` of both; NaN where all returns are equal."""
    total = float(variance(returns))
    return 1 - float(variance(errors)) / total if total > 1e-12 else float("nan")
