"""The tables that keep banks, and how an older database becomes one of this version.

Written with SQLAlchemy Core, so that SQLite and PostgreSQL run the same statements.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKeyConstraint,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    insert,
    inspect,
    select,
    update,
)

from memr1.errors import MemR1Error

SCHEMA_VERSION = 1
"""Raised by one with every change of the tables, together with a step in `_MIGRATIONS`."""

PER_STATEMENT = 500
"""Rows that one statement reads or writes at most; SQLite counts the parameters of a statement."""

metadata = MetaData()

settings = Table(
    "memr1_settings",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
"""`schema_version`; `epoch`, which every owner raises by one when it opens the store; `owner`, who that is."""

banks = Table(
    "memr1_banks",
    metadata,
    Column("bank_id", String(255), primary_key=True),
    Column("incarnation", String(32), nullable=False),
    Column("rules", Text, nullable=False),
)
"""`incarnation` tells a bank from an earlier one of its name, which somebody may still hold."""

records = Table(
    "memr1_records",
    metadata,
    Column("bank_id", String(255), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    Column("idempotency_key", String(255)),
    ForeignKeyConstraint(["bank_id"], ["memr1_banks.bank_id"], ondelete="CASCADE"),
    UniqueConstraint("bank_id", "idempotency_key", name="memr1_records_once"),
)
"""The operation log: one row for each decision, its JSON as in a dumped log."""

entries = Table(
    "memr1_entries",
    metadata,
    Column("bank_id", String(255), primary_key=True),
    Column("entry_id", String(64), primary_key=True),
    Column("body", Text, nullable=False),
    ForeignKeyConstraint(["bank_id"], ["memr1_banks.bank_id"], ondelete="CASCADE"),
)
"""The newest version of every entry, tombstones included, written in the transaction of the record that made it."""

vectors = Table(
    "memr1_vectors",
    metadata,
    Column("embedder", String(255), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("vector", LargeBinary, nullable=False),
)
"""Embeddings by text, so that an opened bank embeds nothing twice. Derived: may be emptied at any time."""

_MIGRATIONS: dict[int, tuple[str, ...]] = {}
"""Statements that lead from a schema version to the next one."""


def prepare(connection: Connection) -> None:
    """Make the tables, or bring older ones up to this version; `MemR1Error` for tables of a newer memr1."""
    if not inspect(connection).has_table(settings.name):
        metadata.create_all(connection)
        connection.execute(
            insert(settings),
            [{"name": "schema_version", "value": str(SCHEMA_VERSION)}, {"name": "epoch", "value": "0"}],
        )
        if connection.engine.dialect.name == "postgresql":
            for table in (records, entries):  # statistics would keep samples of contents, erased ones included
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ALTER COLUMN body SET STATISTICS 0")
        return
    found = read_number(connection, "schema_version")
    if found > SCHEMA_VERSION:
        raise MemR1Error(
            f"{connection.engine.url!r}: the tables have schema version {found}, this memr1 knows {SCHEMA_VERSION}; "
            "update memr1"
        )
    for version in range(found, SCHEMA_VERSION):
        for statement in _MIGRATIONS[version]:
            connection.exec_driver_sql(statement)
    if found < SCHEMA_VERSION:
        write_setting(connection, "schema_version", str(SCHEMA_VERSION))


def read_setting(connection: Connection, name: str, *, hold: bool = False) -> str:
    """The value of a setting; empty where there is none.

    hold: nobody may change it before this transaction ends (SQLite has one writer anyway).
    """
    query = select(settings.c.value).where(settings.c.name == name)
    return connection.execute(query.with_for_update(read=True) if hold else query).scalar() or ""


def read_number(connection: Connection, name: str, *, hold: bool = False) -> int:
    """A setting that is a number; `MemR1Error` when it is not."""
    value = read_setting(connection, name, hold=hold)
    if not value.isdecimal():
        raise MemR1Error(
            f"{connection.engine.url!r}: the setting {name} is {value!r} and no number; restore a backup, or an export"
        )
    return int(value)


def write_setting(connection: Connection, name: str, value: str) -> None:
    """Set a setting."""
    changed = connection.execute(update(settings).where(settings.c.name == name).values(value=value)).rowcount
    if not changed:
        connection.execute(insert(settings).values(name=name, value=value))
