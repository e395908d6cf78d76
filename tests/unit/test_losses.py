"""Losses against scalar Python and finite differences. How a learner feeds them is in test_learner.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memr1.algos.losses import PolicyLoss, grpo_loss, k3_kl, reinforce_loss, sft_loss, token_weights, value_loss

N = 48


def clamp(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def grpo_by_scalars(
    lp: list[float],
    old: list[float],
    adv: list[float],
    w: list[float],
    rollout: list[float] | None,
    ref: list[float] | None,
    low: float,
    high: float,
    kl_coef: float,
    cap: float,
) -> float:
    """PPO eq. 7 and DeepSeekMath eq. 4, one token at a time."""
    total = 0.0
    for i in range(len(lp)):
        if w[i] == 0:
            continue
        ratio = math.exp(clamp(lp[i] - old[i], -20, 20))
        token = -min(ratio * adv[i], clamp(ratio, 1 - low, 1 + high) * adv[i])
        if rollout is not None and cap > 0:
            token *= min(math.exp(clamp(old[i] - rollout[i], -20, 20)), cap)
        if ref is not None:
            k1 = lp[i] - ref[i]
            token += kl_coef * (math.exp(-k1) - 1 + k1)
        total += w[i] * token
    return total


def tokens(seed: int = 0) -> dict[str, Tensor]:
    """Tokens that lie inside and outside of both clips, with advantages of both signs, and some that do not train."""
    g = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> Tensor:
        return torch.randn(N, generator=g, dtype=torch.float64) * scale

    lp = -normal(1).abs()
    mask = torch.rand(N, generator=g) > 0.25
    return {
        "lp": lp,
        "old": lp + normal(0.4),
        "adv": normal(1.5),
        "w": mask.double() / 37.0,
        "rollout": lp + normal(0.8),
        "ref": lp + normal(0.5),
    }


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28)])
def test_grpo_loss_equals_a_scalar_loop(correct: bool, kl_coef: float, low: float, high: float) -> None:
    t = tokens()
    found = grpo_loss(
        t["lp"], t["old"], t["adv"], t["w"],
        rollout_logprobs=t["rollout"] if correct else None,
        ref_logprobs=t["ref"] if kl_coef else None,
        clip_low=low, clip_high=high, kl_coef=kl_coef, importance_cap=2.0,
    )  # fmt: skip
    lists = {k: v.tolist() for k, v in t.items()}
    expected = grpo_by_scalars(
        lists["lp"], lists["old"], lists["adv"], lists["w"],
        lists["rollout"] if correct else None, lists["ref"] if kl_coef else None, low, high, kl_coef, 2.0,
    )  # fmt: skip
    ratio = (t["lp"] - t["old"]).exp()
    for outside in (ratio < 1 - low, ratio > 1 + high):  # the inputs do reach all four corners
        assert (outside & (t["adv"] > 0) & (t["w"] > 0)).any()
        assert (outside & (t["adv"] < 0) & (t["w"] > 0)).any()
    assert float(found.loss) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.5, 1.0, -1.2, 0.0),  # clipped above: already more likely than wanted
        (1.5, -1.0, 1.5, 1.5),  # a bad token that got likelier is always pushed down
        (0.5, 1.0, -0.5, -0.5),  # a good token that got rarer is always pulled up
        (0.5, -1.0, 0.8, 0.0),  # clipped below
        (1.1, 2.0, -2.2, -2.2),
    ],
)
def test_clip_stops_the_gradient_only_where_the_step_already_went_far(
    ratio: float, advantage: float, value: float, gradient: float
) -> None:
    lp = torch.tensor([math.log(ratio) - 3.0], dtype=torch.float64, requires_grad=True)
    out = grpo_loss(lp, torch.tensor([-3.0]).double(), torch.tensor([advantage]).double(), torch.ones(1).double())
    out.loss.backward()
    assert lp.grad is not None
    assert out.loss.item() == pytest.approx(value, abs=1e-12)
    assert float(lp.grad) == pytest.approx(gradient, abs=1e-12)
    assert float(out.stats["clip_fraction"]) == float(gradient == 0.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (5.0, -1.0, 3.0, 0.0),  # far too likely already: the bound holds
        (2.0, -1.0, 2.0, 2.0),  # below it nothing changes
        (5.0, 1.0, -1.2, 0.0),  # good tokens are none of its business
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_dual_clip_bounds_the_loss_of_bad_tokens_that_became_likely(
    ratio: float, advantage: float, value: float, gradient: float
) -> None:
    lp = torch.tensor([math.log(ratio) - 3.0], dtype=torch.float64, requires_grad=True)
    old, a = torch.tensor([-3.0]).double(), torch.tensor([advantage]).double()
    out = grpo_loss(lp, old, a, torch.ones(1).double(), dual_clip=3.0)
    out.loss.backward()
    assert lp.grad is not None
    assert (out.loss.item(), float(lp.grad)) == (pytest.approx(value, abs=1e-12), pytest.approx(gradient, abs=1e-12))


def test_sequence_ratios_equal_a_loop_over_sequences() -> None:
    t = tokens(3)
    lengths = [9, 1, 14, 6, 18]
    ids = torch.tensor([s for s, n in enumerate(lengths) for _ in range(n)])
    adv = torch.tensor([1.3, -0.7, -1.1, 0.4, 2.0], dtype=torch.float64)[ids]
    mask = t["w"] > 0
    weights = torch.zeros(N, dtype=torch.float64)
    expected, clipped = 0.0, 0
    for s in range(len(lengths)):
        mine = [i for i in range(N) if ids[i] == s and mask[i]]
        weights[mine] = 1 / len(mine) / len(lengths)
        mean = sum(float(t["lp"][i] - t["old"][i]) for i in mine) / len(mine)
        ratio, a = math.exp(mean), float(adv[mine[0]])
        expected += -min(ratio * a, clamp(ratio, 0.8, 1.2) * a) / len(lengths)
        clipped += not 0.8 <= ratio <= 1.2
    assert 0 < clipped < len(lengths), "sequences lie inside and outside of the clip"

    def loss(lp: Tensor) -> Tensor:
        return grpo_loss(lp, t["old"], adv, weights, sequence_ids=ids).loss

    lp = t["lp"].clone().requires_grad_()
    assert float(loss(t["lp"])) == pytest.approx(expected, rel=1e-12)
    (grad,) = torch.autograd.grad(loss(lp), lp)
    assert torch.allclose(grad, finite_differences(loss, t["lp"]), atol=1e-8)
    assert (grad[~mask] == 0).all(), "tokens that do not train count for no ratio"


def finite_differences(f: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-6) -> Tensor:
    grad = torch.zeros_like(x)
    for i in range(len(x)):
        step = torch.zeros_like(x)
        step[i] = h
        grad[i] = (f(x + step) - f(x - step)) / (2 * h)
    return grad


def test_gradient_of_grpo_loss_equals_finite_differences() -> None:
    t = tokens(1)

    def loss(lp: Tensor) -> Tensor:
        return grpo_loss(
            lp, t["old"], t["adv"], t["w"], rollout_logprobs=t["rollout"], ref_logprobs=t["ref"], kl_coef=0.3
        ).loss

    lp = t["lp"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(lp), lp)
    assert torch.allclose(grad, finite_differences(loss, t["lp"]), atol=1e-8)
    assert (grad[t["w"] == 0] == 0).all()


def test_at_ratio_one_the_gradient_is_the_policy_gradient() -> None:
    t = tokens(2)
    lp = t["lp"].clone().requires_grad_()
    out = grpo_loss(lp, lp.detach(), t["adv"], t["w"])
    (grad,) = torch.autograd.grad(out.loss, lp)
    assert torch.allclose(grad, -t["adv"] * t["w"], atol=1e-15)
    assert float(out.stats["clip_fraction"]) == 0.0
    assert float(out.stats["approx_kl"]) == 0.0


@pytest.mark.parametrize(
    ("drift", "cap", "factor"), [(1.5, 2.0, 1.5), (0.25, 2.0, 0.25), (8.0, 2.0, 2.0), (8.0, 0.0, 1.0)]
)
def test_importance_weight_is_truncated_above_only_and_off_at_zero(drift: float, cap: float, factor: float) -> None:
    lp = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    rollout = torch.tensor([-1.0 - math.log(drift)], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    out = grpo_loss(lp, lp.detach(), one, one, rollout_logprobs=rollout, importance_cap=cap)
    out.loss.backward()
    assert lp.grad is not None
    assert float(lp.grad) == pytest.approx(-factor, rel=1e-12)


def test_tokens_that_do_not_train_may_carry_any_rollout_logprob() -> None:
    t = tokens(3)
    dirty = torch.where(t["w"] > 0, t["rollout"], torch.full((N,), math.nan, dtype=torch.float64))
    lp = t["lp"].clone().requires_grad_()
    clean_loss = grpo_loss(t["lp"], t["old"], t["adv"], t["w"], rollout_logprobs=t["rollout"]).loss
    loss = grpo_loss(lp, t["old"], t["adv"], t["w"], rollout_logprobs=dirty).loss
    assert float(loss) == float(clean_loss)
    (grad,) = torch.autograd.grad(loss, lp)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize(("cap", "kl_coef"), [(2.0, 0.1), (0.0, 0.0)])
def test_reinforce_loss_equals_a_scalar_loop_and_has_the_gradient_of_the_surrogate(cap: float, kl_coef: float) -> None:
    t = tokens(6)
    expected = 0.0
    for lp, a, w, rollout, ref in zip(*(t[n].tolist() for n in ("lp", "adv", "w", "rollout", "ref")), strict=True):
        importance = min(math.exp(clamp(lp - rollout, -20, 20)), cap) if cap else 1.0
        k3 = math.exp(ref - lp) - 1 - (ref - lp)
        expected += w * (-a * lp * importance + kl_coef * k3)

    def loss(function: Callable[..., PolicyLoss], lp: Tensor, *old: Tensor) -> PolicyLoss:
        return function(
            lp, *old, t["adv"], t["w"],
            rollout_logprobs=t["rollout"], ref_logprobs=t["ref"], kl_coef=kl_coef, importance_cap=cap,
        )  # fmt: skip

    lp = t["lp"].clone().requires_grad_()
    found = loss(reinforce_loss, lp)
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-12)
    assert int(found.stats["tokens"]) == int((t["w"] > 0).sum())
    (grad,) = torch.autograd.grad(found.loss, lp)
    (other,) = torch.autograd.grad(loss(grpo_loss, lp, lp.detach()).loss, lp)
    assert torch.allclose(grad, other, atol=1e-15)


def test_k3_is_zero_at_equality_never_negative_and_unbiased() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    other = torch.tensor([1.0, 0.5, 0.0, -0.7], dtype=torch.float64)
    p, q = logits.log_softmax(0), other.log_softmax(0)
    assert k3_kl(p, p).tolist() == [0.0] * 4
    assert (k3_kl(p, q) > 0).all()
    expected = float((p.exp() * (p - q)).sum())  # KL(p || q)
    assert float((p.exp() * k3_kl(p, q)).sum()) == pytest.approx(expected, rel=1e-12)


def test_extreme_log_ratios_stay_finite() -> None:
    lp = torch.tensor([-300.0, -0.1], requires_grad=True)
    other = torch.tensor([-0.1, -300.0])
    out = grpo_loss(lp, other, torch.tensor([-1.0, -1.0]), torch.ones(2), ref_logprobs=other, kl_coef=0.1)
    out.loss.backward()
    assert lp.grad is not None
    assert torch.isfinite(out.loss)
    assert torch.isfinite(lp.grad).all()


def test_sft_loss_is_the_weighted_negative_log_likelihood() -> None:
    t = tokens(4)
    out: PolicyLoss = sft_loss(t["lp"], t["w"])
    expected = -sum(a * b for a, b in zip(t["lp"].tolist(), t["w"].tolist(), strict=True))
    assert float(out.loss) == pytest.approx(expected, rel=1e-12)
    trained = int((t["w"] > 0).sum())
    assert int(out.stats["tokens"]) == trained
    assert float(out.stats["nll"]) / 37 == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_value_loss_equals_a_scalar_loop_and_its_gradient_finite_differences(clip: float) -> None:
    t = tokens(5)
    values, old, returns, w = t["lp"], t["old"], t["adv"], t["w"]
    expected, clipped = 0.0, 0
    for v, o, r, weight in zip(values.tolist(), old.tolist(), returns.tolist(), w.tolist(), strict=True):
        error = (v - r) ** 2
        bounded = (o + clamp(v - o, -clip, clip) - r) ** 2 if clip else error
        expected += weight * 0.5 * max(error, bounded)
        clipped += weight > 0 and bounded > error

    def loss(v: Tensor) -> Tensor:
        return value_loss(v, old, returns, w, clip=clip).loss

    assert float(loss(values)) == pytest.approx(expected, rel=1e-12)
    assert (clipped > 0) == (clip > 0)
    assert float(value_loss(values, old, returns, w, clip=clip).stats.get("value_clip_fraction", 0)) == clipped
    v = values.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(v), v)
    assert torch.allclose(grad, finite_differences(loss, values), atol=1e-8)


SEQUENCES = torch.tensor([0, 0, 2, 1, 1, 1])


def test_token_mean_gives_every_trained_token_one_weight() -> None:
    weights = token_weights(SEQUENCES, aggregation="token-mean", denominator=10)
    assert weights.tolist() == pytest.approx([0.1] * 6)


def test_trajectory_mean_gives_every_trajectory_one_weight_wherever_its_steps_lie() -> None:
    # two sequences of one trajectory that has 2 more tokens elsewhere, and one of a trajectory of 3 tokens
    tokens_of = torch.tensor([7, 7, 3, 7, 7, 7])
    weights = token_weights(
        torch.tensor([0, 0, 1, 2, 2, 2]), aggregation="trajectory-mean", denominator=2, trajectory_tokens=tokens_of
    )
    assert weights.tolist() == pytest.approx([1 / 14, 1 / 14, 1 / 6, 1 / 14, 1 / 14, 1 / 14])


def test_sequence_mean_gives_every_sequence_one_weight() -> None:
    weights = token_weights(SEQUENCES, aggregation="sequence-mean", denominator=4)
    assert weights.tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 4, 1 / 12, 1 / 12, 1 / 12])


def test_an_unknown_aggregation_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="use token-mean, sequence-mean or trajectory-mean"):
        token_weights(SEQUENCES, aggregation="mean", denominator=1)
