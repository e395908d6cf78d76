"""The filter language: what matches, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memr1.errors import MemR1Error
from memr1.memory.filters import compile_filters
from memr1.memory.types import MemoryEntry, Provenance

ENTRY = MemoryEntry(
    id="m1",
    text="x",
    created_at="2023-05-08T13:56:00",
    event_time="2023-05-07",
    version=3,
    provenance=Provenance(turn_ids=("D1:1", "D1:2"), speaker="Ann", weight_version=7),
    metadata={"n": 1, "flag": True, "tag": "a", "list": ["a", 1], "nul": "a\0b"},
)


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ({"id": "m1", "kind": "text"}, True),
        ({"id": "m1", "kind": "triple"}, False),
        ({"speaker": ["Bob", "Ann"]}, True),
        ({"speaker": []}, False),
        ({"role": None}, True),
        ({"turn_id": "D1:2"}, True),
        ({"turn_id": {"ne": "D1:2"}}, False),
        ({"turn_id": "D1"}, False),
        ({"version": {"gte": 3, "lt": 4}}, True),
        ({"version": {"gt": 3}}, False),
        ({"weight_version": {"lte": 7}}, True),
        ({"metadata.tag": {"in": ["a", "b"]}}, True),
        ({"metadata.missing": "a"}, False),
        ({"metadata.missing": {"ne": "a"}}, True),
        ({"metadata.n": {"gt": "0"}}, False),  # a number and a text have no order
        ({"metadata.n": True}, False),
        ({"metadata.flag": 1}, False),
        ({"metadata.flag": {"gte": 0}}, False),
        ({"created_at": {"gte": "2023-05-08", "lt": "2023-05-09"}}, True),
        ({"created_at": {"lte": "2023-05-08"}}, False),  # a bare date is its midnight
        ({"created_at": "2023-05-08T15:56:00+02:00"}, True),
        ({"updated_at": {"gt": "2000-01-01"}}, False),
        ({"event_time": "2023-05-07T00:00:00"}, True),
        ({"version": {"eq": 3}}, True),
        ({"event_time": {"eq": "2023-05-07"}}, True),
        ({"speaker": {"nin": ["Bob"]}}, True),
        ({"turn_id": {"nin": ["D1:2"]}}, False),
        ({"metadata.missing": {"nin": ["a"]}}, True),
        ({"metadata.list": {"contains": 1}}, True),
        ({"metadata.list": {"contains": True}}, False),
        ({"metadata.tag": {"contains": "A"}}, False),
        ({"metadata.nul": {"contains": "\0"}}, True),
        ({"version": {"contains": 3}}, False),
        ({"or": [{"speaker": "Bob"}, {"version": 3}]}, True),
        ({"or": [{"speaker": "Bob"}, {"version": 4}]}, False),
        ({"and": [{"speaker": "Ann"}, {"version": 3}], "kind": "text"}, True),
        ({"not": {"speaker": "Ann", "version": 3}}, False),
        ({"not": {"speaker": "Ann", "version": 4}}, True),
        ({"not": {"or": [{"not": {"speaker": "Ann"}}, {"version": 9}]}}, True),
    ],
)
def test_an_entry_matches_when_every_name_holds(filters: dict[str, Any], matches: bool) -> None:
    assert compile_filters(filters)(ENTRY) is matches


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"speeker": "Ann"}, "'speeker' is not a field of an entry; did you mean speaker"),
        ({"metadata.": 1}, "is not a field"),
        ({5: 1}, "5 is not a field"),
        ({"version": {"gte": 1, "lss": 2}}, "filters.version: 'lss' is not a comparison"),
        ({"version": {"gtte": 1}}, "did you mean gte?"),
        ({"version": {}}, "filters.version: empty"),
        ({"version": {"in": 3}}, "filters.version.in: expected a list"),
        ({"event_time": {"gt": "May 2023"}}, "filters.event_time: 'May 2023' is not ISO 8601"),
        ({"event_time": 5}, "filters.event_time: 5 is not ISO 8601"),
        ({}, "filters: empty; name a field"),
        ([], "filters: expected a mapping"),
        ({"or": []}, "filters.or: expected a list of filters that is not empty"),
        ({"and": {"id": "m1"}}, "filters.and: expected a list"),
        ({"not": {}}, "filters.not: empty"),
        ({"or": [{"id": "m1"}, {"idd": "m1"}]}, r"filters.or.1.: 'idd' is not a field of an entry; did you mean id"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(filters: dict, message: str) -> None:
    with pytest.raises(MemR1Error, match=message.replace("?", r"\?")):
        compile_filters(filters)


def test_filters_from_outside_cannot_nest_without_end() -> None:
    filters: dict[str, Any] = {"id": "m1"}
    for _ in range(17):
        filters = {"not": filters}
    with pytest.raises(MemR1Error, match="more than 16 filters inside one another"):
        compile_filters(filters)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["2023-05-08"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(["id", "speaker", "turn_id", "event_time", "metadata.n", "and", "or", "not", "eq", "in", "gt"])
_FILTERS = st.recursive(
    _VALUES,
    lambda inner: st.dictionaries(_KEYS | st.text(max_size=3), inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=8,
)


@given(_FILTERS)
def test_whatever_comes_from_outside_is_a_predicate_or_a_typed_error(filters: Any) -> None:
    try:
        matches = compile_filters(filters)
    except MemR1Error:
        return
    assert matches(ENTRY) in (True, False)
