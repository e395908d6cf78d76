"""Many threads, and several processes through the owner: every history of calls has an order that explains it."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import pytest

from memr1.memory.bank import MemoryBank
from memr1.memory.embed import HashEmbedder
from memr1.memory.store import BankStore
from memr1.memory.types import Event, MemoryOp
from tests.unit.conftest import Open
from tests.unit.linearizability import Call, linearizable

ENTRIES = ("m1", "m2", "m3")
Apply = Callable[..., Any]


def read_or_swap(state: Any, op: Any) -> tuple[Any, Any]:
    """One entry, as it should be: (text, version), read, or set when the version is the expected one."""
    if op[0] == "read":
        return state, state
    _, text, expected = op
    if state[1] != expected:
        return state, "version_conflict"
    return (text, expected + 1), "ok"


def work(seed: int, rounds: int, get: Apply, apply: Apply) -> dict[str, list[Call]]:
    """Read entries and set them to what nobody else writes, with the version that was seen last; the calls by entry."""
    dice = random.Random(seed)
    seen = dict.fromkeys(ENTRIES, 1)
    history: dict[str, list[Call]] = defaultdict(list)
    for n in range(rounds):
        entry_id = dice.choice(ENTRIES)
        began = time.monotonic()
        if dice.random() < 0.4:
            op: Any = ("read",)
            entry = get(entry_id)
            result: Any = (entry.text, entry.version)
            seen[entry_id] = entry.version
        else:
            op = ("swap", f"{entry_id} as {seed} says for the {n}. time", seen[entry_id])
            (done,) = apply([MemoryOp(Event.UPDATE, op[1], entry_id, expected_version=op[2])])
            result = "ok" if done.ok else done.reason
            seen[entry_id] += done.ok
        history[entry_id].append(Call(began, time.monotonic(), op, result))
    return history


def check(histories: list[dict[str, list[Call]]], bank: MemoryBank) -> None:
    for entry_id in ENTRIES:
        history = [call for h in histories for call in h[entry_id]]
        final = bank.get(entry_id)
        assert final is not None
        last = Call(time.monotonic(), time.monotonic(), ("read",), (final.text, final.version))
        assert linearizable([*history, last], (entry_id, 1), read_or_swap)
        swapped = sum(c.result == "ok" for c in history)
        assert final.version == 1 + swapped and swapped > 0, "no update is lost"
        assert any(c.result == "version_conflict" for c in history), "the workers were in one another's way"


def start(store: BankStore) -> MemoryBank:
    bank = store.create("b")
    bank.apply([MemoryOp(Event.ADD, entry_id) for entry_id in ENTRIES])
    return bank


def test_eight_threads_are_linearizable(open_store: Open) -> None:
    store = open_store()
    bank = start(store)
    histories: list[dict[str, list[Call]]] = []
    threads = [
        threading.Thread(target=lambda seed=seed: histories.append(work(seed, 25, bank.get, bank.apply)))
        for seed in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(histories) == 8
    check(histories, bank)
    store.verify("b")


class Owner(BaseManager):
    """A process that owns a store and does what others ask of it."""


_store: list[BankStore] = []


def _own(path: str) -> None:
    _store.append(BankStore.open(path, HashEmbedder(16)))
    start(_store[0])


def _bank() -> MemoryBank:
    return _store[0].bank("b")


def _close() -> None:
    _store[0].close()


Owner.register("bank", callable=_bank, exposed=("get", "apply"))
Owner.register("close", callable=_close)


def _client(address: Any, key: bytes, seed: int, answers: Any) -> None:
    owner = Owner(address=address, authkey=key)
    owner.connect()
    bank: Any = owner.bank()  # type: ignore[attr-defined]
    answers.put(work(seed, 40, bank.get, bank.apply))
    for n in range(3):  # a client that got no answer asks again, and another one has asked the same
        bank.apply([MemoryOp(Event.ADD, f"shared fact {n}")], idempotency_key=f"fact {n}")


def test_several_processes_through_the_owner_are_linearizable(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path, key = tmp_path / "memory.db", b"of this test"
    owner = Owner(address=str(tmp_path / "owner.socket"), authkey=key, ctx=context)
    owner.start(_own, (str(path),))
    try:
        answers = context.Queue()
        clients = [context.Process(target=_client, args=(owner.address, key, seed, answers)) for seed in range(4)]
        for client in clients:
            client.start()
        histories = [answers.get(timeout=120) for _ in clients]
        for client in clients:
            client.join(60)
            assert client.exitcode == 0
        owner.close()  # type: ignore[attr-defined]
    finally:
        owner.shutdown()
    with BankStore.open(path, HashEmbedder(16), create=False) as store:
        check(histories, store.bank("b"))
        shared = [e.text for e in store.bank("b").entries() if e.text.startswith("shared")]
        assert sorted(shared) == [f"shared fact {n}" for n in range(3)], "once for each key"
        store.verify("b")


@pytest.mark.parametrize(
    ("results", "explained"),
    [
        ([("swap", "x", 1, "ok"), ("read", ("x", 2))], True),
        ([("swap", "x", 1, "ok"), ("read", ("m", 1))], False),  # a stale read
        ([("swap", "x", 1, "ok"), ("swap", "y", 1, "ok")], False),  # a lost update
        ([("swap", "x", 1, "version_conflict")], False),  # a refusal without a reason
    ],
)
def test_the_checker_tells_right_from_wrong(results: list[tuple[Any, ...]], explained: bool) -> None:
    history = [Call(2 * n, 2 * n + 1, tuple(r[:-1]), r[-1]) for n, r in enumerate(results)]
    assert linearizable(history, ("m", 1), read_or_swap) is explained


def test_the_checker_lets_calls_that_overlap_change_places() -> None:
    history = [Call(0, 10, ("swap", "x", 1), "ok"), Call(1, 2, ("read",), ("m", 1)), Call(3, 4, ("read",), ("x", 2))]
    assert linearizable(history, ("m", 1), read_or_swap)
    assert not linearizable([*history, Call(5, 6, ("read",), ("m", 1))], ("m", 1), read_or_swap)
