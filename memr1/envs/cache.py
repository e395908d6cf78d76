"""Results that are kept in files: one file for each dialogue and settings, whole or absent, and checked when read.

In a folder that stands for one of an object store, files come from there and go there as well.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.memory.jsonl import Fields, canonical, parse_object, read_objects, write_lines
from memr1.storage import have, put, url_of

logger = logging.getLogger(__name__)

FORMAT = 3
"""Goes up when what is kept is made in another way, so that older files are made anew."""


class Cache:
    """Lists of JSON objects by kind, dialogue and settings. Files that cannot be used are made anew, never trusted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, kind: str, name: str, settings: Mapping[str, Any]) -> Path:
        """The file of a dialogue under these settings."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60]
        return self.folder / kind / f"{safe}-{_hash([FORMAT, name, settings])[:16]}.jsonl"

    def read(self, kind: str, name: str, settings: Mapping[str, Any], data: Any) -> list[Fields] | None:
        """What was written for these settings and this very data; None where there is nothing, the data has changed
        since, or the file is damaged (the latter two with a warning)."""
        path = self.path(kind, name, settings)
        if not have(path):
            return None
        try:
            header, *lines = read_objects(path)
            kept = [line.take("item", dict) for line in lines]
            if header.take("items", int) != len(kept) or header.take("sha256", str) != _hash(kept):
                raise header.fail("sha256", "the lines are not those that were written")
            of_data = header.take("data", str)
        except (MemR1Error, ValueError) as error:
            logger.warning("%s: damaged, so it is made anew: %s", path, error)
            return None
        if of_data != _hash(data):
            logger.warning("%s: %s has changed since it was written, so it is made anew", path, name)
            return None
        return [parse_object(canonical(item), f"{path}:{n}") for n, item in enumerate(kept, start=2)]

    def write(
        self, kind: str, name: str, settings: Mapping[str, Any], data: Any, items: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep items; the file appears whole or not at all. Raises MemR1Error where it cannot be written."""
        path = self.path(kind, name, settings)
        header = {"dialogue": name, "settings": settings, "data": _hash(data), "items": len(items)}
        header["sha256"] = _hash(list(items))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MemR1Error(f"{path.parent}: cannot be made ({error}); set data.cache to a writable folder") from error
        write_lines(path, [canonical(header), *(canonical({"item": item}) for item in items)])
        if url_of(path) is not None:
            put(path)


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
