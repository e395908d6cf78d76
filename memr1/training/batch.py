"""A batch: played groups as one optimizer step trains on them, with the weight versions that played them.

Kept in a checkpoint where the next step's groups are played ahead (`rollout.max_staleness`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.learner.packing import TrainSequence
from memr1.training.runlog import plain

BATCH_FILE = "batch.json"
"""Name inside a checkpoint."""


@dataclass(frozen=True)
class Batch:
    """What one step learns from."""

    sequences: list[TrainSequence]
    """With their advantages, as the learner wants them; empty when no group had a signal."""
    records: list[dict[str, Any]]
    """Every trajectory, decoded, for the run folder."""
    metrics: dict[str, float]
    """Of the rollouts."""
    versions: dict[str, int]
    """Weight version by role that every trajectory was played with."""

    def save(self, path: Path) -> None:
        """Write as JSON. Floats keep every bit, NaN included."""
        path.write_text(json.dumps(dataclasses.asdict(self), default=plain))

    @classmethod
    def load(cls, path: Path) -> Batch:
        """Read what `save` wrote. MemR1Error names a file that is damaged."""
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            sequences = [_sequence(**sequence) for sequence in fields.pop("sequences")]
            return cls(sequences, **fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise MemR1Error(f"{path}: not a readable batch ({error}); use another checkpoint or folder") from error


def _sequence(**fields: Any) -> TrainSequence:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return TrainSequence(**values)


def staleness(batch: Batch, role: str, current: Mapping[str, int], limit: int) -> int:
    """Updates of `role`'s weights since the batch was played.

    Raises MemR1Error when there were more than `limit`, or when the weights of another role are not those it met.
    """
    for name, used in batch.versions.items():
        late = current[name] - used
        if not 0 <= late <= (limit if name == role else 0):
            raise MemR1Error(
                f"a batch was played with {name} weights v{used}, and v{current[name]} is current: stale weights"
            )
    return current[role] - batch.versions[role]
