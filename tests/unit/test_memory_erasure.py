"""Hard erase, retention and quotas: what is gone is gone from everywhere, and the log still leads to the state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.chroma_index import ChromaIndex
from memr1.memory.embed import CachedEmbedder, HashEmbedder
from memr1.memory.state import BankRules
from memr1.memory.store import BankStore
from memr1.memory.types import Event, MemoryOp, Provenance

Open = Callable[..., BankStore]
SECRET = "Ann told of her xanthochromia"


def add(content: str, **more: Any) -> MemoryOp:
    return MemoryOp(Event.ADD, content, **more)


@pytest.fixture(params=["memory", "store"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryBank]:
    if request.param == "memory":
        yield MemoryBank("b", HashEmbedder(64))
        return
    with BankStore.open(tmp_path / "memory.db", HashEmbedder(64)) as store:
        yield store.create("b")


def told(bank: MemoryBank) -> None:
    """A secret in as many places as it can get to."""
    bank.apply([add(SECRET, metadata={"note": "xanthochromia"}), add("Bob likes tea")], time="2024-01-01")
    bank.apply([add(SECRET.upper())], time="2024-01-02")  # rejected: it stands there
    bank.apply([MemoryOp(Event.UPDATE, f"{SECRET} twice", "m1", metadata={"x": "xanthochromia"})], time="2024-01-03")
    bank.apply([MemoryOp(Event.UPDATE, f"{SECRET} twice", "m1")], time="2024-01-04")  # changes nothing
    bank.apply([MemoryOp(Event.UPDATE, f"{SECRET} more", "m1", expected_version=9)], time="2024-01-05")  # rejected
    bank.apply(
        [add("Cid"), add(f"Dan: {SECRET}"), MemoryOp(Event.DELETE, entry_id="m99")], time="2024-01-06"
    )  # aborted
    bank.search("xanthochromia", 3)
    bank.apply([MemoryOp(Event.DELETE, entry_id="m1")], time="2024-01-07")
    bank.rollback(3, time="2024-01-08")  # it is back
    bank.search("xanthochromia", 3, by="hybrid")


def test_what_was_erased_is_nowhere(bank: MemoryBank, tmp_path: Path) -> None:
    told(bank)
    before = bank.history("m1")
    erasure = bank.erase(["m1"], time="2024-02-01", provenance=Provenance(("D9:1",)))
    assert erasure.entries == ("m1",) and erasure.rewritten == (1, 2, 3, 4, 5, 6) and erasure.also_in == ()
    assert [e.text for e in bank.entries()] == ["Bob likes tea"]
    assert [h.entry.id for h in bank.search("xanthochromia", 5)] == ["m2"]
    after = bank.history("m1")
    assert [e.text for e in after] == [""] * (len(before) + 1) and not any(e.metadata for e in after)
    assert [e.updated_at for e in after[:-1]] == [e.updated_at for e in before], "that it was there stays on record"
    assert (after[-1].status, after[-1].provenance.turn_ids) == ("erased", ("D9:1",))
    bank.dump(tmp_path / "bank.jsonl")
    assert "xanthochromia" not in (tmp_path / "bank.jsonl").read_text().lower()
    assert SECRET not in bank.embedder._vectors and f"{SECRET} twice" not in bank.embedder._vectors
    bank.verify()
    again = MemoryBank.load(tmp_path / "bank.jsonl", HashEmbedder(64))
    assert again.snapshot() == bank.snapshot()
    assert (bank.stats().live, bank.stats().deleted, bank.stats().erased) == (1, 0, 1)


def test_nothing_brings_back_what_was_erased(bank: MemoryBank) -> None:
    told(bank)
    bank.erase(["m1"])
    for seq in range(bank.seq):
        bank.rollback(seq)
        assert "m1" not in [e.id for e in bank.entries()]
    bank.rollback(1)
    assert [e.text for e in bank.entries()] == ["Bob likes tea"]
    assert bank.undo("D1:1") == []
    assert bank.search("xanthochromia", 5, as_of="2024-01-03")[0].entry.id == "m2"
    for op in (MemoryOp(Event.UPDATE, "x", "m1"), MemoryOp(Event.DELETE, entry_id="m1")):
        assert bank.apply([op])[0].reason == "deleted_id"
    assert bank.apply([add(SECRET)])[0].ok, "others may say it again"
    bank.verify()


def test_erasing_twice_or_the_unknown(bank: MemoryBank) -> None:
    bank.apply([add("one")])
    seq = bank.erase(["m1", "m1"]).entries and bank.seq
    assert bank.erase(["m1"]).entries == () and bank.seq == seq
    with pytest.raises(MemR1Error, match=r"m7: was never in bank 'b'; nothing was erased"):
        bank.erase(["m1", "m7"])
    with pytest.raises(MemR1Error, match=r"entry_ids: expected several ids, got 'm1'; write \['m1'\]"):
        bank.erase("m1")
    with pytest.raises(MemR1Error, match="only logs hold erased operations"):
        bank.apply([add("x", erased=True)])


def test_a_decision_that_is_asked_for_again_after_its_content_was_erased(bank: MemoryBank) -> None:
    ops = [add("one"), add("two")]
    first = bank.apply(ops, idempotency_key="k")
    bank.erase(["m1"])
    again = bank.apply(ops, idempotency_key="k")
    assert [r.entry_id for r in again] == [r.entry_id for r in first] and [e.id for e in bank.entries()] == ["m2"]
    with pytest.raises(MemR1Error, match="was used for other operations"):
        bank.apply([add("one"), add("three")], idempotency_key="k")


def test_entries_are_erased_when_their_retention_ends(bank: MemoryBank) -> None:
    bank.apply([add("one"), add("two"), add("three"), add("four")], time="2024-01-01")
    bank.apply([MemoryOp(Event.DELETE, entry_id="m1")], time="2024-02-01")
    bank.apply([MemoryOp(Event.DELETE, entry_id="m2")], time="2024-03-01")
    bank.apply([MemoryOp(Event.DELETE, entry_id="m3")])  # nobody knows when
    assert bank.purge("2024-02-15", time="2024-05-01").entries == ("m1",)
    assert bank.purge("2024-02-15").entries == ()
    assert [bank.history(i)[0].text for i in ("m1", "m2", "m3", "m4")] == ["", "two", "three", "four"]
    with pytest.raises(MemR1Error, match="deleted_before: 'soon' is not ISO 8601"):
        bank.purge("soon")


def test_a_fork_that_was_made_before_keeps_its_copy(bank: MemoryBank) -> None:
    bank.apply([add("one")])
    fork = bank.fork()
    bank.erase(["m1"])
    assert [e.text for e in fork.entries()] == ["one"]
    fork.verify()
    bank.verify()


def test_an_index_kept_on_disk_forgets_too(tmp_path: Path) -> None:
    bank = MemoryBank("b", HashEmbedder(64), ChromaIndex("b", path=tmp_path / "chroma"))
    bank.apply([add("one"), add("two")])
    bank.search("one", 2)
    assert len(bank._index.ids()) == 2
    bank.erase(["m1"])
    assert [key.partition("@")[0] for key in bank._index.ids()] == ["m2"]


# -- in a store ---------------------------------------------------------------------------------------------------


def test_the_file_holds_no_byte_of_it(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    long = "xanthochromia " * 900  # spans pages
    with BankStore.open(path, HashEmbedder(64)) as store:
        bank = store.create("b", rules=BankRules(max_chars=20_000))
        told(bank)
        bank.apply([add(long)])
        for n in range(300):  # pages are split and given up
            bank.apply([add(f"{SECRET}, time {n}")])
        vector = HashEmbedder(64).embed([long])[0].tobytes()
        bank.search("xanthochromia", 3)
        held = [p for p in tmp_path.iterdir() if b"xanthochromia" in p.read_bytes().lower()]
        assert held and any(vector in p.read_bytes() for p in tmp_path.iterdir()), "it was there to begin with"
        bank.erase([e.id for e in bank.newest_versions() if "xanthochromia" in e.text.lower()])
        for file in tmp_path.iterdir():
            assert b"xanthochromia" not in file.read_bytes().lower(), file
            assert vector not in file.read_bytes(), file
        store.verify("b")


def test_where_else_it_stands_is_said(open_store: Open) -> None:
    store = open_store()
    bank, other = store.create("b"), store.create("other")
    bank.apply([add("tea"), add("tea with milk")])
    other.apply([add("Tea"), add("tea, please")])
    assert bank.erase(["m1"]).also_in == (
        "bank 'b', decision 1",
        "bank 'b', entry m2",
        "bank 'other', decision 1",
        "bank 'other', entry m2",
    )
    store.verify("b")
    store.close()
    again = open_store()
    again.verify("b")
    assert [e.text for e in again.bank("b").entries()] == ["tea with milk"]


def test_a_wipe_that_fails_is_finished_by_asking_again(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add(SECRET)])

    def full(_c: Any, _cur: Any, statement: str, *_: Any) -> None:
        if statement.startswith("VACUUM"):
            raise OperationalError(statement, {}, Exception("database or disk is full"))

    engine = store._database.engine
    event.listen(engine, "before_cursor_execute", full)
    with pytest.raises(MemR1Error, match="gone from the tables, but pages .* may still hold it: .*disk is full"):
        bank.erase(["m1"])
    event.remove(engine, "before_cursor_execute", full)
    assert bank.entries() == [] and bank.seq == 2
    assert bank.erase(["m1"]).entries == ()
    store.verify("b")


def test_an_erasure_is_all_or_nothing(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    told(bank)
    log, entries = bank.log, bank.entries()

    def refuse(_c: Any, _cur: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE memr1_entries"):
            raise RuntimeError("the power went out")

    event.listen(store._database.engine, "before_cursor_execute", refuse)
    with pytest.raises(RuntimeError, match="power"):
        bank.erase(["m1"])
    event.remove(store._database.engine, "before_cursor_execute", refuse)
    assert (bank.log, bank.entries()) == (log, entries)
    store.verify("b")


# -- quotas -------------------------------------------------------------------------------------------------------


def test_a_bank_takes_no_more_characters_than_it_may(bank: MemoryBank) -> None:
    bank = MemoryBank("q", CachedEmbedder(HashEmbedder(16)), rules=BankRules(max_total_chars=10))
    assert bank.apply([add("12345"), add("67890")])[1].ok
    full = bank.apply([add("x")])[0]
    assert (full.reason, full.detail) == ("bank_full", "the bank would hold 11 characters, and 10 are its limit")
    assert bank.apply([MemoryOp(Event.UPDATE, "123456", "m1")])[0].reason == "bank_full"
    assert bank.apply([MemoryOp(Event.UPDATE, "1234", "m1"), add("x")])[1].ok, "what was freed can be used"
    assert bank.apply([MemoryOp(Event.DELETE, entry_id="m2"), add("abcde")])[1].ok
    with pytest.raises(MemR1Error, match="would hold"):
        MemoryBank.replay(bank.log, HashEmbedder(16), rules=BankRules(max_total_chars=3)).rollback(1)
    bank.erase(["m1"])
    assert bank.apply([add("wxyz")])[0].ok and bank._state.chars == 10
    bank.verify()


def test_a_quota_survives_files_and_old_files_have_none(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    MemoryBank("q", HashEmbedder(16), rules=BankRules(max_total_chars=10)).dump(path)
    assert MemoryBank.load(path, HashEmbedder(16)).rules.max_total_chars == 10
    path.write_text(path.read_text().replace('"max_total_chars":10,', "").replace(',"max_total_chars":10', ""))
    assert "max_total_chars" not in path.read_text()
    assert MemoryBank.load(path, HashEmbedder(16)).rules == BankRules()
