"""The database of a store: its engine, the lock that makes this process its owner, and what went wrong in words."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from memr1.errors import MemR1Error
from memr1.memory.jsonl import canonical
from memr1.memory.owner import FileOwner, describe, holder

_LOCK_ID = 0x6D656D7231
"""Number of the advisory lock that an owner holds in PostgreSQL."""


@dataclass(frozen=True)
class Database:
    """An owned database. It has one connection; a store lets one thread at a time use it."""

    engine: Engine
    where: str
    """Path or URL, without a password."""
    holder: dict[str, Any]
    """Who owns it: this process."""
    release: Callable[[], None]
    """Gives the lock back, after the connection is closed."""

    def wipe(self, tables: Sequence[str]) -> None:
        """Write the tables anew, so that nothing of deleted or changed rows is left in the database's own files."""
        with self.engine.connect() as opened:
            connection = opened.execution_options(isolation_level="AUTOCOMMIT")
            if self.engine.dialect.name == "sqlite":
                connection.exec_driver_sql("VACUUM")
                busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar()
                if busy:
                    raise MemR1Error(
                        f"{self.where}: it is gone from the tables, but another program reads the database, so that "
                        "its write-ahead log, which may still hold it, cannot be emptied; close that program, then "
                        "call wipe()"
                    )
            else:
                # behind a dump, say: better an error than silence; the connection lives on, and the limit must not
                connection.exec_driver_sql("SET lock_timeout = '10s'")
                try:
                    for table in tables:
                        connection.exec_driver_sql(f"VACUUM FULL {table}")
                finally:
                    connection.exec_driver_sql("RESET lock_timeout")

    def close(self) -> None:
        """Close the connection and give up ownership."""
        self.engine.dispose()
        self.release()


def open_database(target: str | os.PathLike[str], owner: str | None, *, create: bool) -> Database:
    """Own the database of a path or URL; see `BankStore.open`."""
    if isinstance(target, str) and "://" in target:
        return _postgres(target, owner)
    name = os.fspath(target)
    if not name or name == ":memory:" or "\0" in name:
        raise MemR1Error(f"{name!r} is no file to keep banks in; name one, or use a MemoryBank without a store")
    path = Path(name).resolve()  # one file, one lock, whatever link leads there
    if not path.parent.is_dir():
        raise MemR1Error(f"{path}: there is no folder {path.parent}; make it first")
    if not create and not path.exists():
        raise MemR1Error(f"{path}: there is no store; check the path, or make a bank with `memr1 bank create`")
    lock = FileOwner(path, owner)
    engine = create_engine(
        URL.create("sqlite", database=str(path)),  # not as text: `?` and `%` are letters of a path
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": 10.0},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3 would begin transactions late, and commit at every CREATE TABLE
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):  # FULL: a commit is on the disk
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return Database(engine, str(path), lock.holder, lock.release)


def _postgres(target: str, owner: str | None) -> Database:
    try:
        url = make_url(target)
        where = url.render_as_string(hide_password=True)
        if url.get_backend_name() != "postgresql":
            raise MemR1Error(f"{where}: stores are kept in SQLite files and in PostgreSQL; give a path or its URL")
        engine = create_engine(url, poolclass=StaticPool)
    except ModuleNotFoundError as error:
        raise MemR1Error(f"{target.split('@')[-1]}: {error}; pip install 'memr1[postgres]'") from error
    except SQLAlchemyError as error:
        raise MemR1Error(f"store: {error}; write postgresql+psycopg://user:password@host/database") from error
    said = holder(owner)
    owned = False

    @event.listens_for(engine, "connect")
    def _own(connection: Any, _: Any) -> None:
        # the lock ends with the connection that holds it, so whoever connects anew must get it anew
        nonlocal owned
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT pg_try_advisory_lock({_LOCK_ID})")
            free = cursor.fetchone()[0]
            cursor.execute("SELECT to_regclass('memr1_settings') IS NOT NULL")
            left = ""
            if cursor.fetchone()[0]:
                cursor.execute("SELECT value FROM memr1_settings WHERE name = 'owner'")
                left = (cursor.fetchone() or ("",))[0]
        connection.commit()
        if not free or (owned and left != canonical(said)):  # or somebody was here while the connection was lost
            connection.close()
            raise MemR1Error(
                f"{where}: the store belongs to {describe(left)}; close it there first, or talk to that process"
            )
        owned = True

    return Database(engine, where, said, lambda: None)


def explained(error: SQLAlchemyError) -> str:
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
