"""A dict that forks in time and memory of what has changed: a base that many share, and changes of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_GONE: Any = object()
"""Stands in the changes for a key of the base that was deleted."""
FLATTEN = 4
"""Changes are worked into a base of one's own once they are more than one in this many of its keys: then copying the
base costs no more than a few times what was written."""


class Overlay(MutableMapping[K, V]):
    """Keeps the order of first insertion, as a dict does, except that a deleted key of the base keeps its place."""

    __slots__ = ("_base", "_length", "_own")

    def __init__(self, base: Mapping[K, V] | None = None) -> None:
        """base: is not changed, and must not be from now on."""
        self._base: Mapping[K, V] = {} if base is None else base
        self._own: dict[K, V] = {}
        self._length = len(self._base)

    def __getitem__(self, key: K) -> V:
        value = self._own.get(key, _GONE)
        if value is _GONE:
            if key in self._own:
                raise KeyError(key)
            return self._base[key]
        return value

    def __setitem__(self, key: K, value: V) -> None:
        self._length += key not in self
        self._own[key] = value

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        self._length -= 1
        if key in self._base:
            self._own[key] = _GONE
        else:
            del self._own[key]

    def __contains__(self, key: object) -> bool:
        own = self._own.get(key, _GONE)  # type: ignore[arg-type]
        return own is not _GONE or (key not in self._own and key in self._base)

    def __iter__(self) -> Iterator[K]:
        own, base = self._own, self._base
        for key in base:
            if own.get(key, None) is not _GONE:
                yield key
        for key in own:
            if key not in base:
                yield key

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        return dict(self) == dict(other) if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __reduce__(self) -> tuple[Any, ...]:
        return Overlay, (dict(self),)  # `_GONE` is nothing outside of this process

    def fork(self) -> Overlay[K, V]:
        """A mapping that is equal now and independent from now on."""
        if len(self._own) * FLATTEN > len(self._base):
            self._base, self._own = dict(self), {}
        other: Overlay[K, V] = Overlay(self._base)
        other._own, other._length = dict(self._own), self._length
        return other
