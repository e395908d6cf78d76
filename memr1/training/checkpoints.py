"""Checkpoints: everything that "train 10" needs to equal "train 5, stop, resume, train 5".

A checkpoint is a folder `step_000012` with the policies of all roles, the learner's shards, the batch that was played
ahead, if any, `state.json`, and last of all the marker `COMMITTED`. Without the marker it does not exist: a kill midway
leaves nothing half-made behind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from memr1 import storage
from memr1.errors import MemR1Error
from memr1.training.batch import BATCH_FILE
from memr1.training.runlog import METRICS_FILE, ROLLOUTS_DIR, rollout_files

MARKER = "COMMITTED"


@dataclass
class TrainState:
    """Where a run stands between two optimizer steps."""

    step: int = 0
    """Optimizer steps done, over all stages."""
    stage: int = 0
    """Index of the current stage; equals the number of stages when training is done."""
    stage_step: int = 0
    """Optimizer steps done in the current stage."""
    versions: dict[str, int] = field(default_factory=dict)
    """Weight version by role."""
    sampler: dict[str, Any] | None = None
    """State of the current stage's task sampler."""
    seconds: float = 0.0
    """Wall time spent so far, over all starts of the run."""
    stage_ends: dict[str, str] = field(default_factory=dict)
    """Stage `<index>-<name>` -> name of the checkpoint at its end."""


def save_checkpoint(
    run_dir: Path,
    state: TrainState,
    save_policies: Callable[[str], Any],
    save_learner: Callable[[str], Any] | None,
    save_batch: Callable[[Path], Any] | None = None,
) -> Path:
    """Write and commit a checkpoint. save_batch: writes the batch that was played ahead.

    Raises MemR1Error when the disk is full or not writable, or when somebody else has taken over a run on a store.
    """
    storage.check_lease(run_dir)
    final = run_dir / "checkpoints" / f"step_{state.step:06d}"
    remote = storage.url_of(run_dir) is not None
    # an object store cannot rename: there the marker alone commits
    temporary = final if remote else final.with_name(final.name + ".partial")
    try:
        discard(temporary)
        temporary.mkdir(parents=True)
        save_policies(str(temporary / "policies"))
        if save_learner is not None:
            save_learner(str(temporary / "learner"))
        if save_batch is not None:
            save_batch(temporary / BATCH_FILE)
        (temporary / "state.json").write_text(json.dumps(asdict(state), indent=1))
        _sync_tree(temporary)
        if remote:
            for path in filter(Path.is_file, temporary.iterdir()):  # policies and learner went there themselves
                storage.put(path)
            storage.push(run_dir)
        else:
            discard(final)
            os.replace(temporary, final)
        marker = final / MARKER
        marker.touch()
        if remote:
            storage.put(marker)
        _sync(marker)
        _sync(final)
        _sync(final.parent)
    except Exception as error:
        if not remote:
            shutil.rmtree(temporary, ignore_errors=True)  # half of a checkpoint would fill what little room there is
        if not _is_from_writing(error):
            raise
        raise MemR1Error(
            f"{final}: the checkpoint could not be written ({error}). Free disk space or set `output`, then run again "
            "with --resume auto; the last committed checkpoint is intact"
        ) from error
    return final


def adopt(checkpoint: Path, run_dir: Path) -> Path:
    """Commit a copy of a committed checkpoint that lies elsewhere among those of a run; the copy.

    Raises MemR1Error as `load_state` and `save_checkpoint` do.
    """
    state = load_state(checkpoint)
    learner, batch = checkpoint / "learner", checkpoint / BATCH_FILE
    return save_checkpoint(
        run_dir,
        state,
        partial(storage.copy, checkpoint / "policies"),
        partial(storage.copy, learner) if learner.is_dir() else None,
        partial(shutil.copyfile, batch) if batch.exists() else None,
    )


def branch(run_dir: Path, new: Path, stages: int) -> Path:
    """Let a run begin where another one had finished its first `stages` stages, with their log; its first checkpoint.

    What follows is what it would be if the new run had trained these stages itself, provided that both would have drawn
    the same samples in them.
    Raises MemR1Error where the other run has not come that far, and as `adopt` does.
    """
    ends = list(load_state(committed(run_dir)[-1]).stage_ends.values())[:stages]
    if len(ends) < stages:
        raise MemR1Error(f"{run_dir}: {len(ends)} stages are finished, {stages} are wanted; go on with it first")
    for path in rollout_files(run_dir).values():
        (new / ROLLOUTS_DIR).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, new / ROLLOUTS_DIR)
    for name in ends:
        last = adopt(run_dir / "checkpoints" / name, new)
    shutil.copyfile(run_dir / METRICS_FILE, new / METRICS_FILE)  # last: with it, all is there; cut when the run goes on
    return last


def load_state(checkpoint: Path) -> TrainState:
    """Read `state.json` of a committed checkpoint."""
    if not (checkpoint / MARKER).exists():
        raise MemR1Error(f"{checkpoint}: no committed checkpoint there; name a folder `step_...` that holds {MARKER}")
    try:
        return TrainState(**json.loads((checkpoint / "state.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise MemR1Error(f"{checkpoint / 'state.json'}: not readable ({error}); resume from another one") from error


def committed(run_dir: Path) -> list[Path]:
    """Committed checkpoints of a run, oldest first."""
    return sorted(p.parent for p in (run_dir / "checkpoints").glob(f"step_*/{MARKER}"))


def prune(run_dir: Path, keep: int, protected: set[str]) -> None:
    """Delete all but the newest `keep` checkpoints, sparing the names in `protected`."""
    for path in committed(run_dir)[:-keep]:
        if path.name not in protected:
            discard(path)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, if it is there."""
    if storage.url_of(checkpoint) is not None:
        storage.remove(checkpoint / MARKER)
        storage.remove(checkpoint)
    (checkpoint / MARKER).unlink(missing_ok=True)  # first, so that a kill midway leaves no committed half
    shutil.rmtree(checkpoint, ignore_errors=True)


def _is_from_writing(error: Exception) -> bool:
    """safetensors and torch report a full disk as errors of their own kind."""
    own = "SafetensorError" in type(error).__name__ or "inline_container" in str(error)
    return own or isinstance(error, OSError)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
