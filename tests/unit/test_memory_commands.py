"""`memr1 bank`: what people see and what programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from memr1 import cli
from memr1.errors import MemR1Error


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `memr1 bank` on a store of its own, where the bank `ann` is."""
    monkeypatch.setenv("MEMR1_STORE", str(tmp_path / "memory.db"))
    monkeypatch.setenv("MEMR1_EMBEDDER", "hash")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, fails: bool = False) -> str:
        result = typer.testing.CliRunner().invoke(cli.app, ["bank", *arguments])
        if isinstance(result.exception, MemR1Error):
            raise result.exception
        assert (result.exit_code != 0) is fails, result.output
        return result.output

    run("create", "ann")
    return run


def rows(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_what_is_added_is_found_with_its_source(bank: Any) -> None:
    added = rows(bank("add", "ann", "Ann lives in Rome", "Ann has a dog", "--turn", "D1:3", "--json"))
    assert [(r["ok"], r["id"]) for r in added] == [(True, "m1"), (True, "m2")]
    (hit,) = rows(bank("search", "ann", "where does Ann live?", "-k", "1", "--json"))
    assert hit["text"] == "Ann lives in Rome" and hit["provenance"]["turn_ids"] == ["D1:3"]
    assert rows(bank("search", "ann", "dog", "--filter", '{"turn_id": "D9"}', "--json")) == []
    assert "Ann has a dog" in bank("search", "ann", "dog")
    assert rows(bank("list", "--json")) == [{"user": None, "agent": None, "run": None, "bank": "ann"}]


def test_brackets_in_memories_are_shown_and_not_obeyed(bank: Any) -> None:
    bank("add", "ann", "see [/etc] and [draft] :smile:")
    for shown in (bank("search", "ann", "see"), bank("log", "ann"), bank("history", "ann", "m1")):
        assert "see [/etc] and [draft] :smile:" in shown


def test_a_rejected_add_tells_why_and_fails(bank: Any) -> None:
    bank("add", "ann", "Ann lives in Rome")
    (row,) = rows(bank("add", "ann", "ann  lives in ROME", "--json", fails=True))
    assert row["reason"] == "duplicate_content" and row["detail"] == "m1 has this content"


def test_a_key_makes_an_add_happen_once(bank: Any) -> None:
    for _ in range(2):
        bank("add", "ann", "Ann lives in Rome", "--key", "k1")
    assert json.loads(bank("stats", "ann", "--json"))["seq"] == 1


def test_history_log_undo_and_rollback(bank: Any) -> None:
    bank("add", "ann", "Ann lives in Rome", "--turn", "t1")
    bank("add", "ann", "Ann sings", "--turn", "t2")
    assert "1 entries changed: m2" in bank("undo", "ann", "t2")
    assert [(v["version"], v["status"]) for v in rows(bank("history", "ann", "m2", "--json"))] == [
        (1, "live"),
        (2, "deleted"),
    ]
    assert "1 entries changed: m1" in bank("rollback", "ann", "0")
    assert rows(bank("search", "ann", "Ann", "--json")) == []
    assert "2 entries changed: m1, m2" in bank("rollback", "ann", "2")
    assert [r["seq"] for r in rows(bank("log", "ann", "--json"))] == [1, 2, 3, 4, 5]
    assert "REVERT" in bank("log", "ann") and "Ann sings" in bank("log", "ann", "--last", "0")
    assert "agree" in bank("verify", "ann")
    assert "made again" in bank("rebuild", "ann")


def test_a_bank_moves_with_its_whole_history(bank: Any, tmp_path: Path) -> None:
    bank("add", "ann", "Ann lives in Rome")
    bank("undo", "ann", "t9")
    bank("export", "ann", str(tmp_path / "ann.jsonl"))
    assert "bank 'bea' has 1 entries from 1 decisions" in bank("import", str(tmp_path / "ann.jsonl"), "--as", "bea")
    assert rows(bank("log", "bea", "--json")) == rows(bank("log", "ann", "--json"))
    assert "agree" in bank("verify", "bea")
    with pytest.raises(MemR1Error, match="there is a bank 'bea' already"):
        bank("import", str(tmp_path / "ann.jsonl"), "--as", "bea")


MEM0 = [
    {"id": "b", "memory": "Ann has a dog", "created_at": "2024-05-02T10:00:00-07:00", "user_id": "ann", "hash": "x"},
    {"id": "a", "memory": "Ann lives in Rome", "created_at": "2024-05-01T10:00:00-07:00", "metadata": {"k": [1]}},
    {"id": "c", "memory": "ann HAS a dog", "created_at": "2024-05-03T10:00:00-07:00", "metadata": None},
]


@pytest.mark.parametrize("form", ["list", "results", "lines"])
def test_memories_of_mem0_come_in_with_time_and_source(bank: Any, tmp_path: Path, form: str) -> None:
    path = tmp_path / "mem0.json"
    forms = {"list": MEM0, "results": {"results": MEM0, "relations": []}}
    path.write_text("\n".join(map(json.dumps, MEM0)) if form == "lines" else json.dumps(forms[form]))
    assert "rejected as duplicate_content: 'ann HAS a dog'" in bank(
        "import", str(path), "--from", "mem0", "--as", "bea"
    )
    rome, dog = rows(
        bank("search", "bea", "Ann", "--json", "-k", "2", "--filter", '{"created_at": {"gte": "2024-05-01"}}')
    )
    found = {r["text"]: r for r in (rome, dog)}
    assert found["Ann lives in Rome"]["id"] == "m1" and found["Ann lives in Rome"]["metadata"] == {"k": [1]}
    assert found["Ann has a dog"]["provenance"]["turn_ids"] == ["b"]
    assert found["Ann has a dog"]["metadata"] == {"mem0": {"user_id": "ann"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": "a"}]', "memory 1: memory: expected the text"),
        ('[{"memory": "x", "id": 5}]', "memory 1: id: expected a text, got 5"),
        ('[{"memory": "x", "metadata": []}]', None),
        ('[{"memory": "x", "metadata": [1]}]', "memory 1: metadata: expected an object"),
        ("5", "expected a list of memories"),
        ("{", "neither JSON nor JSON lines"),
        (
            '[{"memory": "x", "created_at": "yesterday"}]',
            "mem0.json: memory 1: created_at: 'yesterday' is not ISO 8601",
        ),
    ],
)
def test_a_bad_file_of_mem0_is_named(bank: Any, tmp_path: Path, content: str, message: str | None) -> None:
    path = tmp_path / "mem0.json"
    path.write_text(content)
    if message is None:
        bank("import", str(path), "--from", "mem0")
        return
    with pytest.raises(MemR1Error, match=message):
        bank("import", str(path), "--from", "mem0")
    assert rows(bank("list", "--json")) == [{"user": None, "agent": None, "run": None, "bank": "ann"}]


def test_the_facts_of_locomo_become_a_bank_for_each_conversation(bank: Any, shared_data: Path) -> None:
    path = shared_data / "locomo" / "locomo3.json"
    output = bank("import", str(path), "--from", "locomo")
    assert output.count("entries from") == 3
    (name, *_) = [r["bank"] for r in rows(bank("list", "--json")) if r["bank"] != "ann"]
    (hit,) = rows(bank("search", name, "friend", "-k", "1", "--json"))
    assert hit["provenance"]["turn_ids"] and hit["created_at"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "bob", "x"), "there is no bank 'bob'"),
        (("history", "ann", "m7"), "never gave out the id 'm7'"),
        (("search", "ann", "x", "--filter", "{speaker: Ann}"), "--filter: not JSON"),
        (("search", "ann", "x", "--filter", "{}"), "filters: empty"),
        (("rollback", "ann", "9"), "there is no state after 9"),
        (("import", "missing.jsonl"), "missing.jsonl: cannot be read"),
        (("create", "ann"), "there is a bank 'ann' already"),
        (("import", "x", "--from", "y"), "--from: 'y' is not known"),
    ],
)
def test_mistakes_are_named(bank: Any, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(MemR1Error, match=message):
        bank(*arguments)


def test_a_bank_is_dropped_after_a_question(bank: Any) -> None:
    assert "for good?" in bank("drop", "ann", fails=True)
    assert rows(bank("list", "--json")) == [{"user": None, "agent": None, "run": None, "bank": "ann"}]
    bank("drop", "ann", "--yes")
    assert rows(bank("list", "--json")) == []


def test_a_mistyped_path_makes_no_store(bank: Any, tmp_path: Path) -> None:
    with pytest.raises(MemR1Error, match="there is no store; check the path"):
        bank("list", "--store", str(tmp_path / "memroy.db"))
    assert not (tmp_path / "memroy.db").exists()
