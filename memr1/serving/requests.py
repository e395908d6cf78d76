"""What routes take from a request besides its body: who asks, which bank is meant, under which conditions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Header, Path, Query, Request

from memr1.errors import MemR1Error
from memr1.memory.jsonl import canonical
from memr1.memory.scopes import Scope
from memr1.memory.types import Provenance
from memr1.serving.errors import ApiError, not_found
from memr1.serving.keys import ADMIN, READ, WRITE, Principal
from memr1.serving.refs import RELEASE_KEY, BankRef

if TYPE_CHECKING:
    from memr1.serving.app import Services


@dataclass(frozen=True)
class Caller:
    """Who asks, and for what."""

    principal: Principal
    services: Services
    request_id: str
    idempotency_key: str | None
    route: str
    """Method and path, for telling requests apart."""

    @property
    def scope(self) -> Scope:
        """Everything outside of it does not exist for this caller."""
        return self.principal.scope

    async def bank(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call the bank service as this caller."""
        return await self.services.banks.call(method, self.scope, *args, **kwargs)

    def within(self, user_id: str | None, agent_id: str | None, run_id: str | None) -> Scope:
        """The named scope, what is not named being the key's; 404 when it is not within the key's."""
        own = self.scope
        try:
            scope = Scope(user_id or own.user_id, agent_id or own.agent_id, run_id or own.run_id, own.tenant)
        except MemR1Error as error:
            raise ApiError(422, "invalid_field", str(error)) from error
        if not own.covers(scope):
            raise not_found("the bank")
        return scope

    def provenance(self, source: str | None, body: Any, *, trusted: bool = True) -> Provenance:
        """Where what this request writes comes from: the caller's own name for it, the key, the request. trusted: as
        the caller says of what it passes on; what an untrusted key writes never is.

        The last turn id names the request: by what it says where it has an idempotency key, so that repeating it is
        told from using its key for something else.
        """
        turn_ids = (*([source] if source else []), f"key:{self.principal.key_id}", f"request:{self.mark(body)}")
        return Provenance(turn_ids=turn_ids, role="user", trusted=trusted and self.principal.trusted)

    def must_be_trusted(self) -> None:
        """`ApiError` 403 for an untrusted key, which may not change what others said."""
        if not self.principal.trusted:
            raise ApiError(403, "untrusted_source", "an untrusted key cannot take back what others said")

    def mark(self, body: Any) -> str:
        """Name of this request; see `provenance`."""
        if self.idempotency_key is None:
            return self.request_id
        return hashlib.sha256(f"{self.route}\n{canonical(body)}".encode()).hexdigest()[:32]


def _caller(right: str) -> Callable[..., Caller]:
    def caller(
        request: Request,
        idempotency_key: Annotated[
            str | None,
            Header(min_length=1, max_length=128, description="Names a write: repeating it under the same key is safe."),
        ] = None,
    ) -> Caller:
        principal: Principal = request.state.principal
        if not principal.may(right):
            raise ApiError(403, "forbidden", f"this key has the right to {principal.right}, and {right} is needed")
        if idempotency_key is not None and idempotency_key.startswith(RELEASE_KEY):
            said = f"Idempotency-Key: {RELEASE_KEY} begins keys of the service's own; take another"
            raise ApiError(400, "invalid_field", said, param="Idempotency-Key")
        services = request.app.state.services
        route = f"{request.method} {request.url.path}?{request.url.query}"
        return Caller(principal, services, request.state.request_id, idempotency_key, route)

    return caller


READER, WRITER, ADMINISTRATOR = Depends(_caller(READ)), Depends(_caller(WRITE)), Depends(_caller(ADMIN))
Reader = Annotated[Caller, READER]
Writer = Annotated[Caller, WRITER]
Administrator = Annotated[Caller, ADMINISTRATOR]

ScopeName = Annotated[str | None, Query(min_length=1, max_length=100)]


@dataclass(frozen=True)
class Named:
    """A bank, or a scope, as the URL names it."""

    user_id: str | None
    agent_id: str | None
    run_id: str | None
    name: str = ""

    def scope(self, caller: Caller) -> Scope:
        """See `Caller.within`."""
        return caller.within(self.user_id, self.agent_id, self.run_id)

    def ref(self, caller: Caller) -> BankRef:
        """The bank."""
        return BankRef(self.scope(caller), self.name)


def _named_scope(user_id: ScopeName = None, agent_id: ScopeName = None, run_id: ScopeName = None) -> Named:
    return Named(user_id, agent_id, run_id)


def _named_bank(
    bank: Annotated[str, Path(min_length=1, max_length=100, description="Name of the bank.", examples=["notes"])],
    user_id: ScopeName = None,
    agent_id: ScopeName = None,
    run_id: ScopeName = None,
) -> Named:
    return Named(user_id, agent_id, run_id, bank)


InScope = Annotated[Named, Depends(_named_scope)]
InBank = Annotated[Named, Depends(_named_bank)]


def _version(
    if_match: Annotated[
        str | None, Header(max_length=32, description='Version that is expected, such as `"3"`.')
    ] = None,
) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    bare = if_match.strip().removeprefix("W/").strip('"')
    if not bare.isascii() or not bare.isdigit():
        raise ApiError(400, "invalid_field", 'If-Match: expected a version such as "3"', param="If-Match")
    return int(bare)


IfMatch = Annotated[int | None, Depends(_version)]


def now() -> str:
    """The service's clock."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
