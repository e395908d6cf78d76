"""The LoCoMo reader: every known trap of the file, on fixtures written here, and the counts of the real file.

The real conversations are found through MEMR1_SHARED_DATA or beside the repository and are never copied.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from memr1.data.locomo import (
    LOCOMO_SPLIT,
    is_audited,
    parse_references,
    parse_session_time,
    read_locomo,
    split_locomo,
)
from memr1.data.types import Dialogue, Question
from memr1.errors import MemR1Error

SHARED = Path(os.environ.get("MEMR1_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data") / "locomo"
needs_locomo = pytest.mark.skipif(
    not (SHARED / "locomo3.json").is_file(),
    reason="LoCoMo's conversations are not redistributable; set MEMR1_SHARED_DATA to the folder that holds them",
)


def turn(turn_id: str, speaker: str = "Pia", text: str = "Hello.", **more: Any) -> dict[str, Any]:
    return {"dia_id": turn_id, "speaker": speaker, "text": text, **more}


CONVERSATION: dict[str, Any] = {
    "sample_id": "conv-48",
    "conversation": {
        "speaker_a": "Pia",
        "speaker_b": "Quin",
        "session_1_date_time": "12:48 am on 1 February, 2023",
        "session_1": [
            turn("D1:1", text="I bake bread."),
            turn("D1:2", "Quin", "Look!", blip_caption="a photo of a red kite", img_url=["x"], query="kite"),
        ],
        "session_2_date_time": "12:05 pm on 9 February, 2023",
        "session_2": [turn("D2:1"), turn("D2:2", "Quin"), turn("D2:5")],
        "session_3_date_time": "1:56 pm on 8 May, 2023",
        "session_3": [],
        "session_4_date_time": "1:56 pm on 9 May, 2023",
        "session_10": [turn("D10:1")],
        "session_10_date_time": "8:00 am on 3 June, 2023",
        "session_11": [turn("D11:26")],
        "session_11_date_time": "9:00 am on 4 June, 2023",
    },
    "observation": {
        "session_1_observation": {
            "Pia": [["Pia bakes bread.", "D1:1"], ["Pia owns an oven.", "D1:1"]],
            "Quin": [["Quin flies a kite.", ["D1:1", "D1:2"]], ["Quin is tall.", "D7:7"]],
        },
        "session_10_observation": {},
    },
    "qa": [
        {"question": "How many loaves?", "answer": 3, "evidence": ["D1:1"], "category": 1},
        {"question": "When?", "answer": "1 February", "evidence": ["D1:2; D2:1"], "category": 2},
        {"question": "Is it so?", "answer": "Likely no", "evidence": [], "category": 3},
        {"question": "Would it be?", "answer": "Yes", "category": 3},
        {"question": "What colour?", "answer": "red", "evidence": ["D", "D:11:26", "D2:05"], "category": 4},
        {"question": "What colour?", "answer": "red", "evidence": ["D1:2", "D1:2", "D99:1"], "category": 4},
        {"question": "What did Pia sell?", "evidence": ["D1:1"], "category": 5, "adversarial_answer": "bread"},
        {"question": "Is it blue?", "answer": "No", "evidence": ["D1:2"], "category": 5, "adversarial_answer": "Yes"},
    ],
}


def written(tmp_path: Path, data: object, name: str = "locomo.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.fixture
def dialogue(tmp_path: Path) -> Dialogue:
    (found,) = read_locomo(written(tmp_path, [CONVERSATION]), include_adversarial=True)
    return found


def ask(dialogue: Dialogue, index: int) -> Question:
    return next(q for q in dialogue.questions if q.id == f"conv-48/qa{index}")


def test_sessions_come_by_number_and_dates_without_sessions_are_left_out(dialogue: Dialogue) -> None:
    assert [s.id for s in dialogue.sessions] == ["session_1", "session_2", "session_10", "session_11"]
    assert [s.time for s in dialogue.sessions] == [
        datetime(2023, 2, 1, 0, 48),
        datetime(2023, 2, 9, 12, 5),
        datetime(2023, 6, 3, 8, 0),
        datetime(2023, 6, 4, 9, 0),
    ]
    assert dialogue.sessions[0].time_text == "12:48 am on 1 February, 2023"
    assert dialogue.speakers == ("Pia", "Quin") and dialogue.id == "conv-48"


def test_captions_are_kept(dialogue: Dialogue) -> None:
    assert [t.caption for _, t in dialogue.turns()][:3] == [None, "a photo of a red kite", None]


def test_observations_become_facts_of_the_turn_that_completes_them(dialogue: Dialogue) -> None:
    facts = {t.id: t.facts and [f.text for f in t.facts] for _, t in dialogue.turns()}
    assert facts["D1:1"] == ["Pia bakes bread.", "Pia owns an oven."]
    assert facts["D1:2"] == ["Quin flies a kite."]
    assert facts["D10:1"] == ()  # an annotated session in which nothing was worth keeping
    assert facts["D2:1"] is None  # a session that was not annotated
    assert all(f.oracle is None for _, t in dialogue.turns() for f in t.facts or ())
    assert dialogue.metadata["observations_dropped"] == "1"


def test_answers_that_are_numbers_become_text(dialogue: Dialogue) -> None:
    assert ask(dialogue, 0).answer == "3"
    assert ask(dialogue, 0).note == "answer was a number"


def test_broken_evidence_is_split_respelled_or_dropped_and_noted(dialogue: Dialogue) -> None:
    assert ask(dialogue, 1).evidence == ("D1:2", "D2:1")
    assert ask(dialogue, 4).evidence == ("D11:26", "D2:5")
    assert ask(dialogue, 4).note == (
        "evidence 'D' dropped: no such turn; evidence 'D:11:26' read as D11:26; evidence 'D2:05' read as D2:5"
    )
    assert ask(dialogue, 5).evidence == ("D1:2",)
    assert ask(dialogue, 5).note == "repeats conv-48/qa4; evidence 'D99:1' dropped: no such turn"
    assert ask(dialogue, 2).evidence == ask(dialogue, 3).evidence == ()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("D8:6; D9:17", ["D8:6", "D9:17"]),
        ("D9:1 D4:4 D4:6", ["D9:1", "D4:4", "D4:6"]),
        ("D", []),
        ("D:11:26", ["D11:26"]),
        ("D30:05", ["D30:5"]),
        ("D1:10", ["D1:10"]),
    ],
)
def test_references_are_read_as_meant(text: str, ids: list[str]) -> None:
    assert parse_references(text) == ids


def test_repeated_questions_are_kept_under_ids_of_their_own(dialogue: Dialogue) -> None:
    assert [q.text for q in dialogue.questions].count("What colour?") == 2
    assert len({q.id for q in dialogue.questions}) == len(dialogue.questions) == 8


def test_adversarial_questions_come_only_on_request_and_may_lack_an_answer(tmp_path: Path, dialogue: Dialogue) -> None:
    assert [(q.answer, q.category) for q in dialogue.questions[-2:]] == [(None, "adversarial"), ("No", "adversarial")]
    (plain,) = read_locomo(written(tmp_path, [CONVERSATION]))
    assert Counter(q.category_id for q in plain.questions) == {1: 1, 2: 1, 3: 2, 4: 2}
    assert [q.id for q in plain.questions] == [f"conv-48/qa{n}" for n in range(6)]


def test_categories_carry_the_datasets_own_ids(dialogue: Dialogue) -> None:
    assert {q.category_id: q.category for q in dialogue.questions} == {
        1: "multi-hop",
        2: "temporal",
        3: "open-domain",
        4: "single-hop",
        5: "adversarial",
    }


@pytest.mark.parametrize("text", ["", "15 June 2031", "1:56 pm on 31 June, 2023", "1:56 pm on 8 Mai, 2023"])
def test_times_of_another_form_are_not_guessed(text: str) -> None:
    assert parse_session_time(text) is None


def test_the_split_goes_by_sample_id_and_warns_of_missing_conversations(caplog: pytest.LogCaptureFixture) -> None:
    dialogues = [Dialogue(name, (), ()) for name in ("conv-30", "conv-26", "conv-50", "mine")]
    assert [d.id for d in split_locomo(dialogues, "train")] == ["conv-26"]
    assert [d.id for d in split_locomo(dialogues, "validation")] == ["conv-30"]
    assert not caplog.records
    assert [d.id for d in split_locomo(dialogues, "test")] == ["conv-50"]
    assert "lacks conv-41, conv-42" in caplog.text
    assert [len(LOCOMO_SPLIT[s]) for s in ("train", "validation", "test")] == [1, 1, 8]
    with pytest.raises(MemR1Error, match="no split 'dev'; use one of train, validation, test"):
        split_locomo(dialogues, "dev")


BROKEN: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("qa", 0, "answer"), ["3"], r"qa\[0\].answer is a list \(\[\"3\"\]\); make it a string"),
    (("qa", 0, "category"), 6, r"qa\[0\].category is 6; use 1 to 5"),
    (("qa", 0, "category"), "1", r"qa\[0\].category is a string .* whole number"),
    (("qa", 0, "evidence"), [7], r"qa\[0\].evidence\[0\] is a number \(7\); make it a string"),
    (("qa", 0), "text", r"qa\[0\] is a string .*; make it an object"),
    (("qa",), None, "qa is null; make it a list"),
    (("conversation", "speaker_a"), None, "conversation.speaker_a is null; make it a string"),
    (("conversation", "session_1"), {}, "conversation.session_1 is an object .*; make it a list"),
    (("conversation", "session_1", 0, "text"), None, r"conversation.session_1\[0\].text is null"),
    (("conversation", "session_1", 0, "dia_id"), "D1:2", "conversation has two turns with dia_id D1:2"),
    (("conversation", "session_1_date_time"), "yesterday", "session_1_date_time is .*; write it like 1:56 pm on"),
    (("conversation", "session_1", 1, "blip_caption"), 4, r"session_1\[1\].blip_caption is a number"),
    (("observation", "session_1_observation", "Pia", 0), ["one"], r"Pia\[0\] is a list .*; make it a pair"),
    (("observation",), [], "observation is a list"),
]


@pytest.mark.parametrize(("place", "value", "message"), BROKEN)
def test_a_malformed_field_is_named_with_its_conversation_and_a_remedy(
    tmp_path: Path, place: tuple[str | int, ...], value: object, message: str
) -> None:
    data = copy.deepcopy(CONVERSATION)
    target: Any = data
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    path = written(tmp_path, [data])
    with pytest.raises(MemR1Error, match=rf"^{re.escape(str(path))}: conversation conv-48: .*{message}"):
        read_locomo(path)


@pytest.mark.parametrize("key", ["qa", "conversation"])
def test_a_missing_part_is_named(tmp_path: Path, key: str) -> None:
    data = {k: v for k, v in CONVERSATION.items() if k != key}
    with pytest.raises(MemR1Error, match=f"conversation conv-48: the record has no {key}; add it"):
        read_locomo(written(tmp_path, [data]))


def test_a_question_without_an_answer_is_an_error_outside_category_5(tmp_path: Path) -> None:
    data = copy.deepcopy(CONVERSATION)
    del data["qa"][0]["answer"]
    with pytest.raises(MemR1Error, match=r"qa\[0\] has no answer; only category 5 may do without"):
        read_locomo(written(tmp_path, [data]))


def test_files_that_are_no_locomo_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MemR1Error, match="no such file; set data.path to your copy of LoCoMo's JSON file"):
        read_locomo(tmp_path / "absent.json")
    with pytest.raises(MemR1Error, match="holds no conversation"):
        read_locomo(written(tmp_path, []))
    with pytest.raises(MemR1Error, match="is an object .*; make it a list"):
        read_locomo(written(tmp_path, CONVERSATION))
    with pytest.raises(MemR1Error, match="conv-48: the record occurs twice"):
        read_locomo(written(tmp_path, [CONVERSATION, CONVERSATION]))
    broken = tmp_path / "broken.json"
    broken.write_text("[{", encoding="utf-8")
    with pytest.raises(MemR1Error, match="not valid JSON at character 3"):
        read_locomo(broken)


def audit(index: int, question: str, answer: str, evidence: list[str], kind: str = "WRONG_CITATION") -> dict[str, Any]:
    return {
        "question_id": f"locomo_8_qa{index}",
        "question": question,
        "category": 4,
        "error_type": kind,
        "correct_evidence": evidence,
        "correct_answer": answer,
    }


def test_an_audit_corrects_evidence_and_answers_and_keeps_its_remarks_out_of_them(tmp_path: Path) -> None:
    # conv-48 is the eighth of ten conversations, number 7 when counted from 0.
    corrections = [
        audit(4, "What colour?", "Red (answer is correct, the citation (D11:26) is not)", ["D1:2"]),
        audit(2, "Is it so?", "Likely yes (D1:1, D1:2), or so", ["D1:1; D1:2"], "HALLUCINATION"),
    ]
    for correction in corrections:
        correction["question_id"] = correction["question_id"].replace("_8_", "_7_")
    found = read_locomo(written(tmp_path, [CONVERSATION]), audit_path=written(tmp_path, corrections, "audit.json"))[0]
    citation, answer = ask(found, 4), ask(found, 2)
    assert (citation.answer, citation.evidence) == ("red", ("D1:2",))
    assert (answer.answer, answer.evidence) == ("Likely yes, or so", ("D1:1", "D1:2"))
    assert answer.note is not None and answer.note.startswith("audit HALLUCINATION; ")
    assert answer.note.endswith("published answer 'Likely no'")
    assert [q.id for q in found.questions if is_audited(q)] == ["conv-48/qa2", "conv-48/qa4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": "qa4"}, "write it like locomo_0_qa12"),
        ({"question_id": "locomo_12_qa4"}, "write it like locomo_0_qa12"),
        ({"question_id": "locomo_7_qa90"}, "names conv-48/qa90, which the dataset lacks"),
        ({"question": "Another one?"}, "names conv-48/qa4, which asks 'What colour\\?'"),
        ({"correct_answer": 5}, "correct_answer is a number"),
    ],
)
def test_an_audit_of_another_dataset_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    correction = audit(4, "What colour?", "red", ["D1:2"]) | {"question_id": "locomo_7_qa4"} | change
    with pytest.raises(MemR1Error, match=rf"audit.json: \[0\].*{message}"):
        read_locomo(written(tmp_path, [CONVERSATION]), audit_path=written(tmp_path, [correction], "audit.json"))


@needs_locomo
def test_the_real_conversations_have_the_published_counts() -> None:
    dialogues = read_locomo(SHARED / "locomo3.json")
    assert [(d.id, len(d.questions), len(d.sessions)) for d in dialogues] == [
        ("conv-26", 152, 19),
        ("conv-30", 81, 19),
        ("conv-41", 152, 32),
    ]
    assert [sum(1 for _ in d.turns()) for d in dialogues] == [419, 369, 663]
    assert [sum(t.caption is not None for _, t in d.turns()) for d in dialogues] == [116, 72, 131]
    for d in dialogues:
        ids = {t.id for _, t in d.turns()}
        assert all(set(q.evidence) <= ids and q.answer for q in d.questions)
        assert all(s.time is not None for s in d.sessions)
    assert sum((q.note or "").startswith("answer was a number") for q in dialogues[0].questions) == 6
    assert [q.id for q in dialogues[0].questions if not q.evidence] == ["conv-26/qa30", "conv-26/qa46"]
    assert [d.id for d in split_locomo(dialogues, "train")] == ["conv-26"]
    assert "open-domain" not in {q.category for q in dialogues[1].questions}
    everything = read_locomo(SHARED / "locomo3.json", include_adversarial=True)
    assert [len(d.questions) for d in everything] == [199, 105, 193]


@needs_locomo
def test_every_observation_of_the_real_conversations_finds_its_turn() -> None:
    raw = json.loads((SHARED / "locomo3.json").read_text(encoding="utf-8"))
    for dialogue, source in zip(read_locomo(SHARED / "locomo3.json"), raw, strict=True):
        observed = sum(len(said) for who in source["observation"].values() for said in who.values())
        assert sum(len(t.facts or ()) for _, t in dialogue.turns()) == observed > 160
        assert dialogue.metadata == {"dataset": "locomo"}


@needs_locomo
def test_the_audit_of_the_real_conversations_applies() -> None:
    plain = {q.id: q for d in read_locomo(SHARED / "locomo3.json") for q in d.questions}
    audited = {
        q.id: q
        for d in read_locomo(SHARED / "locomo3.json", audit_path=SHARED / "label_audit.json")
        for q in d.questions
    }
    changed = {i for i in plain if audited[i] != plain[i]}
    assert changed == {i for i, q in audited.items() if is_audited(q)}
    assert len(changed) == 46
    assert sum(audited[i].answer != plain[i].answer for i in changed) == 20
    corrections = json.loads((SHARED / "label_audit.json").read_text(encoding="utf-8"))
    recited = sum(c["cited_evidence"] != c["correct_evidence"] for c in corrections)
    # One of them only splits "D8:6; D9:17", as the reader does anyway.
    assert sum(audited[i].evidence != plain[i].evidence for i in changed) == recited - 1 == 32
    assert not any("is correct" in (q.answer or "") for q in audited.values())
    assert audited["conv-30/qa31"].answer == "five months"
