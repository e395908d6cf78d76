"""The model cache: directories that appear whole or not at all, whichever process makes them and whenever it dies.

Used by `memr1.models.packaged`. A directory is built under a temporary name beside its final one, gets a manifest of
sizes and SHA-256 sums as its last file, and is renamed. So a directory that bears its final name is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memr1.errors import MemR1Error

log = logging.getLogger(__name__)

MANIFEST = "memr1-manifest.json"
_LOCK_PATIENCE_S = 1800.0


def cache_root() -> Path:
    """Root of everything memr1 keeps between runs: `MEMR1_CACHE`, or `~/.cache/memr1`."""
    return Path(os.environ.get("MEMR1_CACHE") or "~/.cache/memr1").expanduser()


def model_dir(name: str, revision: str) -> Path:
    """Where revision `revision` of model `name` is, or would be, kept."""
    return cache_root() / "models" / f"{name}-{revision}"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def is_complete(directory: Path) -> bool:
    """True when `directory` was committed. Raises MemR1Error when its files no longer have the sizes recorded then."""
    if not (directory / MANIFEST).is_file():
        return False
    bad = [
        f"{path} ({'missing' if found is None else f'{found} bytes'}, expected {size})"
        for path, size, _ in _manifest_entries(directory)
        if (found := _size(directory / path)) != size
    ]
    if bad:
        raise _damaged(directory, bad)
    return True


def verify(directory: Path) -> int:
    """Hash every file of a committed directory; returns how many. Raises MemR1Error naming each that changed."""
    if not is_complete(directory):
        raise MemR1Error(f"{directory}: not in the cache; run `memr1 models fetch` first")
    entries = list(_manifest_entries(directory))
    bad = [f"{path} (SHA-256 differs)" for path, _, digest in entries if sha256_of(directory / path) != digest]
    if bad:
        raise _damaged(directory, bad)
    return len(entries)


def make(directory: Path, build: Callable[[Path], None], *, need_bytes: int, about: dict[str, str]) -> Path:
    """Return `directory`, running `build(temporary directory)` first when it has not been committed yet.

    need_bytes: free space asked for before the work starts, temporary files included.
    about: strings kept in the manifest beside the sizes and sums.
    One process builds at a time (a file lock that a killed process gives up); what a killed one left is removed.
    Raises MemR1Error when the cache cannot be written or space runs out.
    """
    if is_complete(directory):
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _lock(directory):
            if is_complete(directory):  # another process made it while this one waited
                return directory
            _remove_leftovers(directory)
            free = shutil.disk_usage(directory.parent).free
            if free < need_bytes:
                raise MemR1Error(
                    f"{directory.parent}: {free >> 20} MB are free and {directory.name} needs {need_bytes >> 20} MB "
                    f"while it is made; free some space, or set MEMR1_CACHE to a larger disk"
                )
            temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.making-", dir=directory.parent))
            try:
                build(temporary)
                _write_manifest(temporary, about)
                _share(temporary)
                temporary.rename(directory)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            _fsync(directory.parent)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise MemR1Error(
                f"{directory.parent}: the disk filled up while {directory.name} was made; free {need_bytes >> 20} MB, "
                f"or set MEMR1_CACHE to a larger disk"
            ) from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise MemR1Error(
                f"{directory.parent}: the model cache cannot be written ({e.strerror}: {e.filename}); set MEMR1_CACHE "
                f"to a directory of your own"
            ) from e
        raise
    return directory


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(directory.parent / f".{directory.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is making %s; waiting for it", directory.name)
        try:
            lock.acquire(timeout=_LOCK_PATIENCE_S)
        except Timeout as e:
            raise MemR1Error(
                f"{lock.lock_file}: another process has held this lock for {_LOCK_PATIENCE_S:.0f} s while making "
                f"{directory.name}; stop it, then try again"
            ) from e
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left; only called with the lock held, so nobody is working there."""
    for left in directory.parent.glob(f".{directory.name}.making-*"):
        shutil.rmtree(left, ignore_errors=True)
    if directory.exists():  # without a manifest: not made by this module, or its manifest was deleted
        raise MemR1Error(f"{directory}: exists but has no {MANIFEST}; remove this directory and try again")


def _share(directory: Path) -> None:
    """Give files the permissions the umask asks for: mkdtemp and safetensors make theirs private."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (directory, *directory.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _write_manifest(directory: Path, about: dict[str, str]) -> None:
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        _fsync(path)
        files[path.relative_to(directory).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"format": 1, **about, "files": files}, indent=1) + "\n")
    _fsync(manifest)
    _fsync(directory)


def _manifest_entries(directory: Path) -> Iterator[tuple[str, int, str]]:
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        for path, entry in files.items():
            yield path, int(entry["size"]), str(entry["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise MemR1Error(f"{directory / MANIFEST}: unreadable ({e!r}); remove {directory} and fetch it again") from e


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _damaged(directory: Path, bad: list[str]) -> MemR1Error:
    return MemR1Error(
        f"{directory}: changed since it was made: {'; '.join(bad)}. Remove this directory and fetch the model again"
    )


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
