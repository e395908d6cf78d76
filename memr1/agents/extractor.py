"""From a turn to facts: the dataset's own, the utterance itself, or what a language model extracts."""

from __future__ import annotations

from memr1.agents.protocol import Messages
from memr1.agents.roles import Agents, Prompt
from memr1.data.types import Session, Turn
from memr1.errors import MemR1Error

_SYSTEM = (
    "List the facts in the message that are worth remembering about people, one per line, each a full sentence in the "
    "third person that starts with `- `. Leave out greetings and small talk. If there is nothing, write `none`."
)


def facts_of(turn: Turn, kind: str) -> list[str]:
    """Facts of a turn: those it has (`gold`, and `llm` after `memr1.envs.extracting`), or its text (`utterance`).

    Raises MemR1Error when gold facts are asked of a turn that was never annotated.
    """
    if kind == "utterance":
        return [f"{turn.speaker}: {turn.shown_text}"] if turn.shown_text.strip() else []
    if turn.facts is None:
        raise MemR1Error(
            f"turn {turn.id} has no gold facts; set agents.extractor=utterance or llm, or add `facts` to the data"
        )
    return [fact.text for fact in turn.facts]


def extraction_prompt(agents: Agents, turn: Turn, session: Session | None) -> Prompt:
    """Prompt that asks a language model for the facts of one turn; the date of `session` is shown, unless None."""
    date = f" ({session.time_text})" if session is not None and session.time_text else ""
    messages: Messages = [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": f"{turn.speaker}{date}: {turn.shown_text}"},
    ]
    return agents.codec.fit((), lambda _: messages)


def read_facts(completion: str) -> list[str]:
    """Facts in a completion: lines that start with `- `. Anything else is not a fact; none at all is an answer."""
    return [line[2:].strip() for line in completion.splitlines() if line.startswith("- ") and line[2:].strip()]
