"""Scopes: whose banks these are. A view of a store that sees, makes and changes banks of one scope and no others.

    alice = store.scoped(Scope(user_id="alice"))
    bank = alice.create("facts")
    session = alice.narrow(run_id="2024-03-01").create("facts")     # another bank

This is the one place where scopes are enforced: whoever serves people hands out views, never the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from memr1.errors import MemR1Error
from memr1.memory.checks import check_bank_id
from memr1.memory.state import is_unicode

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from memr1.memory.bank import MemoryBank
    from memr1.memory.index import VectorIndex
    from memr1.memory.state import BankRules
    from memr1.memory.store import BankStore

MARK = "@"
"""First letter of the ids of banks that belong to a scope. Other ids may not begin with it."""


@dataclass(frozen=True)
class Scope:
    """Whose memory it is, in mem0's terms, and of which tenant of a service. What is None is left open."""

    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None
    tenant: str | None = None
    """Customers of one service do not share users: alice of one tenant is not alice of another."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (
                not isinstance(value, str) or not value or "\0" in value or not is_unicode(value)
            ):
                raise MemR1Error(f"{field.name}: expected a text that is not empty, without NUL, got {value!r}")

    def covers(self, other: Scope) -> bool:
        """Whether every field that is set here is the same there."""
        return all(
            getattr(self, f.name) is None or getattr(self, f.name) == getattr(other, f.name) for f in fields(self)
        )

    def bank_id(self, name: str) -> str:
        """Id in the store of the bank of this name in exactly this scope; `MemR1Error` for a name that is none."""
        check_bank_id(name)
        if not any(getattr(self, f.name) for f in fields(self)):
            raise MemR1Error(
                "scope: name a user_id, an agent_id, a run_id or a tenant; banks of nobody are the store's own"
            )
        parts = ("" if value is None else quote(value, safe="") for value in (self.user_id, self.agent_id, self.run_id))
        of_tenant = "" if self.tenant is None else f"{quote(self.tenant, safe='')}{MARK}"
        bank_id = f"{MARK}{of_tenant}{'/'.join(parts)}/{name}"
        if len(bank_id) > 255:
            raise MemR1Error(
                f"scope: tenant, user_id, agent_id, run_id and the bank's name take {len(bank_id)} characters "
                "together, at most 255 are possible; use shorter ones, or a digest"
            )
        return bank_id

    @classmethod
    def of(cls, bank_id: str) -> tuple[Scope, str] | None:
        """Scope and name of an id that `bank_id` made; None for the store's own banks."""
        if not bank_id.startswith(MARK) or bank_id.count("/") < 3:
            return None
        first, agent_id, run_id, name = bank_id[1:].split("/", 3)
        tenant, _, user_id = first.rpartition(MARK)  # quoted values hold no mark
        return cls(*(unquote(part) or None for part in (user_id, agent_id, run_id, tenant))), name


class ScopedBanks:
    """The banks of a scope. A bank of another scope is, from here, one that does not exist."""

    def __init__(self, store: BankStore, scope: Scope) -> None:
        """Use `BankStore.scoped`."""
        self._store, self.scope = store, scope

    def narrow(self, **more: str | None) -> ScopedBanks:
        """The view of a scope within this one: `narrow(run_id="7")`. `MemR1Error` when it would leave it."""
        unknown = more.keys() - {f.name for f in fields(Scope)}
        if unknown:
            raise MemR1Error(f"scope: {min(unknown)} is not known; use tenant, user_id, agent_id and run_id")
        narrower = replace(self.scope, **more)
        if not self.scope.covers(narrower):
            raise MemR1Error(f"scope: {narrower} is not within {self.scope}")
        return ScopedBanks(self._store, narrower)

    def names(self) -> list[tuple[Scope, str]]:
        """Scope and name of every bank of this scope and of narrower ones."""
        return sorted(self._found(), key=lambda found: found[0].bank_id(found[1]))

    def _found(self) -> Iterator[tuple[Scope, str]]:
        for bank_id in self._store.names():
            found = Scope.of(bank_id)
            if found is not None and self.scope.covers(found[0]):
                yield found

    def create(self, name: str, *, rules: BankRules | None = None, index: str | VectorIndex = "exact") -> MemoryBank:
        """See `BankStore.create`; the bank belongs to this scope."""
        return self._store.create(self._id(name), rules=rules, index=index)

    def bank(self, name: str, *, index: str | VectorIndex = "exact") -> MemoryBank:
        """See `BankStore.bank`; the bank of exactly this scope."""
        return self._store.bank(self._id(name), index=index)

    def adopt(self, bank: MemoryBank, name: str) -> MemoryBank:
        """See `BankStore.adopt`; the kept bank belongs to this scope."""
        return self._store.adopt(bank, self._id(name))

    def drop(self, name: str, along: Callable[[Connection], None] | None = None) -> None:
        """See `BankStore.drop`."""
        self._store.drop(self._id(name), along)

    def _id(self, name: str) -> str:
        return self.scope.bank_id(name)
