"""Half steps of `memr1 debug` with a scripted learner. With real ones: tests/e2e/test_debug.py."""

from __future__ import annotations

from typing import Any

import pytest

from memr1.learner.packing import Plan, TrainSequence
from memr1.training import debug
from memr1.training.batch import Batch
from memr1.training.debug import Rehearsal
from tests.unit.scripted import make_config


class OneLearner:
    """Takes the plan of one rank, as `LocalLearnerGroup` does."""

    def __init__(self, config: Any, role: str, folder: str | None) -> None:
        pass

    def supports_shared_prefixes(self) -> bool:
        return True

    def update(self, plan: Plan, settings: Any) -> list[dict[str, float]]:
        (microbatches,) = plan.ranks
        tokens = sum(len(b.targets) for b in microbatches)
        return [{"tokens": tokens, "max_low_precision": 0.0, "loss": 0.0, "grad_norm": 1.0}]

    def close(self) -> None:
        pass


def test_batches_of_a_run_with_several_learners_are_rehearsed_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "LocalLearnerGroup", OneLearner)
    config = make_config("stages=[{objective: grpo}]", "backend=ray", "learner.num_learners=3")
    sequences = [TrainSequence((1, n), (2, 3), (True, True), a, (-0.1, -0.2)) for n, a in ((4, 1.0), (5, -1.0))]
    (metrics,) = Rehearsal(config, 0, None, plays=False).update([Batch(sequences, [], {}, {"answerer": 0})])
    assert metrics["learner/trained_tokens"] == 4
