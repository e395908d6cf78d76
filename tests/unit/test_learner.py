"""The DeepSpeed learner with one rank in this process, against plain PyTorch.

Several ranks, ZeRO over them, and resuming in a new process are in tests/e2e/test_learner_ranks.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memr1.config import Config, LearnerConfig, StageConfig
from memr1.errors import MemR1Error
from memr1.learner.deepspeed_learner import REFERENCE
from memr1.learner.engine import Engine, Rendezvous, join
from memr1.learner.group import LocalLearnerGroup
from memr1.learner.packing import TrainSequence, plan_microbatches
from memr1.models.adapters import PolicyModel
from memr1.models.architectures import describe
from memr1.models.cpu import prefers_onednn
from memr1.rollout.engine import WeightUpdate, in_parts
from memr1.training.estimate import learner_bytes
from memr1.training.loop import Trainer
from tests.unit.learner_cases import LEARNING_RATE, ROLE, make_config, make_plan, make_sequences, make_settings
from tests.unit.small_models import build, plain_logprobs

MakeGroup = Callable[..., LocalLearnerGroup]


def plain_loss(
    model: Any,
    sequences: list[TrainSequence],
    objective: str,
    t: float,
    kl: Callable[..., Any] | None,
    before: list[torch.Tensor],
) -> Any:
    """The loss of one pass, sequence by sequence: no packing, no micro-batches. The first pass fills in `before`."""
    total = torch.zeros(())
    tokens = sum(sum(s.loss_mask) for s in sequences)
    for i, s in enumerate(sequences):
        lp = plain_logprobs(model, s.prompt_ids, s.completion_ids, t)
        mask = torch.tensor(s.loss_mask)
        if len(before) == i:
            before.append(lp.detach())
        if objective == "sft":
            per_token = -lp
        elif objective == "reinforce":
            per_token = -s.advantage * lp * (before[i] - torch.tensor(s.rollout_logprobs)).exp().clamp(max=2.0)
        else:
            weight = (before[i] - torch.tensor(s.rollout_logprobs)).exp().clamp(max=2.0)
            ratio = (lp - before[i]).exp()
            per_token = -torch.minimum(ratio * s.advantage, ratio.clamp(0.8, 1.2) * s.advantage) * weight
            if kl is not None:
                r = kl(s) - lp
                per_token = per_token + 0.5 * (r.exp() - 1 - r)
        total = total + per_token[mask].sum() / tokens
    return total


def plain_training(
    config: Config,
    steps: int,
    objective: str = "grpo",
    t: float = 1.0,
    max_norm: float = 1.0,
    kl: bool = False,
    epochs: int = 1,
    lr: float = LEARNING_RATE,
) -> tuple[dict[str, np.ndarray], list[float], list[float]]:
    """(weights, losses, gradient norms) of torch.optim.AdamW on the plain loss; losses and norms of first passes."""
    m = config.model
    policies = PolicyModel.create(
        m.name, (ROLE, REFERENCE), m.weights, m.lora, seed=config.seed, dtype=m.dtype, device="cpu"
    )
    policies.copy_weights(ROLE, REFERENCE)
    losses, norms = [], []

    def reference(s: TrainSequence) -> Any:
        with torch.no_grad(), policies.use(REFERENCE) as other:
            return plain_logprobs(other, s.prompt_ids, s.completion_ids, t)

    with policies.use(ROLE) as model:
        policies.train_only(ROLE)
        parameters = list(policies.trainable_parameters(ROLE).values())
        optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        for step in range(steps):
            before: list[torch.Tensor] = []
            for epoch in range(epochs):
                optimizer.zero_grad()
                loss = plain_loss(model, make_sequences(step), objective, t, reference if kl else None, before)
                loss.backward()
                norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
                if epoch == 0:
                    norms.append(norm)
                    losses.append(float(loss.detach()))
                optimizer.step()
        return {n: w.numpy() for n, w in policies.weights(ROLE).items()}, losses, norms


def far(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Largest difference of two sets of weights."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[n].astype(np.float64) - b[n]).max()) for n in a)


def train(
    group: LocalLearnerGroup, steps: int, objective: str = "grpo", t: float = 1.0, **plan: Any
) -> list[dict[str, float]]:
    out = []
    for step in range(steps):
        work = make_plan(step, **plan)
        out += group.update(work, make_settings(work, objective, t=t))
    return out


@pytest.mark.parametrize(
    ("weights", "objective", "t", "kl_coef"),
    [
        ("lora", "grpo", 1.0, 0.0),
        ("lora", "grpo", 0.7, 0.5),
        ("lora", "sft", 1.0, 0.0),
        ("lora", "reinforce", 1.0, 0.0),
        ("full", "grpo", 1.0, 0.5),
    ],
)
def test_updates_equal_plain_adamw_on_the_unpacked_loss(
    make_group: MakeGroup, weights: str, objective: str, t: float, kl_coef: float
) -> None:
    config = make_config(weights=weights, kl_coef=kl_coef)
    group = make_group(config)
    start = group.learner.weights()
    assert len(make_plan().ranks[0]) > 1
    stats = train(group, 3, objective, t)
    expected, losses, norms = plain_training(config, 3, objective, t, kl=kl_coef > 0)
    assert far(group.learner.weights(), expected) < 1e-6
    assert far(group.learner.weights(), start) > LEARNING_RATE
    assert [s["loss"] for s in stats] == pytest.approx(losses, rel=1e-4, abs=1e-6)
    assert [s["grad_norm"] for s in stats] == pytest.approx(norms, rel=1e-4)
    assert [s["tokens"] for s in stats] == [make_plan(i).trained_tokens for i in range(3)]


def test_several_passes_over_a_batch_equal_plain_adamw_on_the_clipped_ratio(make_group: MakeGroup) -> None:
    config, lr = make_config(), 1e-2  # so large that ratios leave the clip range
    expected, losses, norms = plain_training(config, 2, epochs=3, lr=lr)
    group, found = make_group(config), []
    for step in range(2):
        work = make_plan(step)
        found += group.update(work, replace(make_settings(work, lr=lr), epochs=3))
    # Adam divides rounding by the root of a small second moment, and oneDNN rounds otherwise than the plain reference
    assert far(group.learner.weights(), expected) < (3e-4 if prefers_onednn() else 1e-4)
    assert [m["loss"] for m in found] == pytest.approx(losses, rel=1e-4)
    assert [m["grad_norm"] for m in found] == pytest.approx(norms, rel=1e-3)
    assert all(m["clip_fraction"] > 0 and m["approx_kl"] > 0 for m in found)  # of the last pass
    once, _, _ = plain_training(config, 2, epochs=1, lr=lr)
    assert far(once, expected) > 1e-3


def test_gspo_in_the_learner_does_not_depend_on_packing(make_group: MakeGroup) -> None:
    plain = make_config()
    algo = replace(plain.algo, ratio="sequence", aggregation="sequence-mean", clip_low=1e-3, clip_high=1e-3)
    found = []
    for budget, share in ((1, False), (10**6, True)):
        group = make_group(replace(plain, algo=algo))
        clipped = 0.0
        for step in range(2):
            work = make_plan(step, budget=budget, share=share)
            (stats,) = group.update(work, replace(make_settings(work, lr=1e-3), epochs=3))
            clipped += stats["clip_fraction"]
        assert clipped > 0, "later passes leave the clip"
        found.append(group.learner.weights())
    assert far(*found) < 1e-6


def test_long_trajectories_weigh_no_more_than_short_ones_in_a_trajectory_mean(make_group: MakeGroup) -> None:
    config = make_config(algo={"aggregation": "trajectory-mean", "importance_cap": 0.0}, max_grad_norm=1e9)
    owners = [0, 0, 1, 1, 2, 2, 2, 2, 2]
    sequences = [replace(s, trajectory=t) for s, t in zip(make_sequences(), owners, strict=True)]
    tokens = [sum(sum(s.loss_mask) for s in sequences if s.trajectory == t) for t in range(3)]
    policies = PolicyModel.create("tiny-random", (ROLE,), "lora", config.model.lora, dtype="float32", device="cpu")
    with policies.use(ROLE) as model:
        policies.train_only(ROLE)
        loss = torch.zeros(())
        for s, t in zip(sequences, owners, strict=True):
            lp = plain_logprobs(model, s.prompt_ids, s.completion_ids)[torch.tensor(s.loss_mask)]
            loss = loss - s.advantage * lp.sum() / tokens[t] / 3
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(policies.trainable_parameters(ROLE).values(), 1e9))
    for budget in (1, 10**6):
        work = plan_microbatches(sequences, num_ranks=1, max_tokens_per_microbatch=budget, pad_id=0)
        settings = replace(make_settings(work, "reinforce"), trained_trajectories=work.trained_trajectories)
        (stats,) = make_group(config).update(work, settings)
        assert stats["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert stats["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)


def test_the_gradient_is_clipped_to_the_global_norm_and_the_norm_before_is_told(make_group: MakeGroup) -> None:
    # Adam's steps do not depend on the scale of a gradient while it is one; across steps of different norm they do
    config = make_config(max_grad_norm=1e-3)
    group = make_group(config)
    stats = train(group, 3)
    clipped, _, norms = plain_training(config, 3, max_norm=1e-3)
    free, _, _ = plain_training(config, 3, max_norm=1e9)
    assert min(norms) > 1e-2
    assert [s["grad_norm"] for s in stats] == pytest.approx(norms, rel=1e-4)
    assert far(group.learner.weights(), clipped) < 1e-6
    assert far(clipped, free) > 5e-6


def test_one_denominator_for_all_micro_batches(make_group: MakeGroup) -> None:
    budgets = {"one per row": 1, "some": 48, "one": 10**6}
    found = {}
    for name, budget in budgets.items():
        group = make_group()
        stats = train(group, 2, budget=budget, share=budget != 10**6)
        found[name] = (group.learner.weights(), stats)
    assert [len(make_plan(budget=b).ranks[0]) for b in budgets.values()] == [9, 2, 1]
    for weights, stats in found.values():
        assert far(weights, found["one"][0]) < 1e-6
        for a, b in zip(stats, found["one"][1], strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def test_kl_to_the_reference_is_zero_at_first_and_positive_later(make_group: MakeGroup) -> None:
    stats = train(make_group(kl_coef=0.01), 3)
    assert stats[0]["reference_kl"] == 0.0
    assert 0 < stats[1]["reference_kl"] < stats[2]["reference_kl"]


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_gradient_checkpointing_changes_no_update(make_group: MakeGroup, weights: str) -> None:
    kept, recomputed = (make_group(weights=weights, kl_coef=0.5, gradient_checkpointing=on) for on in (False, True))
    layers = [m for m in recomputed.learner.scorer.modules() if getattr(m, "gradient_checkpointing", False)]
    assert layers
    a, b = train(kept, 2), train(recomputed, 2)
    assert [s["grad_norm"] for s in a] == pytest.approx([s["grad_norm"] for s in b], rel=1e-5)
    assert far(kept.learner.weights(), recomputed.learner.weights()) < 1e-6


def test_first_step_has_ratio_one_and_tells_the_mismatch_with_the_rollout(make_group: MakeGroup) -> None:
    (stats,) = train(make_group(), 1)
    assert stats["approx_kl"] == 0.0
    assert stats["clip_fraction"] == 0.0
    policies = PolicyModel.create("tiny-random", (ROLE,), dtype="float32", device="cpu")
    gaps = []
    with policies.use(ROLE) as model, torch.no_grad():
        for s in make_sequences():
            gap = plain_logprobs(model, s.prompt_ids, s.completion_ids) - torch.tensor(s.rollout_logprobs)
            gaps += gap.abs()[torch.tensor(s.loss_mask)].tolist()
    assert stats["rollout_mismatch"] == pytest.approx(sum(gaps), rel=1e-4)
    assert stats["max_rollout_mismatch"] == pytest.approx(max(gaps), rel=1e-4)


def test_learning_rate_is_the_one_of_the_step(make_group: MakeGroup) -> None:
    group = make_group()
    start, work = group.learner.weights(), make_plan()
    group.update(work, make_settings(work, lr=0.0))
    assert far(group.learner.weights(), start) == 0.0
    group.update(work, make_settings(work, lr=1e-3))
    assert far(group.learner.weights(), start) == pytest.approx(1e-3, rel=0.1)


def test_bf16_base_trains_fp32_adapters(make_group: MakeGroup) -> None:
    group = make_group(dtype="bfloat16")
    trainable = list(group.learner.policies.trainable_parameters(ROLE).values())
    assert {p.dtype for p in trainable} == {torch.float32}
    assert group.learner.scorer.causal_lm.get_output_embeddings().weight.dtype == torch.bfloat16
    start = group.learner.weights()
    stats = train(group, 1)
    exact, losses, norms = plain_training(make_config(), 1)
    assert stats[0]["loss"] == pytest.approx(losses[0], abs=0.05)
    assert stats[0]["grad_norm"] == pytest.approx(norms[0], rel=0.1)
    assert far(group.learner.weights(), start) == pytest.approx(LEARNING_RATE, rel=0.01)
    # Adam's first step is the sign of the gradient: nearly all signs agree with those of fp32
    names = [n for n in start if "lora_B" in n]
    agree = np.concatenate(
        [((group.learner.weights()[n] - start[n]) * (exact[n] - start[n]) > 0).ravel() for n in names]
    )
    assert agree.mean() > 0.9


def test_full_weights_in_bf16_add_small_steps_up_in_a_fp32_master(make_group: MakeGroup) -> None:
    group = make_group(weights="full", dtype="bfloat16")
    start, work = group.learner.weights(), make_plan()
    for _ in range(20):
        group.update(work, make_settings(work, lr=1e-5))
    # bf16 numbers from 0.01 to 0.05 lie at least 6e-5 apart, so one step of 1e-5 rounds away; the sum of 20 does not
    names = [n for n in start if "proj" in n]
    old, new = (np.concatenate([w[n].ravel() for n in names]) for w in (start, group.learner.weights()))
    large = (np.abs(old) > 0.01) & (np.abs(old) < 0.05)
    assert large.sum() > 1000
    assert (old != new)[large].mean() > 0.8


@pytest.mark.usefixtures("learner_process")
def test_gradients_of_bf16_weights_are_added_up_in_fp32(zero_stage: int = 0, offload: bool = False) -> None:
    join(Rendezvous(), torch.device("cpu"), 60.0)
    learner = replace(LearnerConfig(), zero_stage=zero_stage, offload_optimizer=offload)
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 8).bfloat16()
    engine = Engine(model, list(model.parameters()), learner)
    inputs = torch.randn(4, 16).bfloat16()

    norms = []
    for backwards in (1, 600):
        for _ in range(backwards):
            assert engine.backward(engine(input=inputs).float().mean())
        norms.append(engine.step(0.0))
    # each of 600 equal gradients is less than half of the last digit of a sum in bf16 that has reached 256 of them
    assert norms[1] == pytest.approx(600 * norms[0], rel=0.01)
    engine.close()


def test_only_the_role_that_learns_moves(make_group: MakeGroup) -> None:
    group = make_group(kl_coef=0.01)
    policies = group.learner.policies
    reference = policies.weights(REFERENCE)
    base = {n: p.clone() for n, p in policies.module("base").named_parameters() if "lora_" not in n}
    train(group, 2)
    assert all(torch.equal(w, reference[n]) for n, w in policies.weights(REFERENCE).items())
    assert all(torch.equal(p, base[n]) for n, p in policies.module("base").named_parameters() if n in base)


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_the_reference_is_asked_once_for_each_micro_batch(make_group: MakeGroup, weights: str) -> None:
    group, work = make_group(kl_coef=0.5, weights=weights), make_plan()
    asked = []
    with group.learner.policies.use(REFERENCE) as model:
        model.get_decoder().register_forward_hook(lambda *_: asked.append(group.learner.policies._active))
    group.update(work, make_settings(work))
    assert len(work.ranks[0]) == 2
    assert asked == ([ROLE, REFERENCE] * 2 if weights == "lora" else [asked[0]] * 2)


def test_learners_of_a_supervised_stage_hold_no_reference(make_group: MakeGroup) -> None:
    stages = (StageConfig(objective="sft"), StageConfig(objective="grpo"))
    config = replace(make_config(kl_coef=0.5), stages=stages)
    unused: Any = None
    trainer = Trainer(config, unused, lambda config, role, folder: make_group(config), unused)
    held = []
    for trainer.state.stage in (0, 1):
        learners: Any = trainer._make_learners()
        held.append(learners.learner.policies.roles)
    assert held == [(ROLE,), (ROLE, REFERENCE)]
    told = [learner_bytes(describe("tiny-random"), replace(config, stages=s), 4) for s in (stages[:1], stages)]
    assert told[1]["frozen weights"] - told[0]["frozen weights"] == told[0]["trained weights"]


@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("kl_coef", [0.0, 0.01])
def test_a_learner_holds_the_bytes_that_a_dry_run_tells(make_group: MakeGroup, weights: str, kl_coef: float) -> None:
    config = make_config(weights=weights, kl_coef=kl_coef)
    group = make_group(config)
    plan = make_plan()
    group.update(plan, make_settings(plan))
    policies, engine = group.learner.policies, group.learner.engine
    trained = list(policies.trainable_parameters(ROLE).values())
    everything = {id(p): p for name in policies.roles for p in policies.module(name).parameters()}
    moments = [t for state in engine.optimizer.state.values() for t in state.values() if t.numel() > 1]

    def size(tensors: list[torch.Tensor]) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    told = learner_bytes(describe("tiny-random", config.model.lora), config, width=4)
    assert told["trained weights"] == told["gradients"] == size(trained)
    assert told["frozen weights"] == size(list(everything.values())) - size(trained)
    assert told["optimizer"] == size(moments)


@pytest.mark.parametrize(("weights", "dtype"), [("lora", "float32"), ("full", "bfloat16")])
def test_a_restored_group_goes_on_bit_for_bit_and_keeps_its_reference(
    make_group: MakeGroup, tmp_path: Path, weights: str, dtype: str, zero_stage: int = 0
) -> None:
    config = make_config(kl_coef=0.5, weights=weights, dtype=dtype, zero_stage=zero_stage)
    group = make_group(config)
    train(group, 2)
    group.save(str(tmp_path / "learner"))
    with group.learner._gathered(ROLE):
        group.learner.policies.save(ROLE, tmp_path / "policies" / ROLE)
    work = make_plan(2)
    expected = group.update(work, make_settings(work))
    resumed = LocalLearnerGroup(config, ROLE, str(tmp_path / "policies"))
    resumed.restore(str(tmp_path / "learner"))
    assert resumed.update(work, make_settings(work)) == expected
    assert expected[0]["reference_kl"] > 0
    assert far(resumed.learner.weights(), group.learner.weights()) == 0.0
    resumed.close()


def test_restoring_from_a_folder_without_a_checkpoint_is_an_error(make_group: MakeGroup, tmp_path: Path) -> None:
    with pytest.raises(MemR1Error, match="no learner checkpoint"):
        make_group().restore(str(tmp_path))


def test_a_recurrent_model_trains_without_shared_prompts_and_says_so(
    make_group: MakeGroup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build("mamba").save_pretrained(tmp_path / "mamba")
    base = make_config(weights="full")
    config = replace(base, model=replace(base.model, name=str(tmp_path / "mamba")))
    with caplog.at_level(logging.WARNING):
        group = make_group(config)
    assert not group.supports_shared_prefixes()
    assert "shared prompts are computed once per completion" in caplog.text
    sequences = [TrainSequence((5, 6, 7), (8 + i, 9), (True, True), 1.0 - 2 * i, (-4.0, -4.0)) for i in range(2)]
    start = group.learner.weights()
    work = plan_microbatches(
        sequences, num_ranks=1, max_tokens_per_microbatch=64, pad_id=0, share_prefixes=group.supports_shared_prefixes()
    )
    (stats,) = group.update(work, make_settings(work))
    assert stats["tokens"] == 4
    assert far(group.learner.weights(), start) == pytest.approx(LEARNING_RATE, rel=0.1)


def test_an_attention_model_shares_prompts_unless_told_not_to(make_group: MakeGroup) -> None:
    assert make_group().supports_shared_prefixes()
    assert not make_group(share_prefixes=False).supports_shared_prefixes()


@pytest.mark.parametrize(("weights", "dtype"), [("lora", "float32"), ("full", "bfloat16")])
def test_what_is_shipped_in_parts_is_the_role_s_weights_with_their_checksum(
    make_group: MakeGroup, weights: str, dtype: str
) -> None:
    learner = make_group(weights=weights, dtype=dtype).learner
    expected = WeightUpdate.build(ROLE, 3, learner.weights())
    names = in_parts({name: array.nbytes for name, array in expected.tensors.items()}, 10_000)
    *parts, head = learner.ship(3, names, True)
    assert [list(part) for part in parts] == names and len(names) > 3
    shipped = replace(head, tensors={name: array for part in parts for name, array in part.items()})
    shipped.verify()
    assert shipped.checksum == expected.checksum and (shipped.policy, shipped.version) == (ROLE, 3)
    *_, unchecked = learner.ship(3, names, False)
    assert unchecked == replace(head, checksum=None)


# -- steps that are refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["grpo", "ppo"])
def test_a_loss_that_is_no_number_is_refused_with_its_rows_and_moves_nothing(
    make_group: MakeGroup, tmp_path: Path, objective: str, zero_stage: int = 0
) -> None:
    config = replace(make_config(zero_stage=zero_stage), output=str(tmp_path), name="run")
    group = make_group(config)
    start, work = group.learner.weights(), make_plan()
    assert len(work.ranks[0]) == 2
    bad = work.ranks[0][1]
    spoilt = np.full_like(bad.advantages, np.inf)
    batch = replace(bad, advantages=spoilt, rewards=spoilt)
    plan = replace(work, ranks=((work.ranks[0][0], batch),))
    who = "the critic" if objective == "ppo" else "the answerer"
    with pytest.raises(
        MemR1Error, match=f"{who}: loss or gradient is NaN or infinite, so the step was refused"
    ) as said:
        group.update(plan, make_settings(work, objective))
    rows = json.loads((tmp_path / "run/refused/rank-0.json").read_text())
    assert str(tmp_path / "run/refused/rank-0.json") in str(said.value)
    assert [r["targets"] for r in rows] == [bad.targets.tolist()]
    assert rows[-1]["input_ids"] == bad.input_ids.tolist()
    assert far(group.learner.weights(), start) == 0.0


@pytest.mark.parametrize("objective", ["grpo", "ppo"])
def test_a_gradient_that_overflows_is_refused_though_the_loss_is_finite(
    make_group: MakeGroup, tmp_path: Path, objective: str
) -> None:
    group = make_group(replace(make_config(), output=str(tmp_path), name="run"))
    start, work = group.learner.weights(), make_plan()

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient * float("inf")

    forward = group.learner.scorer.forward
    group.learner.scorer.forward = lambda *a, **k: (Overflow.apply((out := forward(*a, **k))[0]), out[1])
    with pytest.raises(MemR1Error, match="the answerer: loss or gradient is NaN or infinite") as said:
        group.update(work, make_settings(work, objective))
    assert far(group.learner.weights(), start) == 0.0
    if objective == "ppo":  # it has taken its step by then, so the message must not say that nothing has moved
        head = group.learner.critic.engine.module.head.weight
        assert head.abs().max() > 0 and "as they were" not in str(said.value)
    assert "no checkpoint holds anything of it" in str(said.value)
    assert len(json.loads((tmp_path / "run/refused/rank-0.json").read_text())) == 2


def test_a_learner_beside_an_engine_trains_as_one_alone(make_group: MakeGroup) -> None:
    config = make_config(kl_coef=0.5)
    model = config.model
    policies = PolicyModel.create(model.name, (ROLE,), "lora", model.lora, dtype=model.dtype, device=model.device)
    alone, beside = make_group(config), LocalLearnerGroup(config, ROLE, None, beside=policies)
    try:
        assert train(alone, 2) == train(beside, 2)
        assert far(alone.learner.weights(), beside.learner.weights()) == 0.0
        held = {p.data_ptr() for p in policies.module(ROLE).parameters()}
        assert held & {p.data_ptr() for p in beside.learner.policies.module(ROLE).parameters()}
    finally:
        beside.close()
