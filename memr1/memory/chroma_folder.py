"""Folders of Chroma databases, trusted only as they were left.

Chroma believes its files: from torn ones it finds less, crashes the process, or writes until the disk is full. They
are only an index. So a process that is done with a folder writes down what is in it (the seal), and a folder without a
seal, or one that differs from it, is replaced by an empty one, which the bank fills again from its entries.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.memory.owner import FileOwner

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_opened: dict[Path, _Opened] = {}


@dataclass(frozen=True)
class _Opened:
    client: Any
    inner: Path
    """The folder that Chroma uses."""
    lock: FileOwner
    process: int


def open_folder(folder: str | os.PathLike[str]) -> Any:
    """The Chroma client of a folder, one for all who ask in this process. `MemR1Error` when another process has it, or
    when it cannot be opened."""
    import chromadb
    from chromadb.config import Settings

    path = Path(folder).resolve()
    with _lock:
        if path in _opened and _opened[path].process == os.getpid():
            return _opened[path].client
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MemR1Error(f"{path}: the folder cannot be made ({error}); choose another one") from error
        lock = FileOwner(path / "index")
        try:
            inner = _trusted(path)
            client = chromadb.PersistentClient(path=str(inner), settings=Settings(anonymized_telemetry=False))
        except Exception as error:  # Chroma raises bare Rust panics and sqlite errors here
            lock.release()
            raise MemR1Error(
                f"{path}: Chroma cannot open its database ({error}); make the folder writable, or choose another one"
            ) from error
        if not _opened:
            atexit.register(close_folders)
        _opened[path] = _Opened(client, inner, lock, os.getpid())
        return client


def close_folders() -> None:
    """Close every folder that this process opened, and seal it. Done by itself when the process ends in order."""
    with _lock:
        for found in _opened.values():
            if found.process == os.getpid():  # not in a process that was forked from the one that writes
                found.client.close()
                if found.inner.is_dir():  # otherwise somebody has removed it meanwhile
                    _seal_of(found.inner).write_text(json.dumps(_contents(found.inner)))
                found.lock.release()
        _opened.clear()


def _trusted(path: Path) -> Path:
    """The folder inside to use: the newest one if its seal holds, otherwise a new one; older ones are removed."""
    numbers = sorted(int(p.name[6:]) for p in path.glob("index-*") if p.name[6:].isdigit() and p.is_dir())
    newest = path / f"index-{numbers[-1] if numbers else 1}"
    if numbers and not _holds(newest):
        logger.warning("%s: the index was not closed in order, or is damaged; it is made again", newest)
        newest = path / f"index-{numbers[-1] + 1}"
    for old in (path / f"index-{n}" for n in numbers):
        if old != newest:
            shutil.rmtree(old)
            _seal_of(old).unlink(missing_ok=True)
    _seal_of(newest).unlink(missing_ok=True)  # from now on it changes
    return newest


def _seal_of(inner: Path) -> Path:
    return inner.with_name(f"{inner.name}.seal.json")


def _holds(inner: Path) -> bool:
    try:
        return bool(json.loads(_seal_of(inner).read_text()) == _contents(inner))
    except (OSError, ValueError):
        return False


def _contents(inner: Path) -> dict[str, str]:
    """Every file with a digest of its bytes."""
    found = {}
    for path in sorted(p for p in inner.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(inner))] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found
