"""The log and its file: what is written is read back exactly, and damage is named by line and field."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.embed import HashEmbedder
from memr1.memory.oplog import LogRecord, OpLog
from memr1.memory.types import Event, MemoryOp, OpResult, Provenance


def record(seq: int, text: str = "x") -> LogRecord:
    return LogRecord(seq, (OpResult(MemoryOp(Event.ADD, text), ok=True, entry_id=f"m{seq}", changed=True),))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A dumped bank of three decisions, the last rejected."""
    bank = MemoryBank("alice", HashEmbedder(8))
    bank.apply(
        [MemoryOp(Event.ADD, "café ☕", metadata={"n": 1.5})],
        provenance=Provenance(("D1:1",), role="manager"),
        time="2023-05-08",
    )
    bank.apply([MemoryOp(Event.UPDATE, "tea", "m1"), MemoryOp(Event.NOOP)])
    bank.apply([MemoryOp(Event.DELETE, entry_id="m9")])
    bank.dump(tmp_path / "bank.jsonl")
    return tmp_path / "bank.jsonl"


def edit(path: Path, line: int, change: dict) -> None:
    """Set fields (dotted, through lists by number) of one line, from 1."""
    lines = path.read_text().splitlines()
    value = json.loads(lines[line - 1])
    for dotted, new in change.items():
        *parents, last = dotted.split(".")
        target = value
        for parent in parents:
            target = target[int(parent)] if isinstance(target, list) else target[parent]
        target[last] = new
    lines[line - 1] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")


def test_records_must_come_in_order() -> None:
    log = OpLog()
    log.append(record(1))
    with pytest.raises(MemR1Error, match="stands at 1; record 3"):
        log.append(record(3))
    assert len(log) == 1


def test_fork_shares_the_past_without_copying_and_has_its_own_future() -> None:
    log = OpLog()
    for seq in range(1, 4):
        log.append(record(seq))
    forks = [log.fork() for _ in range(3)]
    log.append(record(4, "parent"))
    for i, fork in enumerate(forks):
        assert fork.seq == 3
        fork.append(record(4, f"fork {i}"))
        assert next(iter(fork)) is next(iter(log)), "the same object"
        assert fork._sealed is forks[0]._sealed, "one copy of the past for all"
    assert [list(f)[3].ops[0].text for f in (*forks, log)] == ["fork 0", "fork 1", "fork 2", "parent"]


def test_a_log_forked_after_every_record_is_still_read_and_dumped(tmp_path: Path) -> None:
    log = OpLog()
    for seq in range(1, 5001):
        log.append(record(seq))
        log = log.fork()
    assert [r.seq for r in log] == list(range(1, 5001))
    log.dump(tmp_path / "log.jsonl")
    assert OpLog.load(tmp_path / "log.jsonl") == log


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ANY_TEXT = st.text(st.characters())  # lone surrogates too: a rejected operation may carry them
RECORDS = st.builds(
    LogRecord,
    seq=st.just(1),
    results=st.lists(
        st.builds(
            OpResult,
            op=st.builds(
                MemoryOp,
                event=st.sampled_from(Event),
                text=ANY_TEXT,
                entry_id=st.none() | ANY_TEXT,
                expected_version=st.none() | st.integers(),
                kind=ANY_TEXT,
                metadata=st.dictionaries(ANY_TEXT, JSON_VALUES, max_size=3),
            ),
            ok=st.booleans(),
            reason=st.none() | ANY_TEXT,
            entry_id=st.none() | ANY_TEXT,
            changed=st.booleans(),
            detail=st.none() | ANY_TEXT,
        ),
        max_size=3,
    ).map(tuple),
    provenance=st.builds(
        Provenance,
        turn_ids=st.lists(ANY_TEXT, max_size=3).map(tuple),
        speaker=st.none() | ANY_TEXT,
        weight_version=st.none() | st.integers(),
    ),
    time=st.none() | ANY_TEXT,
    actor=st.none() | ANY_TEXT,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(entry=RECORDS)
def test_any_record_survives_the_file(tmp_path_factory: pytest.TempPathFactory, entry: LogRecord) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    log = OpLog()
    log.append(entry)
    log.dump(path)
    assert list(OpLog.load(path)) == [entry]


def test_dump_is_canonical_and_load_gives_the_bank_back(saved: Path, tmp_path: Path) -> None:
    bank = MemoryBank.load(saved, HashEmbedder(8))
    assert bank.bank_id == "alice" and [e.text for e in bank.history("m1")] == ["café ☕", "tea"]
    assert bank.stats().rejected == {"unknown_id": 1}
    bank.dump(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == saved.read_bytes()


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (1, {"format": "memr1-oplog"}, ":1:format: expected 'memr1-bank'"),
        (1, {"version": 2}, ":1:version: .*update memr1"),
        (1, {"seq": 4}, ":1:seq: the header promises 4 records, the file has 3"),
        (1, {"head": "00"}, ":1:head: "),
        (1, {"owner": "bob"}, ":1:owner: unknown field"),
        (1, {"rules.max_chars": "many"}, ":1:rules:max_chars: expected an integer, got a text"),
        (2, {"record.seq": 2}, ":2:record:seq: expected 1, got 2"),
        (2, {"record.results.0.op.text": "wine"}, ":2:hash: the record, or one before it, was changed"),
        (2, {"record.results.0.op.text": 5}, r":2:record:results\[0\]:op:text: expected a text, got an integer"),
        (2, {"record.results.0.op.event": "FORGET"}, r":2:record:results\[0\]:op:event: 'FORGET' is none of ADD"),
        (2, {"record.results.0.ok": 1}, r":2:record:results\[0\]:ok: expected true or false"),
        (3, {"record.provenance.turn_ids": [1]}, ":3:record:provenance:turn_ids: expected a list of texts"),
        (3, {"record.extra": None}, ":3:record:extra: unknown field"),
        (4, {"hash": None}, ":4:hash: expected a text, got null"),
    ],
)
def test_damage_is_named_by_file_line_and_field(saved: Path, line: int, change: dict, message: str) -> None:
    edit(saved, line, change)
    with pytest.raises(MemR1Error, match="bank.jsonl" + message):
        MemoryBank.load(saved, HashEmbedder(8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) - 40], r":4: not JSON"),
        (lambda data: b"".join(data.splitlines(keepends=True)[:3]), r":1:seq: .* promises 3 records, the file has 2"),
        (lambda data: b"".join(data.splitlines(keepends=True)[i] for i in (0, 2, 1, 3)), r":2:record:seq: expected 1"),
        (lambda data: data.replace(b"1.5", b"NaN"), r":2: not JSON \(NaN"),
        (lambda data: data.replace(b"1.5", b"1e999"), r":2: not JSON \(1e999 is out of range"),
        (lambda data: data.replace(b"tea", b"\xff"), r":3: not JSON"),
        (lambda data: b"[]\n", r":1: expected an object, got a list"),
        (lambda data: b"", r":1: the file is empty"),
    ],
)
def test_cut_joined_or_broken_files_are_refused(saved: Path, damage, message: str) -> None:
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(MemR1Error, match="bank.jsonl" + message):
        MemoryBank.load(saved, HashEmbedder(8))


def test_a_log_that_no_bank_can_have_written_is_refused_by_record(tmp_path: Path) -> None:
    log = OpLog()
    log.append(record(1, "x"))
    log.append(record(2, "X"))  # a duplicate, logged as applied
    log.dump(tmp_path / "log.jsonl")
    with pytest.raises(MemR1Error, match="record 2, operation 1: ADD is logged as applied"):
        MemoryBank.replay(OpLog.load(tmp_path / "log.jsonl"), HashEmbedder(8))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MemR1Error, match=r"none\.jsonl: cannot be read"):
        MemoryBank.load(tmp_path / "none.jsonl", HashEmbedder(8))


def test_a_failed_dump_leaves_the_old_file_and_no_litter(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, before = MemoryBank.load(saved, HashEmbedder(8)), saved.read_bytes()
    bank.apply([MemoryOp(Event.ADD, "more")])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MemR1Error, match=r"bank\.jsonl: writing failed .*No space left"):
        bank.dump(saved)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == ["bank.jsonl"]


def test_dump_into_a_missing_folder_is_refused(saved: Path) -> None:
    with pytest.raises(MemR1Error, match="cannot write here"):
        MemoryBank("b", HashEmbedder(8)).dump(saved.parent / "no" / "bank.jsonl")
