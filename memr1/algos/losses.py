"""Token losses. Every function returns a *sum* over its tokens divided by a denominator the caller counted before.

The denominator is global: over all micro-batches and all ranks of one optimizer step (DAPO, arXiv 2503.14476).
Averaging per micro-batch instead weights tokens by the accident of how they were packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to this size so that exp() stays finite; far beyond any clip range."""


@dataclass(frozen=True)
class PolicyLoss:
    """A loss to call backward on, and sums for logging (divide them by `tokens`)."""

    loss: Tensor
    """() already divided by the global denominator."""
    stats: dict[str, Tensor]
    """Sums over the tokens of this micro-batch."""


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    rollout_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.0,
    importance_cap: float = 2.0,
    dual_clip: float = 0.0,
    sequence_ids: Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate with optional k3 KL (arXiv 1707.06347 eq. 7; arXiv 2402.03300 eq. 2 and 4).

    All tensors are (num_tokens,), one value per token.
    logprobs: under the weights being trained, with gradient. old_logprobs: under the weights before the first optimizer
    step on the batch. rollout_logprobs: as sampled by the engine; with it, each token is weighted by the truncated
    importance ratio min(exp(old - rollout), importance_cap), which corrects numerical drift of the engine.
    advantages: the scalar of the token's trajectory. weights: token weight already divided by the global denominator
    (0 for tokens that do not train), so that the returned loss is a plain weighted sum.
    dual_clip: above 1, the loss of a token with a negative advantage is at most this times its size, however likely the
    token became (arXiv 1912.09729, eq. 5); 0 is off.
    sequence_ids: (num_tokens,) which sequence a token belongs to. With it, every token has its sequence's ratio, the
    geometric mean over the trained tokens (GSPO, arXiv 2507.18071, eq. 7); weights should then give each sequence one
    weight.
    """
    trains = (weights > 0).to(logprobs.dtype)
    log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if sequence_ids is not None:
        log_ratio = _sequence_means(torch.where(weights > 0, log_ratio, 0.0), trains, sequence_ids)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip > 1:
        surrogate = torch.where(advantages < 0, surrogate.clamp(max=-dual_clip * advantages), surrogate)
    if rollout_logprobs is not None and importance_cap > 0:
        surrogate = surrogate * _importance(old_logprobs, rollout_logprobs, weights, importance_cap)
    loss = (weights * surrogate).sum()
    stats = {
        "tokens": trains.sum(),
        "clip_fraction": (((ratio * advantages) > (clipped * advantages)).to(logprobs.dtype) * trains).sum(),
        "approx_kl": ((ratio - 1 - log_ratio) * trains).sum().detach(),
    }
    if ref_logprobs is not None and kl_coef > 0:
        kl = k3_kl(logprobs, ref_logprobs)
        loss = loss + kl_coef * (weights * kl).sum()
        stats["reference_kl"] = (kl * trains).sum().detach()
    return PolicyLoss(loss, {k: v.detach() for k, v in stats.items()})


def reinforce_loss(
    logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    rollout_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    importance_cap: float = 2.0,
) -> PolicyLoss:
    """-A log pi with optional k3 KL (REINFORCE, Williams 1992, eq. 11), for the one pass that is on policy.

    Shapes and options as in `grpo_loss`, whose gradient it has where the ratio is 1. advantages: with a baseline.
    """
    trains = (weights > 0).to(logprobs.dtype)
    surrogate = -advantages * logprobs
    if rollout_logprobs is not None and importance_cap > 0:
        surrogate = surrogate * _importance(logprobs.detach(), rollout_logprobs, weights, importance_cap)
    loss, stats = (weights * surrogate).sum(), {"tokens": trains.sum()}
    if ref_logprobs is not None and kl_coef > 0:
        kl = k3_kl(logprobs, ref_logprobs)
        loss = loss + kl_coef * (weights * kl).sum()
        stats["reference_kl"] = (kl * trains).sum().detach()
    return PolicyLoss(loss, stats)


def _importance(logprobs: Tensor, rollout_logprobs: Tensor, weights: Tensor, cap: float) -> Tensor:
    """min(exp(logprobs - rollout_logprobs), cap) per token, without gradient."""
    # tokens that the environment wrote have no log-probability of the engine's; 0 * NaN would be NaN
    sampled = torch.where(weights > 0, rollout_logprobs, logprobs)
    return (logprobs - sampled).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=cap).detach()


def _sequence_means(values: Tensor, trains: Tensor, sequence_ids: Tensor) -> Tensor:
    """Each token's mean over the trained tokens of its sequence; (num_tokens,)."""
    size = int(sequence_ids.max()) + 1
    sums = values.new_zeros(size).index_add(0, sequence_ids, values)
    counts = trains.new_zeros(size).index_add(0, sequence_ids, trains)
    return (sums / counts.clamp(min=1))[sequence_ids]


def k3_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(r) - 1 - r with r = ref - logprob, >= 0."""
    r = (ref_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return r.exp() - 1 - r


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, *, clip: float = 0.2
) -> PolicyLoss:
    """Clipped squared error of a critic: 1/2 max((V - R)^2, (V_old + clip(V - V_old, +-clip) - R)^2).

    The clip is the one of PPO's own code, as arXiv 2005.12729 describes it. All tensors are
    (num_tokens,). values: with gradient. old_values: before the first optimizer step on the batch. returns: what the
    values should have been. weights: as in `grpo_loss`. clip: 0 is off.
    """
    trains = (weights > 0).to(values.dtype)
    error = (values - returns).square()
    stats = {"tokens": trains.sum()}
    if clip > 0:
        moved = (values - old_values).clamp(-clip, clip)
        bounded = (old_values + moved - returns).square()
        stats["value_clip_fraction"] = ((bounded > error).to(values.dtype) * trains).sum()
        error = torch.maximum(error, bounded)
    return PolicyLoss((weights * 0.5 * error).sum(), {k: v.detach() for k, v in stats.items()})


def sft_loss(logprobs: Tensor, weights: Tensor) -> PolicyLoss:
    """Negative log-likelihood of demonstrations. Shapes (num_tokens,); weights as in `grpo_loss`."""
    trains = (weights > 0).to(logprobs.dtype)
    return PolicyLoss(-(weights * logprobs).sum(), {"tokens": trains.sum(), "nll": -(logprobs * trains).sum().detach()})


def token_weights(
    sequence_ids: Tensor, *, aggregation: str, denominator: float, trajectory_tokens: Tensor | None = None
) -> Tensor:
    """Weight of each trained token so that a sum of `weight * loss` is the aggregated loss of the optimizer step.

    sequence_ids: (num_tokens,) which sequence of this micro-batch a token belongs to; all of a sequence's trained
    tokens must be here. aggregation: `token-mean` (denominator = trained tokens in the whole step), `sequence-mean`
    (denominator = sequences with trained tokens in the whole step; a sequence's tokens share a weight of 1) or
    `trajectory-mean` (the same with trajectories, whose sequences may lie elsewhere: trajectory_tokens, (num_tokens,),
    says how many trained tokens the token's trajectory has in the whole step).
    Raises ValueError for another aggregation.
    """
    weights = torch.ones(len(sequence_ids), device=sequence_ids.device)
    if aggregation == "token-mean":
        return weights / denominator
    if aggregation == "sequence-mean":
        return weights / torch.bincount(sequence_ids)[sequence_ids] / denominator
    if aggregation == "trajectory-mean" and trajectory_tokens is not None:
        return weights / trajectory_tokens / denominator
    raise ValueError(f"unknown aggregation {aggregation!r}; use token-mean, sequence-mean or trajectory-mean")
