"""Facts extracted by the model: asked for at once, kept, and asked for again when the question changed in any way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from memr1.data.types import Dialogue, Session, Turn
from memr1.envs import extracting
from memr1.envs.cache import Cache
from memr1.envs.episode import Failure, Speaker, World, drive
from memr1.envs.extracting import prepared
from memr1.envs.ingesting import ingest_with_manager, ingest_without_model, turn_entries
from memr1.rollout.engine import Completion, GenerationRequest
from tests.unit.scripted import ScriptedEngine, make_world, tokenizer

DIALOGUE = Dialogue(
    "d",
    ("Ana", "Ben"),
    (
        Session(
            "s1",
            datetime(2024, 3, 2),
            "2 March 2024",
            (
                Turn("1", "Ben", "We moved to Rome."),
                Turn("2", "Ana", "Hm."),
                Turn("3", "Ana", "Look!", caption="a red kite"),
                Turn("4", "Ana", ""),
            ),
        ),
    ),
)


def script(prompt: str, request: GenerationRequest) -> str:
    if request.policy != "base":
        return "ADD"
    return (
        "- Ben lives in Rome\n- Ana lives in Rome" if "moved" in prompt else "- A kite" if "kite" in prompt else "none"
    )


def world(folder: Path, *overrides: str) -> World:
    return make_world("agents.extractor=llm", f"data.cache={folder}", *overrides)


def facts(dialogue: Dialogue) -> dict[str, list[str]]:
    return {t.id: [f.text for f in t.facts or ()] for _, t in dialogue.turns()}


def test_all_turns_are_asked_about_in_one_batch_by_the_base_weights(tmp_path: Path) -> None:
    engine = ScriptedEngine(script)
    first, second = prepared([DIALOGUE, replace(DIALOGUE, id="e")], world(tmp_path), engine)
    assert facts(first) == facts(second) == {
        "1": ["Ben lives in Rome", "Ana lives in Rome"], "2": [], "3": ["A kite"], "4": []
    }  # fmt: skip
    assert [len(batch) for batch in engine.batches] == [6]
    assert {r.policy for r in engine.batches[0]} == {"base"}
    bank = ingest_without_model(first, world(tmp_path), "add-everything")
    assert [(e.text, e.provenance.turn_ids, e.provenance.speaker) for e in bank.entries()] == [
        ("Ben lives in Rome", ("1",), "Ben"), ("Ana lives in Rome", ("1",), "Ben"), ("A kite", ("3",), "Ana")
    ]  # fmt: skip
    (done,) = drive([ingest_with_manager(first, world(tmp_path), Speaker("manager"))], engine)
    assert not isinstance(done, Failure) and done.decisions == 2
    with pytest.raises(ValueError, match="not extracted yet"):
        ingest_without_model(DIALOGUE, world(tmp_path), "add-everything")


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ((), 0),
        (("memory.answerer_top_k=2",), 0),
        (("agents.extractor_dates=false",), 3),
        (("data.captions=false",), 3),
        (("rollout.extractor_max_new_tokens=99",), 3),
    ],
)
def test_facts_are_read_again_unless_the_question_changed(tmp_path: Path, change: tuple[str, ...], asked: int) -> None:
    prepared([DIALOGUE], world(tmp_path), ScriptedEngine(script))
    again = ScriptedEngine(script)
    (found,) = prepared([DIALOGUE], world(tmp_path, *change), again)
    assert sum(len(b) for b in again.batches) == asked
    assert facts(found)["3"] == ([] if "data.captions=false" in change else ["A kite"])


def test_an_interrupted_extraction_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(ScriptedEngine):
        """Gives up at its third call."""

        def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().generate(requests)

    monkeypatch.setattr(extracting, "ASKED_AT_ONCE", 4)  # of three turns each, two dialogues at a time
    talks = [replace(DIALOGUE, id=name) for name in "abcdefg"]
    with pytest.raises(KeyboardInterrupt):
        prepared(talks, world(tmp_path), Stopped(script))
    again = ScriptedEngine(script)
    found = prepared(talks, world(tmp_path), again)
    assert [len(batch) for batch in again.batches] == [6, 3]
    assert [d.id for d in found] == list("abcdefg") and all(facts(d) == facts(found[0]) for d in found)


def test_a_turn_that_is_longer_than_a_prompt_has_no_facts_and_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = Turn("5", "Ana", "kite " * 500)
    session = replace(DIALOGUE.sessions[0], turns=(*DIALOGUE.sessions[0].turns, long))
    talk, budget = replace(DIALOGUE, sessions=(session,)), "rollout.max_prompt_tokens=600"
    for _ in range(2):
        (found,) = prepared([talk], world(tmp_path, budget), ScriptedEngine(script))
        assert facts(found) == facts(prepared([DIALOGUE], world(tmp_path / "b"), ScriptedEngine(script))[0]) | {"5": []}
    assert caplog.text.count("d: no facts are extracted from turns 5, whose prompts exceed rollout") == 1
    (found,) = prepared([talk], world(tmp_path), ScriptedEngine(script))
    assert facts(found)["5"] == ["A kite"], "with more room it is asked about"


def test_a_dialogue_that_changed_is_asked_about_anew_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared([DIALOGUE], world(tmp_path), ScriptedEngine(script))
    session = DIALOGUE.sessions[0]
    other = Dialogue("d", DIALOGUE.speakers, (Session("s1", session.time, "3 March 2024", session.turns),))
    again = ScriptedEngine(script)
    with caplog.at_level(logging.WARNING):
        prepared([other], world(tmp_path), again)
    assert sum(len(b) for b in again.batches) == 3
    assert "d has changed since it was written" in caplog.text


def test_the_extractor_sees_the_date_unless_told_not_to_and_captions_unless_left_out(tmp_path: Path) -> None:
    def prompts(*overrides: str) -> str:
        engine = ScriptedEngine(script)
        prepared([DIALOGUE], world(tmp_path, *overrides), engine)
        return "\n".join(tokenizer().decode(list(r.prompt_ids)) for batch in engine.batches for r in batch)

    shown = prompts()
    assert "Ben (2 March 2024): We moved" in shown and "Look! [shares a red kite]" in shown
    hidden = prompts("agents.extractor_dates=false", "data.captions=false")
    assert "March" not in hidden and "kite" not in hidden and "Ben: We moved" in hidden
    (plain,) = prepared([DIALOGUE], make_world("data.captions=false"), ScriptedEngine(script))
    assert [e.text for e in turn_entries(plain)][2] == "Ana: Look!"


def damage(path: Path, how: str) -> None:
    lines = path.read_text().splitlines()
    text = {"cut": lines[:-1], "changed": [*lines[:-1], lines[-1].replace("kite", "boat")], "empty": []}[how]
    path.write_text("\n".join(text))


@pytest.mark.parametrize("how", ["cut", "changed", "empty"])
def test_a_damaged_file_is_made_anew_and_it_is_said(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    (before,) = prepared([DIALOGUE], world(tmp_path), ScriptedEngine(script))
    (path,) = (tmp_path / "facts").iterdir()
    whole = path.read_text()
    damage(path, how)
    with caplog.at_level(logging.WARNING):
        (after,) = prepared([DIALOGUE], world(tmp_path), ScriptedEngine(script))
    assert after == before and path.read_text() == whole
    assert "damaged, so it is made anew" in caplog.text


def test_what_was_written_is_read_back_for_its_settings_and_data_alone(tmp_path: Path) -> None:
    cache, items = Cache(tmp_path), [{"a": 1}, {"b": [None, "x", 0.5]}]
    settings: dict[str, Any] = {"model": "m"}
    cache.write("tuples", "a/b c", settings, {"text": "hello"}, items)
    found = cache.read("tuples", "a/b c", settings, {"text": "hello"})
    assert found is not None and [f._value for f in found] == items
    assert cache.read("tuples", "a/b c", {"model": "n"}, {"text": "hello"}) is None
    assert cache.read("tuples", "a_b_c", settings, {"text": "hello"}) is None  # another dialogue with such a file name
    assert cache.read("facts", "a/b c", settings, {"text": "hello"}) is None
    assert cache.read("tuples", "a/b c", settings, {"text": "hello!"}) is None
