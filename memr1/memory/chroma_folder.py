"""Folders of Chroma databases, trusted only as they were left.

Chroma believes its files: from torn ones it finds less, crashes the process, or writes until the disk is full. They
are only an index. So a process that is done with a folder writes down what is in it (the seal), and a folder without a
seal, or one that differs from it, is replaced by an empty one, which the bank fills again from its entries.
"""

from __future__ import annotations

import atexit
import hashlib
import itertools
import json
import logging
import os
import shutil
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.memory.owner import FileOwner

logger = logging.getLogger(__name__)

_NAME, _MARKER = "memr1-index-", "made-by-memr1"
"""Names of the folders inside, and of the file by which this module knows what it may delete."""
_lock = threading.Lock()
_opened: dict[Path, _Opened] = {}


@dataclass
class _Opened:
    client: Any
    inner: Path
    """The folder that Chroma uses."""
    lock: FileOwner
    process: int
    trusted: bool = True
    """False when it is to be made again, and not sealed."""


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
        except BaseException as error:  # panics of Chroma's Rust core are no Exceptions
            lock.release()
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise MemR1Error(
                f"{path}: Chroma cannot open its database ({error}); make the folder writable, or choose another one"
            ) from error
        if not _opened:
            atexit.register(close_folders)
        _opened[path] = _Opened(client, inner, lock, os.getpid())
        return client


def distrust(folder: str | os.PathLike[str]) -> None:
    """Let the files of an open folder be made again when it is opened next: something in them must not stay."""
    with _lock:
        found = _opened.get(Path(folder).resolve())
        if found is not None:
            found.trusted = False


def close_folders() -> None:
    """Close every folder that this process opened, and seal it. Done by itself when the process ends in order."""
    with _lock:
        mine = [found for found in _opened.values() if found.process == os.getpid()]  # not what a parent opened
        _opened.clear()
    for found in mine:
        try:
            found.client.close()
            if found.trusted and found.inner.is_dir():  # otherwise somebody has removed it meanwhile
                blank_unused(found.inner)
                _seal_of(found.inner).write_text(json.dumps(_contents(found.inner)))
        except Exception as error:  # without a seal it is made again, which is all that is lost
            logger.warning("%s: the index could not be closed in order: %s", found.inner, error)
        finally:
            found.lock.release()


def blank_unused(inner: Path) -> None:
    """Overwrite the rows of Chroma's vector files that hold no vector yet.

    hnswlib writes its memory as it was allocated: what the process held there before, such as the vector of a text that
    was erased, would lie on the disk. `MemR1Error` for a layout that this does not know.
    """
    for header in inner.rglob("header.bin"):
        version, _, most, used, row = struct.unpack_from("<i4Q", header.read_bytes())
        vectors, lengths = header.with_name("data_level0.bin"), header.with_name("length.bin")
        if version != 1 or used > most or vectors.stat().st_size > most * row or lengths.stat().st_size > most * 4:
            raise MemR1Error(f"{header}: not the layout of an index that Chroma 1.5 writes")
        for path, width in ((vectors, row), (lengths, 4)):
            unused = path.stat().st_size - used * width
            if unused > 0:
                with path.open("r+b") as file:
                    file.seek(used * width)
                    file.write(bytes(unused))


def _trusted(path: Path) -> Path:
    """The folder inside to use: the newest one if its seal holds, otherwise a new one; older ones are removed."""
    ours = [p for p in path.glob(f"{_NAME}*") if p.name[len(_NAME) :].isdigit() and (p / _MARKER).is_file()]
    ours.sort(key=lambda p: int(p.name[len(_NAME) :]))
    newest = ours[-1] if ours else None
    if newest is not None and not _holds(newest):
        logger.warning("%s: the index was not closed in order, or is damaged; it is made again", newest)
        newest = None
    if newest is None:
        last = max((int(p.name[len(_NAME) :]) for p in ours), default=0)
        newest = next(p for n in itertools.count(last + 1) if not (p := path / f"{_NAME}{n}").exists())
        newest.mkdir()
        (newest / _MARKER).touch()
    for old in ours:
        if old != newest:
            _seal_of(old).unlink(missing_ok=True)
            shutil.rmtree(old)
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
