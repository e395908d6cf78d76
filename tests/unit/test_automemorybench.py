"""The AutoMemoryBench reader: lifecycles and contracts on a case written here, and the real domains where they are."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from memr1.data.automemorybench import read_automemorybench
from memr1.data.jsonl import read_jsonl, write_jsonl
from memr1.errors import MemR1Error
from tests.unit.shared_data import SHARED, needs

DATA = SHARED / "automemorybench"


def unit(name: str, turn: str, store: bool = True, ends: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "memory_id": name,
        "content": f"content of {name}",
        "source_trace_ids": [turn],
        "should_store": store,
        "invalidates": list(ends),
    }


def query(name: str, *, refuse: bool = False, needs: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "query_id": f"case1:{name}",
        "prompt": f"{name}?",
        "probe_type": "policy_exception_probe",
        "expected_behavior": {"must_include": ["Blue"], "must_not_include": ["red", "old"], "should_refuse": refuse},
        "gold_memory_ids": ["new"],
        "forbidden_memory_ids": ["gossip"],
        "requires_memory": needs,
        "state_contract_id": "end",
        "timestamp": "2026-11-28T09:00:00Z",
        **more,
    }


CASE: dict[str, Any] = {
    "case_id": "case1",
    "domain": "tests",
    "sessions": [
        {
            "session_id": "s2",
            "timestamp": "2026-11-08T09:00:00Z",
            "turns": [{"turn_id": f"t{n}", "role": "user", "content": f"turn {n}"} for n in (3, 4, 5)],
        },
        {
            "session_id": "s1",
            "timestamp": "2026-11-01T09:00:00Z",
            "turns": [{"turn_id": f"t{n}", "role": "user", "content": f"turn {n}"} for n in (1, 2)],
        },
    ],
    "gold_memory_units": [
        unit("old", "t1"),
        unit("gossip", "t2", store=False),
        unit("new", "t3", ends=("old",)),
        unit("kept", "t4"),
        unit("deletion", "t5", store=False, ends=("kept",)),
    ],
    "state_contracts": [
        {
            "state_contract_id": "end",
            "active_memory_ids": ["new", "deletion"],
            "forbidden_memory_ids": ["gossip"],
            "deleted_memory_ids": ["kept"],
            "superseded_memory_ids": ["old", "new"],
            "restricted_memory_ids": [],
        }
    ],
    "queries": [query("plain"), query("refused", refuse=True, gold_memory_ids=[]), query("sum", needs=False)],
}


def write(tmp_path: Path, case: dict[str, Any], name: str = "cases.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps({"benchmark_id": "b", "cases": [case]}), encoding="utf-8")
    return path


def changed(where: list[Any], value: Any) -> dict[str, Any]:
    case = copy.deepcopy(CASE)
    place: Any = case
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    return case


def test_facts_follow_the_lifecycle(tmp_path: Path) -> None:
    (dialogue,) = read_automemorybench(write(tmp_path, CASE))
    assert [s.id for s in dialogue.sessions] == ["s1", "s2"]
    facts = {t.id: [f.oracle for f in t.facts or ()] for _, t in dialogue.turns()}
    done = {turn: [(o.event, o.text, o.target_text) for o in oracles if o] for turn, oracles in facts.items()}
    assert done == {
        "t1": [("ADD", "content of old", None)],
        "t2": [("NOOP", "", None)],
        "t3": [("UPDATE", "content of new", "content of old")],
        "t4": [("ADD", "content of kept", None)],
        "t5": [("DELETE", "", "content of kept")],
    }


def test_contracts_say_what_is_required_admissible_and_prohibited(tmp_path: Path) -> None:
    (dialogue,) = read_automemorybench(write(tmp_path, CASE))
    plain, refused, arithmetic = dialogue.questions
    assert (plain.answer, plain.evidence, plain.category) == ("Blue", ("t3",), "policy-exception")
    assert plain.asked_on == "28 November 2026"
    assert plain.contract is not None and plain.contract.required == ("Blue",)
    assert plain.contract.prohibited == ("red",)
    assert plain.note == "prohibited text 'old' dropped: the id of a memory"
    assert plain.contract.admissible_turns == ("t5",)
    assert plain.contract.prohibited_turns == ("t2", "t4", "t1")  # what is required is never prohibited, too
    assert (refused.abstain, refused.answer) == (True, None)
    assert refused.contract is not None and refused.contract.required == ()
    assert "t3" in refused.contract.prohibited_turns
    assert arithmetic.contract is None and arithmetic.answer == "Blue"


def test_contracts_survive_json_lines(tmp_path: Path) -> None:
    dialogues = read_automemorybench(write(tmp_path, CASE))
    write_jsonl(dialogues, tmp_path / "out.jsonl")
    assert read_jsonl(tmp_path / "out.jsonl") == dialogues


def test_a_folder_is_all_its_domains(tmp_path: Path) -> None:
    write(tmp_path, CASE, "a.json")
    write(tmp_path, {**CASE, "case_id": "case2"}, "b.json")
    assert [d.id for d in read_automemorybench(tmp_path)] == ["case1", "case2"]
    write(tmp_path, CASE, "c.json")
    with pytest.raises(MemR1Error, match=r"c.json: case case1: the record occurs twice"):
        read_automemorybench(tmp_path)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            changed(["queries", 0, "state_contract_id"], "middle"),
            r"queries\[0\].state_contract_id .* no state contract",
        ),
        (changed(["queries", 0, "gold_memory_ids"], ["nw"]), r"gold_memory_ids\[0\] .* no memory unit of the case"),
        (
            changed(["gold_memory_units", 0, "source_trace_ids"], ["t9"]),
            r"source_trace_ids\[0\] .* no turn of the case",
        ),
        (changed(["sessions", 0, "turns", 0, "turn_id"], "t1"), "hold two turns with the id t1"),
        (changed(["sessions", 0, "timestamp"], "tomorrow"), r"sessions\[0\].timestamp .*; write it in ISO 8601"),
        (changed(["sessions"], []), "sessions hold no turn"),
    ],
)
def test_what_cannot_be_read_names_case_field_and_remedy(tmp_path: Path, case: dict[str, Any], message: str) -> None:
    with pytest.raises(MemR1Error, match=message):
        read_automemorybench(write(tmp_path, case))


@needs("automemorybench")
def test_the_real_domains_are_read() -> None:
    dialogues = read_automemorybench(DATA)
    assert len(dialogues) == 15
    questions = [q for d in dialogues for q in d.questions]
    assert len(questions) == 315 and sum(q.abstain for q in questions) == 24
    assert sum(q.contract is None for q in questions) == 15
    assert len({q.category for q in questions}) == 20
    assert sum("dropped: the id of a memory" in (q.note or "") for q in questions) == 15
    for d in dialogues:  # every lifecycle can be played, and the required texts stand in the evidence
        turns = {t.id: t.text for _, t in d.turns()}
        for q in d.questions:
            for text in q.contract.required if q.contract else ():
                assert any(text in turns[t] for t in q.evidence)
