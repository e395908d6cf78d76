"""Metrics of one training step, from trajectories and from the sums that learners return."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from memr1.trajectory import Trajectory

ONE_FOR_ALL_RANKS = ("grad_norm", "critic_grad_norm", "explained_variance")
"""Statistics of learners that are the same on every rank."""

EVENTS = ("ADD", "UPDATE", "DELETE", "NOOP")
_OF_OUTCOMES = {
    "evidence_recall": "retrieval/evidence_recall",
    "selection_precision": "selection/precision",
    "selection_recall": "selection/recall",
}
"""Key of an outcome -> the metric that is its mean, over the trajectories that have it."""


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Reward, accuracy, operation mix, parse failures, lengths. Episodes that failed are counted apart; the reward
    is that of those that were judged."""
    played = [t for t in trajectories if t.error is None]
    steps = [s for t in played for s in t.trainable_steps]
    out = {
        "rollout/trajectories": float(len(trajectories)),
        "rollout/error_fraction": _mean([t.error is not None for t in trajectories]),
        "reward/mean": _mean([t.reward for t in played if t.reward is not None]),
        "parse/reject_fraction": _mean(["error" in s.parsed for s in steps]),
        "rollout/truncated_fraction": _mean([s.finish_reason == "length" for s in steps]),
        "rollout/prompt_tokens": _mean([len(s.sequence.prompt_ids) for s in steps]),
        "rollout/completion_tokens": _mean([len(s.sequence.completion_ids) for s in steps]),
        "rollout/prompt_cut_fraction": _mean(["prompt_cut" in s.parsed for s in steps]),
    }
    for name, metric in _OF_OUTCOMES.items():
        known = [value for t in played if (value := t.outcome.get(name)) is not None]
        if known:
            out[metric] = _mean(known)
    operations = [o for s in steps for o in s.parsed.get("operations", ())]
    if any(s.role == "manager" for s in steps):
        applied = Counter(o["event"] for o in operations if o["ok"])
        total = max(sum(applied.values()), 1)
        out |= {f"ops/{event.lower()}_fraction": applied[event] / total for event in EVENTS}
        out["ops/rejected_fraction"] = _mean([not o["ok"] for o in operations])
        out["ops/unknown_id_fraction"] = _mean([(o["reason"] or "").startswith("unknown_id") for o in operations])
        out["bank/entries"] = _mean([len(t.outcome.get("bank_after", ())) for t in played])
    return out


def learner_metrics(per_rank: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over trained tokens from the sums of all ranks; the losses are shares of a global mean already."""
    sums: dict[str, float] = defaultdict(float)
    for stats in per_rank:
        for name, value in stats.items():
            if name in ONE_FOR_ALL_RANKS:
                continue
            sums[name] = max(sums[name], value) if name.startswith("max_") else sums[name] + value
    tokens = max(sums.pop("tokens", 0.0), 1.0)
    out = {"loss": sums.pop("loss", math.nan), "trained_tokens": tokens}
    out |= {name: per_rank[0][name] for name in ONE_FOR_ALL_RANKS if name in per_rank[0]}
    if "value_loss" in sums:
        out["value_loss"] = sums.pop("value_loss")
    for name, value in sums.items():
        out[name] = value if name.startswith("max_") else value / tokens
    return {f"learner/{name}": float(value) for name, value in out.items()}


def trajectory_record(trajectory: Trajectory, advantage: float | None) -> dict[str, Any]:
    """A decoded rollout for the run folder: text and counts; token ids are left out, they can be had again."""
    return {
        "task_id": trajectory.task_id,
        "group_id": trajectory.group_id,
        "seed": trajectory.seed,
        "reward": trajectory.reward,
        "reward_parts": trajectory.reward_parts,
        "advantage": advantage,
        "outcome": trajectory.outcome,
        "error": trajectory.error,
        "steps": [
            {
                "role": s.role,
                "policy": s.policy,
                "trainable": s.trainable,
                "prompt_text": s.prompt_text,
                "completion_text": s.completion_text,
                "finish_reason": s.finish_reason,
                "parsed": s.parsed,
                "prompt_tokens": len(s.sequence.prompt_ids),
                "completion_tokens": len(s.sequence.completion_ids),
                "weight_version": s.sequence.weight_version,
            }
            for s in trajectory.steps
        ],
    }


def _mean(values: Sequence[float | int | bool]) -> float:
    return sum(values) / len(values) if values else math.nan
