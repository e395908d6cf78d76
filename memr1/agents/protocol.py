"""What a protocol is: render a situation as chat messages, parse a completion into operations or an answer.

Parsing never raises and never guesses: the result is either whole or rejected with a reason. Entries are shown to
models under small numbers, never under their ids, so that an id cannot be remembered or invented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from memr1.memory.types import MemoryEntry, MemoryOp

Messages = list[dict[str, str]]
"""Chat messages with `role` and `content`, as `apply_chat_template` takes them."""


@dataclass(frozen=True)
class Decision:
    """What the manager said. `ops` is None exactly when `error` is set."""

    ops: tuple[MemoryOp, ...] | None
    error: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the answerer said. `text` is None exactly when `error` is set."""

    text: str | None
    selected: tuple[int, ...] = ()
    """Numbers of the memories it chose to use (Memory Distillation), as displayed."""
    error: str | None = None


class ManagerProtocol(Protocol):
    """How the Memory Manager is spoken to."""

    def render(self, facts: Sequence[str], date: str, entries: Mapping[str, MemoryEntry]) -> Messages:
        """Prompt for one decision. `entries`: displayed number -> related old entry."""

    def parse(self, completion: str, entries: Mapping[str, MemoryEntry], facts: Sequence[str] = ()) -> Decision:
        """Read a decision about `facts`. A number that was not displayed becomes an id that the bank rejects as
        unknown."""

    def write(self, ops: Sequence[MemoryOp], entries: Mapping[str, MemoryEntry], facts: Sequence[str] = ()) -> str:
        """The completion about `facts` that parses to these operations: the target of supervised training."""


class AnswererProtocol(Protocol):
    """How the Answer Agent is spoken to."""

    def __init__(self, distillation: bool) -> None:
        """distillation: whether the answer comes after the numbers of the memories it uses."""

    def render(self, question: str, entries: Mapping[str, MemoryEntry]) -> Messages:
        """Prompt for one question over retrieved entries."""

    def parse(self, completion: str) -> Answer:
        """Read the selection and the answer."""

    def write(self, answer: str, selected: Sequence[str]) -> str:
        """The completion that parses to this answer: the target of supervised training."""


def displayed_date(iso: str | None) -> str:
    """`2024-03-02T10:00:00` -> `2 March 2024`; empty where unknown."""
    if not iso:
        return ""
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso  # datasets may carry free text; showing it beats hiding it
    return f"{moment.day} {moment:%B %Y}"


def entry_lines(entries: Mapping[str, MemoryEntry]) -> str:
    """One line per entry: `1. (2 March 2024) text`."""
    lines = []
    for number, entry in entries.items():
        date = displayed_date(entry.event_time or entry.updated_at or entry.created_at)
        lines.append(f"{number}. ({date}) {one_line(entry.text)}" if date else f"{number}. {one_line(entry.text)}")
    return "\n".join(lines) if lines else "(none)"


def one_line(text: str) -> str:
    """The text on one line: in protocols made of lines, a line break in it would pass for the next memory or fact."""
    return " ".join(text.split())


def unknown_id(number: str) -> str:
    """Id for a number that was not displayed; no bank has such an id, so the operation is rejected and counted."""
    return f"not-displayed:{number}"
