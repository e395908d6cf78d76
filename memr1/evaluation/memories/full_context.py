"""Full context: every turn, cut to the prompt's budget."""

from __future__ import annotations

from memr1.data.types import Dialogue
from memr1.envs.episode import Episode, Speaker, World
from memr1.envs.ingesting import turn_entries
from memr1.evaluation.memories.base import Memory, of_turns


def build(dialogue: Dialogue, world: World, manager: Speaker) -> Episode[Memory]:
    """See `Build`. Newest first: what does not fit the window is cut from the end of the list, so that the oldest turns
    go first; and questions of one dialogue share their prompts' beginnings, which are computed once."""
    yield from ()
    entries = turn_entries(dialogue)
    return of_turns(dialogue, entries, lambda _: range(len(entries) - 1, -1, -1))
