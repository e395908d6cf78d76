"""JSON Lines: what is written reads back exactly, and whatever is wrong with a file is said in one clear sentence."""

from __future__ import annotations

import copy
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from memr1.data.factworld import FactWorldConfig, generate_dialogues
from memr1.data.jsonl import read_jsonl, write_jsonl
from memr1.data.types import Contract, Dialogue, Fact, OracleOp, Question, Session, Turn
from memr1.errors import MemR1Error

RECORD: dict[str, Any] = {
    "id": "d1",
    "speakers": ["Ann", "Bob"],
    "sessions": [
        {
            "id": "s1",
            "time": "2024-03-02T10:30:00",
            "time_text": "2 March 2024",
            "turns": [
                {
                    "id": "t1",
                    "speaker": "Ann",
                    "text": "I moved to Rome today.",
                    "caption": "a photo of boxes",
                    "facts": [{"text": "Ann lives in Rome.", "oracle": {"event": "ADD", "text": "Ann lives in Rome."}}],
                },
                {"id": "t2", "speaker": "Bob", "text": "Nice!", "facts": []},
                {
                    "id": "t3",
                    "speaker": "Ann",
                    "text": "No, to Oslo.",
                    "facts": [
                        {
                            "text": "Ann now lives in Oslo.",
                            "oracle": {
                                "event": "UPDATE",
                                "text": "Ann lives in Oslo.",
                                "target_text": "Ann lives in Rome.",
                            },
                        }
                    ],
                },
            ],
        }
    ],
    "questions": [
        {
            "id": "q1",
            "text": "Where does Ann live?",
            "answer": "Oslo",
            "category": "knowledge-update",
            "category_id": 4,
            "evidence": ["t3"],
            "asked_after": "t3",
            "note": "easy",
        }
    ],
    "metadata": {"split": "train"},
}


def written(tmp_path: Path, *records: object) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_a_full_record_reads_into_every_field(tmp_path: Path) -> None:
    (dialogue,) = read_jsonl(written(tmp_path, RECORD))
    add = OracleOp("ADD", "Ann lives in Rome.")
    update = OracleOp("UPDATE", "Ann lives in Oslo.", "Ann lives in Rome.")
    assert dialogue == Dialogue(
        "d1",
        ("Ann", "Bob"),
        (
            Session(
                "s1",
                datetime(2024, 3, 2, 10, 30),
                "2 March 2024",
                (
                    Turn("t1", "Ann", "I moved to Rome today.", (Fact("Ann lives in Rome.", add),), "a photo of boxes"),
                    Turn("t2", "Bob", "Nice!", ()),
                    Turn("t3", "Ann", "No, to Oslo.", (Fact("Ann now lives in Oslo.", update),)),
                ),
            ),
        ),
        (Question("q1", "Where does Ann live?", "Oslo", "knowledge-update", 4, ("t3",), "t3", "easy"),),
        {"split": "train"},
    )


def test_a_minimal_record_gets_ids_dates_and_speakers(tmp_path: Path) -> None:
    record = {
        "id": "d",
        "sessions": [
            {"turns": [{"speaker": "Bob", "text": "Hi"}]},
            {"time": "2024-03-02", "turns": [{"speaker": "Ann", "text": "Ho"}, {"speaker": "Bob", "text": "Hu"}]},
        ],
        "questions": [{"text": "Who?", "answer": "Ann", "evidence": ["D2:1"]}],
    }
    (dialogue,) = read_jsonl(written(tmp_path, record))
    assert dialogue.speakers == ("Bob", "Ann")
    assert [(s.id, s.time_text) for s in dialogue.sessions] == [("session_1", ""), ("session_2", "2 March 2024")]
    assert [t.id for _, t in dialogue.turns()] == ["D1:1", "D2:1", "D2:2"]
    assert [t.facts for _, t in dialogue.turns()] == [None, None, None]
    assert dialogue.questions == (Question("d/q1", "Who?", "Ann", "", evidence=("D2:1",)),)


def test_blank_lines_and_a_byte_order_mark_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + json.dumps(RECORD).encode() + b"\r\n\r\n")
    assert [d.id for d in read_jsonl(path)] == ["d1"]


def test_generated_worlds_survive_a_round_trip(tmp_path: Path) -> None:
    dialogues = generate_dialogues(FactWorldConfig(num_worlds=5, questions_per_fact_turn=2))
    write_jsonl(dialogues, tmp_path / "worlds.jsonl")
    assert read_jsonl(tmp_path / "worlds.jsonl") == dialogues
    assert [p.name for p in tmp_path.iterdir()] == ["worlds.jsonl"]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
# Ids are drawn apart from texts only because they must differ from one another.
optional = st.none() | st.text(st.characters(exclude_categories=["Cs"]))
oracles = st.one_of(
    st.builds(OracleOp, st.just("ADD"), texts),
    st.builds(OracleOp, st.just("UPDATE"), texts, texts),
    st.builds(OracleOp, st.just("DELETE"), st.just(""), texts),
    st.builds(OracleOp, st.just("NOOP"), st.just("")),
)
facts = st.none() | st.lists(st.builds(Fact, texts, st.none() | oracles), max_size=3).map(tuple)


@st.composite
def dialogues(draw: st.DrawFn) -> Dialogue:
    speakers = tuple(draw(st.lists(texts, min_size=1, max_size=3, unique=True)))
    turn_ids = draw(st.lists(texts, min_size=1, max_size=5, unique=True))
    turns = [
        Turn(i, draw(st.sampled_from(speakers)), draw(optional) or "", draw(facts), draw(optional)) for i in turn_ids
    ]
    cut = draw(st.integers(0, len(turns)))
    times = st.none() | st.datetimes() | st.datetimes(timezones=st.just(UTC))
    sessions = tuple(
        Session(f"s{n}", draw(times), draw(optional) or "", tuple(part))
        for n, part in enumerate((turns[:cut], turns[cut:]))
    )
    some_texts = st.lists(texts, max_size=2).map(tuple)
    some_turns = st.lists(st.sampled_from(turn_ids), max_size=2).map(tuple)
    questions = tuple(
        Question(
            i,
            draw(texts),
            draw(optional),
            draw(optional) or "",
            draw(st.none() | st.integers()),
            tuple(draw(st.lists(st.sampled_from(turn_ids), max_size=3))),
            draw(st.none() | st.sampled_from(turn_ids)),
            draw(optional),
            draw(optional),
            draw(st.booleans()),
            draw(st.none() | st.builds(Contract, some_texts, some_texts, some_turns, some_turns)),
        )
        for i in draw(st.lists(texts, max_size=3, unique=True))
    )
    metadata = draw(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), texts, max_size=2))
    return Dialogue(draw(texts), speakers, sessions, questions, metadata)


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(found=st.lists(dialogues(), min_size=1, max_size=2, unique_by=lambda d: d.id))
def test_any_dialogue_reads_back_exactly(tmp_path: Path, found: list[Dialogue]) -> None:
    path = tmp_path / "any.jsonl"
    write_jsonl(found, path)
    assert read_jsonl(path) == found
    assert len(path.read_bytes().split(b"\n")) == len(found) + 1


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [p for key, item in inner for p in places(item, (*path, key))]


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["t1", "ADD", "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.sampled_from(places(RECORD)), value=junk, action=st.sampled_from(["replace", "delete", "insert"]))
@example(place=("sessions", 0, "time"), value="2024-13-01", action="replace")
@example(place=("metadata", "split"), value=1.5, action="replace")
def test_a_corrupted_record_reads_or_raises_memr1error_and_nothing_else(
    tmp_path: Path, place: tuple[str | int, ...], value: object, action: str
) -> None:
    record = copy.deepcopy(RECORD)
    target: Any = record
    for key in place[:-1]:
        target = target[key]
    if action == "delete":
        del target[place[-1]]
    elif action == "insert" and isinstance(target, dict):
        target["extra"] = value
    else:
        target[place[-1]] = value
    path = written(tmp_path, record)
    try:
        read = read_jsonl(path)
    except MemR1Error as error:
        # Where, what, and after the semicolon what to do about it.
        assert re.match(rf"{re.escape(str(path))}:1: .+; \S.+", str(error), re.DOTALL), error
    else:
        write_jsonl(read, path)
        assert read_jsonl(path) == read


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(start=st.integers(0, 400), length=st.integers(0, 30), insert=st.binary(max_size=6))
def test_corrupted_bytes_read_or_raise_memr1error_and_nothing_else(
    tmp_path: Path, start: int, length: int, insert: bytes
) -> None:
    data = json.dumps(RECORD).encode()
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(data[:start] + insert + data[start + length :])
    try:
        found = read_jsonl(path)
    except MemR1Error as error:
        assert str(error).startswith(str(path))
    else:
        assert len(found) == 1


def test_junk_lines_are_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "junk.jsonl"
    for junk_line, message in [
        ("{", r"junk.jsonl:2: not valid JSON at character 2 .*; correct it there"),
        ("[]", r"junk.jsonl:2: the record is a list \(\[\]\); make it an object"),
        ('{"id": NaN}', "junk.jsonl:2: NaN is not JSON"),
        ('{"id": "a", "id": "b"}', 'junk.jsonl:2: the key "id" occurs twice'),
        ("[" * 100_000, "junk.jsonl:2: JSON beyond the parser's limits"),
        ("9" * 5_000, "junk.jsonl:2: JSON beyond the parser's limits"),
    ]:
        path.write_text(json.dumps(RECORD) + "\n" + junk_line + "\n", encoding="utf-8")
        with pytest.raises(MemR1Error, match=message):
            read_jsonl(path)


BROKEN: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("id",), 5, r"id is a number \(5\); make it a string"),
    (("id",), " ", "id is empty; give it some text"),
    (("speakers",), ["Ann"], "speakers lack 'Bob', who speaks in turn 't2'; add the name"),
    (("sessions",), [], "sessions hold no turn; give the dialogue at least one"),
    (("sessions", 0, "time"), "March", r'sessions\[0\].time is a string \("March"\); write it in ISO 8601'),
    (("sessions", 0, "turns", 1, "text"), None, r"sessions\[0\].turns\[1\].text is null; make it a string"),
    (("sessions", 0, "turns", 1, "text"), "\ud800", r"turns\[1\].text holds half of a surrogate pair"),
    (("sessions", 0, "turns", 1, "speeker"), "x", r'turns\[1\] has the unknown key "speeker"; did you mean speaker\?'),
    (("sessions", 0, "turns", 1, "id"), "t1", "sessions name the turn id 't1' twice"),
    (("sessions", 0, "turns", 0, "facts", 0, "oracle", "event"), "ADDS", "event is .*; use one of ADD, UPDATE"),
    (("sessions", 0, "turns", 0, "facts", 0, "oracle", "text"), "", "oracle is ADD and lacks its text"),
    (("sessions", 0, "turns", 0, "facts", 0, "oracle", "event"), "DELETE", "oracle is DELETE and has a text"),
    (("sessions", 0, "turns", 0, "facts", 0, "oracle", "target_text"), "x", "oracle is ADD and has a target_text"),
    (("questions", 0, "evidence"), ["t9"], r'questions\[0\].evidence\[0\] is a string \("t9"\), which is no turn'),
    (("questions", 0, "asked_after"), "t9", r"questions\[0\].asked_after is 't9', which is no turn"),
    (("questions", 0, "answer"), 3, r"questions\[0\].answer is a number \(3\); make it a string"),
    (("questions", 0, "category_id"), True, r"category_id is a boolean \(true\); make it a whole number"),
    (("metadata", "n"), 3, r"metadata.n is a number \(3\); make it a string"),
]


@pytest.mark.parametrize(("place", "value", "message"), BROKEN)
def test_a_malformed_field_is_named_with_line_and_remedy(
    tmp_path: Path, place: tuple[str | int, ...], value: object, message: str
) -> None:
    record = copy.deepcopy(RECORD)
    target: Any = record
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    path = written(tmp_path, RECORD | {"id": "first"}, record)
    with pytest.raises(MemR1Error, match=rf"^{re.escape(str(path))}:2: .*{message}"):
        read_jsonl(path)


def test_two_dialogues_cannot_share_an_id(tmp_path: Path) -> None:
    with pytest.raises(MemR1Error, match="data.jsonl:2: id 'd1' is taken by line 1"):
        read_jsonl(written(tmp_path, RECORD, RECORD))


def test_unreadable_files_say_why(tmp_path: Path) -> None:
    with pytest.raises(MemR1Error, match="absent.jsonl: no such file; set data.path to"):
        read_jsonl(tmp_path / "absent.jsonl")
    with pytest.raises(MemR1Error, match="is a directory"):
        read_jsonl(tmp_path)
    with pytest.raises(MemR1Error, match="holds no dialogue; put one JSON object on each line"):
        read_jsonl(written(tmp_path))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(RECORD).replace("Rome", "Köln").replace("\\u00f6", "ö").encode("latin-1"))
    with pytest.raises(MemR1Error, match=r"byte \d+ is not UTF-8; save the file as UTF-8"):
        read_jsonl(latin)


def test_what_would_not_read_back_is_not_written(tmp_path: Path) -> None:
    (dialogue,) = read_jsonl(written(tmp_path, RECORD))
    path = tmp_path / "out.jsonl"
    wrong_type = Dialogue("d", ("Ann",), [Session("s", None, "", (Turn("t", "Ann", "Hi"),))])  # type: ignore[arg-type]
    stranger = Dialogue("d", ("Ann",), (Session("s", None, "", (Turn("t", "Eve", "Hi"),)),))
    for bad, message in [
        ([], "no dialogue to write"),
        ([dialogue, dialogue], "'d1': the id occurs twice"),
        ([wrong_type], "does not read back as written"),
        ([stranger], "speakers lack 'Eve'"),
    ]:
        with pytest.raises(MemR1Error, match=message):
            write_jsonl(bad, path)
        assert not path.exists()
    with pytest.raises(MemR1Error, match="cannot be written"):
        write_jsonl([dialogue], tmp_path / "no-such-folder" / "out.jsonl")
