"""Reader of AutoMemoryBench: cases of dated events with a lifecycle, and queries under contracts of required,
admissible and prohibited memory that are scored without a judge (`memr1.evaluation.scores`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from memr1.data.dates import spell_date
from memr1.data.fields import Field, parse_json, read_text
from memr1.data.types import Contract, Dialogue, Fact, OracleOp, Question, Session, Turn
from memr1.errors import MemR1Error


def read_automemorybench(path: str | Path) -> list[Dialogue]:
    """Read the cases of a domain's file, or of every JSON file in a folder, each as a dialogue.

    Facts are the case's memory units, with the operation that their lifecycle asks for: units not to be stored are
    NOOP, or DELETE of what they end. A query that must be refused sets `Question.abstain`. Its contract prohibits the
    turns of all memory that the query or its state forbids, deleted, superseded or restricted.
    Raises MemR1Error naming file, case, field and remedy.
    """
    files = sorted(Path(path).glob("*.json")) if Path(path).is_dir() else [Path(path)]
    dialogues: list[Dialogue] = []
    for file in files:
        root = Field(parse_json(read_text(file, "a JSON file of AutoMemoryBench"), str(file)), str(file))
        for item in root.member("cases").items():
            name = item.member("case_id").text()
            field = Field(item.value, f"{file}: case {name}")
            if any(d.id == name for d in dialogues):
                field.fail("occurs twice; keep one case of each case_id")
            dialogues.append(_case(field, name))
    if not dialogues:
        raise MemR1Error(f"{path}: holds no case; use a JSON file of AutoMemoryBench, or a folder of them")
    return dialogues


def _case(field: Field, name: str) -> Dialogue:
    sessions = [_session(item) for item in field.member("sessions").items()]
    turn_ids = [turn.id for session in sessions for turn in session.turns]
    twice = next((i for i, n in Counter(turn_ids).items() if n > 1), None)
    if twice is not None:
        field.member("sessions").fail(f"hold two turns with the id {twice}; give each its own")
    if not turn_ids:
        field.member("sessions").fail("hold no turn; give the case at least one")
    units = {unit.member("memory_id").text(): unit for unit in field.member("gold_memory_units").items()}
    told = {name: _named(unit.member("source_trace_ids"), set(turn_ids)) for name, unit in units.items()}
    facts = _facts(units, told)
    dated = tuple(
        replace(s, turns=tuple(replace(t, facts=tuple(facts.get(t.id, ()))) for t in s.turns))
        for s in sorted(sessions, key=lambda s: s.time or datetime.min)
    )
    states = {s.member("state_contract_id").text(): s for s in field.member("state_contracts").items()}
    questions = tuple(_question(item, told, states) for item in field.member("queries").items())
    speakers = tuple(dict.fromkeys(turn.speaker for session in dated for turn in session.turns))
    metadata = {"dataset": "automemorybench", "domain": field.member("domain").text()}
    return Dialogue(name, speakers, dated, questions, metadata)


def _session(field: Field) -> Session:
    turns = tuple(
        Turn(t.member("turn_id").text(), t.member("role").text(), t.member("content").text(allow_empty=True))
        for t in field.member("turns").items()
    )
    time = _time(field.member("timestamp"))
    return Session(field.member("session_id").text(), time, spell_date(time), turns)


def _time(field: Field) -> datetime:
    try:
        return datetime.fromisoformat(field.text())
    except ValueError:
        field.fail(f"is {field.described()}; write it in ISO 8601, such as 2026-10-29T09:00:00Z")


def _facts(units: dict[str, Field], told: dict[str, list[str]]) -> dict[str, list[Fact]]:
    """Facts by the turn that completes them, with the operations of somebody who follows the lifecycle."""
    facts: dict[str, list[Fact]] = {}
    live: dict[str, str] = {}
    for name, unit in units.items():
        text = unit.member("content").text()
        ended = [i.text() for i in unit.member("invalidates").items()]
        target = next((i for i in ended if i in live), None)
        keep = unit.member("should_store").boolean() and text not in live.values()
        event = ("UPDATE" if target else "ADD") if keep else ("DELETE" if target else "NOOP")
        oracle = OracleOp(event, text if keep else "", live[target] if target else None)
        if target:
            del live[target]
        if keep:
            live[name] = text
        if told[name]:
            facts.setdefault(told[name][-1], []).append(Fact(text, oracle))
    return facts


def _question(field: Field, told: dict[str, list[str]], states: dict[str, Field]) -> Question:
    expected, written = field.member("expected_behavior"), field.member("state_contract_id")
    state = states.get(written.text())
    if state is None:
        written.fail(f"is {written.described()}, which is no state contract of the case; name one of state_contracts")
    refused, notes = expected.member("should_refuse").boolean(), []
    required = [item.text() for item in expected.member("must_include").items()]
    prohibited = [item.text() for item in expected.member("must_not_include").items()]
    for text in [p for p in prohibited if p in told]:  # no answer holds an id; its memory is forbidden anyway
        prohibited.remove(text)
        notes.append(f"prohibited text {text!r} dropped: the id of a memory")
    evidence = _turns_of(field.member("gold_memory_ids"), told)
    bad = [
        turn
        for source, key in (
            (field, "forbidden_memory_ids"),
            *((state, f"{kind}_memory_ids") for kind in ("forbidden", "deleted", "superseded", "restricted")),
        )
        for turn in _turns_of(source.member(key), told)
    ]
    good = _turns_of(state.member("active_memory_ids"), told)
    contract = Contract(
        required=() if refused else tuple(required),
        prohibited=tuple(prohibited),
        admissible_turns=tuple(t for t in good if t not in evidence),
        prohibited_turns=tuple(dict.fromkeys(t for t in bad if t not in evidence)),
    )
    asked_on = spell_date(_time(field.member("timestamp")))
    return Question(
        id=field.member("query_id").text(),
        text=field.member("prompt").text(),
        answer=None if refused else "; ".join(required),
        category=field.member("probe_type").text().removesuffix("_probe").replace("_", "-"),
        evidence=tuple(evidence),
        asked_on=asked_on,
        abstain=refused,
        contract=contract if refused or field.member("requires_memory").boolean() else None,
        note="; ".join(notes) or None,
    )


def _turns_of(field: Field, told: dict[str, list[str]]) -> list[str]:
    """The turns that told the memories named, each once."""
    turns: list[str] = []
    for item in field.items():
        if item.text() not in told:
            item.fail(f"is {item.described()}, which is no memory unit of the case; name one of gold_memory_units")
        turns += told[item.text()]
    return list(dict.fromkeys(turns))


def _named(field: Field, turn_ids: set[str]) -> list[str]:
    for item in field.items():
        if item.text() not in turn_ids:
            item.fail(f"is {item.described()}, which is no turn of the case; name an existing turn_id")
    return [item.text() for item in field.items()]
