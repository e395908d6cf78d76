"""Kill a process that writes to a store, again and again, and look at what it left. Run by test_store_crashes.py.

    python crash_store.py DATABASE random|FAILPOINT KILLS SEED

Every round forks a writer. It acknowledges each decision over a pipe once `apply` has returned, until it is killed: at
a random moment, or by itself at a named point of a transaction. Then the store is opened again and must hold every
acknowledged decision, in order, at most one more, and nothing torn. Prints one line with counts.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import event

from memr1.memory.bank import MemoryBank
from memr1.memory.embed import HashEmbedder
from memr1.memory.store import BankStore
from memr1.memory.types import Event, MemoryOp

BANK = "crash"
FAILPOINTS = ("before the record", "after the record", "after the entries", "before the commit", "after the commit")


def decision(bank: MemoryBank, number: int, rng: random.Random) -> list[MemoryOp]:
    """One to three operations of which every outcome is known: always valid, always a change."""
    ops = [MemoryOp(Event.ADD, text=f"fact {number} of many, told on day {number % 28 + 1}")]
    live = bank.entries()
    if live and rng.random() < 0.5:
        ops.append(MemoryOp(Event.UPDATE, text=f"fact {number}, corrected", entry_id=rng.choice(live).id))
    if len(live) > 20:
        ops.append(MemoryOp(Event.DELETE, entry_id=live[0].id if ops[-1].entry_id != live[0].id else live[1].id))
    return ops


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(store: BankStore, point: str, at: int) -> None:
    """Die at a point of the `at`-th transaction that writes a record."""
    seen = {"records": 0, "statements": ""}

    def before(_c: Any, _cur: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO memr1_records"):
            seen["records"] += 1
            if seen["records"] == at and point == "before the record":
                die()

    def after(_c: Any, _cur: Any, statement: str, *_: Any) -> None:
        seen["statements"] = statement
        if seen["records"] == at:
            if point == "after the record" and statement.startswith("INSERT INTO memr1_records"):
                die()
            if point == "after the entries" and "memr1_entries" in statement:
                die()

    def commit(connection: Any) -> None:
        if seen["records"] == at:
            if point == "before the commit":
                die()
            if point == "after the commit":
                connection.connection.dbapi_connection.commit()
                die()

    event.listen(store._database.engine, "before_cursor_execute", before)
    event.listen(store._database.engine, "after_cursor_execute", after)
    event.listen(store._database.engine, "commit", commit)


def write_until_killed(path: str, pipe: int, seed: int, prepare: Callable[[BankStore], None]) -> None:
    store = BankStore.open(path, HashEmbedder(384))
    bank = store.bank(BANK) if BANK in store.names() else store.create(BANK)
    prepare(store)
    rng = random.Random(seed)
    while True:
        bank.apply(decision(bank, bank.seq + 1, rng), time="2024-03-01T10:00:00")
        os.write(pipe, b"%d\n" % bank.seq)
        if rng.random() < 0.2:
            bank.search("which fact was told?", 3)  # writes vectors in between


def round_(path: str, mode: str, seed: int) -> int:
    """Start a writer, let it be killed; returns the last decision it acknowledged, 0 for none."""
    read, write = os.pipe()
    rng = random.Random(seed)
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            prepare = (lambda store: None) if mode == "random" else (lambda store: arm(store, mode, rng.randint(1, 5)))
            write_until_killed(path, write, seed, prepare)
        finally:
            os._exit(1)  # an exception: the parent sees that it was no SIGKILL
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        lines = []
        if mode == "random":
            # soon after the start, where the store is made or opened, or some decisions later
            for _ in range(rng.randint(0, 8)):
                lines.append(pipe.readline())
            time.sleep(rng.uniform(0, 0.004 if lines else 0.1))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        acknowledged = [int(line) for line in b"".join([*lines, pipe.read()]).split()]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"the writer failed: {status}"
    return acknowledged[-1] if acknowledged else 0


def main() -> None:
    path, mode, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    assert mode == "random" or mode in FAILPOINTS, mode
    held = unacknowledged = writers = 0
    for n in range(kills):
        last = round_(path, mode, seed * 100_003 + n)
        with BankStore.open(path, HashEmbedder(384)) as store:
            if BANK not in store.names():
                assert last == 0 and held == 0
                continue
            bank = store.bank(BANK)
            store.verify(BANK)
            assert [r.seq for r in bank.log] == list(range(1, bank.seq + 1))
            newest = max(last, held)
            assert newest <= bank.seq <= newest + 1, f"round {n}: {newest} acknowledged, {bank.seq} found"
            writers += last > 0
            unacknowledged += bank.seq - newest
            held = bank.seq
    print(
        f"kills {kills} decisions {held} writers_that_acknowledged {writers} unacknowledged_but_kept {unacknowledged}"
    )


if __name__ == "__main__":
    main()
