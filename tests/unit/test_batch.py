"""Batches that outlive a step: what is kept of them, and how old they may be."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

from memr1.errors import MemR1Error
from memr1.learner.packing import TrainSequence
from memr1.training.batch import Batch, staleness


def batch(**versions: int) -> Batch:
    sequences = [
        TrainSequence((1, 2), (3, 4, 5), (True, False, True), 1 / 3, (-0.1, -1e-30, -0.0)),
        TrainSequence((7,), (8,), (True,), -2.5, (-struct.unpack("f", struct.pack("f", 0.1))[0],)),
    ]
    records = [{"task_id": "t", "outcome": {"answer": "naïve \udc80", "parts": [1, None]}, "reward": 0.1 + 0.2}]
    return Batch(sequences, records, {"reward/mean": 0.7, "nothing": math.nan}, versions or {"manager": 3})


def test_a_batch_that_was_saved_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    batch().save(path)
    loaded = Batch.load(path)
    assert loaded.sequences == batch().sequences
    assert math.copysign(1, loaded.sequences[0].rollout_logprobs[2]) == -1  # type: ignore[index]
    assert loaded.records == batch().records
    assert loaded.metrics["reward/mean"] == 0.7 and math.isnan(loaded.metrics["nothing"])
    assert loaded.versions == {"manager": 3}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"sequences": [{"prompt_ids": []}]}', '{"sequences": [], "records": []}']
)
def test_a_damaged_batch_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "batch.json"
    path.write_text(text)
    with pytest.raises(MemR1Error, match="batch.json: not a readable batch"):
        Batch.load(path)


def test_a_batch_whose_sequences_were_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    batch().save(path)
    fields = json.loads(path.read_text())
    fields["sequences"][0]["loss_mask"].pop()
    path.write_text(json.dumps(fields))
    with pytest.raises(MemR1Error, match="must have one length"):
        Batch.load(path)


def test_the_bound_holds_for_the_role_that_learns_and_the_others_must_be_current() -> None:
    played = batch(manager=3, answerer=5)
    assert staleness(played, "manager", {"manager": 3, "answerer": 5}, 0) == 0
    assert staleness(played, "manager", {"manager": 4, "answerer": 5}, 1) == 1
    for current, limit in (
        ({"manager": 4, "answerer": 5}, 0),
        ({"manager": 5, "answerer": 5}, 1),
        ({"manager": 2, "answerer": 5}, 1),  # from the future: of a run that was taken back
    ):
        with pytest.raises(MemR1Error, match=f"manager weights v3, and v{current['manager']} is current"):
            staleness(played, "manager", current, limit)
    with pytest.raises(MemR1Error, match="answerer weights v5, and v6 is current"):
        staleness(played, "manager", {"manager": 3, "answerer": 6}, 1)
