"""Strict JSON lines: canonical text, atomic files, and errors that name the file, the line and the field.

Called by the operation log. Knows nothing of memories.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error


def canonical(value: Any) -> str:
    """One text per value: sorted keys, no spaces, ASCII (so that any text a model wrote survives), no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Write a whole file or nothing: a temporary file beside it, fsync, rename, fsync of the directory.

    The file keeps the permissions of the one it replaces; a new one is readable by its owner only.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    except OSError as error:
        raise MemR1Error(
            f"{target}: cannot write here ({error}); name a file in an existing, writable folder"
        ) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(name, target.stat().st_mode & 0o777)
        os.replace(name, target)
        name = ""
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # without it a power cut can bring the old file back after we reported success
        finally:
            os.close(folder)
    except OSError as error:
        raise MemR1Error(f"{target}: writing failed ({error}); free space or choose another place") from error
    finally:
        if name:
            os.unlink(name)


def read_objects(path: str | os.PathLike[str]) -> Iterator[Fields]:
    """Every line of a JSON-lines file as an object that knows where it stands."""
    source = Path(path)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise MemR1Error(f"{source}: cannot be read ({error}); check the path") from error
    for number, line in enumerate(data.splitlines(), start=1):
        yield parse_object(line, f"{source}:{number}")


def parse_object(text: str | bytes, where: str) -> Fields:
    """One JSON object; `where` begins its errors."""
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(decoded, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise MemR1Error(f"{where}: not JSON ({error}); every line is one object") from error
    return Fields(value, where)


def plain_json(value: Any, where: str) -> Any:
    """A deep copy in plain JSON types (tuples become lists, keys texts), which nobody else holds a reference to."""
    try:
        return json.loads(canonical(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise MemR1Error(
            f"{where}: {error}; use texts, finite numbers, true, false, null, lists and objects"
        ) from error


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is out of range")
    return number


class Fields:
    """A JSON object whose fields are taken out one by one, with their types; errors read `file:line:field: …`."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise MemR1Error(f"{where}: expected an object, got {_named(value)}")
        self.where = where
        self._value = value
        self._left = set(value)

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def fail(self, name: str, problem: str) -> MemR1Error:
        """The error for a field that is well-formed but wrong; raise what this returns."""
        return MemR1Error(f"{self.where}:{name}: {problem}")

    def take(self, name: str, *types: type | None) -> Any:
        """The value of a field, which must be there and of one of `types` (None allows null)."""
        if name not in self._value:
            raise MemR1Error(f"{self.where}:{name}: the field is missing")
        self._left.discard(name)
        value = self._value[name]
        if value is None:
            if None in types:
                return None
        elif type(value) in types:  # exact, because True is an int to isinstance
            return value
        expected = " or ".join("null" if t is None else _NAMES[t] for t in types)
        raise self.fail(name, f"expected {expected}, got {_named(value)}")

    def child(self, name: str) -> Fields:
        """A field that is itself an object."""
        return Fields(self.take(name, dict), f"{self.where}:{name}")

    def children(self, name: str) -> list[Fields]:
        """A field that is a list of objects."""
        return [Fields(item, f"{self.where}:{name}[{i}]") for i, item in enumerate(self.take(name, list))]

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is a list of texts."""
        values = self.take(name, list)
        for value in values:
            if not isinstance(value, str):
                raise self.fail(name, f"expected a list of texts, got {_named(value)} in it")
        return tuple(values)

    def end(self) -> None:
        """Refuse what nobody took: an unknown field is a newer format or a typing error, and dropping it loses data."""
        if self._left:
            raise MemR1Error(f"{self.where}:{min(self._left)}: unknown field; was the file written by a newer memr1?")


_NAMES: dict[type, str] = {
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _named(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)
