"""Arbitrary decisions, roll backs, erasures, forks, imports and restarts of a store against plain dicts and lists.

The model of a bank is that of test_memory_machine.py, with a copy of itself after every decision to roll back to.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memr1.memory.bank import MemoryBank
from memr1.memory.embed import HashEmbedder
from memr1.memory.store import BankStore
from memr1.memory.types import MemoryOp
from tests.unit.test_memory_machine import DECISIONS, Model, brute_force

NAMES = st.sampled_from(["a", "b", "c"])
SEQS = st.integers(0, 12)
ENTRY = st.sampled_from(["m1", "m2", "m3", "m4"])


class History:
    """A model with its past."""

    def __init__(self) -> None:
        self.past = [Model()]

    @property
    def now(self) -> Model:
        return self.past[-1]

    def copy(self) -> History:
        other = History()
        other.past = [m.copy() for m in self.past]
        return other

    def decide(self, ops: list[MemoryOp], on_reject: str) -> list[bool]:
        self.past.append(self.now.copy())
        return self.now.apply(ops, on_reject)

    def rollback(self, seq: int) -> list[str]:
        then, after, changed = self.past[seq], self.now.copy(), []
        for entry_id, (text, version, status) in self.now.entries.items():
            old, _, before = then.entries.get(entry_id, ["", 0, "deleted"])
            same = (text, status) == (old, before) or (status, before) == ("deleted", "deleted")
            if status == "erased" or same:
                continue
            after.entries[entry_id] = [old if before == "live" else text, version + 1, before]
            changed.append(entry_id)
        if changed:
            after.decisions += 1
            self.past.append(after)
        return changed

    def erase(self, entry_id: str) -> None:
        self.past.append(self.now.copy())
        self.now.decisions += 1
        entry = self.now.entries[entry_id]
        entry[:] = ["", entry[1] + 1, "erased"]


class StoreMachine(RuleBasedStateMachine):
    """One file, up to three banks in it."""

    @initialize()
    def start(self) -> None:
        # in memory where that can be had: durability is not the matter here, and every write would wait for a disk
        memory = Path("/dev/shm")
        self.folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.path = Path(self.folder.name) / "memory.db"
        self.store = BankStore.open(self.path, HashEmbedder(16))
        self.models: dict[str, History] = {"a": History()}
        self.store.create("a")

    def teardown(self) -> None:
        if hasattr(self, "store"):
            for name in self.models:
                self.store.verify(name)
            self.store.close()
            self.folder.cleanup()

    def found(self, name: str) -> tuple[MemoryBank, History]:
        name = name if name in self.models else min(self.models)
        return self.store.bank(name), self.models[name]

    @rule(name=NAMES, ops=DECISIONS, on_reject=st.sampled_from(["abort", "skip"]))
    def decide(self, name: str, ops: list[MemoryOp], on_reject: str) -> None:
        bank, model = self.found(name)
        results = bank.apply(ops, time="2023-05-08", on_reject=on_reject)
        assert [r.ok for r in results] == model.decide(ops, on_reject)

    @rule(name=NAMES, seq=SEQS)
    def roll_back(self, name: str, seq: int) -> None:
        bank, model = self.found(name)
        seq = min(seq, bank.seq)
        assert sorted(bank.rollback(seq, time="2023-05-08")) == sorted(model.rollback(seq))

    @rule(name=NAMES, entry=ENTRY)
    def erase(self, name: str, entry: str) -> None:
        bank, model = self.found(name)
        if model.now.entries.get(entry, ["", 0, "erased"])[2] != "erased":
            bank.erase([entry], time="2023-05-08")
            model.erase(entry)

    @rule(name=NAMES, new=NAMES)
    def fork_and_keep(self, name: str, new: str) -> None:
        bank, model = self.found(name)
        if new not in self.models:
            self.store.adopt(bank.fork(), new)
            self.models[new] = model.copy()

    @rule(name=NAMES, new=NAMES)
    def export_and_import(self, name: str, new: str) -> None:
        bank, model = self.found(name)
        if new not in self.models:
            bank.dump(self.path.with_name("bank.jsonl"))
            self.store.adopt(MemoryBank.load(self.path.with_name("bank.jsonl"), HashEmbedder(16)), new)
            self.models[new] = model.copy()

    @precondition(lambda self: len(self.models) > 1)
    @rule(name=NAMES)
    def drop(self, name: str) -> None:
        if name in self.models:
            self.store.drop(name)
            del self.models[name]

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = BankStore.open(self.path, HashEmbedder(16))

    @rule(name=NAMES, query=st.sampled_from(["ann", "tea in rome", "a b", "zzz"]), k=st.integers(1, 6))
    def search(self, name: str, query: str, k: int) -> None:
        bank, model = self.found(name)
        assert [h.entry.id for h in bank.search(query, k)] == brute_force(model.now, query, k)

    @invariant()
    def the_store_is_what_the_models_say(self) -> None:
        assert self.store.names() == sorted(self.models)
        for name, model in self.models.items():
            bank = self.store.bank(name)
            assert {e.id: e.text for e in bank.entries()} == model.now.live()
            assert bank.seq == model.now.decisions
            for entry_id, (text, version, status) in model.now.entries.items():
                newest = bank.history(entry_id)[-1]
                assert (newest.version, newest.status) == (version, status)
                assert status == "deleted" or newest.text == text


StoreMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestStoreMachine = StoreMachine.TestCase
