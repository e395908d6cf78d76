"""One owner per store: a lock that a second process is refused by name, and that dies with its holder."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error


def holder(name: str | None) -> dict[str, Any]:
    """Who asks for a store: this process, and what it calls itself."""
    return {
        "name": name or "memr1",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(said: str) -> str:
    """A holder in words, from the JSON it left."""
    try:
        found = json.loads(said)
        return f"{found['name']} (process {found['pid']} on {found['host']}, since {found['since']})"
    except (ValueError, KeyError, TypeError):  # it has just been taken, and its holder has not said who it is
        return "another process"


class FileOwner:
    """The lock of a store that is a file: held by the operating system, so it ends with the process, however that dies.

    The file beside the lock says who holds it. It is written after the lock is had and means nothing without it: what
    a dead owner left there is overwritten.
    """

    def __init__(
        self,
        path: Path,
        name: str | None = None,
        *,
        refusal: str = "the store belongs to {}; close it there first, or talk to that process",
    ) -> None:
        """Take the lock of what is at `path`; `MemR1Error` names its holder, another process or this one.

        refusal: what to say then, with `{}` for the holder.
        """
        from filelock import FileLock, Timeout

        self._said = path.with_name(path.name + ".owner")
        # not of a thread: whoever closes the store gives the lock back
        self._lock = FileLock(path.with_name(path.name + ".lock"), timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise MemR1Error(f"{path}: {refusal.format(self._who())}") from error
        except OSError as error:
            raise MemR1Error(f"{path}: the lock file cannot be written ({error}); choose a writable folder") from error
        self.holder = holder(name)
        try:
            self._said.write_text(json.dumps(self.holder))
        except OSError as error:
            self._lock.release()
            raise MemR1Error(
                f"{self._said}: cannot be written ({error}); free space, or choose another folder"
            ) from error

    def _who(self) -> str:
        try:
            return describe(self._said.read_text())
        except OSError:
            return describe("")

    def release(self) -> None:
        """Give the lock back."""
        if self._lock.is_locked:
            self._said.unlink(missing_ok=True)
            self._lock.release()
