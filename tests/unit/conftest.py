"""Stores to test with: a SQLite file, a database of a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memr1.memory import tables
from memr1.memory.embed import HashEmbedder
from memr1.memory.store import BankStore
from tests.unit.postgres_server import postgres

Open = Callable[..., BankStore]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where an empty store can be opened."""
    if request.param == "sqlite":
        yield str(tmp_path / "memory.db")
        return
    url = request.getfixturevalue("server")
    yield url
    from sqlalchemy import create_engine

    engine = create_engine(url)
    tables.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def open_store(target: str) -> Iterator[Open]:
    """Opens the target, as often as wanted; closes what is left open."""
    opened: list[BankStore] = []

    def make(**options: Any) -> BankStore:
        opened.append(BankStore.open(target, HashEmbedder(64), **options))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
