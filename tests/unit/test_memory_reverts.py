"""Roll back and undo: earlier contents come back as new versions, the log only grows, and replay agrees."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.embed import HashEmbedder
from memr1.memory.state import BankRules
from memr1.memory.types import Event, MemoryOp, Provenance
from tests.unit.test_memory_machine import DECISIONS, EMBEDDER


def turn(*ids: str) -> Provenance:
    return Provenance(turn_ids=ids)


@pytest.fixture
def bank() -> MemoryBank:
    """1: ann, bob. 2: ann moves (turn t2), cat comes. 3: bob is deleted (t3)."""
    bank = MemoryBank("b", HashEmbedder(64))
    bank.apply([MemoryOp(Event.ADD, "ann lives in rome"), MemoryOp(Event.ADD, "bob likes tea")], time="2024-01-01")
    bank.apply(
        [MemoryOp(Event.UPDATE, "ann lives in oslo", "m1"), MemoryOp(Event.ADD, "cat sings")],
        provenance=turn("t2"),
        time="2024-01-02",
    )
    bank.apply([MemoryOp(Event.DELETE, entry_id="m2")], provenance=turn("t3"), time="2024-01-03")
    return bank


def says(bank: MemoryBank) -> dict[str, str]:
    return {e.id: e.text for e in bank.entries()}


def test_roll_back_gives_every_entry_what_it_said_then(bank: MemoryBank) -> None:
    assert bank.rollback(1, time="2024-01-04", actor="ops") == ["m1", "m2", "m3"]
    assert says(bank) == {"m1": "ann lives in rome", "m2": "bob likes tea"}
    assert [(e.version, e.status, e.text) for e in bank.history("m2")] == [
        (1, "live", "bob likes tea"),
        (2, "deleted", "bob likes tea"),
        (3, "live", "bob likes tea"),
    ]
    assert bank.seq == 4 and list(bank.log)[-1].actor == "ops"
    assert bank.get("m1").updated_at == "2024-01-04" and bank.get("m1").created_at == "2024-01-01"  # type: ignore[union-attr]
    assert {h.entry.id for h in bank.search("who sings?", 9)} == {"m1", "m2"}
    assert bank.rollback(3) == ["m1", "m2", "m3"]  # and forth again
    assert says(bank) == {"m1": "ann lives in oslo", "m3": "cat sings"}
    assert bank.rollback(5) == [] and bank.seq == 5  # nothing to do is no decision
    bank.verify()


def test_roll_back_to_nothing_and_to_what_never_was(bank: MemoryBank) -> None:
    assert bank.rollback(0) == ["m1", "m3"]
    assert says(bank) == {}
    assert bank.apply([MemoryOp(Event.ADD, "ann lives in rome")])[0].entry_id == "m4"
    with pytest.raises(MemR1Error, match="there is no state after 99"):
        bank.rollback(99)


def test_undo_takes_back_what_one_source_did_and_nothing_else(bank: MemoryBank) -> None:
    assert bank.undo("t2") == ["m1", "m3"]
    assert says(bank) == {"m1": "ann lives in rome"}
    assert bank.undo("t3") == ["m2"]
    assert says(bank) == {"m1": "ann lives in rome", "m2": "bob likes tea"}
    assert bank.undo("t9") == []
    bank.verify()


def test_undo_leaves_what_others_have_changed_since(bank: MemoryBank) -> None:
    bank.apply([MemoryOp(Event.UPDATE, "ann lives in bonn", "m1")], provenance=turn("t4"))
    assert bank.undo("t2") == ["m3"]
    assert says(bank) == {"m1": "ann lives in bonn"}
    assert bank.undo("t4") == ["m1"]
    assert says(bank) == {"m1": "ann lives in oslo"}


def test_what_was_rolled_back_keeps_its_source_and_can_be_undone(bank: MemoryBank) -> None:
    bank = MemoryBank("b", HashEmbedder(64))
    bank.apply([MemoryOp(Event.ADD, "ann lives in rome")], provenance=turn("t1"))
    bank.apply([MemoryOp(Event.UPDATE, "ann lives in oslo", "m1")], provenance=turn("t2"))
    bank.rollback(1)
    assert [h.entry.text for h in bank.search("ann", 1, filters={"turn_id": "t1"})] == ["ann lives in rome"]
    assert bank.undo("t1") == ["m1"] and says(bank) == {}
    bank.verify()


def test_a_fact_told_again_is_not_a_roll_back() -> None:
    bank = MemoryBank("b", HashEmbedder(64))
    for said, source in (("rome", "doc1"), ("oslo", "doc2"), ("rome", "doc1")):
        event = Event.UPDATE if bank.seq else Event.ADD
        bank.apply([MemoryOp(event, f"ann lives in {said}", "m1" if bank.seq else None)], provenance=turn(source))
    assert bank.undo("doc1") == ["m1"] and says(bank) == {"m1": "ann lives in oslo"}
    bank.verify()


def test_undo_does_not_overfill_a_bank() -> None:
    bank = MemoryBank("b", HashEmbedder(64), rules=BankRules(max_entries=2))
    bank.apply([MemoryOp(Event.ADD, "one"), MemoryOp(Event.ADD, "two")])
    bank.apply([MemoryOp(Event.DELETE, entry_id="m1")], provenance=turn("t3"))
    bank.apply([MemoryOp(Event.ADD, "three")])
    with pytest.raises(MemR1Error, match="the bank would hold 3 live entries, and 2 are its limit"):
        bank.undo("t3")
    assert says(bank) == {"m2": "two", "m3": "three"}


def test_undo_is_refused_whole_when_another_entry_took_the_content(bank: MemoryBank) -> None:
    bank.apply([MemoryOp(Event.ADD, "Ann lives in  Rome")])
    before = (says(bank), bank.seq)
    with pytest.raises(MemR1Error, match="m1: cannot go back to 'ann lives in rome', which m4 says now"):
        bank.undo("t2")
    assert (says(bank), bank.seq) == before
    bank.verify()


def test_a_log_with_reverts_is_dumped_read_and_replayed(bank: MemoryBank, tmp_path: Any) -> None:
    bank.rollback(1)
    bank.undo("t9")
    bank.dump(tmp_path / "bank.jsonl")
    again = MemoryBank.load(tmp_path / "bank.jsonl", HashEmbedder(64))
    assert again.log == bank.log and again.newest_versions() == bank.newest_versions()
    lines = (tmp_path / "bank.jsonl").read_text()
    (tmp_path / "bad.jsonl").write_text(lines.replace('["m1",1]', '["m1","x"]'))
    with pytest.raises(MemR1Error, match="reverts: expected pairs of an entry id and a version"):
        MemoryBank.load(tmp_path / "bad.jsonl", HashEmbedder(64))


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.one_of(DECISIONS, st.integers(0, 6), st.sampled_from(["a", "b"])), min_size=1, max_size=10))
def test_any_mixture_replays_to_itself_and_roll_back_finds_the_old_contents(steps: list[Any]) -> None:
    bank = MemoryBank("b", EMBEDDER)
    contents = [says(bank)]
    for n, step in enumerate(steps):
        if isinstance(step, list):
            bank.apply(step, provenance=turn("ab"[n % 2]), on_reject="skip")
        elif isinstance(step, int):
            bank.rollback(min(step, bank.seq))
            assert says(bank) == contents[min(step, len(contents) - 1)]
        else:
            with suppress(MemR1Error):
                bank.undo(step)
        while len(contents) <= bank.seq:
            contents.append(says(bank))
    bank.verify()
    assert [r.seq for r in bank.log] == list(range(1, bank.seq + 1))
