"""The LongMemEval reader: both schemas and their traps on fixtures written here, and the real samples."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from memr1.data.longmemeval import LONGMEMEVAL_TYPES, parse_time, read_longmemeval
from memr1.errors import MemR1Error
from tests.unit.shared_data import SHARED, needs

DATA = SHARED / "longmemeval"


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


NATIVE: dict[str, Any] = {
    "question_id": "q7",
    "question_type": "temporal-reasoning",
    "question": "How many kites do I own?",
    "question_date": "2024/03/09 (Sat) 23:40",
    "answer": 3,
    "answer_session_ids": ["late"],
    "haystack_dates": ["2024/03/08 (Fri) 10:05", "2024/03/02 (Sat) 09:00", "2024/03/05 (Tue) 12:00", "2024/03/06"],
    "haystack_session_ids": ["late", "early", "empty", "early"],
    "haystack_sessions": [
        [said("user", "I bought a third kite.", has_answer=True), said("assistant", "Nice!", has_answer=False)],
        [said("user", "Hello."), said("assistant", "")],
        [],
        [said("user", "Again.")],
    ],
}


def write(tmp_path: Path, data: Any) -> Path:
    path = tmp_path / "longmemeval.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def changed(**changes: Any) -> list[dict[str, Any]]:
    return [{**NATIVE, **changes}]


def test_sessions_come_by_date_without_empty_ones_and_evidence_is_the_marked_turns(tmp_path: Path) -> None:
    (dialogue,) = read_longmemeval(write(tmp_path, [NATIVE]))
    assert [s.id for s in dialogue.sessions] == ["early", "early#2", "late"]
    assert [s.time_text for s in dialogue.sessions][2] == "2024/03/08 (Fri) 10:05"
    assert [t.id for _, t in dialogue.turns()] == ["D1:1", "D1:2", "D2:1", "D3:1", "D3:2"]
    assert all(t.facts is None for _, t in dialogue.turns())
    (question,) = dialogue.questions
    assert question.evidence == ("D3:1",)
    assert (question.answer, question.note) == ("3", "answer was a number")
    assert (question.category, question.category_id, question.abstain) == ("temporal-reasoning", 5, False)
    assert question.shown_text == "How many kites do I own? (asked on 2024/03/09 (Sat) 23:40)"


def test_one_item_alone_is_read_like_a_list(tmp_path: Path) -> None:
    assert read_longmemeval(write(tmp_path, NATIVE)) == read_longmemeval(write(tmp_path, [NATIVE]))


def test_an_id_that_ends_in_abs_abstains_whatever_its_type(tmp_path: Path) -> None:
    (dialogue,) = read_longmemeval(write(tmp_path, changed(question_id="q7_abs", answer="You did not say.")))
    (question,) = dialogue.questions
    assert (question.abstain, question.category, question.category_id) == (True, "abstention", 7)
    assert question.note == "varies temporal-reasoning"


def test_flattened_messages_are_sessions_by_date_and_questions_keep_their_flags(tmp_path: Path) -> None:
    days = ("2024/03/09 (Sat) 10:00", "2024/03/02 (Sat) 09:00")
    talk = [
        said("user", "Second.", date=days[0]),
        said("assistant", "Yes.", date=days[0]),
        said("user", "1st.", date=days[1]),
    ]
    asked = [
        {"id": "a", "question": "What came first?", "answer": 1},
        {"id": "b", "question": "Who?", "answer": "You did not mention it.", "is_abstention": True},
    ]
    item = {"id": "multi-1", "question_type": "multi-session", "conversation": talk, "questions": asked}
    (dialogue,) = read_longmemeval(write(tmp_path, {"source": "x", "data": [item]}))
    assert [[t.text for t in s.turns] for s in dialogue.sessions] == [["1st."], ["Second.", "Yes."]]
    assert dialogue.sessions[0].time == datetime(2024, 3, 2, 9)
    assert [(q.id, q.answer, q.category, q.abstain) for q in dialogue.questions] == [
        ("multi-1/a", "1", "multi-session", False),
        ("multi-1/b", "You did not mention it.", "abstention", True),
    ]
    item["questions"] = [asked[0], asked[0]]
    with pytest.raises(MemR1Error, match="item multi-1: the record has two questions with the id a; give each its own"):
        read_longmemeval(write(tmp_path, {"data": [item]}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([NATIVE, NATIVE], r"item q7: the record occurs twice; keep one"),
        ([], "holds no item"),
        (changed(question_type="multi-sesion"), r"question_type is a string \(\"multi-sesion\"\); use one of single-"),
        (
            changed(haystack_dates=["2024/03/08"]),
            "has 4 haystack_sessions, 1 haystack_dates and 4 haystack_session_ids",
        ),
        (changed(haystack_dates=["8 March"] * 4), r"haystack_dates\[0\] is a string .*; write it like 2023/05/30"),
        (changed(haystack_sessions=[[], [], [], []]), "holds no session with messages"),
        (changed(answer=None), r"answer is null; make it a string"),
        ([{"question": "?"}], r"\[0\] has no id; add it"),
    ],
)
def test_what_cannot_be_read_names_item_field_and_remedy(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(MemR1Error, match=message):
        read_longmemeval(write(tmp_path, data))


def test_times_with_and_without_weekday_and_hour() -> None:
    assert parse_time("2023/05/30 (Tue) 21:48") == datetime(2023, 5, 30, 21, 48)
    assert parse_time("2023/05/30") == datetime(2023, 5, 30)
    assert parse_time("2023/13/30 (Tue) 21:48") is None
    assert parse_time("30 May 2023") is None


@needs("longmemeval")
def test_the_real_samples_are_read() -> None:
    oracle = read_longmemeval(DATA / "longmemeval_oracle_sample.json")
    assert {q.category for d in oracle for q in d.questions} == set(LONGMEMEVAL_TYPES[:6])
    assert len(oracle) == 16 and sum(q.note == "answer was a number" for d in oracle for q in d.questions) == 1
    assert all([s.time for s in d.sessions] == sorted(s.time for s in d.sessions if s.time) for d in oracle)
    abstaining = read_longmemeval(DATA / "longmemeval_abstain_sample.json")
    assert [q.abstain for d in abstaining for q in d.questions] == [True] * 4
    (whole,) = read_longmemeval(DATA / "longmemeval_single.json")
    assert len(whole.sessions) == 53 and sum(1 for _ in whole.turns()) == 550
    assert len(whole.questions[0].evidence) == 2
    (snippet,) = read_longmemeval(DATA / "longmemeval_snippet.json")
    assert [s.id[-2:] for s in snippet.sessions] == ["_3", "_1", "_2"]  # by date, not as they stand
