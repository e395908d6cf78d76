"""Does accepted jobs, those of an earlier process included."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from memr1.errors import MemR1Error
from memr1.memory.types import Provenance
from memr1.serving.adding import add
from memr1.serving.errors import as_api_error
from memr1.serving.jobs import DONE, FAILED, Job
from memr1.serving.refs import Applied, BankRef
from memr1.serving.schemas import AddRequest

if TYPE_CHECKING:
    from memr1.serving.app import Services

logger = logging.getLogger(__name__)

LEASE_S = 30.0
"""A job whose doer says nothing for so long is given to another; doing it twice changes a bank once."""
RENEW_S = 10.0
"""The doer says so often that it is at it."""
POLL_S = 2.0
"""Jobs of other processes are looked for this often."""


class JobsWorker:
    """One job after the other, from now on until `stop`. `poke` it when there is a new one."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._new = asyncio.Event()
        self._stopping = False
        self._task = asyncio.create_task(self._work())

    def poke(self) -> None:
        """There may be something to do."""
        self._new.set()

    async def stop(self) -> None:
        """Take no more jobs; they stay for the next process. So does the one at hand if it is not done in `timeout_s`:
        what it has decided by then is kept, and not decided again."""
        self._stopping = True
        self._new.set()
        await asyncio.wait({self._task}, timeout=self._services.settings.timeout_s)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _work(self) -> None:
        while not self._stopping:
            self._new.clear()
            job = None
            try:
                job = await self._services.banks.call("take_job", LEASE_S)
                if job is not None:
                    await self._do_in_lease(job)
            except Exception:  # of the store: the job stays, and is tried again after its lease
                logger.exception("a job could not be done now")
            if job is None and not self._stopping:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._new.wait(), POLL_S)

    async def _do_in_lease(self, job: Job) -> None:
        renewing = asyncio.create_task(self._renew(job))
        try:
            await self._do(job)
        except asyncio.CancelledError:
            renewing.cancel()
            await self._services.banks.call("renew_job", job.id, 0.0)  # somebody else may begin at once
            raise
        finally:
            renewing.cancel()

    async def _renew(self, job: Job) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(Exception):  # the next time will do
                await self._services.banks.call("renew_job", job.id, LEASE_S)

    async def _do(self, job: Job) -> None:
        asked = AddRequest(**job.work["body"])
        applied: list[Applied] = []
        error = None
        try:
            decided = await add(
                self._services,
                job.scope,
                BankRef(job.bank_scope, job.bank),
                asked.said,
                infer=asked.infer,
                provenance=Provenance(
                    turn_ids=tuple(job.work["turn_ids"]), role="user", trusted=job.work.get("trusted", True)
                ),
                time=job.work["time"],
                event_time=asked.event_time,
                metadata=asked.metadata,
                key=job.id,
            )
            applied = [d.applied for d in decided if d.applied is not None]
        except MemR1Error as refusal:
            found = as_api_error(refusal)
            if found.status in (429, 503, 504):
                logger.warning("job %s waits: %s", job.id, found)
                return  # its lease runs out, and it is tried again
            error = {"code": found.code, "message": str(found)}
        done = replace(
            job,
            state=FAILED if error else DONE,
            seqs=tuple(a.seq for a in applied if a.held is None),
            held=tuple(a.held for a in applied if a.held is not None),
            error=error,
        )
        await self._services.banks.call("finish_job", done)
