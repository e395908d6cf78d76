"""What systems remember by: one file each, and MEMORIES, by the name that `System.memory` uses."""

from memr1.evaluation.memories import (
    add_everything,
    bm25,
    embedding,
    full_context,
    hybrid,
    linked_notes,
    manager,
    none,
    oracle,
    rules,
    tiers,
    wiped,
)
from memr1.evaluation.memories.base import Build, Memory

MEMORIES: dict[str, Build] = {
    "none": none.build,
    "full-context": full_context.build,
    "bm25": bm25.build,
    "embedding": embedding.build,
    "hybrid": hybrid.build,
    "add-everything": add_everything.build,
    "rules": rules.build,
    "linked-notes": linked_notes.build,
    "tiers": tiers.build,
    "manager": manager.build,
    "oracle": oracle.build,
    "wiped": wiped.build,
}

__all__ = ["MEMORIES", "Memory"]
