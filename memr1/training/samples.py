"""Prompts of a run that has not begun: made by the run's own code, with stand-ins for what is not at hand.

Called by the dry run. Whatever stands in for something else is named in the list that the caller passes along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from memr1.agents.roles import Prompt, make_agents
from memr1.config import Config, StageConfig
from memr1.data.types import Dialogue
from memr1.envs.episode import World
from memr1.envs.replaying import ReplayTask
from memr1.errors import MemR1Error
from memr1.memory.embed import load_embedder
from memr1.models import packaged
from memr1.training.tasks import build_tasks, task_prompt


@dataclass(frozen=True)
class Sample:
    """Prompts of one role."""

    prompts: list[Prompt]
    demonstration: int
    """Tokens of the longest demonstration; 0 where there is none."""
    made_of: str
    decisions: int = 1
    """Decisions of the longest episode."""
    questions: int | None = None
    """Questions of the longest replay; None for single decisions."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(p.ids) for p in self.prompts)


def samples(config: Config, dialogues: Sequence[Dialogue], unchecked: list[str]) -> dict[str, Sample]:
    """Prompts of every role that a stage trains, and of the answerer, who judges the manager; made by the run's own
    code, with stand-ins for what needs a language model."""
    if config.agents.extractor == "llm":
        annotated = all(t.facts is not None for d in dialogues for _, t in d.turns())
        kind = "gold" if annotated else "utterance"
        unchecked.append(f"facts extracted by the model; in the prompts those of agents.extractor={kind} stand in")
        config = replace(config, agents=replace(config.agents, extractor=kind))
    with TemporaryDirectory() as folder:  # tasks of files are kept otherwise, and a dry run leaves nothing behind
        config = replace(config, data=replace(config.data, cache=folder))
        world = World(config, make_agents(config, _tokenizer(config, unchecked)), _embedder(config, unchecked))
        return _samples_in(world, dialogues, unchecked)


def _samples_in(world: World, dialogues: Sequence[Dialogue], unchecked: list[str]) -> dict[str, Sample]:
    config = world.config
    made: dict[str, Sample] = {}
    for stage in (*config.stages, StageConfig("answerer", bank="add-everything")):
        if kind_of(stage) in made:
            continue
        bank = stage.bank
        if stage.traces is not None:  # what is cloned is the teacher's; the prompts are like these
            bank = "add-everything"
            unchecked.append(f"the traces of {stage.name} in {stage.traces}")
            if not Path(stage.traces).exists():
                raise MemR1Error(
                    f"stages.traces: {stage.traces} is not there; train that run first, or name the folder of another "
                    "or a JSON-lines file"
                )
        if stage.role == "answerer" and bank == "manager":
            bank = "add-everything"
            unchecked.append("the manager's banks; in the answerer's prompts those of adding everything stand in")
        tasks = build_tasks(dialogues, world, _NO_ENGINE, role=stage.role, bank=bank, replay=stage.replay)
        if not tasks:
            raise MemR1Error(f"stage {stage.name}: the first dialogues give no task; they hold no fact or no question")
        spoken = [len(t.demonstration.completion_ids) for t in tasks if t.demonstration is not None]
        prompts = [task_prompt(t.playable, world) for t in tasks]
        made_of = f"{len(dialogues)} dialogues for {stage.name}, bank: {bank}"
        replays = [t.task for t in tasks if isinstance(t.task, ReplayTask)]
        made[kind_of(stage)] = Sample(
            prompts,
            max(spoken, default=0),
            made_of,
            max((len(t.turns) for t in replays), default=1),
            max((len(t.questions) for t in replays), default=None),
        )
    return made


def kind_of(stage: StageConfig) -> str:
    """What samples are told apart by: the role, and whether it replays."""
    return stage.role if stage.replay is None else f"{stage.role} (replay)"


_NO_ENGINE: Any = None  # banks that need a model were replaced above


def _tokenizer(config: Config, unchecked: list[str]) -> Any:
    from transformers import AutoTokenizer

    from memr1.models.registry import load_tokenizer

    name = config.model.name
    if name in packaged.MODELS:
        if packaged.cached(name) is not None or isinstance(packaged.MODELS[name], packaged.GeneratedModel):
            return load_tokenizer(name)
    else:
        try:
            AutoTokenizer.from_pretrained(name, local_files_only=True)
            return load_tokenizer(name)
        except (OSError, ValueError):
            pass
    other = "smollm2-135m" if packaged.cached("smollm2-135m") is not None else "tiny-random"
    unit = "tokens of another vocabulary" if other != "tiny-random" else "bytes"
    unchecked.append(f"the tokenizer of {name}, which is not here; {other}'s stands in, so lengths are in {unit}")
    return load_tokenizer(other)


def _embedder(config: Config, unchecked: list[str]) -> Any:
    name = config.memory.embedder
    if name == "minilm" and packaged.cached("minilm") is None:
        unchecked.append("the embedder minilm, which is not here; hash stands in, so that other memories are shown")
        name = "hash"
    return load_embedder(name)
