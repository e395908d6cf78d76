"""The memory bank: entries, typed operations, the append-only log, search, and the store that keeps banks on disk.

A library of its own: it knows nothing of Ray, models or training.

    from memr1.memory import BankStore, Event, MemoryOp, load_embedder
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memr1.memory.bank import BankStats as BankStats
    from memr1.memory.bank import MemoryBank as MemoryBank
    from memr1.memory.bank import Snapshot as Snapshot
    from memr1.memory.chroma_index import ChromaIndex as ChromaIndex
    from memr1.memory.embed import load_embedder as load_embedder
    from memr1.memory.erasure import Erasure as Erasure
    from memr1.memory.index import ExactIndex as ExactIndex
    from memr1.memory.oplog import LogRecord as LogRecord
    from memr1.memory.oplog import OpLog as OpLog
    from memr1.memory.scopes import Scope as Scope
    from memr1.memory.scopes import ScopedBanks as ScopedBanks
    from memr1.memory.state import REASONS as REASONS
    from memr1.memory.state import BankRules as BankRules
    from memr1.memory.store import BankStore as BankStore
    from memr1.memory.types import Event as Event
    from memr1.memory.types import Hit as Hit
    from memr1.memory.types import MemoryEntry as MemoryEntry
    from memr1.memory.types import MemoryOp as MemoryOp
    from memr1.memory.types import OpResult as OpResult
    from memr1.memory.types import Provenance as Provenance

_HOMES = {
    "bank": ("BankStats", "MemoryBank", "Snapshot"),
    "chroma_index": ("ChromaIndex",),
    "embed": ("load_embedder",),
    "erasure": ("Erasure",),
    "index": ("ExactIndex",),
    "oplog": ("LogRecord", "OpLog"),
    "scopes": ("Scope", "ScopedBanks"),
    "state": ("REASONS", "BankRules"),
    "store": ("BankStore",),
    "types": ("Event", "Hit", "MemoryEntry", "MemoryOp", "OpResult", "Provenance"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    # imported when asked for: whoever needs a bank in memory should not wait for databases
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
