"""Memories of other systems as decisions for a bank: one decision for each memory, with its time and its source."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank
from memr1.memory.checks import check_time
from memr1.memory.jsonl import plain_json
from memr1.memory.types import Event, MemoryOp, OpResult, Provenance

_SCOPES = ("user_id", "agent_id", "run_id", "actor_id")


@dataclass(frozen=True)
class Imported:
    """One memory of another system."""

    op: MemoryOp
    provenance: Provenance
    time: str | None
    """When it was made (ISO 8601)."""


def read_mem0(path: str | os.PathLike[str]) -> list[Imported]:
    """Memories that mem0 gave out, oldest first: a JSON list, an object whose `results` is one, or JSON lines.

    Every memory needs `memory` (its text); `id`, `created_at`, `updated_at`, `metadata` and the scopes are kept where
    there are any: the id as the source, the rest as metadata. `MemR1Error` names the file, the memory and the field.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MemR1Error(f"{source}: cannot be read ({error}); check the path") from error
    found = [_mem0(item, f"{source}: memory {n}") for n, item in enumerate(_items(text, source), start=1)]
    return sorted(found, key=lambda i: i.time or "")


def _items(text: str, source: Path) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        try:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        except ValueError as error:
            raise MemR1Error(f"{source}: neither JSON nor JSON lines ({error})") from error
    if isinstance(value, dict) and "results" in value:
        value = value["results"]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise MemR1Error(
            f"{source}: expected a list of memories, or an object with `results`, got {type(value).__name__}"
        )
    return value


def _mem0(item: Any, where: str) -> Imported:
    if not isinstance(item, dict):
        raise MemR1Error(f"{where}: expected an object, got {item!r}")
    text, metadata = item.get("memory"), item.get("metadata") or {}
    if not isinstance(text, str):
        raise MemR1Error(f"{where}: memory: expected the text of the memory, got {text!r}")
    if not isinstance(metadata, dict):
        raise MemR1Error(f"{where}: metadata: expected an object, got {metadata!r}")
    for name in ("id", "created_at", "updated_at", *_SCOPES):
        if not isinstance(item.get(name), str | None):
            raise MemR1Error(f"{where}: {name}: expected a text, got {item[name]!r}")
    check_time(item.get("created_at"), f"{where}: created_at")
    metadata = plain_json(metadata, f"{where}: metadata")
    kept = {name: item[name] for name in ("updated_at", *_SCOPES) if item.get(name) is not None}
    return Imported(
        MemoryOp(Event.ADD, text, metadata={**metadata, **({"mem0": kept} if kept else {})}),
        Provenance(turn_ids=(item["id"],) if item.get("id") else (), speaker=item.get("actor_id"), role="import"),
        item.get("created_at"),
    )


def bring_in(bank: MemoryBank, memories: Iterable[Imported]) -> list[OpResult]:
    """Apply memories to a bank one by one; what came of each. Duplicates are rejected, as always."""
    return [r for m in memories for r in bank.apply([m.op], provenance=m.provenance, time=m.time)]
