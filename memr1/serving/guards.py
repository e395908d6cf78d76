"""Write guards: what is not written before an operator has seen it.

Two things make a decision suspicious: its words (or those it answers) speak to a program instead of telling about the
world, or an untrusted source would change what a trusted one said. The first is a list of forms in which injections are
worded (orders to ignore, standing orders, orders about the memory, requests to repeat it, aliases that lead one
person's questions to another's entries, as in MINJA, arXiv 2503.03704, and the syntax of our own protocols and chat
formats). It finds what is worded so and nothing else: a plain lie looks like a fact. `benchmarks/poisoning.py` measures
both sides.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from memr1.memory.types import Event, MemoryEntry, MemoryOp, Provenance

UNTRUSTED = "untrusted_source"

_MEMORY = r"(?:memor(?:y|ies)|entr(?:y|ies)|stored (?:facts?|notes?)|everything (?:you|that you|stored|known))"
_REPLY = r"(?:answer|answers|answering|reply|replies|respond|responds|say|output|recommend|state)"
# In time that grows with the text and no faster: gaps are bounded, or begin with what they cannot hold.
_FORMS = {
    "override": rf"\b(?:ignore|disregard|override|bypass|forget|do not follow)\b.{{0,40}}\b"
    rf"(?:previous|prior|earlier|above|preceding|other|your|all)\b.{{0,30}}"
    rf"\b(?:instructions?|rules?|prompts?|guidelines?|orders|context|{_MEMORY})",
    "standing_order": r"\b(?:from now on|henceforth|in (?:the )?future|whenever|every time|any time|each time|"
    rf"if (?:anyone|anybody|someone|somebody|a user|the user)|when (?:asked|anyone|anybody|a user|the user))\b"
    rf".{{0,80}}\b{_REPLY}\b.{{0,25}}(?:\b(?:with|that|only|by)\b|:|\")|"
    r"(?<!\bi )(?<!\bwe )(?<!\bthey )\balways (?:answer|reply|respond|say|recommend)\b.{0,25}\b(?:with|that|only)\b",
    "memory_order": r"\b(?:delete|erase|remove|wipe|clear|purge|drop|overwrite|replace|forget|reset)\b"
    rf".{{0,40}}\b{_MEMORY}",
    "exfiltration": r"\b(?:repeat|print|reveal|list|show|send|forward|append|include|disclose|leak|recite|quote|copy)\b"
    rf".{{0,60}}\b(?:all|every|other|stored|remembered|whole|your)\b.{{0,30}}\b(?:{_MEMORY}|secrets?|passwords?|"
    r"system prompt|instructions)\b",
    "alias": rf"\b(?:records?|data|information|{_MEMORY}|profile|questions?|quer(?:y|ies))\b.{{0,60}}\b"
    r"(?:merged|moved|migrated|transferred|redirected|now kept|now stored|saved|filed|stands?|stored)\b.{0,30}\b"
    r"(?:under|into|with|to|as)\b|\b(?:use|see|refer to|consult|look up)\b.{0,60}\b"
    r"(?:instead of|in place of|rather than)\b",
    "addressed": r"\b(?:notes?|reminders?|messages?|instructions?|memos?) (?:to|for) (?:the |all |any |every )?"
    r"(?:assistants?|models?|ais?|agents?|bots?|memory)\b|\b(?:assistants?|models?|ais?|agents?|bots?) reading this\b",
    "role": r"(?:^|\n)[^\w\n]{0,40}(?:system|assistant|developer|tool)\s*:|<\||\[/?INST\]|</?(?:system|instructions?)>|"
    r"#\s*(?:system|instructions?)\b",
}
_FOUND = {code: re.compile(form, re.IGNORECASE | re.DOTALL) for code, form in _FORMS.items()}
# operations as the manager writes them; nobody talks in capitals and numbers
_PROTOCOL = re.compile(
    r"(?:^|[\n:;.\"'])[^\S\n]*(?:(?:UPDATE|DELETE)\s+\d+\b|(?:ADD|NOOP)[^\S\n]*(?:$|\n))|"
    r"\"event\"[^\S\n]*:[^\S\n]*\"|\*\*Answer:\*\*|(?:^|\n)[^\S\n]*(?:Use|Answer):\s"
)
# Default_Ignorable_Code_Point of Unicode (DerivedCoreProperties.txt) that is not of category Cf
_IGNORABLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
FORMS = (*_FORMS, "protocol", UNTRUSTED)
"""Every reason for which a decision is held. Stable: answers, metrics and operators' rules rely on them."""


def forms_in(text: str) -> list[str]:
    """The forms of injections that a text has; none for ordinary talk."""
    plain = _visible(text)
    found = [code for code, form in _FOUND.items() if form.search(plain)]
    return [*found, "protocol"] if _PROTOCOL.search(plain) else found


def suspicions(
    ops: Sequence[MemoryOp],
    facts: Iterable[str],
    provenance: Provenance,
    current: Callable[[str], MemoryEntry | None],
    speakers: Iterable[str] = (),
) -> list[str]:
    """Why a decision should be held, as codes of `FORMS`; empty when it should be made.

    facts: what was said, which a DELETE does not repeat. current: the live entry of an id. speakers: names that
    the service itself put in front of texts, as `Name: `.
    """
    changing = [op for op in ops if op.event is not Event.NOOP]
    if not changing:
        return []
    texts = dict.fromkeys(_said(text, speakers) for text in (*facts, *(op.text for op in changing)))
    found = [code for text in texts for code in forms_in(text)]
    if not provenance.trusted and any(_vouched(current(op.entry_id)) for op in changing if op.entry_id):
        found.append(UNTRUSTED)
    return list(dict.fromkeys(found))


def _said(text: str, speakers: Iterable[str]) -> str:
    """The text with the name of its speaker on a line of its own: somebody may be called System."""
    name = next((name for name in speakers if text.startswith(f"{name}: ")), None)
    return text if name is None else f"{name}\n{text[len(name) + 2 :]}"


def _vouched(entry: MemoryEntry | None) -> bool:
    return entry is not None and entry.provenance.trusted


def _visible(text: str) -> str:
    """The text with compatibility forms (full width, ligatures, mathematical letters) made plain and characters that
    show nothing taken out. Letters of other scripts that look like Latin ones stay what they are."""
    # each character by itself: ordering long runs of accents takes the square of their number
    plain = "".join(unicodedata.normalize("NFKC", c) for c in text)
    return "".join(c for c in plain if unicodedata.category(c) != "Cf" and not _IGNORABLE.match(c))
