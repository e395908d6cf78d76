"""The durable store, over SQLite and over a real PostgreSQL server: what was acknowledged is there later on.

Killed writers are in tests/e2e/test_store_crashes.py, the semantics of operations in test_memory_bank.py.
"""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from memr1.errors import MemR1Error
from memr1.memory import tables
from memr1.memory.bank import MemoryBank
from memr1.memory.embed import HashEmbedder
from memr1.memory.state import BankRules
from memr1.memory.store import BankStore
from memr1.memory.types import Event, MemoryOp, Provenance
from tests.unit.test_memory_machine import DECISIONS

Open = Callable[..., BankStore]


def add(content: str, **more: Any) -> MemoryOp:
    return MemoryOp(Event.ADD, content, **more)


# -- what is kept in memory --------------------------------------------------------------------------------------


def test_no_more_banks_are_kept_in_memory_than_may_be_and_those_in_use_stay_the_same(open_store: Open) -> None:
    store = open_store(max_open=2)
    held = store.create("b0")
    held.apply([add("told to 0")])
    for n in range(1, 30):
        store.create(f"b{n}").apply([add(f"told to {n}")])
        assert len(store.opened()) <= 3, "two, and the one that is held"
        assert store.bank("b0") is held, "two objects of one bank would write over one another"
    held.apply([add("told later")])
    assert [e.text for e in store.bank("b7").entries()] == ["told to 7"], "read again"
    assert store.bank("b7").apply([add("more")])[0].entry_id == "m2"
    del held
    for n in range(1, 4):
        store.bank(f"b{n}")
    assert {bank.bank_id for bank in store.opened()} == {"b2", "b3"}
    assert [e.text for e in store.bank("b0").entries()] == ["told to 0", "told later"]
    for n in range(30):
        store.verify(f"b{n}")


def test_threads_that_share_more_banks_than_are_kept_lose_nothing(open_store: Open) -> None:
    store = open_store(max_open=1)
    for n in range(4):
        store.create(f"b{n}")
    failed: list[BaseException] = []

    def write(thread: int) -> None:
        try:
            for i in range(40):
                results = store.bank(f"b{i % 4}").apply([add(f"{thread} says {i}")])
                assert results[0].ok, results
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failed == [] and [len(store.bank(f"b{n}")) for n in range(4)] == [40] * 4
    assert len(store.opened()) == 1
    for n in range(4):
        store.verify(f"b{n}")


def test_the_lag_of_an_index_is_what_the_next_search_feeds_it(open_store: Open) -> None:
    bank = open_store().create("b")
    bank.apply([add("Ann sings"), add("Ben sails")])
    assert bank.index_lag == 2
    bank.search("who sings?", 1)
    assert bank.index_lag == 0
    bank.apply([MemoryOp(Event.UPDATE, "Ben flies", "m2")])
    assert bank.index_lag == 2, "one to take out, one to put in"


# -- what was acknowledged is there -----------------------------------------------------------------------------


def test_everything_is_there_when_the_store_is_opened_again(open_store: Open) -> None:
    store = open_store()
    bank = store.create("alice", rules=BankRules(max_chars=99))
    source = Provenance(turn_ids=("D1:3",), speaker="Alice", role="manager", weight_version=7)
    bank.apply(
        [add("Alice lives in Rome", metadata={"n": [1, {"é": None}]}), add('Alice \t \\ " ☃')], time="2024-03-01"
    )
    bank.apply([MemoryOp(Event.UPDATE, "Alice lives in Oslo", "m1")], provenance=source, event_time="2024-03-02")
    bank.apply([MemoryOp(Event.DELETE, entry_id="m2"), MemoryOp(Event.UPDATE, "x", "m9")], on_reject="skip")
    for bad in ("lone \ud800", "nul \0"):  # rejected, and on record
        assert bank.apply([MemoryOp(Event.UPDATE, bad, "m1")])[0].reason == "invalid_text"
    log, entries, stats = bank.log, bank.entries(), bank.stats()
    history = bank.history("m1")
    store.close()
    again = open_store(create=False).bank("alice")
    assert (again.log, again.entries(), again.stats(), again.history("m1")) == (log, entries, stats, history)
    assert again.rules == BankRules(max_chars=99)
    assert [h.entry.id for h in again.search("where does Alice live?", 1)] == ["m1"]
    assert again.apply([add("Alice sings")])[0].entry_id == "m3"


@settings(max_examples=25, deadline=None)
@given(decisions=st.lists(st.tuples(DECISIONS, st.sampled_from(["abort", "skip"])), max_size=8))
def test_a_stored_bank_is_a_bank_in_memory(tmp_path_factory: pytest.TempPathFactory, decisions: Any) -> None:
    path = tmp_path_factory.mktemp("store") / "memory.db"
    plain = MemoryBank("b", HashEmbedder(64))
    with BankStore.open(path, HashEmbedder(64)) as store:
        stored = store.create("b")
        for ops, on_reject in decisions:
            assert stored.apply(ops, on_reject=on_reject) == plain.apply(ops, on_reject=on_reject)
        store.verify("b")
    with BankStore.open(path, HashEmbedder(64)) as store:
        store.verify("b")
        assert store.bank("b").log == plain.log
        assert store.bank("b").entries() == plain.entries()


def test_log_and_state_are_written_together_or_not_at_all(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add("one")])

    def refuse(_c: Any, _cur: Any, statement: str, *_: Any) -> None:
        if "memr1_entries" in statement and statement.startswith("INSERT"):
            raise RuntimeError("the power went out")

    event.listen(store._database.engine, "before_cursor_execute", refuse)
    with pytest.raises(RuntimeError, match="power"):
        bank.apply([add("two")])
    event.remove(store._database.engine, "before_cursor_execute", refuse)
    assert [e.text for e in bank.entries()] == ["one"] and bank.seq == 1
    store.verify("b")
    assert bank.apply([add("two")])[0].entry_id == "m2"
    store.close()
    assert [e.text for e in open_store().bank("b").entries()] == ["one", "two"]


def test_a_decision_is_on_disk_before_it_can_be_seen(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    seen: list[tuple[int, int]] = []

    def look(_c: Any, _cur: Any, statement: str, *_: Any) -> None:
        if "memr1_records" in statement and statement.startswith("INSERT"):
            seen.append((len(bank), bank.seq))

    event.listen(store._database.engine, "after_cursor_execute", look)
    bank.apply([add("one")])
    assert seen == [(0, 0)] and bank.seq == 1


def test_vectors_are_kept_and_nothing_is_embedded_twice(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add("tea is hot"), add("ice is cold")])
    hits = bank.search("hot tea", 2)
    store.close()
    embedded: list[str] = []
    real = HashEmbedder.embed

    def counted(self: HashEmbedder, texts: Any) -> Any:
        embedded.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(HashEmbedder, "embed", counted)
    assert open_store().bank("b").search("hot tea", 2) == hits
    assert embedded == ["hot tea"]  # queries are not kept


def test_only_entries_leave_vectors_behind_and_damaged_ones_are_made_again(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add("tea is hot"), add("ice is cold")])
    hits = bank.search("hot tea", 2)
    with store._database.engine.begin() as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM memr1_vectors")).scalar() == 2
        nan = b"\x00\x00\xc0\x7f" * 64
        connection.execute(tables.vectors.update().values(vector=nan))
    store.close()
    assert open_store().bank("b").search("hot tea", 2) == hits


def test_a_fact_that_was_looked_for_before_it_was_added_leaves_its_vector_too(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add("ice is cold")])
    bank.search("tea is hot", 1)  # as a manager does with a new fact
    bank.apply([add("tea is hot")])
    bank.sync()
    count = text("SELECT COUNT(*) FROM memr1_vectors")
    with store._database.engine.begin() as connection:
        assert connection.execute(count).scalar() == 2
    store.drop("b")
    with store._database.engine.begin() as connection:
        assert connection.execute(count).scalar() == 0


def test_a_closed_store_s_bank_can_still_be_searched(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add("tea is hot"), add("ice is cold")])
    store.close()
    assert [h.entry.id for h in bank.search("hot tea", 1)] == ["m1"]


@pytest.mark.parametrize(
    ("ops", "options", "message"),
    [
        ([MemoryOp(Event.NOOP)], {"actor": 7}, "actor: expected str"),
        ([add("\ud83d\ude00")], {}, "cannot be written down as it is"),
        ([add("x", metadata={"a": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]})], {}, "more than 16 lists and objects"),
        ([add("x")], {"idempotency_key": "\ud83d"}, "1 to 255 characters"),
    ],
)
def test_what_could_not_be_read_back_is_refused(open_store: Open, ops: Any, options: Any, message: str) -> None:
    store = open_store()
    bank = store.create("b")
    with pytest.raises(MemR1Error, match=message):
        bank.apply(ops, **options)
    assert bank.seq == 0 and bank.apply([add("one")])[0].ok
    store.verify("b")


@pytest.mark.parametrize("rules", [{"max_chars": 4096.0}, {"max_entries": 0}, {"kinds": "text"}])
def test_rules_of_the_wrong_type_are_refused(rules: Any) -> None:
    with pytest.raises(MemR1Error, match=f"rules.{next(iter(rules))}"):
        BankRules(**rules)


# -- once for each key ------------------------------------------------------------------------------------------


def test_a_decision_with_a_key_is_made_once_also_across_a_restart(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    first = bank.apply([add("one"), add("two")], idempotency_key="k1")
    assert bank.apply([add("one"), add("two")], idempotency_key="k1") == first and bank.seq == 1
    store.close()
    bank = open_store().bank("b")
    assert bank.apply([add("one"), add("two")], idempotency_key="k1") == first and bank.seq == 1
    assert bank.apply([add("three")], idempotency_key="k2")[0].entry_id == "m3"
    with pytest.raises(MemR1Error, match="'k1' was used for other operations in decision 1"):
        bank.apply([add("four")], idempotency_key="k1")
    with pytest.raises(MemR1Error, match="1 to 255 characters"):
        bank.apply([add("four")], idempotency_key="")


def test_a_rejected_decision_keeps_its_key_too(open_store: Open) -> None:
    bank = open_store().create("b")
    ops = [MemoryOp(Event.DELETE, entry_id="m1")]
    first = bank.apply(ops, idempotency_key="k")
    bank.apply([add("one")])
    assert bank.apply(ops, idempotency_key="k") == first and not first[0].ok
    assert len(bank) == 1


# -- one owner --------------------------------------------------------------------------------------------------


def _try_to_own(target: str, answer: Any) -> None:
    try:
        BankStore.open(target, HashEmbedder(64)).close()
        answer.put("opened")
    except MemR1Error as error:
        answer.put(str(error))


def ask_from_another_process(target: str) -> str:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_try_to_own, args=(target, answer))
    process.start()
    said = answer.get(timeout=60)
    process.join()
    return str(said)


def test_a_second_owner_is_refused_by_name_and_let_in_afterwards(open_store: Open, target: str) -> None:
    import os

    store = open_store(owner="the night shift")
    said = ask_from_another_process(target)
    assert f"belongs to the night shift (process {os.getpid()} on " in said
    with pytest.raises(MemR1Error, match="the night shift"):  # nor twice in one process
        open_store()
    store.close()
    assert ask_from_another_process(target) == "opened"


def test_an_owner_that_was_superseded_cannot_write(open_store: Open, target: str) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add("one")])
    with store._database.engine.begin() as connection:  # what another owner does first, had it got past the lock
        tables.write_setting(connection, "epoch", "99")
        tables.write_setting(connection, "owner", json.dumps({"name": "B", "pid": 1, "host": "h", "since": "t"}))
    with pytest.raises(
        MemR1Error, match=r"B \(process 1 on h, since t\) took it over as owner 99; nothing was written"
    ):
        bank.apply([add("two")])
    assert [e.text for e in bank.entries()] == ["one"]


def test_a_bank_that_changed_behind_our_back_is_noticed_at_the_next_write(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add("one")])
    with store._database.engine.begin() as connection:
        body = json.dumps({**next(iter(bank.log)).to_json(), "seq": 2})
        connection.execute(tables.records.insert().values(bank_id="b", seq=2, body=body))
    with pytest.raises(MemR1Error, match="changed or dropped in the database since it was opened"):
        bank.apply([add("two")])


@pytest.mark.parametrize("call", ["create", "drop", "repair", "adopt", "sync"])
def test_no_call_writes_for_an_owner_that_was_superseded(open_store: Open, call: str) -> None:
    store = open_store()
    store.create("b").apply([add("one")])
    with store._database.engine.begin() as connection:
        tables.write_setting(connection, "epoch", "99")
    plain = MemoryBank("c", HashEmbedder(64))
    calls = {
        "create": lambda: store.create("c"),
        "drop": lambda: store.drop("b"),
        "repair": lambda: store.repair("b"),
        "adopt": lambda: store.adopt(plain),
    }
    if call == "sync":  # vectors are only a copy: the search goes on, and nothing is written
        assert [h.entry.text for h in store.bank("b").search("one", 1)] == ["one"]
        with store._database.engine.begin() as connection:
            assert connection.execute(text("SELECT COUNT(*) FROM memr1_vectors")).scalar() == 0
        return
    with pytest.raises(MemR1Error, match="took it over as owner 99; nothing was written"):
        calls[call]()
    assert store.names() == ["b"]


def test_whoever_closes_the_store_gives_up_its_lock(open_store: Open) -> None:
    store = open_store()
    thread = threading.Thread(target=store.close)
    thread.start()
    thread.join()
    open_store().close()


def test_a_forked_process_is_not_the_owner_and_leaves_it_alone(open_store: Open, target: str) -> None:
    import os

    store = open_store()
    bank = store.create("b")
    child = os.fork()
    if child == 0:
        code = 9
        try:
            with store:
                bank.apply([add("from the child")])
        except MemR1Error as error:
            code = 7 if "was forked from the owner" in str(error) else 8
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert bank.apply([add("one")])[0].entry_id == "m1"
    assert "belongs to" in ask_from_another_process(target)


# -- a server that goes away ------------------------------------------------------------------------------------


@pytest.fixture
def server_store(server: str) -> Iterator[BankStore]:
    store = BankStore.open(server, HashEmbedder(64))
    yield store
    store.close()
    from sqlalchemy import create_engine

    engine = create_engine(server)
    tables.metadata.drop_all(engine)
    engine.dispose()


def cut_connections(server: str) -> None:
    """End every session but this one, as a restart of the server does."""
    import psycopg

    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        )


@pytest.mark.parametrize("written", [False, True])
def test_a_commit_without_an_answer_is_settled_by_its_key(server: str, server_store: BankStore, written: bool) -> None:
    bank = server_store.create("b")

    cuts: list[int] = []

    def cut(connection: Any) -> None:
        if cuts:
            return
        cuts.append(1)
        if not written:
            cut_connections(server)
            return
        connection.connection.dbapi_connection.commit()
        cut_connections(server)
        # a driver that has nothing left to commit sends nothing: this is what it says when the answer is lost
        raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    event.listen(server_store._database.engine, "commit", cut)
    with pytest.raises(MemR1Error, match="did not say whether it was written.*repeat the decision under its key 'k'"):
        bank.apply([add("one")], idempotency_key="k")
    with pytest.raises(MemR1Error, match="did not say whether it was written"):
        bank.apply([add("two")])  # this bank does not know what it holds
    again = server_store.bank("b")
    assert again is not bank and again.seq == int(written)
    assert again.apply([add("one")], idempotency_key="k")[0].entry_id == "m1"
    assert again.seq == 1
    server_store.verify("b")


def test_an_owner_that_lost_its_connection_does_not_come_back_behind_another(
    server: str, server_store: BankStore
) -> None:
    bank = server_store.create("b")
    bank.apply([add("one")])
    cut_connections(server)
    with pytest.raises(MemR1Error):
        bank.apply([add("two")])  # the connection is found dead
    with BankStore.open(server, HashEmbedder(64), owner="B") as other:
        other.bank("b").apply([add("three")])
    for _ in range(2):
        with pytest.raises(MemR1Error, match="the store belongs to B"):
            bank.apply([add("four")])
    with BankStore.open(server, HashEmbedder(64), owner="C") as other:
        assert [e.text for e in other.bank("b").entries()] == ["one", "three"]


# -- threads ----------------------------------------------------------------------------------------------------


def test_threads_lose_and_repeat_nothing(open_store: Open) -> None:
    store = open_store()
    banks = [store.create(name) for name in ("a", "b")]
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for n in range(15):
                bank = banks[(thread + n) % 2]
                bank.apply([add(f"thread {thread} says {n}")], idempotency_key=f"{thread}-{n}")
                bank.apply([add(f"thread {thread} says {n}")], idempotency_key=f"{thread}-{n}")  # a retry
                if n % 5 == 0:
                    bank.search("what was said?", 2)
                    store.verify(bank.bank_id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
    assert not failures and not any(t.is_alive() for t in threads)
    said = [e.text for bank in banks for e in bank.entries()]
    assert sorted(said) == sorted(f"thread {t} says {n}" for t in range(8) for n in range(15))
    for bank in banks:
        assert [r.seq for r in bank.log] == list(range(1, bank.seq + 1))
        store.verify(bank.bank_id)


# -- drift, damage and bad input --------------------------------------------------------------------------------


def test_verify_finds_stored_entries_that_drifted_and_repair_mends_them(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add("one"), add("two")])
    with store._database.engine.begin() as connection:
        connection.execute(text("DELETE FROM memr1_entries WHERE entry_id = 'm2'"))
    with pytest.raises(MemR1Error, match=r"1 stored entries are not what the log says, the first is m2; call repair"):
        store.verify("b")
    store.repair("b")
    store.verify("b")


def test_a_damaged_record_is_named(open_store: Open, target: str) -> None:
    store = open_store()
    store.create("b").apply([add("one")])
    with store._database.engine.begin() as connection:
        connection.execute(text("UPDATE memr1_records SET body = REPLACE(body, '\"one\"', '1')"))
    store.close()
    with pytest.raises(MemR1Error, match="bank 'b': record 1:results.0.:op:text: expected a text"):
        open_store().bank("b")


def test_tables_of_a_newer_version_are_refused(open_store: Open) -> None:
    store = open_store()
    with store._database.engine.begin() as connection:
        tables.write_setting(connection, "schema_version", "99")
    store.close()
    with pytest.raises(MemR1Error, match=r"schema version 99, this memr1 knows 1; update memr1"):
        open_store()


def test_banks_are_listed_dropped_and_never_made_twice(open_store: Open) -> None:
    store = open_store()
    store.create("b").apply([add("one")])
    store.create("a")
    assert store.names() == ["a", "b"] and store.bank("b") is store.bank("b")
    with pytest.raises(MemR1Error, match="there is a bank 'b' already"):
        store.create("b")
    dropped = store.bank("b")
    store.drop("b")
    assert store.names() == ["a"]
    for call in (lambda: store.bank("b"), lambda: store.drop("b")):
        with pytest.raises(MemR1Error, match="there is no bank 'b'"):
            call()
    with pytest.raises(MemR1Error):
        dropped.apply([add("two")])
    new = store.create("b")
    assert new.apply([add("one")])[0].entry_id == "m1"
    with pytest.raises(MemR1Error, match="changed or dropped in the database since it was opened"):
        dropped.apply([add("two")])  # another bank of its name is none of its business
    assert store.bank("b") is new and new.apply([add("two")])[0].entry_id == "m2"
    store.verify("b")


def test_a_bank_is_made_whole_or_not_at_all(open_store: Open) -> None:
    store = open_store()
    with pytest.raises(MemR1Error, match="index: 'exat' is not known"):
        store.create("b", index="exat")
    assert store.names() == [] and store.create("b").bank_id == "b"


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 256, "\ud800", None])
def test_bank_ids_that_no_database_keeps_are_refused(open_store: Open, name: Any) -> None:
    store = open_store()
    for call in (store.create, store.bank, store.drop):
        with pytest.raises(MemR1Error, match="bank_id: expected a text of 1 to 255 characters"):
            call(name)


def test_a_closed_store_says_so_and_its_banks_can_still_be_read(open_store: Open) -> None:
    store = open_store()
    bank = store.create("b")
    bank.apply([add("one")])
    store.close()
    with pytest.raises(MemR1Error, match="the store is closed"):
        bank.apply([add("two")])
    assert [e.text for e in bank.entries()] == ["one"]


def test_a_snapshot_cannot_rewrite_the_log_of_a_store(open_store: Open) -> None:
    bank = open_store().create("b")
    snapshot = bank.snapshot()
    bank.apply([add("one")])
    with pytest.raises(MemR1Error, match="whose log only grows"):
        bank.restore(snapshot)
    fork = bank.fork()
    fork.apply([add("two")])  # a fork is nobody's record
    assert len(bank) == 1 and len(fork) == 2


def test_files_that_are_no_database_are_named_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(MemR1Error, match=r"memory.db: .*not a database.*restore a backup"):
        BankStore.open(path, HashEmbedder(64))
    for target, message in (
        (tmp_path / "nowhere" / "memory.db", "there is no folder"),
        (":memory:", "is no file to keep banks in"),
        ("", "is no file to keep banks in"),
        ("mysql://host/db", "give a path or its URL"),
        ("what://host/db", "give a path or its URL"),
        ("postgresql+nothing://host/db", "Can't load plugin"),
    ):
        with pytest.raises(MemR1Error, match=message):
            BankStore.open(target, HashEmbedder(64))
    with pytest.raises(MemR1Error, match="there is no store; check the path"):
        BankStore.open(tmp_path / "none.db", HashEmbedder(64), create=False)
    assert not (tmp_path / "none.db").exists()


def test_a_path_is_a_path_whatever_letters_it_has(tmp_path: Path) -> None:
    names = ["a", "a?1", "a%41", "ä b"]
    for name in names:
        with BankStore.open(tmp_path / name, HashEmbedder(64)) as store:
            store.create(f"bank of {name}")
    for name in names:
        with BankStore.open(tmp_path / name, HashEmbedder(64)) as store:
            assert store.names() == [f"bank of {name}"]
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with BankStore.open(tmp_path / "a", HashEmbedder(64)), pytest.raises(MemR1Error, match="the store belongs to"):
        BankStore.open(tmp_path / "link", HashEmbedder(64))


@pytest.mark.parametrize("part", [0.001, 0.3, 0.9])
def test_a_torn_database_is_refused(tmp_path: Path, part: float) -> None:
    path = tmp_path / "memory.db"
    with BankStore.open(path, HashEmbedder(64)) as store:
        bank = store.create("b")
        for n in range(200):
            bank.apply([add(f"fact {n}")])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(MemR1Error, match="restore a backup"), BankStore.open(path, HashEmbedder(64)) as store:
        store.verify("b")


def test_a_full_disk_refuses_the_write_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with BankStore.open(path, HashEmbedder(64)) as store:
        bank = store.create("b", rules=BankRules(max_chars=10**6))
        bank.apply([add("one")])
        with store._database.engine.connect() as connection:  # SQLite's own limit gives the same error as a full disk
            pages = connection.execute(text("PRAGMA page_count")).scalar()
            connection.execute(text(f"PRAGMA max_page_count={pages}"))
        with pytest.raises(MemR1Error, match="disk is full, and nothing was written"):
            bank.apply([add("x" * 500_000)])
        assert [e.text for e in bank.entries()] == ["one"]
        with store._database.engine.connect() as connection:
            connection.execute(text("PRAGMA max_page_count=1000000"))
        assert bank.apply([add("two")])[0].ok
        store.verify("b")
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_small_disk_that_fills_up_keeps_every_acknowledged_decision(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], capture_output=True, text=True, timeout=30
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        acknowledged = 0
        with BankStore.open(tmp_path / "memory.db", HashEmbedder(64)) as store:
            bank = store.create("b")
            with pytest.raises(MemR1Error, match="disk is full, and nothing was written"):
                for n in range(10_000):
                    bank.apply([add(f"fact {n} " + "x" * 1000)])
                    acknowledged += 1
            assert 100 < acknowledged == bank.seq == len(bank)
            assert bank.search(f"fact {acknowledged - 1}", 1), "what is there can be read"
        with pytest.raises(MemR1Error, match="disk is full, and nothing was written: free space"):
            BankStore.open(tmp_path / "memory.db", HashEmbedder(64))  # whoever owns it has to say so there
        subprocess.run(["mount", "-o", "remount,size=16m", str(tmp_path)], check=True, timeout=30)
        with BankStore.open(tmp_path / "memory.db", HashEmbedder(64)) as store:
            assert len(store.bank("b")) == acknowledged
            store.verify("b")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True, timeout=30)


def test_a_read_only_disk_is_named_with_a_remedy(tmp_path: Path) -> None:
    with BankStore.open(tmp_path / "memory.db", HashEmbedder(64)) as store:
        store.create("b").apply([add("one")])
    bound = subprocess.run(
        ["mount", "--bind", str(tmp_path), str(tmp_path)], capture_output=True, text=True, timeout=30
    )
    if bound.returncode:
        pytest.skip(f"no read-only disk can be made here: {bound.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(tmp_path)], check=True, timeout=30)
        with pytest.raises(MemR1Error, match="choose (a writable|another) folder"):
            BankStore.open(tmp_path / "memory.db", HashEmbedder(64))
        with pytest.raises(MemR1Error, match="choose (a writable|another) folder"):
            BankStore.open(tmp_path / "new.db", HashEmbedder(64))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True, timeout=30)
    with BankStore.open(tmp_path / "memory.db", HashEmbedder(64)) as store:
        assert [e.text for e in store.bank("b").entries()] == ["one"]


def test_tables_of_an_older_version_are_brought_up_step_by_step(open_store: Open, monkeypatch: Any) -> None:
    store = open_store()
    store.create("b").apply([add("one")])
    store.close()
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 3)
    steps = {
        1: ("ALTER TABLE memr1_banks ADD COLUMN colour VARCHAR(9)", "UPDATE memr1_banks SET colour = 'red'"),
        2: ("UPDATE memr1_banks SET colour = colour || 'dish'",),
    }
    monkeypatch.setattr(tables, "_MIGRATIONS", steps)
    for _ in range(2):  # the second time there is nothing left to do
        store = open_store()
        with store.transaction("looking") as connection:
            assert connection.execute(text("SELECT colour FROM memr1_banks")).scalars().all() == ["reddish"]
            assert tables.read_number(connection, "schema_version") == 3
        assert [e.text for e in store.bank("b").entries()] == ["one"]
        store.close()
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 4)
    monkeypatch.setattr(tables, "_MIGRATIONS", {3: ("ALTER TABLE memr1_banks ADD COLUMN x TEXT", "nonsense")})
    with pytest.raises(MemR1Error, match="nonsense"):
        open_store()
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 3)
    with open_store() as store, store.transaction("looking") as connection:
        assert tables.read_number(connection, "schema_version") == 3
        columns = list(connection.execute(text("SELECT * FROM memr1_banks")).keys())
        assert "x" not in columns, "a step that fails leaves no half of itself"


def test_the_library_offers_its_names_and_imports_nothing_before_it_is_asked() -> None:
    import sys

    code = (
        "import sys, memr1.memory as m; assert not {'sqlalchemy', 'numpy', 'chromadb'} & set(sys.modules);"
        "from memr1.memory import MemoryBank, Event; assert 'sqlalchemy' not in sys.modules;"
        "assert all(getattr(m, name) is not None for name in m.__all__) and dir(m) == m.__all__;"
        "assert m.BankStore.__module__ == 'memr1.memory.store'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    import memr1.memory

    with pytest.raises(AttributeError, match="has no attribute 'BankStor'"):
        _ = memr1.memory.BankStor
