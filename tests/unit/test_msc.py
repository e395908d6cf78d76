"""The Multi-Session Chat reader: its traps on fixtures written here, and the real file where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memr1.data.msc import read_msc
from memr1.errors import MemR1Error
from tests.unit.shared_data import SHARED, needs

DATA = SHARED / "msc"

LINE: dict[str, Any] = {
    "row": 4,
    "initial_data_id": "valid_9",
    "confident": True,
    "question": "What did you say you keep?",
    "answer": "Two bees!",
    "sessions": [
        [
            {"speaker": "Speaker 1", "text": "Hi!", "fact": None},
            {"speaker": "Speaker 2", "text": "I keep two bees.", "fact": "I keep two bees."},
        ],
        [],
        [
            {"speaker": "Speaker 1", "text": "I keep two bees, too.", "fact": "I keep two bees."},
            {"speaker": "Speaker 2", "text": "As I said, two bees.", "fact": "I keep two bees."},
        ],
    ],
}


def write(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "msc.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_facts_are_added_under_their_speaker_and_said_again_are_noop(tmp_path: Path) -> None:
    (dialogue,) = read_msc(write(tmp_path, LINE))
    assert (dialogue.id, dialogue.speakers) == ("valid_9", ("Speaker 1", "Speaker 2"))
    assert dialogue.metadata["reconstructed"] == "yes"
    facts = {t.id: [(f.text, f.oracle and f.oracle.event) for f in t.facts or ()] for _, t in dialogue.turns()}
    assert facts == {
        "D1:1": [],
        "D1:2": [("Speaker 2: I keep two bees.", "ADD")],
        "D3:1": [("Speaker 1: I keep two bees.", "ADD")],
        "D3:2": [("Speaker 2: I keep two bees.", "NOOP")],
    }
    (question,) = dialogue.questions
    assert (question.answer, question.evidence, question.note) == ("Two bees!", (), None)


def test_an_uncertain_alignment_and_a_number_are_said(tmp_path: Path) -> None:
    (dialogue,) = read_msc(write(tmp_path, {**LINE, "confident": False, "answer": 2}))
    assert dialogue.questions[0].note == "aligned uncertainly; answer was a number"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINE, LINE], r"msc.jsonl:2: initial_data_id is valid_9, which another line has"),
        ([], "holds no dialogue"),
        ([{**LINE, "sessions": [[]]}], "sessions hold no turn"),
        ([{**LINE, "answer": None}], "answer is null; make it a string"),
        ([{**LINE, "confident": 1}], "make it true or false"),
    ],
)
def test_what_cannot_be_read_names_line_field_and_remedy(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(MemR1Error, match=message):
        read_msc(write(tmp_path, *lines))


@needs("msc")
def test_the_real_file_is_read() -> None:
    dialogues = read_msc(DATA / "self_instruct_reconstructed.jsonl")
    assert len(dialogues) == 120 and {len(d.sessions) for d in dialogues} == {4}
    facts = [f for d in dialogues for _, t in d.turns() for f in t.facts or ()]
    assert len(facts) == 3903
    for dialogue in dialogues:
        added = [f.text for _, t in dialogue.turns() for f in t.facts or () if f.oracle and f.oracle.event == "ADD"]
        assert len(added) == len(set(added))
