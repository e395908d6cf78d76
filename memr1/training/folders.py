"""Run folders of other programs: held by one at a time, or opened to be read, wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from memr1.errors import MemR1Error
from memr1.memory.owner import FileOwner
from memr1.storage import Lease, copy_of, exists, pull, push, url_of


@contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """Hold a run folder: a second program that wants to train there is refused with the first one's name.

    The lock is the operating system's, so it ends with its process; over NFS (version 4) it holds between nodes. A run
    on an object store has a lease there as well.
    """
    make_folder(run_dir)
    owner = FileOwner(
        run_dir / "run",
        os.environ.get("MEMR1_JOB", "memr1 train"),  # a job's submission id, from rayjobs/submit.py
        refusal="{} trains here; wait for it or stop it, or set another `name`",
    )
    try:
        lease = None if url_of(run_dir) is None else Lease(run_dir, owner.holder)
        try:
            yield
        finally:
            if lease is not None:
                lease.release()
    finally:
        owner.release()


@contextmanager
def opened(place: str, *, writes: bool = False) -> Iterator[Path]:
    """The folder of a run, for programs other than its training: itself, or a copy of what the store at a URL has.

    What is large stays in the store until it is read. writes: nobody may train meanwhile, and what was written goes to
    the store at the end, also when the program fails. Raises MemR1Error for a URL at which no run is.
    """
    if "://" not in place:
        yield Path(place)
        return
    folder = copy_of(place, writes=writes)
    if not exists(folder / "config.yaml"):
        raise MemR1Error(f"{place}: no run there (no config.yaml); name <output>/<name> of the run's configuration")
    if not writes:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):  # two readers share it
            pull(folder)
        yield folder
        return
    with owned(folder):
        pull(folder)
        try:
            yield folder
        finally:
            push(folder)


def make_folder(run_dir: Path) -> None:
    """Make a run folder. Raises MemR1Error where that cannot be done."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MemR1Error(f"{run_dir}: the run folder cannot be made: {error}; set `output` elsewhere") from error
