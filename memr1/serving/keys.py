"""API keys: who may ask, for whose memory, how much. Only digests are kept; a key is shown once, when it is made.

The file is JSON, readable by its owner only, and read again when it changes: a revoked key stops working within a
second. Keys are 256 random bits, so one plain SHA-256 is enough to keep them.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.memory.filters import parse_moment
from memr1.memory.jsonl import write_lines
from memr1.memory.scopes import Scope
from memr1.serving.errors import ApiError

READ, WRITE, ADMIN = "read", "write", "admin"
RIGHTS = (READ, WRITE, ADMIN)
"""Each includes those before it. read: search, get, answer. write: add, update, delete, roll back. admin: make and drop
banks, erase, import, metrics."""
LOCAL_TENANT = "local"
"""Tenant of a service without keys."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_KEY = re.compile(r"memr1_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_CHECK_S = 0.5
"""The file is looked at this often."""
_LATER = {"Retry-After": "5"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Principal:
    """Who asks."""

    scope: Scope
    """Everything outside of it does not exist for this principal."""
    right: str = ADMIN
    key_id: str = "none"
    name: str = "local"
    requests_per_minute: int = 0
    """0: no limit."""
    trusted: bool = True
    """False: what this principal writes is marked, and changes nothing that a trusted one said."""

    def may(self, right: str) -> bool:
        """Whether this right is included."""
        return RIGHTS.index(right) <= RIGHTS.index(self.right)


@dataclass(frozen=True)
class KeyRecord:
    """One line of `memr1 keys list`; the key itself is not in it."""

    id: str
    name: str
    tenant: str
    right: str
    digest: str
    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None
    requests_per_minute: int = 0
    created: str = ""
    expires: str | None = None
    """ISO 8601; from then on the key is refused."""
    revoked: str | None = None
    """When it was revoked (ISO 8601)."""
    trusted: bool = True
    """False for a key of something that passes on what strangers say, such as a crawler or a mail reader."""

    @property
    def principal(self) -> Principal:
        """Who asks with this key."""
        scope = Scope(self.user_id, self.agent_id, self.run_id, self.tenant)
        return Principal(scope, self.right, self.id, self.name, self.requests_per_minute, self.trusted)


class KeyFile:
    """Keys in a file. Thread-safe; several processes may read and change it."""

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False) -> None:
        """`MemR1Error` when there is no such file (unless create), or it is damaged, or others can write it."""
        self.path = Path(path)
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] = (-1, -1)
        self._next_look = 0.0
        self._records: dict[str, KeyRecord] = {}
        if not self.path.exists():
            if not create:
                raise MemR1Error(f"{self.path}: no such key file; make one with `memr1 keys create --file {self.path}`")
            return
        self._refresh(force=True)

    def records(self) -> list[KeyRecord]:
        """All keys, oldest first."""
        self._refresh(force=True)
        return list(self._records.values())

    def create(
        self,
        name: str,
        *,
        tenant: str = "default",
        right: str = WRITE,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        requests_per_minute: int = 0,
        expires: str | None = None,
        trusted: bool = True,
    ) -> tuple[str, KeyRecord]:
        """A new key, and what is kept of it. `MemR1Error` names the field that is wrong."""
        if not _NAME.fullmatch(tenant):
            raise MemR1Error(f"tenant: {tenant!r} is no name; use letters, digits, - _ . and at most 63 of them")
        if right not in RIGHTS:
            raise MemR1Error(f"right: {right!r} is not known; use one of {', '.join(RIGHTS)}")
        if right == ADMIN and not trusted:
            raise MemR1Error("right: an untrusted key cannot be an admin's; use read or write")
        if requests_per_minute < 0:
            raise MemR1Error("requests_per_minute: a number of at least 0 is needed; 0 means no limit")
        if expires is not None:
            try:
                parse_moment(expires)
            except ValueError as error:
                raise MemR1Error(f"expires: {expires!r} is not ISO 8601; write 2027-01-31") from error
        Scope(user_id, agent_id, run_id, tenant)
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        key = f"memr1_{key_id}_{secret}"
        record = KeyRecord(
            key_id,
            name,
            tenant,
            right,
            _digest(key),
            user_id,
            agent_id,
            run_id,
            requests_per_minute,
            _now(),
            expires,
            trusted=trusted,
        )
        with self._changing() as records:
            records[key_id] = record
        return key, record

    def revoke(self, key_id: str) -> KeyRecord:
        """Refuse a key from now on; `MemR1Error` when there is none of this id."""
        with self._changing() as records:
            if key_id not in records:
                raise MemR1Error(f"{self.path}: no key {key_id!r}; `memr1 keys list` shows their ids")
            records[key_id] = replace(records[key_id], revoked=records[key_id].revoked or _now())
            return records[key_id]

    def authenticate(self, key: str | None) -> Principal:
        """Whose key it is. `ApiError` 401, in the same words for every key that does not work; 503 for every key while
        the file cannot be read."""
        try:
            self._refresh()
        except (MemR1Error, OSError) as error:
            logger.error("nobody gets in: %s", error)
            raise ApiError(
                503, "keys_unreadable", "API keys cannot be checked now; see the service's log", headers=_LATER
            ) from error
        match = _KEY.fullmatch(key or "")
        record = self._records.get(match[1]) if match else None
        # compared also where there is no such key, so that time tells nothing
        same = hmac.compare_digest(_digest(key or ""), record.digest if record else _digest("no such key"))
        expired = (
            record is not None and record.expires is not None and parse_moment(record.expires) <= datetime.now(UTC)
        )
        if record is None or not same or expired or record.revoked is not None:
            raise ApiError(
                401,
                "unauthorized",
                "a valid API key is needed: Authorization: Bearer KEY, Authorization: Token KEY, or X-API-Key: KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return record.principal

    def _refresh(self, force: bool = False) -> None:
        with self._lock:
            now = time.monotonic()
            if not force and now < self._next_look:
                return
            try:
                found = self.path.stat()
            except FileNotFoundError:
                self._records, self._stamp = {}, (-1, -1)  # no file, no keys: nobody gets in
            else:
                stamp = (found.st_mtime_ns, found.st_ino)
                if stamp != self._stamp:
                    if found.st_mode & 0o022:
                        raise MemR1Error(f"{self.path}: others may write it; run `chmod 600 {self.path}`")
                    self._records, self._stamp = self._read(), stamp
            self._next_look = now + _CHECK_S  # only now: what cannot be read is looked at again by the next request

    def _read(self) -> dict[str, KeyRecord]:
        try:
            lines = json.loads(self.path.read_text())["keys"]
            return {line["id"]: KeyRecord(**line) for line in lines}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MemR1Error(f"{self.path}: not a key file ({error}); restore it, or make keys in a new one") from error

    @contextmanager
    def _changing(self) -> Iterator[dict[str, KeyRecord]]:
        with self._lock, open(f"{self.path}.lock", "a") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            records = self._read() if self.path.exists() else {}
            yield records
            body = json.dumps({"keys": [vars(r) for r in records.values()]}, indent=1)
            write_lines(self.path, [body])
            self._records, self._stamp = records, (-1, -1)


class RateLimiter:
    """Requests a minute by key: a bucket that holds a minute's worth and refills evenly."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def check(self, principal: Principal, now: float | None = None) -> dict[str, str]:
        """Headers that say what is left; `ApiError` 429 with Retry-After when nothing is."""
        limit = principal.requests_per_minute
        if not limit:
            return {}
        now = time.monotonic() if now is None else now
        with self._lock:
            left, since = self._buckets.get(principal.key_id, (float(limit), now))
            left = min(float(limit), left + (now - since) * limit / 60)
            allowed = left >= 1
            self._buckets[principal.key_id] = (left - allowed, now)
        headers = {"X-RateLimit-Limit": str(limit), "X-RateLimit-Remaining": str(int(max(0.0, left - allowed)))}
        if not allowed:
            wait = str(max(1, round((1 - left) * 60 / limit + 0.5)))
            raise ApiError(
                429,
                "rate_limited",
                f"this key may ask {limit} times a minute; wait {wait} s",
                headers={**headers, "Retry-After": wait},
            )
        return headers


def key_of(headers: Any) -> str | None:
    """The key that a request carries."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() in ("bearer", "token") and value.strip():
        return value.strip()
    return headers.get("x-api-key") or None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
