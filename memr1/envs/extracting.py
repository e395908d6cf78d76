"""Dialogues made ready: what of them is seen, and the facts that the language model extracts, kept in files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from memr1.agents.extractor import extraction_prompt, read_facts
from memr1.agents.roles import Prompt, PromptTooLong
from memr1.data.types import Dialogue, Fact, Turn, without_captions
from memr1.envs.cache import Cache
from memr1.envs.episode import Episode, Failure, Speaker, World, drive, request
from memr1.envs.ingesting import EXTRACTED
from memr1.models.registry import weights_identity
from memr1.rollout.engine import Engine

logger = logging.getLogger(__name__)

ASKED_AT_ONCE = 512
"""Turns from which on facts are kept before more turns are asked about: enough to fill batches, few enough to lose."""


def prepared(dialogues: Sequence[Dialogue], world: World, engine: Engine) -> list[Dialogue]:
    """The dialogues as the configuration wants them: without captions unless `data.captions`, and with `llm` as
    `agents.extractor` with the facts that the base model extracts.

    What the same weights were asked before about the same turns, in the same words, is read from `data.cache`. Facts
    are kept there as they come, so that an interrupted call has lost little. A turn that is longer than a prompt may be
    has no facts, and a warning says so.
    """
    config = world.config
    if not config.data.captions:
        dialogues = [without_captions(d) for d in dialogues]
    if config.agents.extractor != "llm":
        return list(dialogues)
    cache = Cache(config.cache_dir)
    server = config.agents.extractor_endpoint
    settings = {
        "model": weights_identity(config.model.name) if server is None else f"{server.model} at {server.url}",
        "dtype": config.model.dtype,
        "max_new_tokens": config.rollout.extractor_max_new_tokens,
    }
    done: dict[str, Dialogue] = {}
    asked: dict[str, str] = {}  # dialogue id -> digest of its prompts: tokenizer, wording, dates and captions are in it
    missing: list[tuple[Dialogue, int]] = []
    for dialogue in dialogues:
        ids = [p.ids for _, p in _prompts(dialogue, world)]
        asked[dialogue.id] = hashlib.sha256(repr(ids).encode()).hexdigest()
        kept = cache.read("facts", dialogue.id, settings, asked[dialogue.id])
        if kept is not None:
            done[dialogue.id] = _filled(dialogue, {k.take("turn", str): list(k.texts("facts")) for k in kept})
        else:
            missing.append((dialogue, len(ids)))
    for part in _parts(missing):
        for dialogue, found in zip(part, drive([extract(d, world) for d in part], engine), strict=True):
            if isinstance(found, Failure):
                raise found.error
            too_long = [t.id for _, t in dialogue.turns() if t.shown_text.strip() and t.id not in found]
            if too_long:
                logger.warning(
                    "%s: no facts are extracted from turns %s, whose prompts exceed rollout.max_prompt_tokens=%d",
                    *(dialogue.id, ", ".join(too_long), config.rollout.max_prompt_tokens),
                )
            items = [{"turn": turn_id, "facts": facts} for turn_id, facts in found.items()]
            cache.write("facts", dialogue.id, settings, asked[dialogue.id], items)
            done[dialogue.id] = _filled(dialogue, found)
    return [done[d.id] for d in dialogues]


def _parts(missing: Sequence[tuple[Dialogue, int]]) -> Iterator[list[Dialogue]]:
    """Whole dialogues, given with their numbers of prompts, in parts of at least `ASKED_AT_ONCE` prompts."""
    part: list[Dialogue] = []
    prompts = 0
    for dialogue, count in missing:
        part.append(dialogue)
        prompts += count
        if prompts >= ASKED_AT_ONCE:
            yield part
            part, prompts = [], 0
    if part:
        yield part


def extract(dialogue: Dialogue, world: World) -> Episode[dict[str, list[str]]]:
    """Facts by turn id, as the base model, or the extractor's server, gives them for each turn by itself."""
    prompts = _prompts(dialogue, world)
    speaker = Speaker("base" if world.config.agents.extractor_endpoint is None else "extractor")
    limit = world.config.rollout.extractor_max_new_tokens
    completions = yield [request(prompt, speaker, limit, seed=0) for _, prompt in prompts]
    texts = [world.agents.codec.decode(c.ids) for c in completions]
    return {turn.id: read_facts(text) for (turn, _), text in zip(prompts, texts, strict=True)}


def _prompts(dialogue: Dialogue, world: World) -> list[tuple[Turn, Prompt]]:
    """Of every turn that says something and fits into a prompt."""
    dates = world.config.agents.extractor_dates
    prompts = []
    for session, turn in dialogue.turns():
        if turn.shown_text.strip():
            try:
                prompts.append((turn, extraction_prompt(world.agents, turn, session if dates else None)))
            except PromptTooLong:  # one long turn must not end all the others
                continue
    return prompts


def _filled(dialogue: Dialogue, facts: dict[str, list[str]]) -> Dialogue:
    sessions = tuple(
        replace(s, turns=tuple(replace(t, facts=tuple(Fact(f) for f in facts.get(t.id, ()))) for t in s.turns))
        for s in dialogue.sessions
    )
    return replace(dialogue, sessions=sessions, metadata={**dialogue.metadata, "facts": EXTRACTED})
