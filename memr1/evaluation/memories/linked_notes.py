"""Linked notes in the manner of A-Mem (arXiv 2502.12110): each fact is a note that the untrained backbone describes by
keywords and a context, notes are linked to similar ones, and what is found brings its links along.

Left away: the model's veto on links and its rewriting of old notes, which need a model far beyond a small backbone.
"""

from __future__ import annotations

import numpy as np

from memr1.agents.roles import Prompt, PromptTooLong
from memr1.data.types import Dialogue
from memr1.envs.episode import Episode, Speaker, World, request
from memr1.envs.ingesting import told
from memr1.evaluation.memories.base import Memory, Upkeep, entry_of
from memr1.memory.types import MemoryEntry

LINKS, ALIKE = 3, 0.5
"""Most links that a new note makes, and the cosine similarity of descriptions from which it does."""

_SYSTEM = (
    "Describe the note for later search with two lines: `Keywords:` and up to five words, then `Context:` and one "
    "short sentence on what it is about."
)


def build(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Memory]:
    """See `Build`. A description that cannot be asked for or read leaves the note with its text alone."""
    notes: list[MemoryEntry] = []
    described: list[str] = []
    size_by_session: dict[str, int] = {}
    unreadable = tokens = 0
    for session, turn, facts in told(dialogue, world):
        prompts = [_prompt(world, fact) for fact in facts]
        limit = world.config.rollout.manager_max_new_tokens
        completions = iter((yield [request(p, Speaker("base"), limit, seed=0) for p in prompts if p is not None]))
        for fact, prompt in zip(facts, prompts, strict=True):
            description = None
            if prompt is not None:
                completion = next(completions)
                description = read_description(world.agents.codec.decode(completion.ids))
                tokens += len(prompt.ids) + len(completion.ids)
            unreadable += description is None
            notes.append(entry_of(session, turn, f"n{len(notes) + 1}", fact))
            described.append(f"{fact} {description}" if description else fact)
        size_by_session[session.id] = len(notes)
    sizes, held = [], 0
    for session in dialogue.sessions:
        held = size_by_session.get(session.id, held)
        sizes.append(held)
    upkeep = Upkeep({"ADD": len(notes)}, len(notes), unreadable=unreadable, tokens=tokens)
    if not notes:
        return Memory(lambda _: [], sizes=tuple(sizes))
    vectors = world.embedder.embed(described)
    links, k = link(vectors), world.config.memory.answerer_top_k

    def retrieve(question: str) -> list[MemoryEntry]:
        ranked = (-(vectors @ world.embedder.embed([question])[0])).argsort(kind="stable")
        found = dict.fromkeys(int(place) for hit in ranked for place in (hit, *links[hit]))
        return [notes[place] for place in list(found)[:k]]

    return Memory(retrieve, notes, tuple(sizes), upkeep=upkeep)


def link(vectors: np.ndarray) -> list[list[int]]:
    """For each note the notes that it is linked with, the most similar first.

    vectors: (n, dim) of length 1, in order of writing. A new note makes up to `LINKS` links to older ones; a link goes
    both ways.
    """
    linked: list[list[int]] = [[] for _ in vectors]
    alike = vectors @ vectors.T
    for new in range(1, len(vectors)):
        for old in (-alike[new, :new]).argsort(kind="stable")[:LINKS]:
            if alike[new, old] >= ALIKE:
                linked[new].append(int(old))
                linked[old].append(new)
    return [sorted(others, key=lambda other: -alike[note, other]) for note, others in enumerate(linked)]


def read_description(completion: str) -> str | None:
    """Keywords and context in one line; None where either is missing."""
    found: dict[str, str] = {}
    for line in completion.splitlines():
        name, _, rest = line.partition(":")
        if rest.strip():
            found.setdefault(name.strip().lower(), rest.strip())
    return f"{found['keywords']} {found['context']}" if {"keywords", "context"} <= set(found) else None


def _prompt(world: World, fact: str) -> Prompt | None:
    """None for a fact that is longer than a prompt may be."""
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": f"Note: {fact}"}]
    try:
        return world.agents.codec.fit((), lambda _: messages)
    except PromptTooLong:
        return None
