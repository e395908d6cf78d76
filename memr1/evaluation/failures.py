"""Where a wrong answer was lost: its evidence was not stored, or stored and not retrieved, or shown and not used.

The turns that entries came from decide (`memr1.envs.evidence`): an entry that was written from a turn and lost its
point counts as stored. A turn that only ended something, and was carried out by a DELETE, needs none.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from memr1.envs.evidence import Held, turns_held
from memr1.evaluation.predictions import Prediction
from memr1.evaluation.scores import score
from memr1.memory.types import MemoryEntry

FAILURES = ("not stored", "not retrieved", "not used", "no evidence")
"""Memory-failure, retrieval-failure, answer-failure; and wrong answers to questions that name no evidence, such as
those on what was never told."""

_NEXT = {"nothing": "not stored", "memory": "not retrieved", "prompt": "not used", None: "no evidence"}


def reached(evidence: Sequence[str], held: Held, ended: Set[str], shown: Sequence[MemoryEntry]) -> str | None:
    """How far all of a question's evidence came: into `nothing`, the `memory`, or the `prompt`; None without evidence.

    evidence: turn ids. held: what of it the memory's entries hold. ended: turns that leave no entry, as `Memory.ended`
    says. shown: the entries in the prompt.
    """
    if not evidence:
        return None
    needed = set(evidence) - ended
    if needed - {turn for turns in held.values() for turn in turns}:
        return "nothing"
    return "memory" if needed - turns_held(shown, held) else "prompt"


def failure(prediction: Prediction) -> str | None:
    """What went wrong, one of `FAILURES`; None where the answer is right, or cannot be scored.

    Right is an exact match of token sets, and declining where that is right.
    """
    value = score(prediction, "abstained" if prediction.abstain else "em_set")
    return None if value is None or value == 1.0 else _NEXT[prediction.reached]
