"""The rows of the table: what each system shows to the answerer, and whose weights it uses.

All systems share the harness, the backbone, the prompt and the retrieval budget; a row differs from its neighbour in
one thing.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from memr1.errors import MemR1Error

UNTRAINED, WARM, TRAINED = "untrained", "warm-started", "trained"
"""Whose weights: the base model, the run's after its supervised stages, the run's at its end."""


@dataclass(frozen=True)
class System:
    """A row."""

    name: str
    memory: str
    """A key of `memr1.evaluation.memories.MEMORIES`."""
    answerer: str
    manager: str = UNTRAINED
    """Only with a memory that a manager keeps."""
    description: str = ""

    @property
    def managed(self) -> bool:
        """Whether a manager keeps the memory."""
        return self.memory in ("manager", "wiped")

    @property
    def asks_base(self) -> bool:
        """Whether the untrained model is needed beside the roles."""
        by_base = self.managed and self.manager == UNTRAINED
        return self.answerer == UNTRAINED or by_base or self.memory == "linked-notes"


SYSTEMS = {
    s.name: s
    for s in (
        System("no-memory", "none", TRAINED, description="the trained answerer without any memory"),
        System("bm25", "bm25", TRAINED, description="BM25 over raw turns, the trained answerer"),
        System("embedding", "embedding", TRAINED, description="nearest raw turns, the trained answerer"),
        System("hybrid", "hybrid", TRAINED, description="raw turns by words and vectors, fused by rank"),
        System(
            "full-context", "full-context", TRAINED, description="all turns, newest first, cut to the prompt budget"
        ),
        System("untrained", "manager", UNTRAINED, UNTRAINED, "the whole pipeline without any training"),
        System("add-everything", "add-everything", TRAINED, description="every fact added, the trained answerer"),
        System("mem0-rules", "rules", TRAINED, description="a manager by similarity rules, the trained answerer"),
        System("linked-notes", "linked-notes", TRAINED, description="A-Mem-like notes that bring their links along"),
        System("tiers", "tiers", TRAINED, description="MemoryOS-like short-, mid- and long-term memory"),
        System("warm-started", "manager", WARM, WARM, "both roles after the supervised stages (Memory-SFT)"),
        System("warm-manager", "manager", TRAINED, WARM, "supervised manager, trained answerer"),
        System("warm-answerer", "manager", WARM, TRAINED, "trained manager, supervised answerer"),
        System("manager-only", "manager", UNTRAINED, TRAINED, "trained manager, untrained answerer"),
        System("answerer-only", "manager", TRAINED, UNTRAINED, "untrained manager, trained answerer"),
        System("trained", "manager", TRAINED, TRAINED, "both roles trained: Memory-R1"),
        System(
            "wiped", "wiped", TRAINED, TRAINED, "control: the trained pipeline, its bank emptied before it is asked"
        ),
        System("oracle-untrained", "oracle", UNTRAINED, description="a perfect bank, the untrained answerer"),
        System("oracle-warm", "oracle", WARM, description="a perfect bank, the supervised answerer"),
        System("oracle-trained", "oracle", TRAINED, description="a perfect bank, the trained answerer"),
    )
}


def get_system(name: str) -> System:
    """Raises MemR1Error with the nearest name for an unknown one."""
    if name in SYSTEMS:
        return SYSTEMS[name]
    near = difflib.get_close_matches(name, SYSTEMS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(SYSTEMS)}"
    raise MemR1Error(f"evaluation.systems: no system {name!r}; {hint}")
