"""The compact line protocol: one operation per line, short enough for a model of 135M parameters to learn.

ADD [<text>]            Use: 1, 3
UPDATE <n> [<text>]     Answer: <text>
DELETE <n>
NOOP

Without a text, ADD and UPDATE store the new fact as it is worded: what is nearly always right costs no tokens, and what
is learnt is which operation to choose. Of several new facts ADD then stores each; UPDATE must say which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from memr1.agents.protocol import Answer, Decision, Messages, entry_lines, one_line, unknown_id
from memr1.memory.types import Event, MemoryEntry, MemoryOp

_MANAGER_SYSTEM = (
    "You keep a memory of facts up to date. Compare the new fact with the memories and reply with one line per "
    "operation: ADD, UPDATE number, DELETE number, or NOOP. ADD and UPDATE store the new fact, or text you put after."
)
_ANSWERER_SYSTEM = (
    "Answer the question from the memories. The latest date wins. Reply with two lines: the numbers of the memories "
    "you use, then a short answer, or unknown."
)
_PLAIN_ANSWERER_SYSTEM = (
    "Answer the question from the memories. The latest date wins. Reply with one line: a short answer, or unknown."
)
_OPERATION = re.compile(r"(ADD|UPDATE|DELETE|NOOP)(?:\s+(.*))?")
_NUMBERED = re.compile(r"(\d+)(?:\s+(.*))?")


class LinesManager:
    """See `ManagerProtocol`."""

    def render(self, facts: Sequence[str], date: str, entries: Mapping[str, MemoryEntry]) -> Messages:
        """See `ManagerProtocol.render`."""
        label = f"New fact ({date})" if date else "New fact"
        new = "\n".join(f"{label}: {one_line(fact)}" for fact in facts)
        return [
            {"role": "system", "content": _MANAGER_SYSTEM},
            {"role": "user", "content": f"Memories:\n{entry_lines(entries)}\n{new}"},
        ]

    def parse(self, completion: str, entries: Mapping[str, MemoryEntry], facts: Sequence[str] = ()) -> Decision:
        """See `ManagerProtocol.parse`. Every non-empty line must be an operation.

        ADD without a text adds every new fact, UPDATE without one stores the only new fact.
        """
        lines = [line.strip() for line in completion.strip().splitlines() if line.strip()]
        if not lines:
            return Decision(None, "empty: the completion holds no operation")
        ops: list[MemoryOp] = []
        for line in lines:
            found = self._parse_line(line, entries, [f for f in map(one_line, facts) if f])
            if isinstance(found, str):
                return Decision(None, found)
            ops += found
        return Decision(tuple(ops))

    def _parse_line(self, line: str, entries: Mapping[str, MemoryEntry], facts: Sequence[str]) -> list[MemoryOp] | str:
        match = _OPERATION.fullmatch(line)
        if match is None:
            return f"unknown operation: {line[:60]!r}"
        event, rest = Event(match[1]), (match[2] or "").strip()
        if event is Event.NOOP:
            return [MemoryOp(event)] if not rest else f"text after NOOP: {rest[:60]!r}"
        if event is Event.ADD:
            return [MemoryOp(event, text=text) for text in ([rest] if rest else facts)] or "ADD without text"
        numbered = _NUMBERED.fullmatch(rest)
        if numbered is None:
            return f"{event} without a memory number: {line[:60]!r}"
        number, text = numbered[1], (numbered[2] or "").strip()
        entry = entries.get(number)
        entry_id, version = (entry.id, entry.version) if entry else (unknown_id(number), None)
        if event is Event.DELETE:
            return [MemoryOp(event, entry_id=entry_id, expected_version=version)] if not text else "text after DELETE"
        if not text and len(facts) != 1:
            return "UPDATE without text" + (f", and {len(facts)} facts are new" if facts else "")
        text = text or facts[0]
        return [MemoryOp(event, text=text, entry_id=entry_id, expected_version=version)]

    def write(self, ops: Sequence[MemoryOp], entries: Mapping[str, MemoryEntry], facts: Sequence[str] = ()) -> str:
        """See `ManagerProtocol.write`. A text that is the only new fact is left out.

        Raises KeyError when a target is not displayed.
        """
        as_told = one_line(facts[0]) if len(facts) == 1 else None
        numbers = {entry.id: number for number, entry in entries.items()}
        lines = []
        for op in ops:
            parts: list[str] = [op.event]
            if op.event in (Event.UPDATE, Event.DELETE):
                parts.append(numbers[op.entry_id or ""])
            if op.event in (Event.ADD, Event.UPDATE) and one_line(op.text) != as_told:
                parts.append(one_line(op.text))
            lines.append(" ".join(parts))
        return "\n".join(lines)


class LinesAnswerer:
    """See `AnswererProtocol`."""

    def __init__(self, distillation: bool = True) -> None:
        """distillation: whether the memories that are used are named before the answer."""
        self.distillation = distillation

    def render(self, question: str, entries: Mapping[str, MemoryEntry]) -> Messages:
        """See `AnswererProtocol.render`."""
        return [
            {"role": "system", "content": _ANSWERER_SYSTEM if self.distillation else _PLAIN_ANSWERER_SYSTEM},
            {"role": "user", "content": f"Memories:\n{entry_lines(entries)}\nQuestion: {one_line(question)}"},
        ]

    def parse(self, completion: str) -> Answer:
        """See `AnswererProtocol.parse`. The two lines must come in order, with nothing else; without distillation
        there is the second alone."""
        lines = [line.strip() for line in completion.strip().splitlines() if line.strip()]
        if not self.distillation:
            lines = ["Use: none", *lines]
        if len(lines) != 2 or not lines[0].startswith("Use:") or not lines[1].startswith("Answer:"):
            expected = "the lines Use: and Answer:" if self.distillation else "the line Answer:"
            return Answer(None, error=f"expected {expected}, got {completion.strip()[:60]!r}")
        chosen = lines[0].removeprefix("Use:").strip()
        if chosen == "none":
            selected: tuple[int, ...] = ()
        elif re.fullmatch(r"\d{1,9}(\s*,\s*\d{1,9})*", chosen):
            selected = tuple(int(n) for n in chosen.split(","))
        else:
            return Answer(None, error=f"Use: expects numbers or none, got {chosen[:60]!r}")
        text = lines[1].removeprefix("Answer:").strip()
        return Answer(text, selected) if text else Answer(None, error="Answer: is empty")

    def write(self, answer: str, selected: Sequence[str]) -> str:
        """See `AnswererProtocol.write`."""
        used = f"Use: {', '.join(selected) or 'none'}\n" if self.distillation else ""
        return f"{used}Answer: {one_line(answer)}"
