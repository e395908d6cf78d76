"""Filters of a search: which entries may be found, by fields, provenance and metadata.

A filter maps names to a value (equal), a list of values (one of them), or comparisons such as
`{"gte": "2023-05-01", "lt": "2023-06-01"}`. All names must hold.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from memr1.errors import MemR1Error
from memr1.memory.types import MemoryEntry

_ENTRY = ("id", "kind", "version", "created_at", "updated_at", "event_time")
_TIMES = ("created_at", "updated_at", "event_time")
_PROVENANCE = ("speaker", "role", "model", "adapter", "weight_version")
_NAMES = (*_ENTRY, *_PROVENANCE, "turn_id", "metadata.<key>")
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}
_COMPARISONS = (*_ORDER, "ne", "in")


def compile_filters(filters: Mapping[str, Any]) -> Callable[[MemoryEntry], bool]:
    """A predicate on entries; `MemR1Error` for a name or comparison that does not exist.

    Times compare as moments (one without a zone counts as UTC; a bare date is its midnight). A value that is missing,
    or of a type that cannot be compared, does not match, except with `ne`. `turn_id` looks at every turn of the
    entry's provenance.
    """
    tests = [_compile(name, wanted) for name, wanted in filters.items()]
    return lambda entry: all(test(entry) for test in tests)


def _compile(name: str, wanted: Any) -> Callable[[MemoryEntry], bool]:
    values = _reader(name)
    test = _test(name, wanted)
    return lambda entry: test(values(entry))


def _reader(name: str) -> Callable[[MemoryEntry], tuple[Any, ...]]:
    """The values of an entry that a name stands for: one, or several for `turn_id`."""
    if name in _TIMES:
        return lambda entry: (_moment(getattr(entry, name), name),)
    if name in _ENTRY:
        return lambda entry: (getattr(entry, name),)
    if name in _PROVENANCE:
        return lambda entry: (getattr(entry.provenance, name),)
    if name == "turn_id":
        return lambda entry: entry.provenance.turn_ids
    if isinstance(name, str) and name.startswith("metadata.") and len(name) > len("metadata."):
        key = name.removeprefix("metadata.")
        return lambda entry: (entry.metadata.get(key),)
    near = difflib.get_close_matches(str(name), _NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_NAMES)}"
    raise MemR1Error(f"filters: {name!r} is not a field of an entry; {hint}")


def _test(name: str, wanted: Any) -> Callable[[tuple[Any, ...]], bool]:
    read = (lambda value: _moment(value, f"filters.{name}")) if name in _TIMES else (lambda value: value)
    if isinstance(wanted, Mapping):
        if not wanted:
            raise MemR1Error(f"filters.{name}: empty; give a value or one of {', '.join(_COMPARISONS)}")
        tests = [_comparison(name, word, value, read) for word, value in wanted.items()]
        return lambda values: all(test(values) for test in tests)
    return _comparison(name, "in", wanted if isinstance(wanted, list | tuple | set | frozenset) else [wanted], read)


def _comparison(name: str, word: str, value: Any, read: Callable[[Any], Any]) -> Callable[[tuple[Any, ...]], bool]:
    if word == "in":
        if not isinstance(value, list | tuple | set | frozenset):
            raise MemR1Error(f"filters.{name}.in: expected a list, got {value!r}")
        options = [read(v) for v in value]
        return lambda values: any(_same(v, option) for v in values for option in options)
    wanted = read(value)
    if word == "ne":
        return lambda values: not any(_same(v, wanted) for v in values)
    if word in _ORDER:
        order = _ORDER[word]
        return lambda values: any(_comparable(v, wanted) and order(v, wanted) for v in values)
    near = difflib.get_close_matches(str(word), _COMPARISONS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_COMPARISONS)}"
    raise MemR1Error(f"filters.{name}: {word!r} is not a comparison; {hint}")


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) is isinstance(b, bool) and a == b  # True == 1 in Python, but not in anyone's metadata


def _comparable(a: Any, b: Any) -> bool:
    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    return (is_number(a) and is_number(b)) or (type(a) is type(b) and isinstance(a, str | datetime))


def _moment(value: Any, where: str) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise MemR1Error(f"{where}: {value!r} is not ISO 8601; write 2023-05-08 or 2023-05-08T13:56:00") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
