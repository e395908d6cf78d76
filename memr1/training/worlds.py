"""Which dialogues a run trains on and which it is evaluated on. The splits are the datasets' own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from memr1.config import Config
from memr1.data.load import SOURCES, load_dialogues
from memr1.data.locomo import LOCOMO_SPLIT
from memr1.data.types import Dialogue
from memr1.errors import MemR1Error

logger = logging.getLogger(__name__)

HELD_OUT_SEED = 2
"""Of the worlds that runs are evaluated on. What was learnt on those of seed 0 and 1 has shaped the settings, so they
count as seen; raise it again when a failure on these worlds changes the method."""


def training_dialogues(config: Config) -> list[Dialogue]:
    """The training split of `data`. FactWorld's worlds also follow the run's seed. MemR1Error for dialogues that nobody
    must train on, however they came into the file."""
    data = config.data
    factworld = replace(data.factworld, seed=data.factworld.seed + config.seed)
    dialogues = load_dialogues(data.kind, data.path, "train", factworld)
    _refuse_held_out(dialogues, data.path)
    return dialogues


def _refuse_held_out(dialogues: Sequence[Dialogue], path: str | None) -> None:
    """MemR1Error for a conversation that LoCoMo's split holds out, and for datasets that are for evaluation only."""
    held_out = {name: split for split, names in LOCOMO_SPLIT.items() if split != "train" for name in names}
    for dialogue in dialogues:
        if dialogue.id in held_out:
            raise MemR1Error(
                f"{path}: {dialogue.id} belongs to LoCoMo's {held_out[dialogue.id]} split and must not be trained on; "
                "leave it out, give it that metadata.split, or rename it if it is another conversation"
            )
        source = dialogue.metadata.get("dataset", "")
        if source in SOURCES and "train" not in SOURCES[source].splits:
            raise MemR1Error(
                f"{path}: {dialogue.id} comes from {source} (metadata.dataset), which has questions for evaluation "
                'only; leave it out, or give it the metadata.split "test"'
            )


def evaluation_dialogues(
    config: Config, benchmark: str, path: str | None, split: str, *, adversarial: bool = False, audit: str | None = None
) -> list[Dialogue]:
    """What a run is evaluated on: a split of a benchmark, with the arguments of `load_dialogues`.

    Raises MemR1Error for a dialogue that the run trains on, unless the split is `train`, which says so.
    """
    if benchmark == "factworld":
        return held_out_worlds(config, split)
    dialogues = load_dialogues(benchmark, path, split, config.data.factworld, adversarial=adversarial, audit=audit)
    if split != "train" and config.data.kind != "factworld":
        _refuse_seen(dialogues, path, config)
    return dialogues


def _refuse_seen(dialogues: Sequence[Dialogue], path: str | None, config: Config) -> None:
    try:
        trained_on = {_said(d) for d in training_dialogues(config)}
    except MemR1Error as error:  # it may be elsewhere: a run can be evaluated where its data is not
        logger.warning("%s: not compared with the training data, which cannot be read: %s", path, error)
        return
    for dialogue in dialogues:
        if _said(dialogue) in trained_on:
            raise MemR1Error(
                f"{path}: the run trains on {dialogue.id}, so answers about it may be remembered; tell training from "
                "test dialogues by their metadata.split, or evaluate what was trained on as such with --split train"
            )


def _said(dialogue: Dialogue) -> tuple[str, ...]:
    """What tells dialogues apart, whatever they are called."""
    return tuple(turn.text for _, turn in dialogue.turns())


def held_out_worlds(config: Config, split: str = "test") -> list[Dialogue]:
    """FactWorld worlds whose names, values and templates occur in no training world; one fixed set for all seeds."""
    factworld = replace(
        config.data.factworld, num_worlds=config.evaluation.num_worlds, seed=HELD_OUT_SEED, questions_per_fact_turn=0
    )
    return load_dialogues("factworld", None, split, factworld)
