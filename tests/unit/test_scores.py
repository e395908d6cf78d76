"""Measures: when each applies, and what it gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memr1.data.types import Contract
from memr1.errors import MemR1Error
from memr1.evaluation.predictions import Prediction
from memr1.evaluation.rows import summarize
from memr1.evaluation.scores import score
from memr1.evaluation.table import markdown_table
from memr1.rewards.match import declines

PLAIN = Prediction("b", "s", "d", "q", "temporal", 2, "When?", "May 2023", "2 May 2023")
CONTRACT = Contract(
    required=("uses Blue", "port 80"), prohibited=("red",), admissible_turns=("t2",), prohibited_turns=("t9",)
)
BOUND = replace(
    PLAIN,
    category_id=None,
    answer="It  uses BLUE on port 80.",
    evidence=("t1",),
    shown_turns=(("t1",), ("t2", "t3"), ("t4",)),
    contract=CONTRACT,
)


def test_the_two_families_of_f1_stand_side_by_side() -> None:
    assert score(PLAIN, "f1") == pytest.approx(0.8)
    paints = replace(PLAIN, gold="paintings and pottery", answer="painting pottery")
    assert score(paints, "f1") == pytest.approx(0.4)
    assert score(paints, "locomo_f1") == 1.0
    assert score(replace(PLAIN, category_id=None), "locomo_f1") is None


def test_category_5_is_scored_by_the_official_rule_and_by_nothing_that_matches_text() -> None:
    adversarial = replace(PLAIN, category_id=5, gold=None, abstain=True, answer="Not mentioned in the conversation")
    assert [score(adversarial, m) for m in ("em_set", "f1", "locomo_f1", "abstained")] == [None, None, 1.0, 1.0]
    unknown = replace(adversarial, answer="unknown")  # declines, though not in the official words
    assert [score(unknown, m) for m in ("locomo_f1", "abstained")] == [0.0, 1.0]
    guessed = replace(adversarial, answer="Bread", gold="No")  # two items of the file have an answer
    assert [score(guessed, m) for m in ("em_set", "locomo_f1", "abstained")] == [None, 0.0, 0.0]


@pytest.mark.parametrize(
    "text",
    [
        "unknown",
        "Unknown.",
        "No information available.",
        "You did not mention this information.",
        "The dialogue doesn\u2019t mention a hamster.",
        "I cannot determine that",
        "It was never discussed.",
        "not available for the current task",
        "That is not authorized for the current scope.",
        "I don't know",
    ],
)
def test_answers_that_decline(text: str) -> None:
    assert declines(text)


@pytest.mark.parametrize("text", ["Oslo", "The Unknown Soldier", "nine months", "no", "not red", "He mentioned it", ""])
def test_answers_that_do_not_decline(text: str) -> None:
    assert not declines(text)


def test_a_contract_is_kept_only_as_a_whole() -> None:
    assert [score(BOUND, m) for m in ("contract", "required", "clean")] == [1.0, 1.0, 1.0]
    assert score(BOUND, "admissible") == pytest.approx(2 / 3)
    half = replace(BOUND, answer="it uses blue")
    assert [score(half, m) for m in ("contract", "required", "clean")] == [0.0, 0.5, 1.0]
    leaky = replace(BOUND, answer="it uses blue on port 80, not RED")
    assert [score(leaky, m) for m in ("contract", "required", "clean")] == [0.0, 1.0, 0.0]
    shown = replace(BOUND, shown_turns=(("t1",), ("t9",)))
    assert [score(shown, m) for m in ("contract", "required", "clean", "admissible")] == [0.0, 1.0, 1.0, 0.5]
    silent = replace(BOUND, answer=None)
    assert [score(silent, m) for m in ("contract", "required", "clean")] == [0.0, 0.0, 1.0]
    nothing_required = replace(CONTRACT, required=())
    assert score(replace(BOUND, contract=nothing_required), "contract") == 1.0
    assert score(replace(silent, contract=nothing_required), "contract") == 0.0


def test_a_contract_to_refuse_is_kept_by_declining() -> None:
    refused = replace(BOUND, abstain=True, contract=replace(CONTRACT, required=()), answer="That is not available.")
    assert [score(refused, m) for m in ("contract", "required", "abstained")] == [1.0, None, 1.0]
    assert score(replace(refused, answer="Certainly: blue"), "contract") == 0.0
    assert score(replace(refused, shown_turns=(("t9",),)), "contract") == 0.0


def test_measures_that_do_not_apply_leave_no_trace() -> None:
    assert [score(PLAIN, m) for m in ("abstained", "contract", "required", "clean", "admissible")] == [None] * 5
    with pytest.raises(MemR1Error, match="measure 'f2' is not one of em_strict"):
        score(PLAIN, "f2")


def test_each_measure_is_the_mean_of_the_questions_that_it_applies_to() -> None:
    declined = replace(PLAIN, question_id="q2", category="adversarial", category_id=5, gold=None, abstain=True)
    rows = [PLAIN, replace(declined, answer="not mentioned"), replace(declined, question_id="q3")]
    row = summarize(rows, measures=("locomo_f1", "abstained"))
    assert (row.n, row.unscored) == (3, 0)
    assert {m: (round(i.mean, 3), i.n) for m, i in row.metrics.items() if m in ("f1", "locomo_f1", "abstained")} == {
        "f1": (0.8, 1),
        "locomo_f1": (0.6, 3),
        "abstained": (0.5, 2),
    }
    cells = markdown_table([row], by_category="f1").splitlines()
    assert cells[0] == "| system | 2 temporal (n=1) | 5 adversarial (n=2) |"
    assert cells[2].startswith("| s | 80.0 | 50.0 [")
