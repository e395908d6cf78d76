"""Adding memories, whatever the route: through the manager, or as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memr1.memory.scopes import Scope
from memr1.memory.types import Event, MemoryOp, Provenance
from memr1.serving.agents import Decided, Said
from memr1.serving.errors import ApiError, accepted
from memr1.serving.refs import BankRef

if TYPE_CHECKING:
    from memr1.serving.app import Services


async def add(
    services: Services,
    principal: Scope,
    ref: BankRef,
    said: Sequence[Said],
    *,
    infer: bool,
    provenance: Provenance,
    time: str,
    event_time: str | None = None,
    metadata: dict[str, Any] | None = None,
    key: str | None = None,
    dry_run: bool = False,
) -> list[Decided]:
    """What was decided about each message, on disk. Verbatim texts are one decision, applied whole or not at all.

    `ApiError` when the bank rejects a verbatim text, and 422 when every reply of the manager was unreadable: an answer
    that sounds like success although nothing was kept would be worse.
    """
    if not infer:
        ops = [MemoryOp(Event.ADD, _worded(s), metadata=metadata or {}) for s in said]
        provenance = replace(provenance, trusted=provenance.trusted and all(s.trusted for s in said))
        speakers = [s.speaker for s in said if s.speaker]
        how: dict[str, Any] = {"provenance": provenance, "time": time, "speakers": speakers}
        if dry_run:
            applied = await services.banks.call("trial", principal, ref, ops, **how)
        else:
            applied = await services.banks.call(
                "apply",
                principal,
                ref,
                ops,
                event_time=event_time,
                key=key,
                create=True,
                facts=[s.text for s in said],
                **how,
            )
            if not applied.replayed:
                services.metrics.count(applied)
        accepted(applied.results)
        return [Decided(tuple(s.text for s in said), None, applied)]
    decided = await services.agent().remember(
        principal, ref, said, provenance=provenance, time=time, event_time=event_time, key=key, dry_run=dry_run
    )
    for one in decided:
        if one.error is not None:
            services.metrics.refused.labels(one.error.split(":", 1)[0]).inc()
        elif one.applied is not None and not dry_run and not one.applied.replayed:
            services.metrics.count(one.applied)
    if decided and all(one.error is not None for one in decided):
        raise ApiError(
            422,
            "unreadable_decision",
            "nothing was kept: the manager's reply could not be carried out. Add it as it stands with infer=false",
            details=[{"facts": list(one.facts), "error": one.error, "reply": one.completion} for one in decided],
        )
    return decided


def _worded(said: Said) -> str:
    return f"{said.speaker}: {said.text}" if said.speaker else said.text
