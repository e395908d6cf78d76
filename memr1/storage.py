"""Runs on an object store: `output: s3://bucket/runs`.

A run then has a *working copy* on the machine of its driver, a folder whose path spells the URL
(`<cache>/remote/s3:/bucket/runs/<name>`). Small files (log, state, report) lie there and are copied to the store at
every checkpoint. What is large, policies and learners, goes straight from the process that has it to the store: whoever
writes or reads such a folder does so inside `writing` or `reading`, which do nothing for other folders.

An object store can neither rename nor append. So a checkpoint is written in place, and its marker, written last, is
what commits it. Stores are reached through fsspec, S3 and Google's through Arrow's drivers, which Ray uses as well.
Endpoints and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ... or the machine's role).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.models.cache import cache_root

HEAVY = ("policies", "learner")
"""Folders of a checkpoint that never lie in a working copy."""
LEASE_FILE = "run.lease"
RENEW_S = 10.0
DEAD_S = 45.0
"""A lease that has not changed for so long is free: its holder is dead or cut off."""
SETTLE_S = 2.0
"""Of two programs that take a free lease at the same moment, the later write wins; after this both see who that is."""


def local_path(place: str) -> Path:
    """A folder on this machine for a place: itself, or the working copy of a URL."""
    return cache_root() / "remote" / place if "://" in place else Path(place)


def copy_of(url: str, *, writes: bool = False) -> Path:
    """A folder beside the working copy, for programs that read a run while another one may train it here. One that
    writes has a folder of its own, which no reader makes anew."""
    return cache_root() / ("writing" if writes else "copies") / url


def url_of(path: str | Path) -> str | None:
    """The URL that a path in a working copy stands for, or None."""
    parts = Path(path).parts
    for i, part in enumerate(parts):
        if re.fullmatch(r"[a-z][a-z0-9+]*:", part):
            return f"{part}//" + "/".join(parts[i + 1 :])
    return None


@cache
def _filesystem(scheme: str) -> Any:
    import fsspec

    try:
        if scheme in ("s3", "gs"):
            import pyarrow.fs
            from fsspec.implementations.arrow import ArrowFSWrapper

            if scheme == "gs":
                return ArrowFSWrapper(pyarrow.fs.GcsFileSystem())
            named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            if not named:
                return ArrowFSWrapper(pyarrow.fs.S3FileSystem())
            protocol, _, host = named.rstrip("/").rpartition("://")
            return ArrowFSWrapper(pyarrow.fs.S3FileSystem(endpoint_override=host, scheme=protocol or "https"))
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError, OSError) as error:
        raise MemR1Error(
            f"{scheme}://: no such storage here: {error}; s3, gs and those of fsspec can be used"
        ) from error


def _store(path: str | Path) -> tuple[Any, str]:
    """File system and key of a path in a working copy."""
    scheme, _, key = str(url_of(path)).partition("://")
    return _filesystem(scheme), key


@contextmanager
def said(path: str | Path) -> Iterator[None]:
    """Turn failures of the store into a MemR1Error that names the URL."""
    try:
        yield
    except OSError as error:
        check = "Check the bucket, its permissions, AWS_ENDPOINT_URL and credentials on every node"
        if "TooSkewed" in str(error):  # requests are signed with the time, and stores take a quarter of an hour at most
            check = f"On {socket.gethostname()}, this machine's clock is wrong; set it by NTP"
        raise MemR1Error(
            f"{url_of(path)}: the store does not do what it should: {error}. {check}; the last committed checkpoint "
            "is intact"
        ) from error


@contextmanager
def writing(folder: str | Path) -> Iterator[Path]:
    """A local folder to write into. For one of a working copy, its files go to the store when the block ends well."""
    if url_of(folder) is None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="memr1-") as temporary:
        yield Path(temporary)
        with said(folder):
            _upload(Path(temporary), *_store(folder))


@contextmanager
def reading(folder: str | Path) -> Iterator[Path]:
    """A local folder with the files of `folder`, fetched from the store if it lies there."""
    if url_of(folder) is None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="memr1-") as temporary:
        fs, key = _store(folder)
        with said(folder):
            for name in fs.find(key):
                target = Path(temporary) / name[len(key) :].lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(name, str(target))
        yield Path(temporary)


def copy(source: Path, target: str) -> None:
    """Copy a folder, on whichever side its ends are."""
    with reading(source) as read, writing(target) as written:
        shutil.copytree(read, written, dirs_exist_ok=True)


def exists(path: Path) -> bool:
    """Whether a file or folder is there; where a working copy stands for a store, there."""
    if url_of(path) is None:
        return path.exists()
    with said(path):
        fs, key = _store(path)
        return bool(fs.isfile(key) or fs.find(key))


def put(path: Path) -> None:
    """Copy one file of a working copy to the store."""
    with said(path):
        _put(path, *_store(path))


def have(path: Path) -> bool:
    """Whether a file is there; one that a working copy lacks is fetched from its store."""
    if path.exists() or url_of(path) is None:
        return path.exists()
    with said(path):
        fs, key = _store(path)
        if not fs.isfile(key):
            return False
        _get(fs, key, path)
    return True


def remove(path: Path) -> None:
    """Delete a file, or a folder with all it holds, from the store."""
    with said(path):
        fs, key = _store(path)
        names = [key] if fs.isfile(key) else fs.find(key)
        for name in names:
            fs.rm_file(name)


def push(run_dir: Path) -> None:
    """Make the store's log, report and rollouts of a run those of its working copy. Checkpoints are left alone, and so
    is what this process never had there: it cannot have been deleted here."""
    if url_of(run_dir) is None:
        return
    check_lease(run_dir)
    with said(run_dir):
        fs, key = _store(run_dir)
        there = {name[len(key) + 1 :]: info["size"] for name, info in fs.find(key, detail=True).items()}
        here = {str(p.relative_to(run_dir)): p for p in run_dir.rglob("*") if p.is_file() and _is_log(p, run_dir)}
        for name, path in here.items():
            # rollouts are written once; the others may change and keep their size
            if not name.startswith("rollouts/") or there.get(name) != path.stat().st_size:
                _put(path, fs, f"{key}/{name}")
        for name in (there.keys() & _had[run_dir]) - here.keys():
            fs.rm_file(f"{key}/{name}")
        _had[run_dir] = set(here)


def pull(run_dir: Path) -> None:
    """Make the working copy of a run what the store has of it, the large folders of checkpoints left out."""
    if url_of(run_dir) is None:
        return
    with said(run_dir):
        fs, key = _store(run_dir)
        for path in run_dir.iterdir() if run_dir.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path)
            elif _is_log(path, run_dir):
                path.unlink()
        _had[run_dir] = set()
        for name in fs.find(key):
            target = run_dir / name[len(key) + 1 :]
            if not set(target.relative_to(run_dir).parts) & set(HEAVY):
                target.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(name, str(target))
                if _is_log(target, run_dir):
                    _had[run_dir].add(name[len(key) + 1 :])


def local_file(place: str) -> str:
    """A dataset's file on this machine: the path itself, or a copy of what a URL names, fetched when it has changed."""
    if "://" not in place:
        return place
    path = local_path(place)
    with said(path):
        fs, key = _store(path)
        info = fs.info(key)
        stamp = json.dumps([info["size"], str(info.get("mtime"))])
        note = path.with_name(path.name + ".stamp")
        if not (path.is_file() and note.is_file() and note.read_text() == stamp):
            _get(fs, key, path)
            note.write_text(stamp)
    return str(path)


def check_lease(run_dir: Path) -> None:
    """`MemR1Error` when somebody else has taken over the run whose lease this process had: it was cut off or stopped
    for so long that it counted as dead, and what it writes now would be mixed with what its heir writes."""
    lease = _held.get(run_dir)
    if lease is not None:
        with said(run_dir):
            lease.check()


class Lease:
    """One writer of a run on a store: a small object that its holder changes every few seconds.

    Clocks of machines may be apart, so no times are compared: whoever finds a lease watches whether it changes. A
    holder that was taken for dead finds its heir's name there, leaves the lease alone, and is refused by `check_lease`.
    """

    def __init__(self, run_dir: Path, holder: Mapping[str, Any]) -> None:
        """Take the lease, after `DEAD_S` if somebody left one behind; MemR1Error names who holds it."""
        self._path = run_dir / LEASE_FILE
        self._fs, self._key = _store(self._path)
        self._holder, self._beats = dict(holder) | {"nonce": secrets.token_hex(8)}, 0
        with said(self._path):
            left = self._read()
            deadline = time.monotonic() + DEAD_S
            while left is not None and time.monotonic() < deadline:
                time.sleep(min(RENEW_S, 1.0))
                if (found := self._read()) is not None and found != left:
                    raise self._refusal(found)
                left = found
            self._write()
            time.sleep(SETTLE_S)
            if (found := self._read()) is None or not self._is_ours(found):
                raise self._refusal(found)
        _held[run_dir] = self
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give it back."""
        self._end.set()
        self._thread.join()
        _held.pop(self._path.parent, None)
        with said(self._path):
            if (found := self._read()) is not None and self._is_ours(found):
                self._fs.rm_file(self._key)

    def check(self) -> None:
        """`MemR1Error` names who has it now, where that is somebody else."""
        if (found := self._read()) is not None and not self._is_ours(found):
            raise self._refusal(found)

    def _renew(self) -> None:
        while not self._end.wait(RENEW_S):
            with suppress(OSError):  # tried again in a moment
                if (found := self._read()) is not None and not self._is_ours(found):
                    return
                self._write()

    def _is_ours(self, found: str) -> bool:
        return bool(json.loads(found)["nonce"] == self._holder["nonce"])

    def _write(self) -> None:
        self._beats += 1
        with self._fs.open(self._key, "wb") as target:
            target.write(json.dumps(self._holder | {"beat": self._beats}).encode())

    def _read(self) -> str | None:
        try:
            return str(self._fs.cat_file(self._key).decode())
        except FileNotFoundError:
            return None

    def _refusal(self, found: str | None) -> MemR1Error:
        who = json.loads(found or "{}")
        return MemR1Error(
            f"{url_of(self._path.parent)}: {who.get('name')} (process {who.get('pid')} on {who.get('host')}) trains "
            "here; wait for it or stop it, or set another `name`"
        )


_held: dict[Path, Lease] = {}
"""Leases of this process, by working copy."""
_had: defaultdict[Path, set[str]] = defaultdict(set)
"""Files outside checkpoints that this process has pulled or pushed, by working copy."""


def _is_log(path: Path, run_dir: Path) -> bool:
    first = path.relative_to(run_dir).parts[0]
    return first != "checkpoints" and not first.startswith("run.l") and first != "run.owner"


def _upload(folder: Path, fs: Any, key: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _put(path, fs, f"{key}/{path.relative_to(folder)}")


def _get(fs: Any, key: str, path: Path) -> None:
    """Fetch a file; it is there whole or not at all, also where several processes fetch it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    fs.get_file(key, str(partial))
    partial.replace(path)


def _put(path: Path, fs: Any, key: str) -> None:
    # fsspec's own put would first make "folders", which a store has not, and for which it may lack the permission
    with path.open("rb") as source, fs.open(key, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
