"""Overlays against plain dicts through any writes, deletions and forks."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memr1.memory.overlay import Overlay

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["set", "del", "fork", "pop"]), st.integers(0, 3), st.integers(0, 12), st.integers(0, 99)
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_an_overlay_is_a_dict_and_forks_are_independent(steps: list[tuple[str, int, int, int]]) -> None:
    pairs: list[tuple[Overlay[int, int], dict[int, int]]] = [(Overlay(), {})]
    for what, which, key, value in steps:
        overlay, plain = pairs[which % len(pairs)]
        if what == "set":
            overlay[key] = plain[key] = value
        elif what == "pop":
            assert overlay.pop(key, None) == plain.pop(key, None)
        elif what == "del" and key in plain:
            del overlay[key], plain[key]
        elif what == "del":
            with pytest.raises(KeyError):
                del overlay[key]
        elif len(pairs) < 6:
            pairs.append((overlay.fork(), dict(plain)))
        for o, p in pairs:
            assert (len(o), dict(o), o.get(key), key in o) == (len(p), p, p.get(key), key in p)
    for o, p in pairs:
        assert o == p and pickle.loads(pickle.dumps(o)) == p and sorted(o) == sorted(p)


def test_keys_that_are_never_deleted_keep_the_order_of_their_first_writing() -> None:
    overlay: Overlay[int, str] = Overlay()
    for n in range(20):
        overlay[n] = "a"
    fork = overlay.fork()
    for n in (30, 3, 25, 0):
        fork[n] = "b"
    assert list(fork) == [*range(20), 30, 25] and list(fork.fork()) == list(fork) and list(overlay) == list(range(20))


def test_a_fork_copies_what_changed_and_not_the_base() -> None:
    overlay: Overlay[int, int] = Overlay()
    for n in range(1000):
        overlay[n] = n
    forks = [overlay.fork() for _ in range(3)]
    assert all(f._base is overlay._base and not f._own for f in forks)
    forks[0][5] = 0
    again = forks[0].fork()
    assert again._base is overlay._base and len(again._own) == 1
