"""Self-checks in the first update of every group of learners: cheap, always on, and they stop the run with a message.

Wrong masks, stale weights and wrong denominators do not crash; they train something else. These numbers would show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memr1.config import StageConfig
from memr1.errors import MemR1Error
from memr1.learner.packing import Plan, TrainSequence

MISMATCH_LIMIT = 1e-2
"""Largest mean gap between log-probabilities of engine and trainer in nats per token, with float32 weights."""

LOW_PRECISION_LIMIT = 0.5
"""The same with bfloat16 weights, whose products round differently in batches of other shapes."""

KL_LIMIT = 1e-4
"""Largest mean KL between policies that should be the same, with float32 weights."""

LOW_PRECISION_KL_LIMIT = 1e-2
"""The same with bfloat16 weights: a pass without gradients may take other kernels."""


def check_first_update(
    stage: StageConfig,
    metrics: Mapping[str, float],
    plan: Plan,
    sequences: Sequence[TrainSequence],
    *,
    resumed: bool = False,
    late: bool = False,
) -> None:
    """Raise MemR1Error when the first update of a group of learners did not do what it should.

    resumed: inside a stage, where the policy is no longer the reference. late: the batch was played with older weights,
    so that engine and trainer differ by right.
    """
    when = "first update after resuming" if resumed else "first update"

    def need(ok: bool, message: str) -> None:
        if not ok:
            raise MemR1Error(f"stage {stage.name}, {when}: {message}. This is a bug or a wrong engine setting")

    trained = metrics["learner/trained_tokens"]
    need(trained == plan.trained_tokens, f"{trained:.0f} tokens were trained, {plan.trained_tokens} were planned")
    if stage.objective == "sft":
        return
    low_precision = metrics["learner/max_low_precision"] > 0
    gap = metrics.get("learner/rollout_mismatch", 0.0)
    need(
        late or gap < (LOW_PRECISION_LIMIT if low_precision else MISMATCH_LIMIT),
        f"log-probabilities of engine and trainer differ by {gap:.3f} nats per token on average",
    )
    if "learner/reference_kl" in metrics and not resumed:
        need(abs(metrics["learner/reference_kl"]) < KL_LIMIT, "the KL to the reference is not 0 before any update")
    # with a critic, the old log-probabilities come from before the critic's update; later passes move away from them
    moved = metrics.get("learner/approx_kl", 0.0) if stage.epochs == 1 else 0.0
    need(
        moved < (LOW_PRECISION_KL_LIMIT if low_precision else KL_LIMIT),
        f"the policy had moved by a KL of {moved:.4f} before its first optimizer step",
    )
    if stage.objective == "ppo":
        mean = metrics["learner/advantages"]
        need(abs(mean) < 1e-3, f"advantages have a mean of {mean:.4f} instead of 0")
        return
    by_trajectory = {-1 - i if s.trajectory is None else s.trajectory: s.advantage for i, s in enumerate(sequences)}
    total = sum(by_trajectory.values())
    need(abs(total) < 1e-3 * max(len(by_trajectory), 1), f"advantages sum to {total:.4f} instead of 0")
