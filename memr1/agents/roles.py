"""Manager, Answerer and Extractor: a protocol bound to a tokenizer and to a prompt budget.

Each turns a situation into a `Prompt` (token ids and what was shown) and reads a completion back. They hold no
weights and call no engine: episodes (`memr1.envs`) do that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memr1.agents.json_protocol import JsonAnswerer, JsonManager
from memr1.agents.lines import LinesAnswerer, LinesManager
from memr1.agents.protocol import Answer, AnswererProtocol, Decision, ManagerProtocol, Messages
from memr1.config import Config
from memr1.errors import MemR1Error
from memr1.memory.types import MemoryEntry, MemoryOp

_PROTOCOLS: dict[str, tuple[type[ManagerProtocol], type[AnswererProtocol]]] = {
    "lines": (LinesManager, LinesAnswerer),
    "json": (JsonManager, JsonAnswerer),
}


class PromptTooLong(MemR1Error):
    """What cannot be left out of a prompt is longer than its budget."""


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt and what it shows."""

    ids: tuple[int, ...]
    text: str
    entries: dict[str, MemoryEntry]
    """Displayed number -> entry."""
    cut: int = 0
    """Entries left out because the prompt would have been longer than its budget."""
    facts: tuple[str, ...] = ()
    """The new facts that a decision is asked about."""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content) of the chat messages that were rendered."""


class ChatCodec:
    """Chat messages to token ids and completion ids to text, for one tokenizer."""

    def __init__(self, tokenizer: Any, max_prompt_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        self._special = sorted({*tokenizer.all_special_tokens, *added} - {""}, key=len, reverse=True)

    def plain(self, text: str) -> str:
        """The text with a space put into whatever the tokenizer would read as a token of its own, such as the end of a
        turn: what people say and what is remembered must not be able to end a turn or open another one."""
        for marker in self._special:
            text = text.replace(marker, f"{marker[0]} {marker[1:]}")
        return text

    def encode(self, messages: Messages) -> tuple[tuple[int, ...], str]:
        """Prompt ids that end where the assistant's turn begins, and the same as text."""
        messages = [{**m, "content": self.plain(m["content"])} for m in messages]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]), text

    def encode_completion(self, text: str) -> tuple[int, ...]:
        """Ids of a whole assistant turn, with the end-of-turn token: a demonstration."""
        ids = self.tokenizer(self.plain(text), add_special_tokens=False)["input_ids"]
        return (*ids, self.tokenizer.eos_token_id)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def fit(self, entries: Sequence[MemoryEntry], render: Any) -> Prompt:
        """Show as many entries as the budget holds: the least relevant are left out first.

        entries: most relevant first, and shown so: what a decision or an answer rests on is then nearly always among
        the first, where a small model finds it. render: displayed entries -> messages. Raises PromptTooLong when
        the prompt is too long even without entries: cutting the question or the new fact would change the task.
        """

        def at(count: int) -> Prompt:
            numbered = {str(i): e for i, e in enumerate(entries[:count], start=1)}
            messages = render(numbered)
            ids, text = self.encode(messages)
            said = tuple((m["role"], m["content"]) for m in messages)
            return Prompt(ids, text, numbered, cut=len(entries) - count, messages=said)

        prompt = at(len(entries))
        if len(prompt.ids) <= self.max_prompt_tokens:
            return prompt
        low, high = 0, len(entries) - 1  # the largest count that fits, by bisection
        best: Prompt | None = None
        while low <= high:
            middle = (low + high) // 2
            candidate = at(middle)
            if len(candidate.ids) <= self.max_prompt_tokens:
                best, low = candidate, middle + 1
            else:
                high = middle - 1
        if best is None:
            raise PromptTooLong(
                f"a prompt of {len(at(0).ids)} tokens is longer than rollout.max_prompt_tokens="
                f"{self.max_prompt_tokens} even without memories; raise it, or shorten the question or fact: "
                f"{prompt.text[-80:]!r}"
            )
        return best


class Manager:
    """The Memory Manager's side of the conversation."""

    def __init__(self, codec: ChatCodec, protocol: ManagerProtocol) -> None:
        self.codec = codec
        self.protocol = protocol

    def prompt(self, facts: Sequence[str], date: str, related: Sequence[MemoryEntry]) -> Prompt:
        """Prompt for one decision about `facts`, given related entries, most relevant first."""
        prompt = self.codec.fit(related, lambda entries: self.protocol.render(facts, date, entries))
        return replace(prompt, facts=tuple(facts))

    def read(self, completion: str, prompt: Prompt) -> Decision:
        """Parse a completion to operations on the bank's own ids."""
        return self.protocol.parse(completion, prompt.entries, prompt.facts)

    def demonstration(self, ops: Sequence[MemoryOp], prompt: Prompt) -> str | None:
        """The completion that would do `ops`; None when a target is not among the entries shown."""
        shown = {e.id for e in prompt.entries.values()}
        if any(op.entry_id is not None and op.entry_id not in shown for op in ops):
            return None
        return self.protocol.write(ops, prompt.entries, prompt.facts)


class Answerer:
    """The Answer Agent's side of the conversation."""

    def __init__(self, codec: ChatCodec, protocol: AnswererProtocol) -> None:
        self.codec = codec
        self.protocol = protocol

    def prompt(self, question: str, entries: Sequence[MemoryEntry]) -> Prompt:
        """Prompt for one question, given retrieved entries, most relevant first."""
        return self.codec.fit(entries, lambda shown: self.protocol.render(question, shown))

    def read(self, completion: str) -> Answer:
        """Parse a completion to an answer."""
        return self.protocol.parse(completion)

    def demonstration(self, answer: str, evidence: Mapping[str, MemoryEntry]) -> str:
        """The completion that selects `evidence` (displayed number -> entry) and gives `answer`."""
        return self.protocol.write(answer, list(evidence))


@dataclass(frozen=True)
class Agents:
    """All roles over one tokenizer."""

    codec: ChatCodec
    manager: Manager
    answerer: Answerer


def make_agents(config: Config, tokenizer: Any) -> Agents:
    """Roles as the configuration describes them."""
    codec = ChatCodec(tokenizer, config.rollout.max_prompt_tokens)
    manager, answerer = _PROTOCOLS[config.agents.protocol]
    return Agents(codec, Manager(codec, manager()), Answerer(codec, answerer(config.agents.distillation)))
