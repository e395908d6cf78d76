"""Reader of Multi-Session Chat with a question for each dialogue (Xu et al., 2021, arXiv 2107.07567; the questions are
MemGPT's, arXiv 2310.08560), as JSON Lines that were put together from both by aligning their texts.
"""

from __future__ import annotations

from pathlib import Path

from memr1.data.fields import Field, parse_json, read_text
from memr1.data.types import Dialogue, Fact, OracleOp, Question, Session, Turn
from memr1.errors import MemR1Error


def read_msc(path: str | Path) -> list[Dialogue]:
    """Read the dialogues of a file, one on each line. Sessions have no dates and questions name no evidence.

    A turn's `fact`, written by people, is its gold fact with the operation ADD; said again word by word it is a NOOP.
    Facts are in the first person, so the speaker's name stands before them. A line that is not `confident` was aligned
    uncertainly: its question's `note` says so. Raises MemR1Error naming file, line, field and remedy.
    """
    dialogues: list[Dialogue] = []
    for number, line in enumerate(read_text(path, "a JSON Lines file of Multi-Session Chat").split("\n"), 1):
        if not line.strip():
            continue
        field = Field(parse_json(line, f"{path}:{number}"), f"{path}:{number}")
        dialogue = _dialogue(field)
        if any(d.id == dialogue.id for d in dialogues):
            field.member("initial_data_id").fail(f"is {dialogue.id}, which another line has; keep one of them")
        dialogues.append(dialogue)
    if not dialogues:
        raise MemR1Error(f"{path}: holds no dialogue; put one JSON object on each line")
    return dialogues


def _dialogue(field: Field) -> Dialogue:
    name = field.member("initial_data_id").text()
    told: set[str] = set()
    sessions = []
    for number, listed in enumerate(field.member("sessions").items(), 1):
        turns = tuple(_turn(item, f"D{number}:{place}", told) for place, item in enumerate(listed.items(), 1))
        if turns:
            sessions.append(Session(f"session_{number}", None, "", turns))
    if not sessions:
        field.member("sessions").fail("hold no turn; give the dialogue at least one")
    notes: list[str] = []
    confident = field.object().get("confident")
    if confident is not None and not confident.boolean():
        notes.append("aligned uncertainly")
    answer = field.member("answer").answer(notes)
    question = Question(f"{name}/q1", field.member("question").text(), answer, "recall", note="; ".join(notes) or None)
    speakers = tuple(dict.fromkeys(turn.speaker for session in sessions for turn in session.turns))
    return Dialogue(name, speakers, tuple(sessions), (question,), {"dataset": "msc", "reconstructed": "yes"})


def _turn(field: Field, turn_id: str, told: set[str]) -> Turn:
    speaker, fact = field.member("speaker").text(), field.object().get("fact")
    facts: tuple[Fact, ...] = ()
    if fact is not None and fact.value is not None:
        text = f"{speaker}: {fact.text()}"
        facts = (Fact(text, OracleOp("NOOP", "") if text in told else OracleOp("ADD", text)),)
        told.add(text)
    return Turn(turn_id, speaker, field.member("text").text(allow_empty=True), facts)
