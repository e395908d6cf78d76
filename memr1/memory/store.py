"""Banks in a database: what `apply` returned is on disk, log and state in one transaction, and one process owns it.

    store = BankStore.open("memory.db", load_embedder("minilm"))
    bank = store.create("alice")
    bank.apply([MemoryOp(Event.ADD, "Alice lives in Rome.")])
    store.close()

A bank of a store is a `MemoryBank`: the same code decides what each operation means, and rollouts use it without a
store. SQLite (a path) and PostgreSQL (a URL) are reached through the same statements of SQLAlchemy.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from memr1.errors import MemR1Error
from memr1.memory import tables
from memr1.memory.bank import MemoryBank
from memr1.memory.checks import check_bank_id, check_new_bank_id
from memr1.memory.database import Database, explained, open_database
from memr1.memory.embed import CachedEmbedder, Embedder
from memr1.memory.index import VectorIndex
from memr1.memory.jsonl import canonical, parse_object
from memr1.memory.kept_vectors import KeptVectors
from memr1.memory.oplog import LogRecord, OpLog, entry_to_json
from memr1.memory.owner import describe
from memr1.memory.scopes import Scope, ScopedBanks
from memr1.memory.state import BankRules
from memr1.memory.types import MemoryEntry

# made once: building a statement costs about as much as running it
_MAY_WRITE = (
    select(tables.settings.c.value, tables.banks.c.incarnation)
    .select_from(tables.banks.join(tables.settings, tables.settings.c.name == "epoch"))
    .where(tables.banks.c.bank_id == bindparam("bank_id"))
    .with_for_update(read=True, of=tables.settings)
)
"""The owner's number, which nobody may change before the transaction ends, and the incarnation of a bank."""
_NEW_RECORD, _NEW_ENTRY = insert(tables.records), insert(tables.entries)
_CHANGED_ENTRY = (
    update(tables.entries)
    .where(tables.entries.c.bank_id == bindparam("bank"), tables.entries.c.entry_id == bindparam("entry"))
    .values(body=bindparam("body"))
)

Changes = Sequence[tuple[MemoryEntry | None, MemoryEntry]]


class BankStore:
    """Durable banks. Thread-safe. Open one per database: a second owner is refused by name."""

    def __init__(self, database: Database, embedder: Embedder, max_open: int | None = None) -> None:
        """Use `BankStore.open`."""
        self._database, self.where = database, database.where
        self._registry = threading.RLock()
        # taken last of all: banks write and embed while they hold locks of their own
        self._writing = threading.RLock()
        self._open: weakref.WeakValueDictionary[str, MemoryBank] = weakref.WeakValueDictionary()
        """Every bank that anybody holds: two objects of one bank would write over one another."""
        self._recent: OrderedDict[str, MemoryBank] = OrderedDict()
        """Those that are kept although nobody may hold them, the last one used last."""
        self._max_open = max_open
        self._closed = False
        self._process = os.getpid()
        inner, size = (embedder.inner, embedder.max_texts) if isinstance(embedder, CachedEmbedder) else (embedder, None)
        self._vectors = KeptVectors(self.transaction, self.still_owner, inner)
        self.embedder = CachedEmbedder(self._vectors, **({} if size is None else {"max_texts": size}))
        """Keeps embeddings of entries in the database, too."""
        with self.transaction("opening it") as connection:
            tables.prepare(connection)
            self.epoch = tables.read_number(connection, "epoch", hold=True) + 1
            """How many owners this store has had. Every write checks it, so that an owner that was superseded while it
            slept cannot write."""
            tables.write_setting(connection, "epoch", str(self.epoch))
            tables.write_setting(connection, "owner", canonical(database.holder))

    @classmethod
    def open(
        cls,
        target: str | os.PathLike[str],
        embedder: Embedder,
        *,
        owner: str | None = None,
        create: bool = True,
        max_open: int | None = None,
    ) -> BankStore:
        """Open a store.

        target: path of a SQLite file, or a URL such as `postgresql+psycopg://user:password@host/database`.
        owner: what this process calls itself to others that ask for the store.
        create: make a SQLite file where there is none; False refuses a path at which nothing is.
        max_open: banks that are kept in memory while nobody holds them; the one used longest ago goes first, and is
            read again when asked for. None keeps all.
        `MemR1Error` when another process owns it, when it was written by a newer memr1, or when it cannot be read.
        """
        database = open_database(target, owner, create=create)
        try:
            return cls(database, embedder, max_open)
        except BaseException:
            database.close()
            raise

    def create(self, bank_id: str, *, rules: BankRules | None = None, index: str | VectorIndex = "exact") -> MemoryBank:
        """A new, empty bank; `MemR1Error` when there is one of this name."""
        check_new_bank_id(bank_id)
        journal = _Journal(self, bank_id, secrets.token_hex(16))
        bank = MemoryBank(bank_id, self.embedder, index, rules, journal=journal)
        with self._registry:
            with self.transaction(f"creating bank {bank_id!r}") as connection:
                self._new_row(connection, bank_id, journal.incarnation, bank.rules)
            return self._kept(bank)

    def bank(self, bank_id: str, *, index: str | VectorIndex = "exact") -> MemoryBank:
        """The bank of a name, the same object as long as anybody holds it; `MemR1Error` when there is none, or its log
        is damaged.

        index: taken when the bank is opened for the first time in this process.
        """
        with self._registry:
            bank = self._open.get(bank_id)
            if bank is None:
                log, rules, incarnation = self._read(bank_id)
                journal = _Journal(self, bank_id, incarnation)
                bank = MemoryBank.replay(log, self.embedder, bank_id=bank_id, index=index, rules=rules, journal=journal)
            return self._kept(bank)

    def _kept(self, bank: MemoryBank) -> MemoryBank:
        """The bank, as the one used last."""
        self._open[bank.bank_id] = self._recent[bank.bank_id] = bank
        self._recent.move_to_end(bank.bank_id)
        while self._max_open is not None and len(self._recent) > self._max_open:
            self._recent.popitem(last=False)
        return bank

    def opened(self) -> list[MemoryBank]:
        """The banks that are in memory now."""
        with self._registry:
            return list(self._open.values())

    def adopt(self, bank: MemoryBank, bank_id: str | None = None) -> MemoryBank:
        """Keep a bank that lives in memory, with its whole log, in one transaction; returns the stored bank.

        bank_id: its name here; default its own. `MemR1Error` when there is one of this name.
        """
        bank_id = bank_id if bank_id is not None else bank.bank_id
        check_new_bank_id(bank_id)
        with bank.paused():
            log, rules, newest = bank.log, bank.rules, bank.newest_versions()
        rows = [_record_row(bank_id, record) for record in log]
        with self._registry:
            with self.transaction(f"adopting bank {bank_id!r}") as connection:
                self._new_row(connection, bank_id, secrets.token_hex(16), rules)
                for i in range(0, len(rows), tables.PER_STATEMENT):
                    connection.execute(insert(tables.records), rows[i : i + tables.PER_STATEMENT])
                _write_entries(connection, bank_id, newest, known=frozenset())
            return self.bank(bank_id)

    def scoped(self, scope: Scope) -> ScopedBanks:
        """The banks of a scope: a view through which no other bank can be seen or reached."""
        return ScopedBanks(self, scope)

    def names(self) -> list[str]:
        """Ids of all banks, sorted."""
        with self.transaction("listing banks") as connection:
            return sorted(connection.execute(select(tables.banks.c.bank_id)).scalars())

    def drop(self, bank_id: str, along: Callable[[Connection], None] | None = None) -> None:
        """Remove a bank with its log, every entry and their vectors; `MemR1Error` when there is none. Whoever still
        holds the bank can read it, and not write. along: removes in the same transaction what others keep about it."""
        check_bank_id(bank_id)
        t = tables.records.c
        with self._registry:
            with self.transaction(f"dropping bank {bank_id!r}") as connection:
                self.still_owner(connection)
                bodies = connection.execute(select(t.body).where(t.bank_id == bank_id)).scalars()
                said = {result["op"]["text"] for body in bodies for result in json.loads(body)["results"]}
                self._vectors.delete(connection, said)  # other banks with these texts embed them again
                if not connection.execute(delete(tables.banks).where(tables.banks.c.bank_id == bank_id)).rowcount:
                    raise MemR1Error(self._no_bank(bank_id))
                if along is not None:
                    along(connection)
            self._open.pop(bank_id, None)
            self._recent.pop(bank_id, None)
        self.embedder.forget()
        self.wipe()  # not with the registry held: other banks can be opened meanwhile

    def verify(self, bank_id: str) -> None:
        """`MemR1Error` when log, stored entries, the bank in memory and its index do not all say the same."""
        bank = self.bank(bank_id)
        with bank.paused():
            log, _, _ = self._read(bank_id)
            if log != bank.log:
                raise MemR1Error(f"{self.where}: bank {bank_id!r} in memory is not what its stored log says; reopen it")
            bank.verify()
            expected = {e.id: canonical(entry_to_json(e)) for e in bank.newest_versions()}
            with self.transaction("verifying") as connection:
                t = tables.entries.c
                rows = connection.execute(select(t.entry_id, t.body).where(t.bank_id == bank_id)).all()
        stored = {entry_id: body for entry_id, body in rows}
        wrong = sorted(n for n in stored.keys() | expected.keys() if stored.get(n) != expected.get(n))
        if wrong:
            raise MemR1Error(
                f"{self.where}: bank {bank_id!r}: {len(wrong)} stored entries are not what the log says, the first is "
                f"{wrong[0]}; call repair({bank_id!r}) to write them anew from the log"
            )

    def repair(self, bank_id: str) -> None:
        """Make entries, vectors and index again from the log, which is the record."""
        bank = self.bank(bank_id)
        with bank.paused():
            newest = bank.newest_versions()
            with self.transaction("repairing") as connection:
                self.still_owner(connection)
                connection.execute(delete(tables.entries).where(tables.entries.c.bank_id == bank_id))
                _write_entries(connection, bank_id, newest, known=frozenset())
                self._vectors.delete(connection, (e.text for e in newest))
            self.embedder.forget()
            bank.rebuild_index()

    def close(self) -> None:
        """Close the database and give up ownership. Banks of a closed store can be read and searched, not written."""
        with self._registry, self._writing:
            if not self._closed:
                self._closed = True
                if os.getpid() == self._process:  # a forked process has the owner's connection in its hands
                    self._database.close()

    def __enter__(self) -> BankStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self, what: str) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back when anything is raised. For this package's own use."""
        with self._writing:
            if self._closed:
                raise MemR1Error(f"{self.where}: {what}: the store is closed; open it again")
            if os.getpid() != self._process:
                raise MemR1Error(
                    f"{self.where}: {what}: this process was forked from the owner (process {self._process}); open the "
                    "store after forking, in one process"
                )
            try:
                with self._database.engine.connect() as connection, connection.begin() as transaction:
                    yield connection
                    try:
                        transaction.commit()
                    except SQLAlchemyError as error:
                        if self._database.engine.dialect.name == "sqlite":  # then it was rolled back
                            raise
                        connection.invalidate()  # whatever state it is in, the next transaction gets another one
                        raise Unanswered(
                            f"{self.where}: {what}: {explained(error)}. The database did not say whether it was "
                            "written: open the bank again and look"
                        ) from error
            except IntegrityError as error:
                raise Conflict(f"{self.where}: {what}: {error.orig}") from error
            except SQLAlchemyError as error:
                raise MemR1Error(f"{self.where}: {what}: {explained(error)}") from error

    def still_owner(self, connection: Connection) -> None:
        """`MemR1Error` when another process has become the owner since."""
        epoch = tables.read_number(connection, "epoch", hold=True)
        if epoch != self.epoch:
            said = describe(tables.read_setting(connection, "owner"))
            raise MemR1Error(
                f"{self.where}: this process was owner {self.epoch} of the store, and {said} took it over as owner "
                f"{epoch}; nothing was written. Close this store, then open it again"
            )

    def wipe(self) -> None:
        """Write the tables anew, so that nothing which was erased or dropped is left in files of the database. Erasing
        and dropping do it themselves; call it when they could not. Takes as long as copying the database."""
        with self._writing:
            with self.transaction("wiping old pages") as connection:
                self.still_owner(connection)
            try:
                self._database.wipe([t.name for t in (tables.records, tables.entries, tables.vectors)])
            except SQLAlchemyError as error:
                raise MemR1Error(
                    f"{self.where}: it is gone from the tables, but pages that were given up may still hold it: "
                    f"{explained(error)}; call wipe() when that is mended"
                ) from error

    def forget_vectors(self, connection: Connection, texts: Iterable[str]) -> None:
        """Delete the vectors of texts, and keep no new ones of them. Entries elsewhere that say the same are embedded
        whenever they are opened."""
        self._vectors.forget(connection, texts)

    def forget(self, bank_id: str, journal: _Journal) -> None:
        """Let go of a bank that is no longer what the database says, unless another one has its place already."""
        with self._registry:
            held = self._open.get(bank_id)
            if held is not None and held.journal is journal:
                del self._open[bank_id]
                self._recent.pop(bank_id, None)

    def _new_row(self, connection: Connection, bank_id: str, incarnation: str, rules: BankRules) -> None:
        self.still_owner(connection)
        t = tables.banks
        if connection.execute(select(t.c.bank_id).where(t.c.bank_id == bank_id)).first():
            raise MemR1Error(f"{self.where}: there is a bank {bank_id!r} already; open it with bank()")
        connection.execute(insert(t).values(bank_id=bank_id, incarnation=incarnation, rules=canonical(rules.to_json())))

    def _read(self, bank_id: str) -> tuple[OpLog, BankRules, str]:
        check_bank_id(bank_id)
        t = tables.banks.c
        with self.transaction(f"reading bank {bank_id!r}") as connection:
            row = connection.execute(select(t.rules, t.incarnation).where(t.bank_id == bank_id)).first()
            if row is None:
                raise MemR1Error(self._no_bank(bank_id))
            rows = connection.execute(
                select(tables.records.c.seq, tables.records.c.body)
                .where(tables.records.c.bank_id == bank_id)
                .order_by(tables.records.c.seq)
            )
            log = OpLog()
            for seq, body in rows:
                where = f"{self.where}: bank {bank_id!r}: record {seq}"
                record = LogRecord.from_json(parse_object(body, where))
                if record.seq != seq:
                    raise MemR1Error(f"{where}: its body says {record.seq}; the database was changed by hand")
                log.append(record)
        rules = BankRules.from_json(parse_object(row.rules, f"{self.where}: bank {bank_id!r}: rules"))
        return log, rules, str(row.incarnation)

    def _no_bank(self, bank_id: str) -> str:
        return f"{self.where}: there is no bank {bank_id!r}; names() lists them, create() makes one"


class Conflict(MemR1Error):
    """A row that must be unique is there already, or one that must be there is not."""


class Unanswered(MemR1Error):
    """The database took a commit and did not answer."""


class _Journal:
    """Writes the decisions of one bank; see `memr1.memory.bank.Journal`."""

    def __init__(self, store: BankStore, bank_id: str, incarnation: str) -> None:
        self._store, self._bank_id, self.incarnation = store, bank_id, incarnation
        self._dead: str | None = None

    def __call__(self, record: LogRecord, changes: Changes) -> None:
        """One transaction: is this process the owner, is this the bank, then the record and the entries."""
        known = frozenset(before.id for before, _ in changes if before is not None)
        with self._writing(record) as connection:
            _write_entries(connection, self._bank_id, [after for _, after in changes], known)

    def erase(
        self, record: LogRecord, rewritten: Sequence[LogRecord], entries: Sequence[MemoryEntry], texts: frozenset[str]
    ) -> None:
        """See `memr1.memory.bank.Journal.erase`."""
        t, bank_id = tables.records, self._bank_id
        rows = [_record_row(bank_id, r) for r in rewritten]
        with self._writing(record) as connection:
            for row in rows:
                connection.execute(
                    update(t).where(t.c.bank_id == bank_id, t.c.seq == row["seq"]).values(body=row["body"])
                )
            _write_entries(connection, bank_id, entries, known=frozenset(e.id for e in entries))
            self._store.forget_vectors(connection, texts)

    def wipe(self) -> None:
        """See `memr1.memory.bank.Journal.wipe`."""
        self._store.wipe()

    @contextmanager
    def _writing(self, record: LogRecord) -> Iterator[Connection]:
        """The transaction that writes a record, and whatever is written in the block."""
        store, bank_id = self._store, self._bank_id
        if self._dead is not None:
            raise MemR1Error(self._dead)
        row = _record_row(bank_id, record)
        try:
            with store.transaction(f"writing to bank {bank_id!r}") as connection:
                found = connection.execute(_MAY_WRITE, {"bank_id": bank_id}).first()
                if found is None or tuple(found) != (str(store.epoch), self.incarnation):
                    store.still_owner(connection)
                    raise Conflict(f"{store.where}: bank {bank_id!r} was dropped")
                connection.execute(_NEW_RECORD, row)
                yield connection
        except Conflict as error:
            self._dead = (
                f"{store.where}: bank {bank_id!r} was changed or dropped in the database since it was opened, and "
                "nothing was written now; open it again with bank()"
            )
            store.forget(bank_id, self)
            raise MemR1Error(self._dead) from error
        except Unanswered as error:
            key = record.idempotency_key
            self._dead = f"{error}{f', or repeat the decision under its key {key!r}' if key is not None else ''}"
            store.forget(bank_id, self)
            raise MemR1Error(self._dead) from error


def _record_row(bank_id: str, record: LogRecord) -> dict[str, Any]:
    """The row of a record; `MemR1Error` when reading it back would not give the record."""
    body = canonical(record.to_json())
    if LogRecord.from_json(parse_object(body, f"decision {record.seq}")) != record:
        raise MemR1Error(
            f"decision {record.seq} of bank {bank_id!r}: it cannot be written down as it is (halves of a character, or "
            "numbers of a type of their own?); nothing was written"
        )
    return {"bank_id": bank_id, "seq": record.seq, "body": body, "idempotency_key": record.idempotency_key}


def _write_entries(connection: Connection, bank_id: str, changed: Sequence[MemoryEntry], known: frozenset[str]) -> None:
    """Write the newest versions of entries; `known`: ids that have a row already."""
    bodies = {e.id: canonical(entry_to_json(e)) for e in changed}
    old = [{"bank": bank_id, "entry": name, "body": body} for name, body in bodies.items() if name in known]
    if old:
        connection.execute(_CHANGED_ENTRY, old)
    new = [{"bank_id": bank_id, "entry_id": name, "body": body} for name, body in bodies.items() if name not in known]
    for i in range(0, len(new), tables.PER_STATEMENT):
        connection.execute(_NEW_ENTRY, new[i : i + tables.PER_STATEMENT])
