"""Work that was accepted and is not done yet, kept in the store's database: what got a 202 survives a restart.

A job is done under its own id as idempotency key, so one that was half done, or done twice, changes a bank once. What
it says is deleted when it is done; what remains is where in the log its decisions are.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Column, Float, MetaData, String, Table, Text, delete, insert, select, update

from memr1.errors import MemR1Error
from memr1.memory.scopes import Scope
from memr1.memory.store import BankStore
from memr1.serving.errors import ApiError, as_api_error

_metadata = MetaData()
_jobs = Table(
    "memr1_serving_jobs",
    _metadata,
    Column("job_id", String(64), primary_key=True),
    Column("tenant", String(255)),
    Column("state", String(16), nullable=False, index=True),
    Column("made", Float, nullable=False),
    Column("lease", Float, nullable=False),
    Column("body", Text, nullable=False),
)

QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"


@dataclass(frozen=True)
class Job:
    """One accepted piece of work."""

    id: str
    scope: Scope
    """Scope of the principal who asked for it; it is done with these rights."""
    bank: str
    bank_scope: Scope
    work: dict[str, Any] = field(default_factory=dict)
    """The request, as JSON; empty once it is done."""
    digest: str = ""
    """Of the request: tells a repeated request from another one under the same key."""
    state: str = QUEUED
    made: float = 0.0
    """Seconds since the epoch."""
    seqs: tuple[int, ...] = ()
    """Numbers of the decisions that it made."""
    error: dict[str, Any] | None = None
    held: tuple[str, ...] = ()
    """Ids in the quarantine of those decisions that were held."""


class JobTable:
    """Jobs in the database of a store."""

    def __init__(self, store: BankStore, days: float) -> None:
        """days: for which what came of a job is kept."""
        self._store, self._kept_s = store, days * 86400
        with store.transaction("preparing jobs") as connection:
            _metadata.create_all(connection)
            # whoever did them for an earlier owner of the store is gone, or will find them done under their keys
            connection.execute(update(_jobs).where(_jobs.c.state == RUNNING).values(lease=0.0))

    def put(self, tenant: str | None, job: Job) -> Job:
        """Write a job down, or find the earlier one of its id. 409 when that was for another request."""
        try:
            with self._store.transaction("keeping a job") as connection:
                self._store.still_owner(connection)
                row = connection.execute(select(_jobs.c.body).where(_jobs.c.job_id == job.id)).first()
                if row is None:
                    values = {"job_id": job.id, "tenant": tenant, "state": job.state, "made": job.made, "lease": 0.0}
                    connection.execute(insert(_jobs), {**values, "body": _dump(job)})
                    return job
        except MemR1Error as error:
            raise as_api_error(error) from error
        earlier = _load(row.body)
        if earlier.digest != job.digest:
            raise ApiError(
                409, "idempotency_key_reused", "the Idempotency-Key was used for another request; give each its own"
            )
        return earlier

    def get(self, tenant: str | None, job_id: str) -> Job | None:
        """A job of a tenant."""
        with self._store.transaction("reading a job") as connection:
            row = connection.execute(select(_jobs.c.tenant, _jobs.c.body).where(_jobs.c.job_id == job_id)).first()
        return _load(row.body) if row is not None and row.tenant == tenant else None

    def take(self, lease_s: float) -> Job | None:
        """See `BankService.take_job`."""
        now, j = time.time(), _jobs.c
        with self._store.transaction("taking a job") as connection:
            row = connection.execute(
                select(j.job_id, j.body)
                .where(j.state.in_((QUEUED, RUNNING)), j.lease < now)
                .order_by(j.made, j.job_id)
                .limit(1)
            ).first()
            if row is None:
                return None
            self._store.still_owner(connection)
            job = replace(_load(row.body), state=RUNNING)
            connection.execute(
                update(_jobs).where(j.job_id == row.job_id).values(state=RUNNING, lease=now + lease_s, body=_dump(job))
            )
        return job

    def renew(self, job_id: str, lease_s: float) -> None:
        """See `BankService.renew_job`."""
        with self._store.transaction("renewing a job's lease") as connection:
            self._store.still_owner(connection)
            mine = update(_jobs).where(_jobs.c.job_id == job_id, _jobs.c.state == RUNNING)
            connection.execute(mine.values(lease=time.time() + lease_s))

    def finish(self, job: Job) -> None:
        """See `BankService.finish_job`."""
        done = replace(job, work={})
        with self._store.transaction("finishing a job") as connection:
            self._store.still_owner(connection)
            connection.execute(
                update(_jobs).where(_jobs.c.job_id == job.id).values(state=done.state, lease=0.0, body=_dump(done))
            )
            # done again under its key, a job that is forgotten changes nothing: the bank's log knows the key
            old = (_jobs.c.state.in_((DONE, FAILED)), _jobs.c.made < time.time() - self._kept_s)
            connection.execute(delete(_jobs).where(*old))


def _dump(job: Job) -> str:
    return json.dumps({**vars(job), "scope": vars(job.scope), "bank_scope": vars(job.bank_scope)})


def _load(body: str) -> Job:
    values = json.loads(body)
    scopes = {name: Scope(**values.pop(name)) for name in ("scope", "bank_scope")}
    return Job(**{**values, **scopes, "seqs": tuple(values["seqs"]), "held": tuple(values.get("held", ()))})
