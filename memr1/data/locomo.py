"""Reader of LoCoMo (Maharana et al., 2024, arXiv 2402.17753), and the split that the Memory-R1 paper uses.

The file is known to hold answers that are numbers, evidence that names no turn or several in one string, dates of
sessions that do not exist, and repeated questions. What is repaired is said in `Question.note` and in the metadata.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from memr1.data.dates import MONTHS
from memr1.data.fields import Field, parse_json, read_text
from memr1.data.types import Dialogue, Fact, Question, Session, Turn
from memr1.errors import MemR1Error

logger = logging.getLogger(__name__)

LOCOMO_CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
"""Names by the dataset's own ids. Several papers, Memory-R1 among them, print the names permuted."""

LOCOMO_ORDER = tuple(f"conv-{n}" for n in (26, 30, 41, 42, 43, 44, 47, 48, 49, 50))
"""The ten conversations in the order of the published file, by which label audits number them."""

LOCOMO_SPLIT = {"train": LOCOMO_ORDER[:1], "validation": LOCOMO_ORDER[1:2], "test": LOCOMO_ORDER[2:]}
"""The split of the Memory-R1 paper (arXiv 2508.19828) by `sample_id`."""

_MONTHS = tuple(month.lower() for month in MONTHS)
_TIME = re.compile(r"(\d{1,2}):(\d{2})\s*(am|pm)\s+on\s+(\d{1,2})\s+([a-z]+),?\s+(\d{4})", re.IGNORECASE)
_REFERENCE = re.compile(r"D:?(\d+):(\d+)")


def read_locomo(
    path: str | Path, *, include_adversarial: bool = False, audit_path: str | Path | None = None
) -> list[Dialogue]:
    """Read the conversations of a LoCoMo file, in its order.

    include_adversarial: also give category 5, nearly all of which has no gold answer (`answer` is None).
    audit_path: a JSON list of proposed corrections, `question_id` being `locomo_<conversation>_qa<index>`; their
        answers and evidence replace the published ones, and the question's `note` begins with `audit`.
    Gold facts are the file's observations; a turn without one has none worth keeping.
    Raises MemR1Error naming file, conversation, field and remedy.
    """
    root = Field(parse_json(read_text(path, "your copy of LoCoMo's JSON file"), str(path)), str(path))
    dialogues: list[Dialogue] = []
    for item in root.items():
        name = item.member("sample_id").text()
        field = Field(item.value, f"{path}: conversation {name}")
        if any(d.id == name for d in dialogues):
            field.fail("occurs twice; keep one conversation of each sample_id")
        dialogues.append(_conversation(field, name, include_adversarial))
    if not dialogues:
        raise MemR1Error(f"{path}: holds no conversation; use LoCoMo's JSON file, a list of conversations")
    return _corrected(dialogues, audit_path) if audit_path is not None else dialogues


def split_locomo(dialogues: Iterable[Dialogue], split: str) -> list[Dialogue]:
    """The conversations of `train`, `validation` or `test`, known by `sample_id`; warns of those that are missing."""
    if split not in LOCOMO_SPLIT:
        raise MemR1Error(f"LoCoMo has no split {split!r}; use one of {', '.join(LOCOMO_SPLIT)}")
    wanted = LOCOMO_SPLIT[split]
    found = [d for d in dialogues if d.id in wanted]
    missing = [name for name in wanted if name not in {d.id for d in found}]
    if found and missing:
        logger.warning("LoCoMo split %s lacks %s: results are not those of the whole split", split, ", ".join(missing))
    return found


def is_audited(question: Question) -> bool:
    """True where an audit proposed a correction, so that results can be reported with and without such questions."""
    return (question.note or "").startswith("audit")


def parse_session_time(text: str) -> datetime | None:
    """`1:56 pm on 8 May, 2023` as a datetime without a zone; None where the text has another form."""
    match = _TIME.fullmatch(text.strip())
    if match is None or match[5].lower() not in _MONTHS:
        return None
    hour = int(match[1]) % 12 + (12 if match[3].lower() == "pm" else 0)  # 12:48 am is 0:48
    try:
        return datetime(int(match[6]), _MONTHS.index(match[5].lower()) + 1, int(match[4]), hour, int(match[2]))
    except ValueError:
        return None


def parse_references(text: str) -> list[str]:
    """Turn ids in a string: `D8:6; D9:17` gives two, `D:11:26` gives D11:26, `D30:05` gives D30:5, `D` gives none."""
    return [f"D{int(session)}:{int(turn)}" for session, turn in _REFERENCE.findall(text)]


def _conversation(field: Field, name: str, include_adversarial: bool) -> Dialogue:
    talk = field.member("conversation")
    members = talk.object()
    # Sessions by number, not by name (session_10 comes after session_2). A date without a session is left out.
    numbers = sorted(int(m[1]) for key in members if (m := re.fullmatch(r"session_(\d+)", key)))
    numbers = [n for n in numbers if members[f"session_{n}"].value != []]
    turns = {n: [_turn(t) for t in members[f"session_{n}"].items()] for n in numbers}
    seen = Counter(turn.id for spoken in turns.values() for turn in spoken)
    if not seen:
        talk.fail("holds no session with turns; add session_1 with a list of turns")
    twice = next((turn_id for turn_id, count in seen.items() if count > 1), None)
    if twice is not None:
        talk.fail(f"has two turns with dia_id {twice}; give each turn its own")
    facts, lost = _observations(field, set(seen))
    sessions = tuple(_session(members, n, turns[n], facts) for n in numbers)
    metadata = {"dataset": "locomo"}
    if lost:
        metadata["observations_dropped"] = str(lost)
    questions = _questions(field.member("qa"), name, set(seen), include_adversarial)
    speakers = (talk.member("speaker_a").text(), talk.member("speaker_b").text())
    return Dialogue(name, speakers, sessions, questions, metadata)


def _turn(field: Field) -> Turn:
    caption = field.object().get("blip_caption")
    return Turn(
        id=field.member("dia_id").text().strip(),
        speaker=field.member("speaker").text(),
        text=field.member("text").text(allow_empty=True),
        caption=None if caption is None or caption.value is None else caption.text(allow_empty=True),
    )


def _session(members: dict[str, Field], number: int, turns: list[Turn], facts: _Facts) -> Session:
    time, time_text = None, ""
    stamp = members.get(f"session_{number}_date_time")
    if stamp is not None and stamp.value is not None:
        time_text = stamp.text()
        time = parse_session_time(time_text)
        if time is None:
            stamp.fail(f"is {stamp.described()}; write it like 1:56 pm on 8 May, 2023")
    if number in facts.sessions:
        turns = [replace(t, facts=tuple(Fact(text) for text in facts.by_turn.get(t.id, ()))) for t in turns]
    return Session(f"session_{number}", time, time_text, tuple(turns))


@dataclass(frozen=True)
class _Facts:
    by_turn: dict[str, list[str]]
    sessions: set[int]
    """Sessions that were annotated; the turns of others have no gold facts, which is not the same as none to keep."""


def _observations(field: Field, turn_ids: set[str]) -> tuple[_Facts, int]:
    """The observations by turn, and how many name no turn of the conversation."""
    facts, lost = _Facts({}, set()), 0
    annotated = field.object().get("observation")
    for key, observed in (annotated.object() if annotated is not None else {}).items():
        number = re.fullmatch(r"session_(\d+)_observation", key)
        if number is None:
            continue
        facts.sessions.add(int(number[1]))
        for listed in observed.object().values():
            for pair in listed.items():
                parts = list(pair.items())
                if len(parts) != 2:
                    pair.fail(f"is {pair.described()}; make it a pair of a sentence and a dia_id")
                sources = parts[1].items() if isinstance(parts[1].value, list) else [parts[1]]
                named = [r for source in sources for r in parse_references(source.text()) if r in turn_ids]
                if named:  # of several turns the last one completes the fact
                    last = max(named, key=lambda r: tuple(map(int, r[1:].split(":"))))
                    facts.by_turn.setdefault(last, []).append(parts[0].text())
                else:
                    lost += 1
    return facts, lost


def _questions(listed: Field, name: str, turn_ids: set[str], include_adversarial: bool) -> tuple[Question, ...]:
    questions: list[Question] = []
    first_asked: dict[str, str] = {}
    for index, item in enumerate(listed.items()):
        members = item.object()
        category = item.member("category").integer()
        if category not in LOCOMO_CATEGORIES:
            members["category"].fail(f"is {category}; use 1 to 5")
        if category == 5 and not include_adversarial:
            continue
        notes: list[str] = []
        text, question_id = item.member("question").text(), f"{name}/qa{index}"
        if text in first_asked:  # kept, so that the counts are the published ones
            notes.append(f"repeats {first_asked[text]}")
        first_asked.setdefault(text, question_id)
        answer = _answer(item, members.get("answer"), category, notes)
        evidence = _evidence(members.get("evidence"), turn_ids, notes)
        questions.append(
            Question(
                id=question_id,
                text=text,
                answer=answer,
                category=LOCOMO_CATEGORIES[category],
                category_id=category,
                evidence=evidence,
                abstain=category == 5,
                note="; ".join(notes) or None,
            )
        )
    return tuple(questions)


def _answer(item: Field, answer: Field | None, category: int, notes: list[str]) -> str | None:
    if answer is None or answer.value is None:
        if category != 5:
            item.fail("has no answer; only category 5 may do without")
        return None
    return answer.answer(notes)


def _evidence(field: Field | None, turn_ids: set[str], notes: list[str]) -> tuple[str, ...]:
    """Existing turn ids, each once; what was split, respelled or dropped goes into `notes`."""
    if field is None or field.value is None:
        return ()
    found: list[str] = []
    for item in [field] if isinstance(field.value, str) else field.items():
        written = item.text(allow_empty=True)
        named = [r for r in parse_references(written) if r in turn_ids]
        if written not in named:
            notes.append(f"evidence {written!r} {'read as ' + ', '.join(named) if named else 'dropped: no such turn'}")
        found += named
    return tuple(dict.fromkeys(found))


def _corrected(dialogues: list[Dialogue], path: str | Path) -> list[Dialogue]:
    root = Field(parse_json(read_text(path, "the audit's JSON file"), str(path)), str(path))
    by_id = {q.id: q for d in dialogues for q in d.questions}
    names = {d.id for d in dialogues}
    for item in root.items():
        written = item.member("question_id")
        match = re.fullmatch(r"locomo_(\d+)_qa(\d+)", written.text())
        if match is None or int(match[1]) >= len(LOCOMO_ORDER):
            written.fail(f"is {written.described()}; write it like locomo_0_qa12")
        name = LOCOMO_ORDER[int(match[1])]
        question = by_id.get(question_id := f"{name}/qa{int(match[2])}")
        if question is None:
            if name in names and item.member("category").integer() != 5:
                written.fail(f"names {question_id}, which the dataset lacks; use the audit of this dataset")
            continue
        if question.text != item.member("question").text():
            written.fail(f"names {question_id}, which asks {question.text!r}; use the audit of this dataset")
        turn_ids = {turn.id for d in dialogues if d.id == name for _, turn in d.turns()}
        by_id[question_id] = _correct(question, item, turn_ids)
    return [replace(d, questions=tuple(by_id[q.id] for q in d.questions)) for d in dialogues]


def _correct(question: Question, item: Field, turn_ids: set[str]) -> Question:
    notes = [f"audit {item.member('error_type').text()}"]
    evidence = _evidence(item.member("correct_evidence"), turn_ids, notes)
    answer = _without_remarks(item.member("correct_answer").text())
    if answer.lower().rstrip(".") == (question.answer or "").lower().rstrip("."):
        answer = question.answer or answer
    else:
        notes.append(f"published answer {question.answer!r}")
    return replace(
        question, answer=answer, evidence=evidence, note="; ".join([*notes, question.note] if question.note else notes)
    )


def _without_remarks(answer: str) -> str:
    """The audit explains itself inside the answers, as in `Running (citation is wrong)`: keep what answers."""
    answer = re.sub(r"\s*\((?:D\d+:\d+(?:,\s*)?)+\)", "", answer)
    return re.sub(r"\s*\((?:[^()]|\([^()]*\))*\)\.?$", "", answer).strip() or answer
