"""load_dialogues: the one entry through which commands get their dialogues, whatever the dataset."""

from __future__ import annotations

import difflib
from dataclasses import replace

from memr1.data.factworld import FactWorldConfig, generate_dialogues
from memr1.data.jsonl import read_jsonl
from memr1.data.locomo import LOCOMO_SPLIT, read_locomo, split_locomo
from memr1.data.types import Dialogue
from memr1.errors import MemR1Error

_KINDS = ("factworld", "locomo", "jsonl")


def load_dialogues(kind: str, path: str | None, split: str, factworld: FactWorldConfig) -> list[Dialogue]:
    """The dialogues of a split, at least one.

    kind: `factworld` (generated from `factworld` with its split set to `split`), `locomo` or `jsonl` (read from
        `path`). A JSON Lines file is split by its dialogues' `metadata.split`; where none has one, every split is the
        whole file.
    split: `train`, `validation` or `test`.
    Raises MemR1Error for an unknown kind or split, a missing or malformed file and an empty split.
    """
    if kind not in _KINDS:
        near = difflib.get_close_matches(kind, _KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(_KINDS)}"
        raise MemR1Error(f"data.kind is {kind!r}; {hint}")
    if split not in LOCOMO_SPLIT:
        raise MemR1Error(f"there is no split {split!r}; use one of {', '.join(LOCOMO_SPLIT)}")
    if kind == "factworld":
        return generate_dialogues(replace(factworld, split=split))
    if not path:
        raise MemR1Error(f"data.kind is {kind} and data.path is not set; set data.path to the file to read")
    if kind == "locomo":
        dialogues = split_locomo(read_locomo(path), split)
        remedy = f"its conversations for {split} are {', '.join(LOCOMO_SPLIT[split])}"
    else:
        dialogues = _of_split(read_jsonl(path), split)
        remedy = f'give some of its dialogues "metadata": {{"split": "{split}"}}, or none of them any'
    if not dialogues:
        raise MemR1Error(f"{path}: has no dialogue of the split {split}; {remedy}")
    return dialogues


def _of_split(dialogues: list[Dialogue], split: str) -> list[Dialogue]:
    if not any("split" in d.metadata for d in dialogues):
        return dialogues
    return [d for d in dialogues if d.metadata.get("split") == split]
