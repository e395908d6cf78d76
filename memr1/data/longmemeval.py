"""Reader of LongMemEval (Wu et al., 2024, arXiv 2410.10813), in its own schema and in a flattened one.

In its own schema (`longmemeval_s.json`, `_m`, `_oracle`) an item is a question with its haystack of sessions;
flattened, an item has one list of dated messages (`conversation`) and a list of `questions`. Either becomes a dialogue.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from datetime import datetime
from pathlib import Path

from memr1.data.fields import Field, parse_json, read_text
from memr1.data.types import Dialogue, Question, Session, Turn
from memr1.errors import MemR1Error

LONGMEMEVAL_TYPES = (
    *("single-session-user", "single-session-assistant", "single-session-preference"),
    *("multi-session", "temporal-reasoning", "knowledge-update", "abstention"),
)
"""The six types, and questions on what was never told, whatever type they vary; `category_id` is the place, from 1."""

_TIME = re.compile(r"(\d{4})/(\d{1,2})/(\d{1,2})\s*(?:\(\w+\))?\s*(?:(\d{1,2}):(\d{2}))?")


def read_longmemeval(path: str | Path) -> list[Dialogue]:
    """Read every item of a file, each as a dialogue of its own; sessions are put into the order of their dates.

    Evidence is the turns marked `has_answer`; without marks, a question names none. Abstention (an id that ends in
    `_abs`, `is_abstention`, or the type of that name) sets `Question.abstain`.
    Raises MemR1Error naming file, item, field and remedy.
    """
    root = Field(parse_json(read_text(path, "a JSON file of LongMemEval"), str(path)), str(path))
    if isinstance(root.value, dict):  # one item alone, or a flattened file
        root = root.member("data") if "data" in root.value else Field([root.value], str(path))
    dialogues: list[Dialogue] = []
    for item in root.items():
        native = "haystack_sessions" in item.object()
        name = item.member("question_id" if native else "id").text()
        field = Field(item.value, f"{path}: item {name}")
        if any(d.id == name for d in dialogues):
            field.fail("occurs twice; keep one item of each id")
        dialogues.append(_native(field, name) if native else _flattened(field, name))
    if not dialogues:
        raise MemR1Error(f"{path}: holds no item; use a JSON file of LongMemEval, a list of questions with haystacks")
    return dialogues


def parse_time(text: str) -> datetime | None:
    """`2023/05/30 (Tue) 21:48` as a datetime without a zone; None where the text has another form."""
    match = _TIME.fullmatch(text.strip())
    try:
        return datetime(*(int(part or 0) for part in match.groups())) if match else None  # type: ignore[arg-type]
    except ValueError:
        return None


def _native(field: Field, name: str) -> Dialogue:
    talks = list(field.member("haystack_sessions").items())
    dates = list(field.member("haystack_dates").items())
    ids = [i.text() for i in field.member("haystack_session_ids").items()]
    if not len(talks) == len(dates) == len(ids):
        field.fail(
            f"has {len(talks)} haystack_sessions, {len(dates)} haystack_dates and {len(ids)} haystack_session_ids; "
            "give one of each for every session"
        )
    sessions, evidence = _sessions([(i, d, list(t.items())) for i, d, t in zip(ids, dates, talks, strict=True)], field)
    question = _question(field, name, field.member("question_type"), name.endswith("_abs"), evidence)
    return Dialogue(name, ("user", "assistant"), sessions, (question,), {"dataset": "longmemeval"})


def _flattened(field: Field, name: str) -> Dialogue:
    grouped = itertools.groupby(field.member("conversation").items(), key=lambda m: m.member("date").text())
    talks = [(f"session_{n}", list(messages)) for n, (_, messages) in enumerate(grouped, 1)]
    sessions, evidence = _sessions([(i, messages[0].member("date"), messages) for i, messages in talks], field)
    questions = []
    for item in field.member("questions").items():
        flag = item.object().get("is_abstention")
        abstains = name.endswith("_abs") or (flag is not None and flag.boolean())
        question_id = f"{name}/{item.member('id').text()}"
        questions.append(_question(item, question_id, field.member("question_type"), abstains, evidence))
    twice = next((i for i, n in Counter(q.id for q in questions).items() if n > 1), None)
    if twice is not None:
        field.fail(f"has two questions with the id {twice.removeprefix(name + '/')}; give each its own")
    return Dialogue(name, ("user", "assistant"), sessions, tuple(questions), {"dataset": "longmemeval"})


def _sessions(talks: list[tuple[str, Field, list[Field]]], field: Field) -> tuple[tuple[Session, ...], tuple[str, ...]]:
    """Sessions in the order of their dates, those without a message left out; and the turns that are marked."""
    dated: list[tuple[datetime, str, str, list[Field]]] = []
    for name, stamp, messages in talks:
        time = parse_time(stamp.text())
        if time is None:
            stamp.fail(f"is {stamp.described()}; write it like 2023/05/30 (Tue) 21:48")
        if messages:
            dated.append((time, stamp.text(), name, messages))
    if not dated:
        field.fail("holds no session with messages; add at least one")
    dated.sort(key=lambda session: session[0])
    seen: Counter[str] = Counter()
    sessions, evidence = [], []
    for number, (time, text, name, messages) in enumerate(dated, 1):
        seen[name] += 1
        turns = []
        for place, message in enumerate(messages, 1):
            turn_id = f"D{number}:{place}"
            mark = message.object().get("has_answer")
            if mark is not None and mark.value is not None and mark.boolean():
                evidence.append(turn_id)
            turns.append(Turn(turn_id, message.member("role").text(), message.member("content").text(allow_empty=True)))
        session_id = name if seen[name] == 1 else f"{name}#{seen[name]}"  # some haystacks hold a session twice
        sessions.append(Session(session_id, time, text, tuple(turns)))
    return tuple(sessions), tuple(evidence)


def _question(item: Field, question_id: str, kind: Field, abstains: bool, evidence: tuple[str, ...]) -> Question:
    if kind.text() not in LONGMEMEVAL_TYPES:
        kind.fail(f"is {kind.described()}; use one of {', '.join(LONGMEMEVAL_TYPES)}")
    category = "abstention" if abstains else kind.text()
    asked = item.object().get("question_date")
    notes: list[str] = [f"varies {kind.text()}"] if category != kind.text() else []
    answer = item.member("answer").answer(notes)
    return Question(
        id=question_id,
        text=item.member("question").text(),
        answer=answer,
        category=category,
        category_id=LONGMEMEVAL_TYPES.index(category) + 1,
        evidence=evidence,
        asked_on=None if asked is None else asked.text(),
        abstain=category == "abstention",
        note="; ".join(notes) or None,
    )
