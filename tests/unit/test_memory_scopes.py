"""Scopes: through a view of a store nothing of another scope can be seen, reached, changed or guessed."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.embed import HashEmbedder
from memr1.memory.scopes import Scope
from memr1.memory.types import Event, MemoryOp
from tests.unit.conftest import Open

ALICE, BOB = Scope(user_id="alice"), Scope(user_id="bob")


def test_banks_of_one_name_in_several_scopes_are_several_banks(open_store: Open) -> None:
    store = open_store()
    scopes = [Scope(user_id=u, agent_id=a, run_id=r) for u, a, r in itertools.product((None, "x", "y"), repeat=3)][1:]
    for n, scope in enumerate(scopes):
        store.scoped(scope).create("facts").apply([MemoryOp(Event.ADD, f"fact of {n}")])
    store.create("facts").apply([MemoryOp(Event.ADD, "nobody's fact")])
    store.close()
    store = open_store()
    for n, scope in enumerate(scopes):
        assert [e.text for e in store.scoped(scope).bank("facts").entries()] == [f"fact of {n}"]
        covered = {
            s
            for s in scopes
            if all(m in (None, t) for m, t in zip(vars(scope).values(), vars(s).values(), strict=True))
        }
        assert {s for s, name in store.scoped(scope).names() if name == "facts"} == covered
    assert [e.text for e in store.bank("facts").entries()] == ["nobody's fact"]


def test_a_bank_of_another_scope_looks_like_none_at_all(open_store: Open) -> None:
    store = open_store()
    store.scoped(ALICE).create("facts")
    bob = store.scoped(BOB)
    for call in (bob.bank, bob.drop):
        errors = []
        for name in ("facts", "nothing"):
            with pytest.raises(MemR1Error) as error:
                call(name)
            errors.append(str(error.value).replace(name, "NAME"))
        assert errors[0] == errors[1], "whether it is there cannot be told"
    bob.create("facts")  # the name is free
    store.scoped(ALICE).drop("facts")
    assert bob.names() == [(BOB, "facts")]


def test_erasing_says_nothing_of_other_scopes(open_store: Open) -> None:
    store = open_store()
    store.scoped(BOB).create("secret").apply([MemoryOp(Event.ADD, "the pin is 4711")])
    hers = store.scoped(ALICE).create("guesses")
    hers.apply([MemoryOp(Event.ADD, "4711"), MemoryOp(Event.ADD, "my guess is 4711")])
    assert hers.erase(["m1"]).also_in == ("decision 1", "entry m2")


@pytest.mark.parametrize("name", ["../alice///facts", "@alice///facts", "/", "a/b", "alice///facts", "%2F"])
def test_a_name_cannot_lead_out_of_its_scope(open_store: Open, name: str) -> None:
    store = open_store()
    store.scoped(ALICE).create("facts").apply([MemoryOp(Event.ADD, "hers")])
    bob = store.scoped(BOB)
    try:
        assert bob.create(name).entries() == []
        assert bob.names() == [(BOB, name)]
    except MemR1Error as error:
        assert "begins with @" in str(error)
    assert store.scoped(ALICE).names() == [(ALICE, "facts")]


def test_a_view_can_be_narrowed_and_not_widened(open_store: Open) -> None:
    store = open_store()
    alice = store.scoped(ALICE)
    run = alice.narrow(run_id="7")
    run.create("notes")
    assert run.scope == Scope(user_id="alice", run_id="7")
    assert alice.names() == run.names() == [(run.scope, "notes")]
    with pytest.raises(MemR1Error, match="there is no bank"):
        alice.bank("notes")  # exactly this scope's
    for more in ({"user_id": "bob"}, {"user_id": None}):
        with pytest.raises(MemR1Error, match="is not within"):
            run.narrow(**more)
    with pytest.raises(MemR1Error, match="scope: team is not known; use tenant, user_id, agent_id and run_id"):
        run.narrow(team="x")


def test_a_bank_in_memory_is_kept_in_a_scope(open_store: Open) -> None:
    store = open_store()
    plain = MemoryBank("b", HashEmbedder(64))
    plain.apply([MemoryOp(Event.ADD, "one")])
    kept = store.scoped(ALICE).adopt(plain, "kept")
    assert kept is store.scoped(ALICE).bank("kept") and kept.log == plain.log
    assert store.scoped(BOB).names() == []


@given(
    parts=st.tuples(
        *[
            st.none()
            | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=5)
        ]
        * 4
    ),
    name=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=9),
)
def test_ids_and_scopes_are_one_to_one(parts: Any, name: str) -> None:
    scope = Scope(*parts)
    if parts == (None, None, None, None):
        with pytest.raises(MemR1Error, match="name a user_id, an agent_id, a run_id or a tenant"):
            scope.bank_id(name)
        return
    assert Scope.of(scope.bank_id(name)) == (scope, name)


def test_bad_scopes_are_refused() -> None:
    for bad in ("", "a\0", "\ud800", 7):
        with pytest.raises(MemR1Error, match="user_id: expected a text that is not empty"):
            Scope(user_id=bad)  # type: ignore[arg-type]
    with pytest.raises(MemR1Error, match="take 3[0-9][0-9] characters together, at most 255"):
        Scope(user_id="x" * 300).bank_id("facts")
    assert Scope.of("facts") is None
