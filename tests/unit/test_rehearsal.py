"""Half steps of `memr1 debug` with a scripted learner. With real ones: tests/e2e/test_debug.py."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from memr1.learner.packing import Plan, TrainSequence
from memr1.training import debug
from memr1.training.batch import BATCH_FILE, Batch
from memr1.training.checkpoints import MARKER, TrainState
from memr1.training.debug import Rehearsal
from tests.unit.scripted import make_config


class OneLearner:
    """Takes the plan of one rank, as `LocalLearnerGroup` does."""

    def __init__(self, config: Any, role: str, folder: str | None, beside: Any) -> None:
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


@pytest.mark.parametrize(("ahead", "stage", "expected"), [(False, 1, [5, 6]), (True, 1, [6, 7]), (True, 0, [5, 6])])
def test_playing_begins_behind_a_batch_that_the_checkpoint_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool, stage: int, expected: list[int]
) -> None:
    state = TrainState(step=5, stage=1, stage_step=2, versions={"manager": 0, "answerer": 5})
    (tmp_path / "state.json").write_text(json.dumps(asdict(state)))
    (tmp_path / MARKER).touch()
    if ahead:
        Batch([], [], {}, {"manager": 0, "answerer": 4}).save(tmp_path / BATCH_FILE)
    played: list[int] = []

    def play(rehearsal: Rehearsal, step: int) -> Batch:
        played.append(step)
        return Batch([], [], {}, {})

    monkeypatch.setattr(Rehearsal, "_prepare_tasks", lambda rehearsal: None)
    monkeypatch.setattr(Rehearsal, "_play_groups", play)
    config = make_config("stages=[{objective: grpo}, {objective: grpo}]", "rollout.max_staleness=1")
    rehearsal = Rehearsal(config, stage, tmp_path, plays=False)
    assert len(list(rehearsal.play(2))) == 2
    assert played == expected
