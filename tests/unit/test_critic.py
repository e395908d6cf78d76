"""PPO with a critic in the learner, one rank in this process, against plain PyTorch without packing.

Several ranks and resuming in new processes are in tests/e2e/test_learner_ranks.py, the formulas by themselves in
test_advantages.py and test_losses.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memr1.config import Config, CriticConfig, StageConfig
from memr1.errors import MemR1Error
from memr1.learner.critic import CRITIC
from memr1.learner.deepspeed_learner import REFERENCE
from memr1.learner.group import LocalLearnerGroup
from memr1.learner.packing import TrainSequence
from memr1.models.adapters import PolicyModel
from memr1.models.architectures import describe
from memr1.training.estimate import learner_bytes
from tests.unit.learner_cases import ROLE, make_config, make_plan, make_sequences, make_settings
from tests.unit.small_models import plain_logprobs

MakeGroup = Callable[..., LocalLearnerGroup]
LR, CRITIC_LR = 1e-3, 3e-3


def ppo_config(*, backbone: str = "own", kl_in: str = "loss", **options: Any) -> Config:
    critic = CriticConfig(backbone=backbone, learning_rate=CRITIC_LR, clip=0.01, discount=0.95, gae_lambda=0.9)
    return make_config(algo={"critic": critic, "kl_in": kl_in}, **options)


def train(
    group: LocalLearnerGroup, steps: int, *, epochs: int = 2, warmup: int = 0, first: int = 0, **plan: Any
) -> list[dict[str, float]]:
    out = []
    for step in range(first, steps):
        work = make_plan(step, **plan)
        settings = replace(make_settings(work, "ppo", lr=LR), epochs=epochs, critic_only=step < warmup)
        out += group.update(work, settings)
    return out


def plain_features(model: Any, s: TrainSequence) -> Any:
    """Hidden states that the completion's tokens were chosen from, by the model's ordinary forward on one row."""
    ids = torch.tensor([s.prompt_ids + s.completion_ids])
    return model.model(input_ids=ids, use_cache=False).last_hidden_state[0, len(s.prompt_ids) - 1 : -1]


def plain_gae(rewards: list[float], values: list[float], discount: float, lam: float) -> list[float]:
    """Schulman's sum, term by term."""
    n = len(values)
    deltas = [rewards[t] + (discount * values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((discount * lam) ** (u - t) * deltas[u] for u in range(t, n)) for t in range(n)]


def plain_ppo(
    config: Config, steps: int, *, epochs: int = 2, warmup: int = 0
) -> tuple[dict[str, np.ndarray], torch.Tensor, list[dict[str, float]]]:
    """(policy weights, value head, statistics by step): two AdamW over losses of tokens, one sequence after another."""
    m, critic = config.model, config.algo.critic
    policies = PolicyModel.create(
        m.name, (ROLE, REFERENCE, CRITIC), m.weights, m.lora, seed=config.seed, dtype=m.dtype, device="cpu"
    )
    policies.copy_weights(ROLE, REFERENCE)
    policies.copy_weights(ROLE, CRITIC)
    head = torch.nn.Linear(64, 1)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    policy_parameters = list(policies.trainable_parameters(ROLE).values())
    own = list(policies.trainable_parameters(CRITIC).values()) if critic.backbone == "own" else []
    critic_parameters = [*own, *head.parameters()]
    policy_adam = torch.optim.AdamW(policy_parameters, lr=LR, weight_decay=0.0)
    critic_adam = torch.optim.AdamW(critic_parameters, lr=CRITIC_LR, weight_decay=0.0)
    found = []

    def logprobs(role: str, s: TrainSequence) -> Any:
        with policies.use(role) as model:
            return plain_logprobs(model, s.prompt_ids, s.completion_ids)[torch.tensor(s.loss_mask)]

    for step in range(steps):
        sequences = make_sequences(step)
        tokens = sum(sum(s.loss_mask) for s in sequences)
        with torch.no_grad():
            old = [logprobs(ROLE, s) for s in sequences]
            gaps = [o - logprobs(REFERENCE, s) for o, s in zip(old, sequences, strict=True)]
            with policies.use(ROLE) as model:
                seen = [plain_features(model, s)[torch.tensor(s.loss_mask)] for s in sequences]

        def value(i: int, sequences: Any = sequences, seen: Any = seen) -> Any:
            s = sequences[i]
            if critic.backbone == "policy":
                return head(seen[i]).squeeze(-1)
            with policies.use(CRITIC) as model:
                return head(plain_features(model, s)[torch.tensor(s.loss_mask)]).squeeze(-1)

        with torch.no_grad():
            values = [value(i) for i in range(len(sequences))]
        advantages = []
        for s, v, gap in zip(sequences, values, gaps, strict=True):
            rewards = [0.0] * (len(v) - 1) + [s.reward]
            if config.algo.kl_in == "reward":
                rewards = [r - config.algo.kl_coef * float(g) for r, g in zip(rewards, gap, strict=True)]
            advantages.append(plain_gae(rewards, v.tolist(), critic.discount, critic.gae_lambda))
        returns = [torch.tensor(a) + v for a, v in zip(advantages, values, strict=True)]
        everything = [a for sequence in advantages for a in sequence]
        mean = sum(everything) / tokens
        std = math.sqrt(sum((a - mean) ** 2 for a in everything) / (tokens - 1))
        white = [torch.tensor([(a - mean) / std for a in sequence]) for sequence in advantages]
        of_returns = torch.cat(returns)
        stats = {
            "returns": float(of_returns.sum()),
            "explained_variance": 1 - std**2 / float(of_returns.var()),
        }
        for epoch in range(epochs):
            policies.train_only(CRITIC)
            total, clipped = torch.zeros(()), 0
            for i, (v0, r) in enumerate(zip(values, returns, strict=True)):
                v = value(i)
                for k in range(len(v)):
                    error, moved = (v[k] - r[k]) ** 2, float(v[k].detach() - v0[k])
                    if abs(moved) > critic.clip:
                        held = (v0[k] + math.copysign(critic.clip, moved) - r[k]) ** 2
                        clipped += float(held) > float(error.detach())
                        error = max(error, held)
                    total = total + 0.5 * error / tokens
            critic_adam.zero_grad()
            total.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(critic_parameters, 1.0))
            critic_adam.step()
            stats["value_clip_fraction"] = clipped
            if epoch == 0:
                stats |= {"value_loss": float(total.detach()), "critic_grad_norm": norm}
        for _ in range(0 if step < warmup else epochs):
            policies.train_only(ROLE)
            total = torch.zeros(())
            for i, s in enumerate(sequences):
                lp = logprobs(ROLE, s)
                sampled = torch.tensor(s.rollout_logprobs)[torch.tensor(s.loss_mask)]
                weight = (old[i] - sampled).exp().clamp(max=2.0)
                ratio = (lp - old[i]).exp()
                per_token = -torch.minimum(ratio * white[i], ratio.clamp(0.8, 1.2) * white[i]) * weight
                if config.algo.kl_coef > 0 and config.algo.kl_in == "loss":
                    r = (old[i] - gaps[i]) - lp
                    per_token = per_token + config.algo.kl_coef * (r.exp() - 1 - r)
                total = total + per_token.sum() / tokens
            policy_adam.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(policy_parameters, 1.0)
            policy_adam.step()
        found.append(stats)
    return {n: w.numpy() for n, w in policies.weights(ROLE).items()}, head.weight.detach(), found


def far(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Largest difference of two sets of weights."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[n].astype(np.float64) - b[n]).max()) for n in a)


def head_of(group: LocalLearnerGroup) -> torch.Tensor:
    return group.learner.critic.engine.module.head.weight.detach().clone()


@pytest.mark.parametrize(
    ("weights", "backbone", "kl_in", "kl_coef"),
    [
        ("lora", "own", "reward", 0.3),
        ("lora", "policy", "loss", 0.3),
        ("full", "own", "loss", 0.0),
    ],
)
def test_ppo_equals_plain_loops_over_unpacked_sequences(
    make_group: MakeGroup, weights: str, backbone: str, kl_in: str, kl_coef: float
) -> None:
    config = ppo_config(weights=weights, backbone=backbone, kl_in=kl_in, kl_coef=kl_coef)
    group = make_group(config)
    start = group.learner.weights()
    assert len(make_plan().ranks[0]) > 1
    stats = train(group, 3)
    expected, head, found = plain_ppo(config, 3)
    assert far(group.learner.weights(), start) > LR
    assert far(group.learner.weights(), expected) < 2e-5
    assert float((head_of(group) - head).abs().max()) < 2e-5
    assert float(head.abs().max()) > CRITIC_LR
    for ours, theirs in zip(stats, found, strict=True):
        assert {n: ours[n] for n in theirs} == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert any(s["value_clip_fraction"] > 0 for s in stats)
    assert stats[0]["grad_norm"] > 0
    if kl_in == "reward":
        assert stats[0]["reference_kl"] == pytest.approx(0.0, abs=1e-5)
        assert abs(stats[2]["reference_kl"]) > 1e-3


def test_values_and_the_update_do_not_depend_on_packing(make_group: MakeGroup) -> None:
    found = []
    for budget, share in ((1, False), (48, True)):
        group = make_group(ppo_config())
        stats = train(group, 2, budget=budget, share=share)
        found.append((group.learner.weights(), head_of(group), [s["value_loss"] for s in stats]))
    for weights, head, losses in found[1:]:
        assert far(weights, found[0][0]) < 2e-5
        assert float((head - found[0][1]).abs().max()) < 2e-5
        assert losses == pytest.approx(found[0][2], rel=1e-4)


def test_in_the_warm_up_the_critic_learns_and_the_policy_rests(make_group: MakeGroup) -> None:
    config = ppo_config()
    group = make_group(config)
    start = group.learner.weights()
    stats = train(group, 2, warmup=2)
    assert far(group.learner.weights(), start) == 0.0
    assert [s["grad_norm"] for s in stats] == [0.0, 0.0]
    assert all(s["tokens"] == make_plan(i).trained_tokens for i, s in enumerate(stats))
    assert stats[1]["explained_variance"] != stats[0]["explained_variance"]
    assert float(head_of(group).abs().max()) > CRITIC_LR
    train(group, 3, first=2)
    expected, head, _ = plain_ppo(config, 3, warmup=2)
    assert far(group.learner.weights(), expected) < 2e-5, "the first step after it is a first step of Adam"
    assert float((head_of(group) - head).abs().max()) < 2e-5


def test_the_critic_has_its_adapter_and_the_policy_s_is_the_active_one(make_group: MakeGroup) -> None:
    group = make_group(ppo_config())
    train(group, 1)
    policies = group.learner.policies
    assert policies.roles == (ROLE, CRITIC)
    role, critic = policies.trainable_parameters(ROLE), policies.trainable_parameters(CRITIC)
    assert all(p.requires_grad for p in role.values()) and not any(p.requires_grad for p in critic.values())
    assert far(*({n: p.detach().numpy() for n, p in weights.items()} for weights in (role, critic))) > LR / 2
    assert set(group.learner.weights()) == set(role), "the runners get the policy alone"


@pytest.mark.parametrize("backbone", ["own", "policy"])
def test_a_restored_group_goes_on_bit_for_bit_with_its_critic(
    make_group: MakeGroup, tmp_path: Path, backbone: str, zero_stage: int = 0
) -> None:
    config = ppo_config(backbone=backbone, zero_stage=zero_stage, kl_coef=0.3)
    group = make_group(config)
    train(group, 1)
    group.save(str(tmp_path / "learner"))
    with group.learner._gathered(ROLE):
        group.learner.policies.save(ROLE, tmp_path / "policies" / ROLE)
    expected = train(group, 2, first=1)
    resumed = LocalLearnerGroup(config, ROLE, str(tmp_path / "policies"))
    resumed.restore(str(tmp_path / "learner"))
    assert train(resumed, 2, first=1) == expected
    assert far(resumed.learner.weights(), group.learner.weights()) == 0.0
    assert torch.equal(head_of(resumed), head_of(group))
    resumed.close()


def test_a_critic_s_missing_files_are_named(make_group: MakeGroup, tmp_path: Path) -> None:
    group = make_group(ppo_config())
    train(group, 1)
    group.save(str(tmp_path))
    for file in (tmp_path / CRITIC).iterdir():
        file.unlink()
    with pytest.raises(MemR1Error, match="critic: not readable as a checkpoint of 1 learners at ZeRO stage 0"):
        group.restore(str(tmp_path))


def test_recomputed_activations_are_those_of_the_adapter_that_learns(make_group: MakeGroup) -> None:
    kept, recomputed = (make_group(ppo_config(gradient_checkpointing=on)) for on in (False, True))
    a, b = train(kept, 2), train(recomputed, 2)
    assert far(kept.learner.weights(), recomputed.learner.weights()) < 2e-5
    assert [s["critic_grad_norm"] for s in a] == pytest.approx([s["critic_grad_norm"] for s in b], rel=1e-3)


def test_a_critic_takes_the_bytes_that_a_dry_run_tells(make_group: MakeGroup) -> None:
    config = replace(ppo_config(), stages=(StageConfig(objective="ppo"),))
    group = make_group(config)
    train(group, 1, epochs=1)
    adapter = sum(p.numel() * 4 for p in group.learner.policies.trainable_parameters(CRITIC).values())
    states = group.learner.critic.engine.optimizer.state.values()
    moments = sum(t.numel() * 4 for state in states for t in state.values() if t.numel() > 1)
    head = 2 * 64 * 4  # of its weight; the bias is a single number
    told = learner_bytes(describe("tiny-random", config.model.lora), config, width=4)
    assert told["critic"] == 2 * adapter + moments - head
