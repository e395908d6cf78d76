"""load_dialogues: every kind of data through one door, and never an empty dataset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from memr1.data.factworld import FactWorldConfig, generate_dialogues
from memr1.data.jsonl import write_jsonl
from memr1.data.load import load_dialogues
from memr1.errors import MemR1Error

WORLDS = FactWorldConfig(num_worlds=3, seed=5)


def test_factworld_takes_the_split_that_is_asked_for() -> None:
    for split in ("train", "validation", "test"):
        found = load_dialogues("factworld", None, split, WORLDS)
        assert found == generate_dialogues(FactWorldConfig(split=split, num_worlds=3, seed=5))
        assert [d.metadata["split"] for d in found] == [split] * 3


def test_json_lines_are_split_by_their_metadata_and_shared_without_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    train, test = (load_dialogues("factworld", None, s, WORLDS) for s in ("train", "test"))
    write_jsonl([*train, *test], path)
    assert load_dialogues("jsonl", str(path), "test", WORLDS) == test
    with pytest.raises(MemR1Error, match='no dialogue of the split validation; give some of its dialogues "metadata"'):
        load_dialogues("jsonl", str(path), "validation", WORLDS)
    bare = [replace(d, metadata={}) for d in train]
    write_jsonl(bare, path)
    assert load_dialogues("jsonl", str(path), "train", WORLDS) == bare
    assert load_dialogues("jsonl", str(path), "validation", WORLDS) == bare


def test_locomo_takes_the_papers_split(tmp_path: Path) -> None:
    path = tmp_path / "locomo.json"
    talk = {"speaker_a": "A", "speaker_b": "B", "session_1": [{"dia_id": "D1:1", "speaker": "A", "text": "Hi"}]}
    path.write_text(json.dumps([{"sample_id": n, "conversation": talk, "qa": []} for n in ("conv-30", "conv-26")]))
    assert [d.id for d in load_dialogues("locomo", str(path), "train", WORLDS)] == ["conv-26"]
    with pytest.raises(
        MemR1Error, match=r"no dialogue of the split test; its conversations for test are conv-41, conv-42"
    ):
        load_dialogues("locomo", str(path), "test", WORLDS)


@pytest.mark.parametrize(
    ("kind", "path", "split", "message"),
    [
        ("locomoo", None, "train", "no kind of data 'locomoo'; did you mean locomo?"),
        (
            "csv",
            None,
            "train",
            "no kind of data 'csv'; use one of factworld, locomo, longmemeval, msc, automemorybench, jsonl",
        ),
        ("jsonl", None, "train", "data.path is not set"),
        ("locomo", "", "train", "data.path is not set"),
        ("jsonl", "/no/such.jsonl", "train", "no such file; set data.path to a JSON Lines file"),
        ("msc", "x.jsonl", "train", "msc has questions for evaluation only; use its split test"),
        ("factworld", None, "dev", "no split 'dev'; use one of train, validation, test"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_set(kind: str, path: str | None, split: str, message: str) -> None:
    with pytest.raises(MemR1Error, match=message):
        load_dialogues(kind, path, split, WORLDS)


def test_options_of_locomo_are_refused_elsewhere() -> None:
    with pytest.raises(MemR1Error, match="--adversarial is for LoCoMo; leave it out for msc"):
        load_dialogues("msc", "x.jsonl", "test", WORLDS, adversarial=True)
    with pytest.raises(MemR1Error, match="--audit is for LoCoMo"):
        load_dialogues("factworld", None, "test", WORLDS, audit="audit.json")
