"""Which dialogues a run trains on and which it is evaluated on. The splits are the datasets' own."""

from __future__ import annotations

from dataclasses import replace

from memr1.config import Config
from memr1.data.load import load_dialogues
from memr1.data.types import Dialogue

HELD_OUT_SEED = 2
"""Of the worlds that runs are evaluated on. What was learnt on those of seed 0 and 1 has shaped the settings, so they
count as seen; raise it again when a failure on these worlds changes the method."""


def training_dialogues(config: Config) -> list[Dialogue]:
    """The training split of `data`. FactWorld's worlds also follow the run's seed."""
    data = config.data
    factworld = replace(data.factworld, seed=data.factworld.seed + config.seed)
    return load_dialogues(data.kind, data.path, "train", factworld)


def held_out_worlds(config: Config, split: str = "test") -> list[Dialogue]:
    """FactWorld worlds whose names, values and templates occur in no training world; one fixed set for all seeds."""
    factworld = replace(
        config.data.factworld, num_worlds=config.evaluation.num_worlds, seed=HELD_OUT_SEED, questions_per_fact_turn=0
    )
    return load_dialogues("factworld", None, split, factworld)
