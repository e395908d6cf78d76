"""The paper's protocol: a mem0-style JSON decision, and an answer after a list of selected memories.

The manager replies `{"memory": [{"id", "text", "event", "old_memory"}]}` with event ADD, UPDATE, DELETE or NONE; the
answerer lists the memories it selects and then writes `**Answer:**` (Memory-R1, arXiv 2508.19828, appendix; the
shape is mem0's, the wording is ours).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from memr1.agents.protocol import Answer, Decision, Messages, displayed_date, entry_lines, one_line, unknown_id
from memr1.memory.types import Event, MemoryEntry, MemoryOp

_MANAGER_SYSTEM = """\
You manage the long-term memory of an assistant. You are given the current memory and newly learnt facts. For each
fact choose one operation.

1. ADD: the fact is new. Use an id that is not in the memory.
   Memory: [{"id": "0", "text": "Works as a nurse"}]. Fact: "Is called Ines".
   Reply: {"memory": [{"id": "0", "text": "Works as a nurse", "event": "NONE"},
   {"id": "1", "text": "Is called Ines", "event": "ADD"}]}
2. UPDATE: the fact changes or adds detail to what a memory says. Keep its id, keep the version with more detail, and
   give the old text. If both say the same, nothing needs to change.
   Memory: [{"id": "0", "text": "Likes tea"}]. Fact: "Likes green tea with honey".
   Reply: {"memory": [{"id": "0", "text": "Likes green tea with honey", "event": "UPDATE", "old_memory": "Likes tea"}]}
3. DELETE: the fact contradicts a memory and leaves nothing to keep.
   Memory: [{"id": "0", "text": "Owns a bicycle"}]. Fact: "Gave the bicycle away".
   Reply: {"memory": [{"id": "0", "text": "Owns a bicycle", "event": "DELETE"}]}
4. NONE: the memory already says it, or it is not worth keeping.
   Memory: [{"id": "0", "text": "Is called Ines"}]. Fact: "The name is Ines".
   Reply: {"memory": [{"id": "0", "text": "Is called Ines", "event": "NONE"}]}

Reply with the JSON object only. Never use an id for UPDATE or DELETE that is not in the memory."""

_ANSWERER_SYSTEM = """\
You answer questions about people from dated memories of their conversations.
- Mind the dates. Where memories contradict each other, the most recent one is right.
- Turn relative dates ("last week") into dates, counted from the date of the memory.
- Answer in at most five or six words.
"""
_DISTILLING = (
    "First list the memories that matter, one per line, as `- number`. Then write `**Answer:**` followed by the answer."
)
_PLAIN = "Write `**Answer:**` followed by the answer."

_EVENTS = {"ADD": Event.ADD, "UPDATE": Event.UPDATE, "DELETE": Event.DELETE, "NONE": Event.NOOP, "NOOP": Event.NOOP}


class JsonManager:
    """See `ManagerProtocol`."""

    def render(self, facts: Sequence[str], date: str, entries: Mapping[str, MemoryEntry]) -> Messages:
        """See `ManagerProtocol.render`."""
        memory = [
            {"id": n, "text": e.text} | ({"date": d} if (d := displayed_date(e.event_time or e.created_at)) else {})
            for n, e in entries.items()
        ]
        user = f"Memory: {json.dumps(memory, ensure_ascii=False)}\n"
        if date:
            user += f"Date: {date}\n"
        user += f"Facts: {json.dumps(list(facts), ensure_ascii=False)}"
        return [{"role": "system", "content": _MANAGER_SYSTEM}, {"role": "user", "content": user}]

    def parse(self, completion: str, entries: Mapping[str, MemoryEntry], facts: Sequence[str] = ()) -> Decision:
        """See `ManagerProtocol.parse`. A surrounding Markdown code fence is allowed, other text is not."""
        text = completion.strip()
        fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, flags=re.DOTALL)
        try:
            data = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError) as error:  # ValueError: also whole numbers of thousands of digits
            return Decision(None, f"not JSON: {error}")
        if not isinstance(data, dict) or not isinstance(data.get("memory"), list):
            return Decision(None, 'expected {"memory": [...]}')
        ops = []
        for i, item in enumerate(data["memory"]):
            op = self._parse_item(item, entries)
            if isinstance(op, str):
                return Decision(None, f"memory[{i}]: {op}")
            ops.append(op)
        return Decision(tuple(ops) or (MemoryOp(Event.NOOP),))

    def _parse_item(self, item: Any, entries: Mapping[str, MemoryEntry]) -> MemoryOp | str:
        if not isinstance(item, dict):
            return "expected an object"
        named = item.get("event")
        if not isinstance(named, str):
            return f"expected an event as text, found {type(named).__name__}"
        event = _EVENTS.get(named)
        if event is None:
            return f"unknown event {named[:60]!r}"
        if event is Event.NOOP:
            return MemoryOp(event)
        text = item.get("text", "")
        if event is not Event.DELETE and not (isinstance(text, str) and text.strip()):
            return f"{event} without text"
        if event is Event.ADD:
            return MemoryOp(event, text=text.strip())
        if not isinstance(item.get("id"), str | int) or isinstance(item["id"], bool):
            return f"{event} without an id that is text or a whole number"
        number = str(item["id"])
        entry = entries.get(number)
        entry_id, version = (entry.id, entry.version) if entry else (unknown_id(number), None)
        if event is Event.DELETE:
            return MemoryOp(event, entry_id=entry_id, expected_version=version)
        return MemoryOp(event, text=text.strip(), entry_id=entry_id, expected_version=version)

    def write(self, ops: Sequence[MemoryOp], entries: Mapping[str, MemoryEntry], facts: Sequence[str] = ()) -> str:
        """See `ManagerProtocol.write`. Raises KeyError when a target is not displayed."""
        numbers = {entry.id: number for number, entry in entries.items()}
        texts = {entry.id: entry.text for entry in entries.values()}
        items: list[dict[str, str]] = []
        for op in ops:
            if op.event is Event.NOOP:
                continue
            if op.event is Event.ADD:
                taken = {i["id"] for i in items} | set(entries)
                items.append({"id": str(next(n for n in range(10**6) if str(n) not in taken)), "text": op.text})
                items[-1]["event"] = "ADD"
                continue
            target = op.entry_id or ""
            item = {"id": numbers[target], "text": op.text or texts[target], "event": str(op.event)}
            if op.event is Event.UPDATE:
                item["old_memory"] = texts[target]
            items.append(item)
        return json.dumps({"memory": items}, ensure_ascii=False)


class JsonAnswerer:
    """See `AnswererProtocol`."""

    def __init__(self, distillation: bool = True) -> None:
        """distillation: whether the memories that are used are listed before the answer."""
        self.distillation = distillation

    def render(self, question: str, entries: Mapping[str, MemoryEntry]) -> Messages:
        """See `AnswererProtocol.render`."""
        return [
            {"role": "system", "content": _ANSWERER_SYSTEM + (_DISTILLING if self.distillation else _PLAIN)},
            {"role": "user", "content": f"Memories:\n{entry_lines(entries)}\n\nQuestion: {one_line(question)}"},
        ]

    def parse(self, completion: str) -> Answer:
        """See `AnswererProtocol.parse`. The last `**Answer:**` counts; the list before it may be absent."""
        before, marker, after = completion.rpartition("**Answer:**")
        text = after.strip()
        if not marker or not text:
            return Answer(None, error=f"no text after **Answer:** in {completion.strip()[:60]!r}")
        numbers = re.findall(r"^\s*-\s*(\d{1,9})\b", before, flags=re.MULTILINE) if self.distillation else ()
        return Answer(text, tuple(int(n) for n in numbers))

    def write(self, answer: str, selected: Sequence[str]) -> str:
        """See `AnswererProtocol.write`."""
        return "".join(f"- {n}\n" for n in selected if self.distillation) + f"**Answer:** {answer}"
