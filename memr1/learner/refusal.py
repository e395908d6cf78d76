"""An optimizer step that would ruin the weights is refused, and the rows that it was to be taken on are kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.learner.packing import MicroBatch
from memr1.storage import writing


def refuse_if_any(offenders: Sequence[MicroBatch], who: str, folder: Path, rank: int, device: Any) -> None:
    """Stop every rank before an optimizer step when any has a loss or gradient that is NaN or infinite. A collective.

    offenders: this rank's micro-batches with one; they are written to `folder`/rank-<rank>.json, as the arrays of
    `MicroBatch` by name. who: whose weights would have moved. Raises MemR1Error on all ranks alike.
    """
    import torch

    named = torch.tensor(rank + 1 if offenders else 0, device=device)
    if torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(named, torch.distributed.ReduceOp.MAX)
    if int(named) == 0:
        return
    if offenders:
        rows = [dataclasses.asdict(batch) for batch in offenders]
        with writing(folder) as written:
            written.mkdir(parents=True, exist_ok=True)
            (written / f"rank-{rank}.json").write_text(json.dumps(rows, default=lambda array: array.tolist()))
    raise MemR1Error(
        f"{who}: loss or gradient is NaN or infinite, so the step was refused, and no checkpoint holds anything of it. "
        f"The rows are in {folder / f'rank-{int(named) - 1}.json'}. Resume with --resume auto; if it happens again, "
        "start anew with a lower stages[].learning_rate, or with model.dtype=float32"
    )
