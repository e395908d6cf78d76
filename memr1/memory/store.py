"""Banks in a database: what `apply` returned is on disk, log and state in one transaction, and one process owns it.

    store = BankStore.open("memory.db", load_embedder("minilm"))
    bank = store.create("alice")
    bank.apply([MemoryOp(Event.ADD, "Alice lives in Rome.")])
    store.close()

A bank of a store is a `MemoryBank`: the same code decides what each operation means, and rollouts use it without a
store. SQLite (a path) and PostgreSQL (a URL) are reached through the same statements of SQLAlchemy.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, create_engine, delete, event, insert, select, text, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from memr1.errors import MemR1Error
from memr1.memory import tables
from memr1.memory.bank import Journal, MemoryBank
from memr1.memory.embed import CachedEmbedder, Embedder
from memr1.memory.index import VectorIndex, Vectors
from memr1.memory.jsonl import canonical, parse_object
from memr1.memory.oplog import LogRecord, OpLog, entry_to_json
from memr1.memory.owner import FileOwner, describe, holder
from memr1.memory.state import BankRules, is_unicode
from memr1.memory.types import MemoryEntry

_PER_STATEMENT = 500
"""Rows that are read or written by one statement at most; SQLite counts the parameters of a statement."""
_LOCK_ID = 0x6D656D7231
"""Number of the advisory lock that an owner holds in PostgreSQL."""


class BankStore:
    """Durable banks. Thread-safe. Open one per database: a second owner is refused by name."""

    def __init__(self, engine: Engine, embedder: Embedder, owner: FileOwner | _ServerOwner, where: str) -> None:
        """Use `BankStore.open`."""
        self._engine, self._owner, self._where = engine, owner, where
        self._registry = threading.RLock()
        # taken last of all: banks write and embed while they hold locks of their own
        self._database = threading.RLock()
        self._open: dict[str, MemoryBank] = {}
        self._closed = False
        self.embedder = CachedEmbedder(_KeptVectors(self, embedder))
        """Keeps embeddings in the database, too."""
        with self._transaction("opening it") as connection:
            tables.prepare(connection)
            self.epoch = int(tables.read_setting(connection, "epoch")) + 1
            """How many owners this store has had. Every write checks it, so that an owner that was superseded while it
            slept cannot write."""
            tables.write_setting(connection, "epoch", str(self.epoch))
            tables.write_setting(connection, "owner", canonical(owner.holder))

    @classmethod
    def open(cls, target: str | os.PathLike[str], embedder: Embedder, *, owner: str | None = None) -> BankStore:
        """Open a store, making it where there is none.

        target: path of a SQLite file, or a URL such as `postgresql+psycopg://user:password@host/database`.
        owner: what this process calls itself to others that ask for the store.
        `MemR1Error` when another process owns it, when it was written by a newer memr1, or when it cannot be read.
        """
        if isinstance(target, str) and "://" in target and not target.startswith("sqlite"):
            engine = create_engine(target, pool_pre_ping=True)
            where = engine.url.render_as_string(hide_password=True)
            lock: FileOwner | _ServerOwner = _ServerOwner(engine, where, owner)
        else:
            path = Path(str(target).removeprefix("sqlite:///"))
            where = str(path)
            if not path.parent.is_dir():
                raise MemR1Error(f"{path}: there is no folder {path.parent}; make it first")
            lock = FileOwner(path, owner)
            engine = _sqlite(path)
        try:
            return cls(engine, embedder, lock, where)
        except BaseException:
            engine.dispose()
            lock.release()
            raise

    def create(self, bank_id: str, *, rules: BankRules | None = None, index: str | VectorIndex = "exact") -> MemoryBank:
        """A new, empty bank; `MemR1Error` when there is one of this name."""
        rules = rules if rules is not None else BankRules()
        with self._registry:
            with self._transaction(f"creating bank {bank_id!r}") as connection:
                self._new_row(connection, bank_id, rules)
            bank = MemoryBank(bank_id, self.embedder, index, rules, journal=self._journal(bank_id))
            self._open[bank_id] = bank
            return bank

    def bank(self, bank_id: str, *, index: str | VectorIndex = "exact") -> MemoryBank:
        """The bank of a name, always the same object; `MemR1Error` when there is none, or its log is damaged.

        index: taken when the bank is opened for the first time in this process.
        """
        with self._registry:
            if bank_id not in self._open:
                log, rules = self._read(bank_id)
                self._open[bank_id] = MemoryBank.replay(
                    log,
                    self.embedder,
                    bank_id=bank_id,
                    index=index,
                    rules=rules,
                    journal=self._journal(bank_id),
                )
            return self._open[bank_id]

    def adopt(self, bank: MemoryBank, bank_id: str | None = None) -> MemoryBank:
        """Keep a bank that lives in memory, with its whole log, in one transaction; returns the stored bank.

        bank_id: its name here; default its own. `MemR1Error` when there is one of this name.
        """
        bank_id = bank_id if bank_id is not None else bank.bank_id
        with bank.paused():
            log, rules, newest = bank.log, bank.rules, bank.newest_versions()
        with self._registry:
            with self._transaction(f"adopting bank {bank_id!r}") as connection:
                self._new_row(connection, bank_id, rules)
                rows = [_record_row(bank_id, record) for record in log]
                for i in range(0, len(rows), _PER_STATEMENT):
                    connection.execute(insert(tables.records), rows[i : i + _PER_STATEMENT])
                _write_entries(connection, bank_id, newest, known=frozenset())
            return self.bank(bank_id)

    def names(self) -> list[str]:
        """Ids of all banks, sorted."""
        with self._transaction("listing banks") as connection:
            return sorted(connection.execute(select(tables.banks.c.bank_id)).scalars())

    def drop(self, bank_id: str) -> None:
        """Remove a bank with its log and every entry; `MemR1Error` when there is none."""
        with self._registry:
            with self._transaction(f"dropping bank {bank_id!r}") as connection:
                if not connection.execute(delete(tables.banks).where(tables.banks.c.bank_id == bank_id)).rowcount:
                    raise MemR1Error(self._no_bank(bank_id))
            self._open.pop(bank_id, None)

    def verify(self, bank_id: str) -> None:
        """`MemR1Error` when log, stored entries, the bank in memory and its index do not all say the same."""
        bank = self.bank(bank_id)
        with bank.paused():
            log, _ = self._read(bank_id)
            if log != bank.log:
                raise MemR1Error(
                    f"{self._where}: bank {bank_id!r} in memory is not what its stored log says; reopen it"
                )
            bank.verify()
            expected = {e.id: canonical(entry_to_json(e)) for e in bank.newest_versions()}
            with self._transaction("verifying") as connection:
                t = tables.entries.c
                rows = connection.execute(select(t.entry_id, t.body).where(t.bank_id == bank_id)).all()
        stored = {entry_id: body for entry_id, body in rows}
        wrong = sorted(n for n in stored.keys() | expected.keys() if stored.get(n) != expected.get(n))
        if wrong:
            raise MemR1Error(
                f"{self._where}: bank {bank_id!r}: {len(wrong)} stored entries are not what the log says, the first is "
                f"{wrong[0]}; call repair({bank_id!r}) to write them anew from the log"
            )

    def repair(self, bank_id: str) -> None:
        """Write the stored entries anew from the log, which is the record, and rebuild the index."""
        bank = self.bank(bank_id)
        with bank.paused():
            newest = bank.newest_versions()
            with self._transaction("repairing") as connection:
                self._still_owner(connection)
                connection.execute(delete(tables.entries).where(tables.entries.c.bank_id == bank_id))
                _write_entries(connection, bank_id, newest, known=frozenset())
            bank.rebuild_index()

    def close(self) -> None:
        """Close the database and give up ownership. Banks of a closed store can be read, not written."""
        with self._registry, self._database:
            if not self._closed:
                self._closed = True
                self._engine.dispose()
                self._owner.release()

    def __enter__(self) -> BankStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_row(self, connection: Connection, bank_id: str, rules: BankRules) -> None:
        if not isinstance(bank_id, str) or not 0 < len(bank_id) <= 255 or "\0" in bank_id or not is_unicode(bank_id):
            raise MemR1Error(f"bank_id: expected a text of 1 to 255 characters without NUL, got {bank_id!r}")
        self._still_owner(connection)
        t = tables.banks
        if connection.execute(select(t.c.bank_id).where(t.c.bank_id == bank_id)).first():
            raise MemR1Error(f"{self._where}: there is a bank {bank_id!r} already; open it with bank()")
        connection.execute(
            insert(t).values(bank_id=bank_id, rules=canonical(rules.to_json()), embedder=self.embedder.name)
        )

    def _journal(self, bank_id: str) -> Journal:
        def write(record: LogRecord, changes: Sequence[tuple[MemoryEntry | None, MemoryEntry]]) -> None:
            try:
                with self._transaction(f"writing to bank {bank_id!r}") as connection:
                    self._still_owner(connection)
                    connection.execute(insert(tables.records).values(**_record_row(bank_id, record)))
                    known = frozenset(before.id for before, _ in changes if before is not None)
                    _write_entries(connection, bank_id, [after for _, after in changes], known)
            except _Conflict as error:
                # a commit whose answer was lost, or a bank that was dropped: what is in memory is not the record
                with self._registry:
                    self._open.pop(bank_id, None)
                raise MemR1Error(
                    f"{self._where}: bank {bank_id!r} has changed in the database since it was opened, and nothing was "
                    "written now; open it again with bank()"
                ) from error

        return write

    def _still_owner(self, connection: Connection) -> None:
        epoch = tables.read_setting(connection, "epoch", hold=True)
        if epoch != str(self.epoch):
            said = describe(tables.read_setting(connection, "owner"))
            raise MemR1Error(
                f"{self._where}: this process was owner {self.epoch} of the store, and {said} took it over as owner "
                f"{epoch}; nothing was written. Open the store again"
            )

    def _read(self, bank_id: str) -> tuple[OpLog, BankRules]:
        with self._transaction(f"reading bank {bank_id!r}") as connection:
            rules = connection.execute(select(tables.banks.c.rules).where(tables.banks.c.bank_id == bank_id)).scalar()
            if rules is None:
                raise MemR1Error(self._no_bank(bank_id))
            rows = connection.execute(
                select(tables.records.c.seq, tables.records.c.body)
                .where(tables.records.c.bank_id == bank_id)
                .order_by(tables.records.c.seq)
            )
            log = OpLog()
            for seq, body in rows:
                where = f"{self._where}: bank {bank_id!r}: record {seq}"
                record = LogRecord.from_json(parse_object(body, where))
                if record.seq != seq:
                    raise MemR1Error(f"{where}: its body says {record.seq}; the database was changed by hand")
                log.append(record)
        return log, BankRules.from_json(parse_object(rules, f"{self._where}: bank {bank_id!r}: rules"))

    def _no_bank(self, bank_id: str) -> str:
        return f"{self._where}: there is no bank {bank_id!r}; names() lists them, create() makes one"

    @contextmanager
    def _transaction(self, what: str) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back when anything is raised."""
        with self._database:
            if self._closed:
                raise MemR1Error(f"{self._where}: {what}: the store is closed; open it again")
            try:
                with self._engine.begin() as connection:
                    yield connection
            except IntegrityError as error:
                raise _Conflict(f"{self._where}: {what}: {error.orig}") from error
            except SQLAlchemyError as error:
                raise MemR1Error(f"{self._where}: {what}: {_explained(error)}") from error


class _Conflict(MemR1Error):
    """A row that must be unique is there already."""


class _ServerOwner:
    """The lock of a store on a PostgreSQL server: an advisory lock, which ends with the connection that holds it."""

    def __init__(self, engine: Engine, where: str, name: str | None) -> None:
        self.holder = holder(name)
        try:
            self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            got = self._connection.execute(text("SELECT pg_try_advisory_lock(:id)"), {"id": _LOCK_ID}).scalar()
        except SQLAlchemyError as error:
            raise MemR1Error(f"{where}: {_explained(error)}") from error
        if not got:
            said = "another process"
            with suppress(SQLAlchemyError):
                said = describe(tables.read_setting(self._connection, "owner"))
            self._connection.close()
            raise MemR1Error(f"{where}: the store belongs to {said}; close it there first, or talk to that process")

    def release(self) -> None:
        """Give the lock back."""
        with suppress(SQLAlchemyError):
            self._connection.execute(text("SELECT pg_advisory_unlock(:id)"), {"id": _LOCK_ID})
        self._connection.close()


class _KeptVectors:
    """An embedder whose vectors are kept in the store, by a digest of the text."""

    def __init__(self, store: BankStore, inner: Embedder) -> None:
        self._store, self.inner = store, inner
        self.name, self.dim = inner.name, inner.dim

    def embed(self, texts: Sequence[str]) -> Vectors:
        """n texts to (n, dim) float32; those in the database are read, the others computed and written."""
        digests = [hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest() for t in texts]
        found = self._read(digests)
        missing = {d: t for d, t in zip(digests, texts, strict=True) if d not in found}
        if missing:
            fresh = np.asarray(self.inner.embed(list(missing.values())), np.float32)
            found |= dict(zip(missing, fresh, strict=True))
            self._write({d: found[d] for d in missing})
        return np.stack([found[d] for d in digests]) if texts else np.zeros((0, self.dim), np.float32)

    def _read(self, digests: Sequence[str]) -> dict[str, Vectors]:
        found: dict[str, Vectors] = {}
        unique = list(dict.fromkeys(digests))
        v = tables.vectors.c
        for i in range(0, len(unique), _PER_STATEMENT):
            batch = unique[i : i + _PER_STATEMENT]
            with self._store._transaction("reading vectors") as connection:
                rows = connection.execute(
                    select(v.digest, v.vector).where(v.embedder == self.name, v.digest.in_(batch))
                ).all()
            for digest, blob in rows:
                if len(blob) == 4 * self.dim:  # of another width: an embedder of the same name has changed
                    found[digest] = np.frombuffer(blob, np.float32)
        return found

    def _write(self, fresh: dict[str, Vectors]) -> None:
        rows = [{"embedder": self.name, "digest": d, "vector": v.tobytes()} for d, v in fresh.items()]
        v = tables.vectors.c
        for i in range(0, len(rows), _PER_STATEMENT):
            batch = rows[i : i + _PER_STATEMENT]
            with self._store._transaction("keeping vectors") as connection:
                connection.execute(
                    delete(tables.vectors).where(v.embedder == self.name, v.digest.in_([r["digest"] for r in batch]))
                )
                connection.execute(insert(tables.vectors), batch)


def _record_row(bank_id: str, record: LogRecord) -> dict[str, Any]:
    return {
        "bank_id": bank_id,
        "seq": record.seq,
        "body": canonical(record.to_json()),
        "idempotency_key": record.idempotency_key,
    }


def _write_entries(connection: Connection, bank_id: str, changed: Sequence[MemoryEntry], known: frozenset[str]) -> None:
    """Write the newest versions of entries; `known`: ids that have a row already."""
    rows = [
        {"entry_id": e.id, "version": e.version, "status": e.status, "body": canonical(entry_to_json(e))}
        for e in changed
    ]
    t = tables.entries
    for row in rows:
        if row["entry_id"] in known:
            connection.execute(update(t).where(t.c.bank_id == bank_id, t.c.entry_id == row["entry_id"]).values(**row))
    new = [{"bank_id": bank_id, **row} for row in rows if row["entry_id"] not in known]
    for i in range(0, len(new), _PER_STATEMENT):
        connection.execute(insert(t), new[i : i + _PER_STATEMENT])


def _sqlite(path: Path) -> Engine:
    # one connection for all threads: the store lets one at a time into a transaction
    engine = create_engine(
        f"sqlite:///{path}", poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": 10.0}
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # a commit is on the disk, not only with the operating system
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine


def _explained(error: SQLAlchemyError) -> str:
    """What the database said, and what to do about it."""
    said = " ".join(str(getattr(error, "orig", None) or error).split())
    remedies = {
        "malformed": "the file is damaged: restore a backup, or an export with `memr1 bank import`",
        "not a database": "the file is no SQLite database: check the path, or restore a backup",
        "readonly": "the disk or the file is read-only: make it writable, or open a copy",
        "unable to open": "the file cannot be opened: check the folder and its permissions",
        "full": "the disk is full, and nothing was written: free space and try again",
        "locked": "another program holds the database open: close it",
        "connection": "the server cannot be reached: check that it runs, the URL and the password",
    }
    remedy = next((r for word, r in remedies.items() if word in said.lower()), "see the database's own message")
    return f"{said} ({remedy})"
