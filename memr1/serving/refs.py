"""What requests name and what they get back of a bank, in plain values that travel between processes."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from memr1.errors import MemR1Error
from memr1.memory.scopes import Scope
from memr1.memory.types import OpResult
from memr1.serving.errors import not_found

DEFAULT_BANK = "memories"
"""The bank of a scope that nobody gave a name."""

RELEASE_KEY = "held:"
"""What idempotency keys of released writes begin with, and no client's."""


@dataclass(frozen=True)
class BankRef:
    """A bank by whose it is and what it is called."""

    scope: Scope
    name: str = DEFAULT_BANK

    def memory_id(self, entry_id: str) -> str:
        """An id of an entry for routes that name no bank; says nothing of the tenant, which a key decides."""
        scope = self.scope
        parts = "\0".join((scope.user_id or "", scope.agent_id or "", scope.run_id or "", self.name))
        return f"{base64.urlsafe_b64encode(parts.encode()).decode().rstrip('=')}.{entry_id}"

    @classmethod
    def of_memory_id(cls, memory_id: str, tenant: str | None) -> tuple[BankRef, str]:
        """Bank and entry of an id that `memory_id` made. `ApiError` 404 for any other text."""
        token, _, entry_id = memory_id.rpartition(".")
        try:
            parts = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
            user_id, agent_id, run_id, name = parts.split("\0")
            scope = Scope(user_id or None, agent_id or None, run_id or None, tenant)
        except (ValueError, MemR1Error):
            raise not_found("the memory") from None
        return cls(scope, name), entry_id


@dataclass(frozen=True)
class Applied:
    """What came of a decision."""

    seq: int
    results: tuple[OpResult, ...]
    replayed: bool = False
    """True when the decision had been made before under its idempotency key."""
    held: str | None = None
    """Id in the quarantine when the decision was not made but held; then there are no results."""
    suspicions: tuple[str, ...] = ()
    """Why it is held, or, of a trial, why it would be: codes of `memr1.serving.guards.FORMS`."""
