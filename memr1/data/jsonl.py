"""Dialogues as JSON Lines: the format in which users bring their own data, one dialogue per line (docs/data.md)."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from memr1.data.dates import spell_date
from memr1.data.fields import Field, parse_json, read_text
from memr1.data.types import Contract, Dialogue, Fact, OracleOp, Question, Session, Turn
from memr1.errors import MemR1Error

_EVENTS = ("ADD", "UPDATE", "DELETE", "NOOP")


def read_jsonl(path: str | Path) -> list[Dialogue]:
    """Read dialogues. Raises MemR1Error naming file, line, field and remedy; a file without dialogues is an error."""
    dialogues: list[Dialogue] = []
    lines: dict[str, int] = {}
    # Not splitlines(): it also splits at U+2028 and other characters that may stand inside a JSON string.
    for number, line in enumerate(read_text(path, "a JSON Lines file of dialogues").split("\n"), 1):
        if not line.strip():
            continue
        source = f"{path}:{number}"
        dialogue = _dialogue(Field(parse_json(line, source), source))
        if dialogue.id in lines:
            raise MemR1Error(
                f"{source}: id {dialogue.id!r} is taken by line {lines[dialogue.id]}; give each dialogue its own"
            )
        lines[dialogue.id] = number
        dialogues.append(dialogue)
    if not dialogues:
        raise MemR1Error(f"{path}: holds no dialogue; put one JSON object on each line")
    return dialogues


def write_jsonl(dialogues: Iterable[Dialogue], path: str | Path) -> None:
    """Write dialogues so that `read_jsonl` gives them back exactly. The file appears whole or not at all.

    Raises MemR1Error for a dialogue that would not read back, for an empty list and where the file cannot be written.
    """
    lines: list[str] = []
    ids: set[str] = set()
    for dialogue in dialogues:
        record = dialogue_to_json(dialogue)
        source = f"{path}: dialogue {dialogue.id!r}"
        if dialogue.id in ids:
            raise MemR1Error(f"{source}: the id occurs twice; give each dialogue its own")
        if _dialogue(Field(record, source)) != dialogue:
            raise MemR1Error(f"{source}: does not read back as written; use the types of memr1.data.types throughout")
        ids.add(dialogue.id)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    if not lines:
        raise MemR1Error(f"{path}: there is no dialogue to write; pass at least one")
    target, partial = Path(path), Path(f"{path}.partial")
    try:
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise MemR1Error(
            f"{path}: cannot be written ({error.strerror}); check the folder and its permissions"
        ) from None


def dialogue_to_json(dialogue: Dialogue) -> dict[str, Any]:
    """A line of the file as plain JSON values."""
    record = json.loads(json.dumps(dataclasses.asdict(dialogue), default=_as_iso))
    for session in record["sessions"]:
        for turn in session["turns"]:
            _drop_nulls(turn)
            for fact in turn.get("facts", ()):
                _drop_nulls(fact)
                _drop_nulls(fact.get("oracle", {}))
    for question in record["questions"]:
        _drop_nulls(question)
    return record


def _drop_nulls(record: dict[str, Any]) -> None:
    for key in [k for k, v in record.items() if v is None]:
        del record[key]


def _as_iso(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise MemR1Error(f"{value!r} cannot be written as JSON; use the types of memr1.data.types throughout")


def _optional_text(members: dict[str, Field], key: str, *, allow_empty: bool = False) -> str | None:
    field = members.get(key)
    return None if field is None or field.value is None else field.text(allow_empty=allow_empty)


def _dialogue(field: Field) -> Dialogue:
    members = field.object({"id", "speakers", "sessions", "questions", "metadata"})
    dialogue_id = field.member("id").text()
    sessions = tuple(_session(item, n) for n, item in enumerate(field.member("sessions").items(), 1))
    turns = [turn for session in sessions for turn in session.turns]
    if not turns:
        members["sessions"].fail("hold no turn; give the dialogue at least one")
    _check_unique([s.id for s in sessions], members["sessions"], "session")
    _check_unique([t.id for t in turns], members["sessions"], "turn")
    if "speakers" in members:
        speakers = tuple(item.text() for item in members["speakers"].items())
        for turn in turns:
            if turn.speaker not in speakers:
                members["speakers"].fail(f"lack {turn.speaker!r}, who speaks in turn {turn.id!r}; add the name")
    else:
        speakers = tuple(dict.fromkeys(turn.speaker for turn in turns))
    turn_ids = {turn.id for turn in turns}
    questions: tuple[Question, ...] = ()
    if "questions" in members:
        listed = enumerate(members["questions"].items(), 1)
        questions = tuple(_question(item, f"{dialogue_id}/q{n}", turn_ids) for n, item in listed)
        _check_unique([q.id for q in questions], members["questions"], "question")
    metadata: dict[str, str] = {}
    if "metadata" in members:
        metadata = {k: v.text(allow_empty=True) for k, v in members["metadata"].object().items()}
    return Dialogue(dialogue_id, speakers, sessions, questions, metadata)


def _check_unique(ids: list[str], place: Field, what: str) -> None:
    repeated = next((i for n, i in enumerate(ids) if i in ids[:n]), None) if len(set(ids)) < len(ids) else None
    if repeated is not None:
        place.fail(f"name the {what} id {repeated!r} twice; give each {what} of a dialogue its own")


def _session(field: Field, number: int) -> Session:
    members = field.object({"id", "time", "time_text", "turns"})
    time = None
    time_field = members.get("time")
    if time_field is not None and time_field.value is not None:
        try:
            time = datetime.fromisoformat(time_field.text())
        except ValueError:
            time_field.fail(f"is {time_field.described()}; write it in ISO 8601, such as 2024-03-02T10:30:00")
    time_text = _optional_text(members, "time_text", allow_empty=True)
    if time_text is None:
        time_text = spell_date(time) if time else ""
    turns = tuple(_turn(item, f"D{number}:{n}") for n, item in enumerate(field.member("turns").items(), 1))
    return Session(_optional_text(members, "id") or f"session_{number}", time, time_text, turns)


def _turn(field: Field, default_id: str) -> Turn:
    members = field.object({"id", "speaker", "text", "facts", "caption"})
    facts = None
    if "facts" in members and members["facts"].value is not None:
        facts = tuple(_fact(item) for item in members["facts"].items())
    return Turn(
        id=_optional_text(members, "id") or default_id,
        speaker=field.member("speaker").text(),
        text=field.member("text").text(allow_empty=True),  # a turn may be an image and nothing else
        facts=facts,
        caption=_optional_text(members, "caption", allow_empty=True),
    )


def _fact(field: Field) -> Fact:
    members = field.object({"text", "oracle"})
    text = field.member("text").text()
    if "oracle" not in members or members["oracle"].value is None:
        return Fact(text)
    oracle = members["oracle"]
    parts = oracle.object({"event", "text", "target_text"})
    event = oracle.member("event").text()
    if event not in _EVENTS:
        parts["event"].fail(f"is {parts['event'].described()}; use one of {', '.join(_EVENTS)}")
    content = _optional_text(parts, "text", allow_empty=True) or ""
    target = _optional_text(parts, "target_text")
    if (event in ("ADD", "UPDATE")) != bool(content):
        oracle.fail(f"is {event} and {'lacks its' if not content else 'has a'} text; only ADD and UPDATE take one")
    if (event in ("UPDATE", "DELETE")) != (target is not None):
        oracle.fail(
            f"is {event} and {'lacks its' if target is None else 'has a'} target_text; only UPDATE and DELETE take one"
        )
    return Fact(text, OracleOp(event, content, target))


def _question(field: Field, default_id: str, turn_ids: set[str]) -> Question:
    known = {f.name for f in dataclasses.fields(Question)}
    members = field.object(known)
    asked_after = _optional_text(members, "asked_after")
    if asked_after is not None and asked_after not in turn_ids:
        members["asked_after"].fail(f"is {asked_after!r}, which is no turn of this dialogue; name an existing turn id")
    number = members.get("category_id")
    return Question(
        id=_optional_text(members, "id") or default_id,
        text=field.member("text").text(),
        answer=_optional_text(members, "answer", allow_empty=True),
        category=_optional_text(members, "category", allow_empty=True) or "",
        category_id=None if number is None or number.value is None else number.integer(),
        evidence=_turn_list(members, "evidence", turn_ids),
        asked_after=asked_after,
        asked_on=_optional_text(members, "asked_on", allow_empty=True),
        abstain=members["abstain"].boolean() if "abstain" in members else False,
        contract=_contract(members["contract"], turn_ids) if "contract" in members else None,
        note=_optional_text(members, "note", allow_empty=True),
    )


def _contract(field: Field, turn_ids: set[str]) -> Contract:
    members = field.object({f.name for f in dataclasses.fields(Contract)})

    def texts(key: str) -> tuple[str, ...]:
        return tuple(item.text() for item in members[key].items()) if key in members else ()

    return Contract(
        required=texts("required"),
        prohibited=texts("prohibited"),
        admissible_turns=_turn_list(members, "admissible_turns", turn_ids),
        prohibited_turns=_turn_list(members, "prohibited_turns", turn_ids),
    )


def _turn_list(members: dict[str, Field], key: str, turn_ids: set[str]) -> tuple[str, ...]:
    named: list[str] = []
    for item in members[key].items() if key in members else ():
        if item.text() not in turn_ids:
            item.fail(f"is {item.described()}, which is no turn of this dialogue; name an existing turn id")
        named.append(item.text())
    return tuple(named)
