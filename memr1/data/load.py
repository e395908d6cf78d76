"""SOURCES, every kind of dialogues that memr1 knows, and load_dialogues, the one door to all of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace

from memr1.data.automemorybench import read_automemorybench
from memr1.data.factworld import FactWorldConfig, generate_dialogues
from memr1.data.jsonl import read_jsonl
from memr1.data.locomo import LOCOMO_SPLIT, read_locomo, split_locomo
from memr1.data.longmemeval import read_longmemeval
from memr1.data.msc import read_msc
from memr1.data.types import Dialogue
from memr1.errors import MemR1Error
from memr1.storage import local_file

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Source:
    """A kind of dialogues: where they come from and how they are scored."""

    description: str
    read: Callable[[str], list[Dialogue]] | None = None
    """Reads a file; None where dialogues are generated."""
    splits: tuple[str, ...] = SPLITS
    """A benchmark that publishes questions for evaluation only has `test` alone, so that nobody trains on it."""
    measures: tuple[str, ...] = ()
    """What tables show beside the text match, by name in `memr1.evaluation.scores.MEASURES`."""


SOURCES: dict[str, Source] = {
    "factworld": Source("worlds generated from a seed"),
    "locomo": Source("LoCoMo's conversations, by the Memory-R1 paper's split", measures=("locomo_f1", "abstained")),
    "longmemeval": Source(
        "LongMemEval, in its own or the flattened schema", read_longmemeval, ("test",), ("abstained",)
    ),
    "msc": Source("Multi-Session Chat with a question per dialogue", read_msc, ("test",)),
    "automemorybench": Source(
        "AutoMemoryBench's cases under contracts, a file or a folder of domains",
        read_automemorybench,
        ("test",),
        ("contract", "required", "clean", "admissible", "abstained"),
    ),
    "jsonl": Source("your own dialogues, see docs/data.md", read_jsonl, measures=("abstained", "contract")),
}


def load_dialogues(
    kind: str,
    path: str | None,
    split: str,
    factworld: FactWorldConfig,
    *,
    adversarial: bool = False,
    audit: str | None = None,
) -> list[Dialogue]:
    """The dialogues of a split, at least one.

    kind: a key of `SOURCES`. `factworld` is generated from `factworld` with its split set to `split`, the others are
        read from `path`. A JSON Lines file is split by its dialogues' `metadata.split`; where none has one, every split
        is the whole file: what trains and what evaluates are then told apart by `memr1.training.worlds`.
    adversarial, audit: for LoCoMo only, see `read_locomo`.
    Raises MemR1Error for an unknown kind or split, a missing or malformed file and an empty split.
    """
    source = get_source(kind)
    if split not in SPLITS:
        raise MemR1Error(f"there is no split {split!r}; use one of {', '.join(SPLITS)}")
    if split not in source.splits:
        raise MemR1Error(f"{kind} has questions for evaluation only; use its split {' or '.join(source.splits)}")
    if (adversarial or audit) and kind != "locomo":
        raise MemR1Error(f"{'--adversarial' if adversarial else '--audit'} is for LoCoMo; leave it out for {kind}")
    if kind == "factworld":
        return generate_dialogues(replace(factworld, split=split))
    if not path:
        raise MemR1Error(f"data.kind is {kind} and data.path is not set; set data.path to the file to read")
    path = local_file(path)
    if kind == "locomo":
        dialogues = split_locomo(read_locomo(path, include_adversarial=adversarial, audit_path=audit), split)
        remedy = f"its conversations for {split} are {', '.join(LOCOMO_SPLIT[split])}"
    else:
        assert source.read is not None
        dialogues = _of_split(source.read(path), split)
        remedy = f'give some of its dialogues "metadata": {{"split": "{split}"}}, or none of them any'
    if not dialogues:
        raise MemR1Error(f"{path}: has no dialogue of the split {split}; {remedy}")
    return dialogues


def get_source(kind: str) -> Source:
    """Raises MemR1Error with the nearest name for an unknown kind."""
    if kind in SOURCES:
        return SOURCES[kind]
    near = difflib.get_close_matches(kind, SOURCES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(SOURCES)}"
    raise MemR1Error(f"there is no kind of data {kind!r}; {hint}")


def _of_split(dialogues: list[Dialogue], split: str) -> list[Dialogue]:
    if not any("split" in d.metadata for d in dialogues):
        return dialogues
    return [d for d in dialogues if d.metadata.get("split") == split]
