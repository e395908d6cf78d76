"""Which banks there are, by tenant: asked at every request, so kept in memory beside the store."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from memr1.memory.scopes import Scope
from memr1.serving.errors import ApiError
from memr1.serving.refs import BankRef


class KnownBanks:
    """The banks of all tenants. Thread-safe; whoever makes or drops banks keeps it true."""

    def __init__(self, most: int, bank_ids: Iterable[str]) -> None:
        """most: banks that a tenant may have. bank_ids: names of the store; those that are no scope's are passed by."""
        self._most = most
        self._lock = threading.Lock()
        self._by_tenant: dict[str | None, set[BankRef]] = {}
        for bank_id in bank_ids:
            found = Scope.of(bank_id)
            if found is not None:
                self.add(BankRef(*found))

    def __contains__(self, ref: BankRef) -> bool:
        with self._lock:
            return ref in self._by_tenant.get(ref.scope.tenant, ())

    def add(self, ref: BankRef) -> None:
        """It is there now."""
        with self._lock:
            self._by_tenant.setdefault(ref.scope.tenant, set()).add(ref)

    def discard(self, ref: BankRef) -> None:
        """It is not there any more."""
        with self._lock:
            self._by_tenant.get(ref.scope.tenant, set()).discard(ref)

    def within(self, scope: Scope) -> list[BankRef]:
        """Those of a scope and of narrower ones, sorted."""
        with self._lock:
            found = [ref for ref in self._by_tenant.get(scope.tenant, ()) if scope.covers(ref.scope)]
        return sorted(found, key=lambda ref: ref.scope.bank_id(ref.name))

    def check_new(self, ref: BankRef) -> None:
        """`ApiError` 409 for a bank that is there."""
        if ref in self:
            raise ApiError(409, "bank_exists", f"there is a bank {ref.name!r} in this scope already")

    def check_room(self, ref: BankRef) -> None:
        """`ApiError` 413 when the tenant may have no more."""
        with self._lock:
            full = len(self._by_tenant.get(ref.scope.tenant, ())) >= self._most
        if full:
            raise ApiError(413, "too_many_banks", f"this tenant has {self._most} banks, its limit; drop some first")
