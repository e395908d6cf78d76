"""What tests of agents and episodes share: a small world to play in, and an engine that says what it is told to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from memr1.agents.roles import make_agents
from memr1.config import Config
from memr1.config_file import load_config
from memr1.data.factworld import FactWorldConfig, generate
from memr1.data.factworld import World as FactWorld
from memr1.envs.episode import World
from memr1.memory.embed import load_embedder
from memr1.memory.types import MemoryEntry
from memr1.rollout.engine import Completion, GenerationRequest, WeightUpdate

BASE = (
    "backend=local",
    "model.name=tiny-random",
    "model.device=cpu",
    "model.threads=1",
    "memory.embedder=hash",
    "memory.answerer_top_k=4",
    "memory.manager_top_k=3",
    "rollout.max_prompt_tokens=4096",
    "data.factworld.num_worlds=2",
    "data.factworld.sessions_per_world=3",
    "data.factworld.people_per_world=3",
    "data.factworld.questions_per_fact_turn=3",
)


def make_config(*overrides: str) -> Config:
    """A small configuration: random model, hashed embeddings, two little worlds."""
    return load_config(None, [*BASE, *overrides])


@lru_cache
def tokenizer(name: str = "tiny-random") -> Any:
    """Tokenizer of a registered model."""
    from memr1.models.registry import load_tokenizer

    return load_tokenizer(name)


def make_world(*overrides: str) -> World:
    """What episodes play in, under `make_config(*overrides)`."""
    config = make_config(*overrides)
    return World(config, make_agents(config, tokenizer()), load_embedder(config.memory.embedder))


@lru_cache
def fact_worlds(num_worlds: int = 3, **changes: Any) -> list[FactWorld]:
    """Training worlds with three questions after every turn that holds a fact."""
    settings = FactWorldConfig(num_worlds=num_worlds, sessions_per_world=3, people_per_world=3)
    return generate(replace(settings, **({"questions_per_fact_turn": 3} | changes)))


def entry(number: int, text: str, day: int = 1, **fields: Any) -> MemoryEntry:
    """A live entry `m<number>` of March 2024."""
    moment = f"2024-03-{day:02d}T10:00:00"
    return MemoryEntry(**({"id": f"m{number}", "text": text, "created_at": moment, "event_time": moment} | fields))


Script = Callable[[str, GenerationRequest], str]
"""(prompt text, request) -> completion text."""


class ScriptedEngine:
    """An `Engine` whose model is a function from prompt text to completion text."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.batches: list[list[GenerationRequest]] = []
        """Requests of every `generate` call."""
        self.versions = {"base": 0, "manager": 3, "answerer": 5}

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Engine.generate`. A completion that is longer than asked for is cut, as a model's would be."""
        self.batches.append(list(requests))
        out = []
        for request in requests:
            text = self.script(tokenizer().decode(list(request.prompt_ids)), request)
            ids = [*tokenizer()(text, add_special_tokens=False)["input_ids"], tokenizer().eos_token_id]
            limit = request.sampling.max_new_tokens
            kept = tuple(ids[:limit])
            reason = "stop" if len(ids) <= limit else "length"
            version = self.versions[request.policy]
            out.append(Completion(kept, tuple(-0.5 for _ in kept), reason, version))
        return out

    def load_weights(self, update: WeightUpdate) -> int:
        """See `Engine.load_weights`."""
        self.versions[update.policy] = update.version
        return update.version

    def weight_versions(self) -> dict[str, int]:
        """See `Engine.weight_versions`."""
        return dict(self.versions)


def shown_entries(prompt: str) -> dict[str, str]:
    """Displayed number -> text of the memories in a prompt of the line protocol."""
    return dict(re.findall(r"^(\d+)\. (?:\([^)]*\) )?(.*)$", prompt, flags=re.MULTILINE))


def is_answerer(prompt: str) -> bool:
    """Whether a prompt asks the answerer."""
    return "\nQuestion: " in prompt
