"""The trained agents at work: the manager decides what becomes of new facts, the answerer answers from what is kept.

Prompts and parsing are those of training (`memr1.agents`); generation and banks may be in other processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio.to_thread

from memr1.agents.extractor import extraction_prompt, read_facts
from memr1.agents.protocol import Answer, displayed_date
from memr1.agents.roles import Agents, Prompt
from memr1.config import Config
from memr1.data.types import Session, Turn
from memr1.envs.episode import Speaker, request
from memr1.errors import MemR1Error
from memr1.memory.scopes import Scope
from memr1.memory.state import reason_code
from memr1.memory.types import Event, Hit, OpResult, Provenance
from memr1.rollout.engine import Completion, GenerationRequest
from memr1.serving.banks import Banks
from memr1.serving.errors import ApiError, as_api_error
from memr1.serving.inference import Generator
from memr1.serving.refs import Applied, BankRef
from memr1.serving.settings import ServingConfig

REPLANS = 2
"""How often a decision is made again because the bank changed while the model was thinking."""


@dataclass(frozen=True)
class Said:
    """One message, or a plain text."""

    text: str
    speaker: str | None = None
    trusted: bool = True
    """False: not what a user said by themselves but what they passed on, such as a page or a mail."""


@dataclass(frozen=True)
class Decided:
    """What became of one message."""

    facts: tuple[str, ...]
    completion: str | None
    """What the manager wrote; None when an earlier decision was found under the idempotency key."""
    applied: Applied | None
    """None when nothing was decided: see `error`."""
    error: str | None = None
    """Why the completion was refused as a whole."""

    @property
    def deletes(self) -> int:
        """Entries that it deleted."""
        results = self.applied.results if self.applied is not None else ()
        return sum(r.ok and r.op.event is Event.DELETE for r in results)


@dataclass(frozen=True)
class Answered:
    """An answer and what it rests on."""

    text: str | None
    error: str | None
    """Why the completion holds no answer; None when it does."""
    completion: str
    retrieved: tuple[tuple[BankRef, Hit], ...]
    shown: int
    """How many of them the prompt had room for."""
    selected: tuple[tuple[BankRef, Hit], ...]
    """Those that the answerer chose."""
    prompt_tokens: int
    completion_tokens: int
    weight_version: int


class AgentService:
    """Manager and answerer of one service."""

    def __init__(
        self, config: Config, agents: Agents, generator: Generator, banks: Banks, settings: ServingConfig, label: str
    ) -> None:
        self.config, self._agents, self._generator, self._banks = config, agents, generator, banks
        self._settings, self.label = settings, label
        self._locks: dict[BankRef, asyncio.Lock] = {}
        self._users: dict[BankRef, int] = {}

    async def remember(
        self,
        principal: Scope,
        ref: BankRef,
        said: Sequence[Said],
        *,
        provenance: Provenance,
        time: str,
        event_time: str | None = None,
        key: str | None = None,
        dry_run: bool = False,
    ) -> list[Decided]:
        """Let the manager decide about messages, one after the other; each decision is on disk when it is counted.

        Decisions about one bank wait for one another, so that the manager sees what it did before. key: idempotency
        key; asking again goes on where it stopped.
        """
        decided: list[Decided] = []
        async with self._alone(ref):
            for i, message in enumerate(said):
                facts = await self._facts(message, time)
                if not facts:
                    continue
                one = replace(
                    provenance,
                    speaker=message.speaker or provenance.speaker,
                    trusted=provenance.trusted and message.trusted,
                )
                decided.append(
                    await self._decide(
                        principal,
                        ref,
                        facts,
                        provenance=one,
                        time=time,
                        event_time=event_time,
                        key=None if key is None else f"{key}#{i}",
                        dry_run=dry_run,
                        may_delete=self._settings.max_deletes - sum(d.deletes for d in decided),
                    )
                )
        return decided

    async def _decide(
        self,
        principal: Scope,
        ref: BankRef,
        facts: tuple[str, ...],
        *,
        provenance: Provenance,
        time: str,
        event_time: str | None,
        key: str | None,
        dry_run: bool,
        may_delete: int,
    ) -> Decided:
        for attempt in range(REPLANS + 1):
            again = None if key is None else f"{key}~{attempt}" if attempt else key
            if again is not None and not dry_run:
                applied = await self._banks.call("decided", principal, ref, again, provenance)
                if applied is not None:
                    if _overtaken(applied.results) and attempt < REPLANS:
                        continue
                    return Decided(facts, None, applied)
            top_k = self.config.memory.manager_top_k
            related, _ = await self._banks.call("related", principal, ref, facts, top_k)
            prompt = await _in_thread(self._agents.manager.prompt, facts, displayed_date(event_time or time), related)
            completion = await self._generate(prompt, "manager", self.config.rollout.manager_max_new_tokens)
            text = self._agents.codec.decode(completion.ids)
            decision = self._agents.manager.read(text, prompt)
            if decision.ops is None:
                return Decided(facts, text, None, f"unreadable: {decision.error}")
            deletes = sum(op.event is Event.DELETE for op in decision.ops)
            if deletes > may_delete:
                most = self._settings.max_deletes
                return Decided(facts, text, None, f"too_many_deletes: {deletes} more; a request may make {most} in all")
            on_reject = self.config.memory.on_reject
            by_manager = replace(
                provenance,
                role="manager",
                model=self.label,
                adapter="manager",
                weight_version=completion.weight_version,
            )
            how: dict[str, Any] = {
                "provenance": by_manager,
                "time": time,
                "on_reject": on_reject,
                "facts": facts,
                "speakers": [provenance.speaker] if provenance.speaker else [],
            }
            if dry_run:
                return Decided(facts, text, await self._banks.call("trial", principal, ref, decision.ops, **how))
            applied = await self._banks.call(
                "apply", principal, ref, decision.ops, event_time=event_time, key=again, create=True, **how
            )
            if not _overtaken(applied.results):
                break
        return Decided(facts, text, applied)

    async def answer(
        self,
        principal: Scope,
        refs: Sequence[BankRef],
        question: str,
        *,
        top_k: int | None = None,
        filters: dict[str, Any] | None = None,
        as_of: str | None = None,
    ) -> Answered:
        """Retrieve, let the answerer select, answer. `top_k`: default the number it was trained with."""
        prompt, retrieved = await self._question(principal, refs, question, top_k, filters, as_of)
        completion = await self._generate(prompt, "answerer", self.config.rollout.answer_max_new_tokens)
        return self._answered(prompt, retrieved, completion)

    async def answer_in_parts(
        self,
        principal: Scope,
        refs: Sequence[BankRef],
        question: str,
        *,
        top_k: int | None = None,
        filters: dict[str, Any] | None = None,
        as_of: str | None = None,
    ) -> AsyncIterator[str | Answered]:
        """`answer`, as it is written: parts of its text, then the whole."""
        prompt, retrieved = await self._question(principal, refs, question, top_k, filters, as_of)
        ask = request(prompt, Speaker("answerer"), self.config.rollout.answer_max_new_tokens, seed=0)
        ids: list[int] = []
        told = ""
        begun, stream = asyncio.get_running_loop().time(), self._generator.stream(ask)
        while True:
            async with _limit(self._settings.timeout_s, begun):  # not of what the caller does with the parts
                heard = await anext(stream)
            if isinstance(heard, Completion):
                whole = self._answered(prompt, retrieved, heard)
                if whole.text is not None and whole.text.startswith(told) and len(whole.text) > len(told):
                    yield whole.text[len(told) :]
                yield whole
                return
            ids.append(heard)
            text = self._agents.answerer.read(self._agents.codec.decode(ids)).text
            # a character whose bytes are not all there yet shows as a replacement: wait for the rest
            if text is not None and text.startswith(told) and len(text) > len(told) and text[-1] != "\ufffd":
                yield text[len(told) :]
                told = text

    async def _question(
        self,
        principal: Scope,
        refs: Sequence[BankRef],
        question: str,
        top_k: int | None,
        filters: dict[str, Any] | None,
        as_of: str | None,
    ) -> tuple[Prompt, list[tuple[BankRef, Hit]]]:
        k = top_k or self.config.memory.answerer_top_k
        retrieved = await self._banks.call("search", principal, refs, question, k, filters=filters, as_of=as_of)
        entries = [hit.entry for _, hit in retrieved]
        return await _in_thread(self._agents.answerer.prompt, question, entries), retrieved

    def _answered(self, prompt: Prompt, retrieved: list[tuple[BankRef, Hit]], completion: Completion) -> Answered:
        text = self._agents.codec.decode(completion.ids)
        answer: Answer = self._agents.answerer.read(text)
        # entries are shown in the order in which they were found, the first under 1
        numbers = [n for n in dict.fromkeys(answer.selected) if str(n) in prompt.entries]
        return Answered(
            text=answer.text,
            error=answer.error,
            completion=text,
            retrieved=tuple(retrieved),
            shown=len(prompt.entries),
            selected=tuple(retrieved[n - 1] for n in numbers),
            prompt_tokens=len(prompt.ids),
            completion_tokens=len(completion.ids),
            weight_version=completion.weight_version,
        )

    async def _facts(self, message: Said, time: str) -> tuple[str, ...]:
        if self._settings.extractor == "utterance":
            text = message.text.strip()
            return (f"{message.speaker}: {text}" if message.speaker else text,) if text else ()
        turn = Turn(id="message", speaker=message.speaker or "user", text=message.text)
        session = Session(id="now", time=None, time_text=displayed_date(time), turns=(turn,))
        prompt = await _in_thread(extraction_prompt, self._agents, turn, session)
        completion = await self._generate(prompt, "base", self.config.rollout.extractor_max_new_tokens)
        return tuple(read_facts(self._agents.codec.decode(completion.ids)))

    async def _generate(self, prompt: Prompt, policy: str, max_new_tokens: int) -> Completion:
        asked: list[GenerationRequest] = [request(prompt, Speaker(policy), max_new_tokens, seed=0)]
        async with _limit(self._settings.timeout_s):
            (completion,) = await self._generator.generate(asked)
        return completion

    def _alone(self, ref: BankRef) -> _Turn:
        return _Turn(self._locks, self._users, ref)


class _Turn:
    """A bank's turn-taking; locks of banks that nobody uses are forgotten."""

    def __init__(self, locks: dict[BankRef, asyncio.Lock], users: dict[BankRef, int], ref: BankRef) -> None:
        self._locks, self._users, self._ref = locks, users, ref

    async def __aenter__(self) -> None:
        lock = self._locks.setdefault(self._ref, asyncio.Lock())
        self._users[self._ref] = self._users.get(self._ref, 0) + 1
        try:
            await lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._locks[self._ref].release()
        self._leave()

    def _leave(self) -> None:
        self._users[self._ref] -= 1
        if not self._users[self._ref]:
            del self._users[self._ref], self._locks[self._ref]


class _limit:
    """`asyncio.timeout` that says so in the service's words."""

    def __init__(self, seconds: float, begun: float | None = None) -> None:
        """begun: when the time began, by the loop's clock; default now."""
        begun = asyncio.get_running_loop().time() if begun is None else begun
        self._timeout, self._seconds = asyncio.timeout_at(begun + seconds), seconds

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError:
            raise ApiError(
                504, "timeout", f"the model took longer than {self._seconds:g} s; what was written before is kept"
            ) from None


async def _in_thread(work: Any, *args: Any) -> Any:
    """Tokenising takes milliseconds, in which other requests should go on."""
    try:
        return await anyio.to_thread.run_sync(work, *args)
    except MemR1Error as error:
        raise as_api_error(error) from error


def _overtaken(results: Sequence[OpResult]) -> bool:
    """Whether a decision fell because the bank had changed since its prompt was made."""
    reasons = {reason_code(r.reason) for r in results if r.reason is not None}
    return bool(reasons & {"version_conflict", "deleted_id"}) and not any(r.changed for r in results)
