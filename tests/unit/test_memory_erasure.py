"""Hard erase, retention and quotas: what is gone is gone from everywhere, and the log still leads to the state."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from memr1.errors import MemR1Error
from memr1.memory import tables
from memr1.memory.bank import MemoryBank
from memr1.memory.chroma_folder import blank_unused, close_folders
from memr1.memory.chroma_index import ChromaIndex
from memr1.memory.embed import HashEmbedder
from memr1.memory.state import BankRules
from memr1.memory.store import BankStore
from memr1.memory.types import Event, MemoryOp, Provenance
from tests.unit.conftest import Open

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
    first = [add(SECRET, metadata={"note": "xanthochromia"}), add("Bob likes tea")]
    bank.apply(first, time="2024-01-01", provenance=Provenance(("D1:1",)))
    bank.apply([add(SECRET.upper())], time="2024-01-02")  # rejected: it stands there
    bank.apply([MemoryOp(Event.UPDATE, f"{SECRET} twice", "m1", metadata={"x": "xanthochromia"})], time="2024-01-03")
    bank.apply([MemoryOp(Event.UPDATE, f"{SECRET} twice", "m1")], time="2024-01-04")  # changes nothing
    bank.apply([MemoryOp(Event.UPDATE, f"{SECRET} more", "m1", expected_version=9)], time="2024-01-05")  # rejected
    bank.apply(
        [add("Cid"), add(f"Dan: {SECRET}"), MemoryOp(Event.DELETE, entry_id="m99")], time="2024-01-06"
    )  # aborted
    idle = [
        MemoryOp(Event.NOOP, SECRET),
        MemoryOp(Event.DELETE, SECRET.lower(), "m2"),
        add("", metadata={"n": [SECRET]}),
    ]
    bank.apply(idle, time="2024-01-06", on_reject="skip")
    bank.apply([add("Bob likes tea again")], time="2024-01-06")
    bank.search("xanthochromia", 3)
    bank.apply([MemoryOp(Event.DELETE, entry_id="m1")], time="2024-01-07")
    bank.rollback(3, time="2024-01-08")  # it is back
    bank.search("xanthochromia", 3, by="hybrid")


def test_what_was_erased_is_nowhere(bank: MemoryBank, tmp_path: Path) -> None:
    told(bank)
    before = bank.history("m1")
    erasure = bank.erase(["m1"], time="2024-02-01", provenance=Provenance(("D9:1",)))
    assert erasure.entries == ("m1",) and erasure.rewritten == (1, 2, 3, 4, 5, 6, 7) and erasure.also_in == ()
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
    assert (bank.stats().live, bank.stats().deleted, bank.stats().erased) == (1, 1, 1)


def test_nothing_brings_back_what_was_erased(bank: MemoryBank) -> None:
    told(bank)
    bank.erase(["m1"])
    for seq in range(bank.seq):
        bank.rollback(seq)
        assert "m1" not in [e.id for e in bank.entries()]
    bank.rollback(1)
    assert [e.text for e in bank.entries()] == ["Bob likes tea"]
    assert bank.undo("D1:1") == ["m2"] and bank.entries() == [], "what came with it was the other entry alone"
    bank.rollback(bank.seq - 1)
    assert bank.search("xanthochromia", 5, as_of="2024-01-03")[0].entry.id == "m2"
    for op in (MemoryOp(Event.UPDATE, "x", "m1"), MemoryOp(Event.DELETE, entry_id="m1")):
        assert bank.apply([op])[0].reason == "deleted_id"
    assert bank.apply([add(SECRET)])[0].ok, "others may say it again"
    bank.verify()


def test_what_else_says_it_is_named_and_stays(bank: MemoryBank) -> None:
    bank.apply([add("tea"), add("tea with milk"), add("a steak"), add("x", metadata={"like": ["TEA", 1]})])
    bank.apply([MemoryOp(Event.UPDATE, "coffee", "m2")])
    erasure = bank.erase(["m1"])
    assert erasure.also_in == ("decision 1", "entry m4"), "m2 says it no longer, a steak never did"
    assert [e.text for e in bank.entries()] == ["coffee", "a steak", "x"]
    assert [e.text for e in bank.history("m2")] == ["tea with milk", "coffee"]


@pytest.mark.parametrize("word", ["text", "m1", "erased", "live", "ADD", "user", "[", "a\\b"])
def test_words_of_the_record_itself_are_no_content(bank: MemoryBank, word: str) -> None:
    bank.apply([add(word), add("Bob likes tea")], provenance=Provenance(speaker=word, role="user"))
    assert bank.erase(["m1"]).also_in == ()
    bank.verify()


def test_operations_that_only_contain_letters_of_it_are_left_alone(bank: MemoryBank) -> None:
    bank.apply([add("a")])
    bank.apply([MemoryOp(Event.UPDATE, "banana", "m9")])
    bank.erase(["m1"])
    assert [op.text for record in bank.log for op in record.ops] == ["", "banana"]


def test_a_log_that_was_cut_before_the_erasure_shows_no_empty_entries(bank: MemoryBank) -> None:
    bank.apply([add("one"), add("two")])
    bank.erase(["m1"])
    early = MemoryBank.replay(bank.log.prefix(1), HashEmbedder(64), rules=BankRules(max_entries=2))
    assert [e.id for e in early.entries()] == ["m2"] and len(early) == 1 and early.stats().erased == 1
    assert [h.entry.id for h in early.search("one", 5)] == ["m2"]
    assert early.apply([MemoryOp(Event.DELETE, entry_id="m1")])[0].reason == "deleted_id"
    assert [r.reason for r in early.apply([add("three"), add("four")], on_reject="skip")] == [None, "bank_full"]
    early.verify()


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


def test_files_of_an_index_are_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "chroma"
    vector = HashEmbedder(64).embed(["hush hush"])[0].tobytes()

    def held() -> bool:
        return any(vector in p.read_bytes() for p in folder.rglob("*") if p.is_file())

    bank = MemoryBank("b", HashEmbedder(64), ChromaIndex("b", path=folder))
    bank.apply([add("hush hush"), add("two")])
    bank.search("one", 2)
    bank.dump(tmp_path / "before.jsonl")
    close_folders()
    assert held()
    bank = MemoryBank.load(tmp_path / "before.jsonl", HashEmbedder(64), ChromaIndex("b", path=folder))
    bank.erase(["m1"])
    assert [h.entry.id for h in bank.search("hush hush", 2)] == ["m2"]
    close_folders()
    bank = MemoryBank.from_snapshot(bank.snapshot(), HashEmbedder(64), ChromaIndex("b", path=folder))
    assert [h.entry.id for h in bank.search("hush hush", 2)] == ["m2"]
    close_folders()
    assert not held()


def test_a_file_of_an_index_holds_nothing_beside_its_vectors(tmp_path: Path) -> None:
    """Chroma writes room for vectors to come as the memory was that it got for them."""
    folder = tmp_path / "chroma"
    index = ChromaIndex("b", path=folder)
    vectors = HashEmbedder(64).embed([f"fact {i}" for i in range(3)])
    index.add(["a", "b", "c"], vectors)
    (inner,) = folder.glob("memr1-index-1")
    (room,) = inner.rglob("data_level0.bin")
    assert room.stat().st_size > 64 * 4
    room.write_bytes(b"remnant." * (room.stat().st_size // 8))
    (lengths,) = inner.rglob("length.bin")
    lengths.write_bytes(b"remnant." * (lengths.stat().st_size // 8))
    close_folders()
    assert not any(b"remnant" in p.read_bytes() for p in inner.rglob("*") if p.is_file())
    again = ChromaIndex("b", path=folder)
    assert again.ids() == {"a", "b", "c"} and again.query(vectors[1], 1)[0][0] == "b"
    assert (folder / "memr1-index-1").is_dir(), "it was trusted"


def test_vectors_that_are_used_are_not_blanked(tmp_path: Path) -> None:
    folder = tmp_path / "chroma"
    index = ChromaIndex("b", path=folder)
    vectors = HashEmbedder(64).embed([f"fact {i}" for i in range(1200)])  # beyond Chroma's threshold for writing
    names = [str(i) for i in range(1200)]
    index.add(names, vectors)
    close_folders()
    again = ChromaIndex("b", path=folder)
    assert again.ids() == set(names)
    assert [again.query(vectors[i], 1)[0][0] for i in (0, 999, 1199)] == ["0", "999", "1199"]


def test_a_layout_that_is_not_known_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "chroma"
    ChromaIndex("b", path=folder).add(["a"], HashEmbedder(64).embed(["fact"]))
    (header,) = folder.rglob("header.bin")
    header.write_bytes(b"\x09" + header.read_bytes()[1:])
    with pytest.raises(MemR1Error, match="not the layout of an index that Chroma 1.5 writes"):
        blank_unused(folder)
    close_folders()
    assert ChromaIndex("b", path=folder).ids() == set()


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


def test_other_banks_are_neither_touched_nor_told_of(open_store: Open) -> None:
    store = open_store()
    bank, other = store.create("b"), store.create("other")
    bank.apply([add("tea"), add("milk")])
    other.apply([add("Tea"), add("tea, please")])
    assert bank.erase(["m1"]).also_in == ()
    store.verify("b")
    store.close()
    again = open_store()
    again.verify("b")
    again.verify("other")
    assert [e.text for e in again.bank("b").entries()] == ["milk"]
    assert [e.text for e in again.bank("other").entries()] == ["Tea", "tea, please"]


def test_vectors_of_what_was_erased_or_dropped_do_not_come_back(open_store: Open) -> None:
    store = open_store()
    bank, other = store.create("b"), store.create("other")
    bank.apply([add("hush hush"), add("two")])
    other.apply([add("old words")])
    other.search("x", 1)
    other.apply([MemoryOp(Event.UPDATE, "new words", "m1")])
    fork = bank.fork()
    for one in (bank, other):
        one.search("x", 1)

    def kept() -> int:
        with store.transaction("counting") as connection:
            return len(connection.execute(tables.vectors.select()).all())

    assert kept() == 4
    bank.erase(["m1"])
    assert kept() == 3
    assert fork.search("hush", 1)[0].entry.text == "hush hush", "a fork is a copy, and keeps its own"
    assert kept() == 3
    store.drop("other")
    assert kept() == 1


def test_a_wipe_that_fails_is_finished_by_asking_again(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add(SECRET), add(f"So {SECRET}")])
    wiped: list[str] = []

    def full(_c: Any, _cur: Any, statement: str, *_: Any) -> None:
        if statement.startswith("VACUUM"):
            wiped.append(statement)
            if len(wiped) == 1:
                raise OperationalError(statement, {}, Exception("database or disk is full"))

    event.listen(store._database.engine, "before_cursor_execute", full)
    said = r"gone from the tables, but pages .*disk is full.*also said in decision 1, entry m2"
    with pytest.raises(MemR1Error, match=said):
        bank.erase(["m1"])
    assert [e.id for e in bank.entries()] == ["m2"] and bank.seq == 2
    assert bank.erase(["m1"]).entries == () and len(wiped) > 1
    store.verify("b")
    before = len(wiped)
    bank.purge("2030-01-01")
    assert len(wiped) == before, "where nothing is old, nothing is rewritten"


def test_a_reader_that_keeps_the_write_ahead_log_is_named(tmp_path: Path) -> None:
    with BankStore.open(tmp_path / "memory.db", HashEmbedder(64)) as store:
        bank = store.create("b")
        bank.apply([add(SECRET)])
        with store.transaction("waiting less") as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=100").close()
        reader = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM memr1_records").fetchall()
        with pytest.raises(MemR1Error, match="another program reads the database"):
            bank.erase(["m1"])
        reader.close()
        store.wipe()
        assert not any(b"xanthochromia" in p.read_bytes() for p in tmp_path.iterdir())


def test_a_store_that_is_closed_wipes_nothing(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add("one")])
    store.close()
    for call in (store.wipe, lambda: bank.erase([]), lambda: bank.erase(["m1"])):
        with pytest.raises(MemR1Error, match="the store is closed"):
            call()
    assert "connection" not in vars(store._database.engine.pool), "nobody connected again"


def test_nothing_of_it_is_in_the_statistics_of_a_server(server: str, open_store: Open, target: str) -> None:
    if target != server:
        pytest.skip("SQLite keeps no samples of contents")
    store = open_store()
    bank = store.create("b")
    for n in range(300):
        bank.apply([add(f"{SECRET}, time {n}")])
    with store._database.engine.connect() as connection:
        connection.execute(text("ANALYZE memr1_records"))
        connection.execute(text("ANALYZE memr1_entries"))
        sampled = connection.execute(text("SELECT * FROM pg_stats WHERE schemaname = 'public'")).all()
        connection.rollback()
    assert sampled and "xanthochromia" not in repr(sampled)
    bank.erase(["m1"])
    with store.transaction("looking") as connection:
        assert connection.execute(text("SHOW lock_timeout")).scalar() == "0", "the limit of the wiping is gone with it"


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


@pytest.mark.parametrize("stored", [False, True])
def test_a_bank_takes_no_more_characters_than_it_may(tmp_path: Path, stored: bool) -> None:
    rules = BankRules(max_total_chars=10)
    if not stored:
        limits(MemoryBank("q", HashEmbedder(16), rules=rules))
        return
    with BankStore.open(tmp_path / "memory.db", HashEmbedder(16)) as store:
        limits(store.create("q", rules=rules))
    with BankStore.open(tmp_path / "memory.db", HashEmbedder(16)) as store:
        assert store.bank("q").apply([add("another")])[0].reason == "bank_full"


def limits(bank: MemoryBank) -> None:
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
