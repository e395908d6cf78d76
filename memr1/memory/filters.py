"""Filters of a search: which entries may be found, by fields, provenance and metadata.

A filter maps names to a value (equal), a list of values (one of them), or comparisons such as
`{"gte": "2023-05-01", "lt": "2023-06-01"}`. All names must hold. `and`, `or` (lists of filters) and `not` (a filter)
combine filters. A filter is data from the first to the last: no query text is ever built from it.
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
_PROVENANCE = ("speaker", "role", "model", "adapter", "weight_version", "trusted")
_NAMES = (*_ENTRY, *_PROVENANCE, "turn_id", "metadata.<key>")
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}
_COMPARISONS = ("eq", "ne", *_ORDER, "in", "nin", "contains")
_DEEPEST = 16
"""Filters inside filters; deeper ones are refused, since they come from outside."""

Predicate = Callable[[MemoryEntry], bool]


def compile_filters(filters: Mapping[str, Any]) -> Predicate:
    """A predicate on entries; `MemR1Error` for a name or comparison that does not exist, or an empty filter.

    Times compare as moments (one without a zone counts as UTC; a bare date is its midnight). A value that is missing,
    or of a type that cannot be compared, does not match, except with `ne` and `nin`. `contains` looks for a member of a
    list or for a part of a text, case and all. `turn_id` looks at every turn of the entry's provenance.
    """
    return _all_of(filters, "filters", depth=0)


def _all_of(filters: Any, where: str, depth: int) -> Predicate:
    if not isinstance(filters, Mapping):
        raise MemR1Error(f"{where}: expected a mapping of names to values, got {filters!r}")
    if not filters:
        raise MemR1Error(f"{where}: empty; name a field, or leave the filter out")
    if depth > _DEEPEST:
        raise MemR1Error(f"{where}: more than {_DEEPEST} filters inside one another")
    tests = [_compile(name, wanted, where, depth) for name, wanted in filters.items()]
    return lambda entry: all(test(entry) for test in tests)


def _compile(name: Any, wanted: Any, where: str, depth: int) -> Predicate:
    if name == "not":
        test = _all_of(wanted, f"{where}.not", depth + 1)
        return lambda entry: not test(entry)
    if name in ("and", "or"):
        if not isinstance(wanted, list | tuple) or not wanted:
            raise MemR1Error(f"{where}.{name}: expected a list of filters that is not empty, got {wanted!r}")
        tests = [_all_of(w, f"{where}.{name}[{i}]", depth + 1) for i, w in enumerate(wanted)]
        combine = all if name == "and" else any
        return lambda entry: combine(test(entry) for test in tests)
    values = _reader(name, where)
    compare = _test(name, wanted, where)
    return lambda entry: compare(values(entry))


def _reader(name: Any, where: str) -> Callable[[MemoryEntry], tuple[Any, ...]]:
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
    raise MemR1Error(f"{where}: {name!r} is not a field of an entry; {hint}")


def _test(name: str, wanted: Any, where: str) -> Callable[[tuple[Any, ...]], bool]:
    where = f"{where}.{name}"
    read = (lambda value: _moment(value, where)) if name in _TIMES else (lambda value: value)
    if isinstance(wanted, Mapping):
        if not wanted:
            raise MemR1Error(f"{where}: empty; give a value or one of {', '.join(_COMPARISONS)}")
        tests = [_comparison(word, value, read, where) for word, value in wanted.items()]
        return lambda values: all(test(values) for test in tests)
    return _comparison("in", wanted if isinstance(wanted, _LISTS) else [wanted], read, where)


_LISTS = (list, tuple, set, frozenset)


def _comparison(word: Any, value: Any, read: Callable[[Any], Any], where: str) -> Callable[[tuple[Any, ...]], bool]:
    if word in ("in", "nin"):
        if not isinstance(value, _LISTS):
            raise MemR1Error(f"{where}.{word}: expected a list, got {value!r}")
        options = [read(v) for v in value]
        return lambda values: any(_same(v, option) for v in values for option in options) is (word == "in")
    if word == "contains":
        return lambda values: any(_contains(v, value) for v in values)
    operand = read(value)
    if word in ("eq", "ne"):
        return lambda values: any(_same(v, operand) for v in values) is (word == "eq")
    if word in _ORDER:
        order = _ORDER[word]
        return lambda values: any(_comparable(v, operand) and order(v, operand) for v in values)
    near = difflib.get_close_matches(str(word), _COMPARISONS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_COMPARISONS)}"
    raise MemR1Error(f"{where}: {word!r} is not a comparison; {hint}")


def _contains(value: Any, part: Any) -> bool:
    if isinstance(value, str):
        return isinstance(part, str) and part in value
    return isinstance(value, list) and any(_same(v, part) for v in value)


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
        return parse_moment(value)
    except (TypeError, ValueError) as error:
        raise MemR1Error(f"{where}: {value!r} is not ISO 8601; write 2023-05-08 or 2023-05-08T13:56:00") from error


def parse_moment(value: str) -> datetime:
    """ISO 8601 text as a moment; without a zone it counts as UTC. ValueError for other text."""
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
