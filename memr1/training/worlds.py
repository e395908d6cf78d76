"""Which dialogues a run trains on and which it is evaluated on. The splits are the datasets' own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memr1.config import Config
from memr1.data.load import load_dialogues
from memr1.data.locomo import LOCOMO_SPLIT
from memr1.data.types import Dialogue
from memr1.errors import MemR1Error

HELD_OUT_SEED = 2
"""Of the worlds that runs are evaluated on. What was learnt on those of seed 0 and 1 has shaped the settings, so they
count as seen; raise it again when a failure on these worlds changes the method."""


def training_dialogues(config: Config) -> list[Dialogue]:
    """The training split of `data`. FactWorld's worlds also follow the run's seed."""
    data = config.data
    factworld = replace(data.factworld, seed=data.factworld.seed + config.seed)
    dialogues = load_dialogues(data.kind, data.path, "train", factworld)
    _refuse_held_out(dialogues, data.path)
    return dialogues


def _refuse_held_out(dialogues: Sequence[Dialogue], path: str | None) -> None:
    """MemR1Error for a conversation that LoCoMo's split holds out, however it came into the file."""
    held_out = {name: split for split, names in LOCOMO_SPLIT.items() if split != "train" for name in names}
    for dialogue in dialogues:
        if dialogue.id in held_out:
            raise MemR1Error(
                f"{path}: {dialogue.id} belongs to LoCoMo's {held_out[dialogue.id]} split and must not be trained on; "
                "leave it out, give it that metadata.split, or rename it if it is another conversation"
            )


def held_out_worlds(config: Config, split: str = "test") -> list[Dialogue]:
    """FactWorld worlds whose names, values and templates occur in no training world; one fixed set for all seeds."""
    factworld = replace(
        config.data.factworld, num_worlds=config.evaluation.num_worlds, seed=HELD_OUT_SEED, questions_per_fact_turn=0
    )
    return load_dialogues("factworld", None, split, factworld)
