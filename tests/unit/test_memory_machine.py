"""Arbitrary sequences of decisions, forks, restores and reloads against a plain model of dicts and lists.

The model knows nothing of logs, drafts, indexes or sharing: it copies everything and scans everything.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from memr1.memory.bank import MemoryBank, Snapshot
from memr1.memory.embed import CachedEmbedder, HashEmbedder
from memr1.memory.types import Event, MemoryOp, Provenance

EMBEDDER = CachedEmbedder(HashEmbedder(16))
TEXTS = st.sampled_from(
    ["ann", "Ann ", "bob", "ann and bob", "ANN  and bob", "tea", "tea!", "rome", "oslo", "a b c d", "d c b a", "", " "]
)
IDS = st.sampled_from(["m1", "m2", "m3", "m4", "m5", "m6", "m9", "m12", None])
OPS = st.builds(
    MemoryOp,
    event=st.sampled_from([Event.ADD, Event.ADD, Event.UPDATE, Event.DELETE, Event.NOOP]),
    text=TEXTS,
    entry_id=IDS,
    expected_version=st.sampled_from([None, None, None, 1, 2]),
    kind=st.sampled_from(["text"] * 9 + ["triple"]),
)
DECISIONS = st.lists(OPS, max_size=5)


class Model:
    """What a bank is supposed to be: lists of [text, version, status] by id."""

    def __init__(self) -> None:
        self.entries: dict[str, list] = {}
        self.decisions = 0

    def copy(self) -> Model:
        return copy.deepcopy(self)

    def live(self) -> dict[str, str]:
        return {i: text for i, (text, _, status) in self.entries.items() if status == "live"}

    def apply(self, ops: list[MemoryOp], on_reject: str) -> list[bool]:
        before = copy.deepcopy(self.entries)
        done = [self._one(op) for op in ops]
        self.decisions += 1
        if on_reject == "abort" and not all(done):
            self.entries = before
            done = [False] * len(ops)
        return done

    def _one(self, op: MemoryOp) -> bool:
        same = [i for i, text in self.live().items() if text.lower().split() == op.text.lower().split()]
        if op.event == "NOOP":
            return True
        if op.event == "ADD":
            if not op.text.strip() or op.kind != "text" or same:
                return False
            self.entries[f"m{len(self.entries) + 1}"] = [op.text, 1, "live"]
            return True
        if op.entry_id not in self.live() or op.expected_version not in (None, self.entries[op.entry_id][1]):
            return False
        entry = self.entries[op.entry_id]
        if op.event == "DELETE":
            entry[1:] = [entry[1] + 1, "deleted"]
            return True
        if not op.text.strip() or op.kind != "text" or any(i != op.entry_id for i in same):
            return False
        if op.text != entry[0]:
            entry[:2] = [op.text, entry[1] + 1]
        return True


def brute_force(model: Model, query: str, k: int) -> list[str]:
    """Ids by exact cosine, ties in order of ADD."""
    live = model.live()
    if not live:
        return []
    vectors = HashEmbedder(16).embed(list(live.values())).astype(np.float64)
    scores = (vectors * HashEmbedder(16).embed([query])[0].astype(np.float64)).sum(axis=1)
    return [list(live)[i] for i in np.argsort(-scores, kind="stable")[:k]]


class BankMachine(RuleBasedStateMachine):
    """Several banks at once, since a fork may only be wrong in how it touches another."""

    pairs = Bundle("pairs")
    saved = Bundle("saved")

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[MemoryBank, Model]] = []

    def keep(self, bank: MemoryBank, model: Model) -> tuple[MemoryBank, Model]:
        self.all.append((bank, model))
        return bank, model

    @initialize(target=pairs)
    def start(self) -> tuple[MemoryBank, Model]:
        return self.keep(MemoryBank("b", EMBEDDER), Model())

    @rule(pair=pairs, ops=DECISIONS, on_reject=st.sampled_from(["abort", "skip"]))
    def decide(self, pair: tuple[MemoryBank, Model], ops: list[MemoryOp], on_reject: str) -> None:
        bank, model = pair
        before, versions = bank.entries(), {i: bank.history(i) for i in model.entries}
        results = bank.apply(ops, provenance=Provenance(("t",)), time="2023-05-08", on_reject=on_reject)
        assert [r.ok for r in results] == model.apply(ops, on_reject)
        if not any(r.ok and r.op.event is not Event.NOOP for r in results):
            assert bank.entries() == before, "an aborted decision or a NOOP changes nothing"
        assert any(r.changed for r in results) == ({i: bank.history(i) for i in model.entries} != versions), (
            "`changed` tells the truth"
        )
        for entry_id, old in versions.items():
            assert bank.history(entry_id)[: len(old)] == old, "history only grows"

    @rule(target=pairs, pair=pairs)
    def fork(self, pair: tuple[MemoryBank, Model]) -> tuple[MemoryBank, Model]:
        return self.keep(pair[0].fork(), pair[1].copy())

    @rule(target=saved, pair=pairs)
    def snapshot(self, pair: tuple[MemoryBank, Model]) -> tuple[Snapshot, Model]:
        return pair[0].snapshot(), pair[1].copy()

    @rule(pair=pairs, kept=consumes(saved))
    def restore(self, pair: tuple[MemoryBank, Model], kept: tuple[Snapshot, Model]) -> None:
        pair[0].restore(kept[0])
        pair[1].entries, pair[1].decisions = kept[1].entries, kept[1].decisions

    @rule(target=pairs, pair=pairs)
    def dump_and_load(self, pair: tuple[MemoryBank, Model]) -> tuple[MemoryBank, Model]:
        bank, model = pair
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bank.jsonl"
            bank.dump(path)
            again = MemoryBank.load(path, EMBEDDER)
        assert again.snapshot() == bank.snapshot()
        return self.keep(again, model.copy())

    @rule(pair=pairs, query=st.sampled_from(["ann", "tea in rome", "a b", "zzz"]), k=st.integers(1, 6))
    def search(self, pair: tuple[MemoryBank, Model], query: str, k: int) -> None:
        bank, model = pair
        assert [h.entry.id for h in bank.search(query, k)] == brute_force(model, query, k)

    @invariant()
    def every_bank_is_what_its_model_says(self) -> None:
        for bank, model in self.all:
            assert {e.id: e.text for e in bank.entries()} == model.live()
            assert [e.id for e in bank.entries()] == list(model.live())
            assert len(bank) == len(model.live()) and bank.seq == model.decisions
            contents = [" ".join(e.text.casefold().split()) for e in bank.entries()]
            assert len(set(contents)) == len(contents), "live content is unique"
            for entry_id, (text, version, status) in model.entries.items():
                history = bank.history(entry_id)
                assert [e.version for e in history] == list(range(1, version + 1)), "versions rise by one"
                assert (history[-1].text, history[-1].status) == (text, status)

    @invariant()
    def every_bank_is_the_replay_of_its_log(self) -> None:
        for bank, _ in self.all[-2:]:
            bank.verify()


BankMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestBankMachine = BankMachine.TestCase
