"""Self-checks of a stage's first update: what each lets pass, what it stops, and when they run."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest

from memr1.config import StageConfig
from memr1.errors import MemR1Error
from memr1.learner.packing import Plan, TrainSequence, plan_microbatches
from memr1.training.batch import Batch
from memr1.training.checks import check_first_update
from memr1.training.loop import Trainer
from tests.unit.scripted import make_config

GOOD = {
    "learner/trained_tokens": 4.0,
    "learner/max_low_precision": 0.0,
    "learner/rollout_mismatch": 0.009,
    "learner/reference_kl": 9e-5,
    "learner/advantages": 9e-4,
    "learner/approx_kl": 9e-5,
}


def batch(*advantages: float, trajectories: tuple[int | None, ...] = (None, None)) -> list[TrainSequence]:
    return [
        TrainSequence((1, n), (2, 3), (True, True), a, (-0.1, -0.2), trajectory=t)
        for n, (a, t) in enumerate(zip(advantages, trajectories, strict=True), start=4)
    ]


def check(
    objective: str,
    sequences: list[TrainSequence],
    epochs: int = 1,
    resumed: bool = False,
    late: bool = False,
    **changed: float,
) -> None:
    plan = plan_microbatches(sequences, num_ranks=1, max_tokens_per_microbatch=64, pad_id=0)
    metrics = GOOD | {f"learner/{name}": value for name, value in changed.items()}
    stage = StageConfig(objective=objective, epochs=epochs)
    check_first_update(stage, metrics, plan, sequences, resumed=resumed, late=late)


def test_a_right_first_update_passes() -> None:
    check("grpo", batch(0.75, -0.75))
    check("grpo", batch(0.75, -0.75), rollout_mismatch=0.4, max_low_precision=1.0)
    check("ppo", batch(3.0, 1.0))
    check("sft", batch(1.0, 1.0), rollout_mismatch=9.0, reference_kl=9.0, approx_kl=9.0)
    check("ppo", batch(3.0, 1.0), approx_kl=9e-3, max_low_precision=1.0)
    check("ppo", batch(3.0, 1.0), epochs=2, approx_kl=0.5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trained_tokens": 3.0}, "3 tokens were trained, 4 were planned"),
        ({"rollout_mismatch": 0.011}, "engine and trainer differ by 0.011 nats per token"),
        ({"rollout_mismatch": 0.51, "max_low_precision": 1.0}, "engine and trainer differ by 0.510"),
        ({"rollout_mismatch": math.nan}, "engine and trainer differ by nan"),
        ({"reference_kl": 2e-4}, "KL to the reference is not 0"),
        ({"reference_kl": -2e-4}, "KL to the reference is not 0"),
        ({"approx_kl": 2e-4}, "the policy had moved by a KL of 0.0002 before its first optimizer step"),
        ({"approx_kl": 0.02, "max_low_precision": 1.0}, "the policy had moved by a KL of 0.0200"),
        ({"approx_kl": math.nan}, "the policy had moved by a KL of nan"),
    ],
)
def test_what_an_update_did_wrongly_is_named(changed: dict[str, float], message: str) -> None:
    with pytest.raises(MemR1Error, match=f"stage answerer-grpo, first update: .*{message}"):
        check("grpo", batch(0.75, -0.75), **changed)


def test_after_resuming_the_policy_is_no_longer_the_reference_and_weights_are_still_compared() -> None:
    sequences = batch(0.75, -0.75)
    check("grpo", sequences, resumed=True, reference_kl=0.3)
    with pytest.raises(MemR1Error, match=r"first update after resuming: .* engine and trainer differ by 0\.011"):
        check("grpo", sequences, resumed=True, rollout_mismatch=0.011)
    check("grpo", sequences, resumed=True, late=True, rollout_mismatch=0.011)


def test_advantages_sum_to_zero_over_trajectories_not_over_their_steps() -> None:
    check("grpo", batch(1.0, 1.0, -1.0, trajectories=(0, 0, 1)), trained_tokens=6.0)
    with pytest.raises(MemR1Error, match="advantages sum to 1.0000 instead of 0"):
        check("grpo", batch(1.0, 1.0, -1.0, trajectories=(0, 1, 2)), trained_tokens=6.0)
    with pytest.raises(MemR1Error, match="advantages have a mean of 0.0020 instead of 0"):
        check("ppo", batch(0.0, 0.0), advantages=0.002)


class Learners:
    """Reports one token too few from its second update on, or from the first."""

    def __init__(self, wrong_from: int) -> None:
        self.wrong_from, self.updates = wrong_from, 0

    def supports_shared_prefixes(self) -> bool:
        return True

    def update(self, plan: Plan, settings: Any) -> list[dict[str, float]]:
        self.updates += 1
        tokens = plan.trained_tokens - (self.updates >= self.wrong_from)
        return [{"tokens": tokens, "max_low_precision": 0.0, "loss": 0.0, "grad_norm": 1.0}]


@pytest.mark.parametrize(("begun", "wrong_from", "stops"), [(0, 1, True), (0, 2, False), (3, 1, True)])
def test_the_first_update_is_checked_also_behind_steps_without_a_signal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, begun: int, wrong_from: int, stops: bool
) -> None:
    config = make_config("stages=[{objective: grpo}]")
    learners: Any = Learners(wrong_from)
    trainer = Trainer(config, cast(Any, Any), lambda *_: learners, cast(Any, Any))
    trainer.state.stage_step = begun
    batches = iter([Batch([], [], {}, {}), *(Batch(batch(1.0, -1.0), [], {}, {}) for _ in range(2))])
    monkeypatch.setattr(trainer, "_prepare_tasks", lambda: None)
    monkeypatch.setattr(trainer, "_take_batch", lambda: next(batches))
    monkeypatch.setattr(trainer, "_push", lambda learners: None)
    monkeypatch.setattr(trainer, "_after_step", lambda: None)
    trainer.log = cast(Any, type("Log", (), {"metrics": lambda *_: None}))()
    assert trainer.step()["learner/skipped"] == 1.0
    assert f"step {trainer.state.step} (answerer-grpo): the rollouts of every group were rewarded alike" in caplog.text
    if stops:
        when = "first update after resuming" if begun else "first update"
        with pytest.raises(MemR1Error, match=f"{when}: 3 tokens were trained, 4 were planned"):
            trainer.step()
    else:
        assert [trainer.step()["learner/loss"] for _ in range(2)] == [0.0, 0.0]
