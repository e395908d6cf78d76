"""ResumableSampler: resuming changes nothing, and an epoch repeats nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memr1.data.sampler import ResumableSampler
from memr1.errors import MemR1Error


@given(num_items=st.integers(1, 20), seed=st.integers(0, 5), first=st.integers(0, 50), second=st.integers(0, 50))
def test_taking_ten_equals_taking_five_restoring_and_taking_five(
    num_items: int, seed: int, first: int, second: int
) -> None:
    whole = ResumableSampler(num_items, seed).take(first + second)
    begun = ResumableSampler(num_items, seed)
    taken = begun.take(first)
    resumed = ResumableSampler(num_items, seed)
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    assert taken + resumed.take(second) == whole


@given(num_items=st.integers(1, 30), step=st.integers(1, 7))
def test_an_epoch_holds_every_item_once_however_it_is_taken(num_items: int, step: int) -> None:
    sampler = ResumableSampler(num_items, seed=3)
    taken: list[int] = []
    while len(taken) < 3 * num_items:
        taken += sampler.take(step)
    for epoch in range(3):
        assert sorted(taken[epoch * num_items : (epoch + 1) * num_items]) == list(range(num_items))


def test_epochs_and_seeds_differ_in_order() -> None:
    taken = ResumableSampler(50, seed=0).take(100)
    assert taken[:50] != taken[50:]
    assert taken[:50] != ResumableSampler(50, seed=1).take(50)
    assert taken[:50] != list(range(50))


@pytest.mark.parametrize(("num_items", "seed", "name"), [(6, 0, "num_items"), (5, 1, "seed")])
def test_a_state_of_other_data_or_another_seed_is_refused(num_items: int, seed: int, name: str) -> None:
    state = ResumableSampler(num_items, seed).state_dict()
    with pytest.raises(MemR1Error, match=f"{name} is .* in the checkpoint"):
        ResumableSampler(5, 0).load_state_dict(state)


@pytest.mark.parametrize("broken", [{"position": 6}, {"position": -1}, {"epoch": None}, {"epoch": -1}])
def test_a_broken_state_is_refused(broken: dict[str, int]) -> None:
    with pytest.raises(MemR1Error, match="do not fit 5 items"):
        ResumableSampler(5, 0).load_state_dict(ResumableSampler(5, 0).state_dict() | broken)


def test_an_empty_dataset_and_a_negative_take_are_errors() -> None:
    with pytest.raises(MemR1Error, match="0 items"):
        ResumableSampler(0)
    with pytest.raises(ValueError, match="-1"):
        ResumableSampler(3).take(-1)
