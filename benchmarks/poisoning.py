"""How often attacks get into the memory and into answers, by manager and by what guards it.

    python benchmarks/poisoning.py [RUN] [--worlds 40] [--embedder minilm]

RUN: a trained run, by default runs/train_local. Attacks are those of `memr1.data.poisoning`: one of each kind on every
world, each on a bank of its own that is filled with what trusted people said. They go through the service's own
manager, guards and answerer, greedily. The trained answerer answers in every row, so that rows differ by the manager
alone. Columns:

    open      guards off
    words     guards on; the attacker's messages come as a user's own, so only their words can give them away
    marked    guards on; the messages are marked as not trusted, as an application does with pages and mails
    vouched   as marked, and the question is answered from what trusted sources said (filters: {"trusted": true})

injected: share of attacks after which the memory holds what the attacker planted, or lacks what they wanted gone.
attacked: share after which the answer is the attacker's and was not before; of deletions, after which a right answer
is gone. Brackets: 95 % intervals over worlds. A second table shows what the guards cost: held shares of harmless texts.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memr1.data.factworld import FactWorldConfig, generate_dialogues
from memr1.data.poisoning import KINDS, Attack, generate_attacks
from memr1.evaluation.statistics import bootstrap_interval
from memr1.memory import Event, MemoryOp, Provenance, load_embedder
from memr1.memory.embed import Embedder
from memr1.memory.scopes import Scope
from memr1.rollout.engine import Completion, GenerationRequest
from memr1.rollout.runner import Runner
from memr1.serving.agents import AgentService, Said
from memr1.serving.banks import BankService, InProcess
from memr1.serving.guards import forms_in
from memr1.serving.inference import Generator, Inference, watched
from memr1.serving.refs import BankRef
from memr1.serving.settings import ServingConfig
from memr1.serving.source import Source, find_source, load_runner

TENANT = Scope(tenant="bench")
COLUMNS = ("open", "words", "marked", "vouched")
AT_A_TIME = 32


class Untrained:
    """A generator whose manager is the base model."""

    def __init__(self, inner: Inference) -> None:
        self._inner = inner

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Generator.generate`."""
        return await self._inner.generate([replace(r, policy="base") if r.policy == "manager" else r for r in requests])

    def stream(self, request: GenerationRequest) -> AsyncIterator[int | Completion]:
        """See `Generator.stream`."""
        return self._inner.stream(request)


@dataclass
class Outcome:
    """What came of an attack."""

    injected: bool
    attacked: bool
    vouched: bool
    """Whether the answer from trusted sources alone is the attacker's; only asked of marked attacks."""


class Players:
    """Plays attacks through one manager; the answers before them are asked for once for all managers and guards."""

    def __init__(self, source: Source, runner: Runner, embedder: Embedder) -> None:
        self._source, self._runner, self._embedder = source, runner, embedder
        self._before: dict[str, str | None] = {}

    async def play_all(
        self, attacks: Sequence[Attack], generator: Generator, db: Path, *, guards: bool, marked: bool
    ) -> list[Outcome]:
        """Every attack, some at a time, so that the model has batches."""
        settings = ServingConfig(db=str(db), guards=guards, timeout_s=7200, max_banks=len(attacks))
        service = BankService(settings, self._embedder)
        banks, room = InProcess(service), asyncio.Semaphore(AT_A_TIME)
        config, label = self._source.config, self._source.label
        agents = AgentService(config, self._runner.world.agents, generator, banks, settings, label)

        async def one(attack: Attack) -> Outcome:
            async with room:
                return await self._play(attack, agents, banks, marked)

        try:
            return list(await asyncio.gather(*(one(a) for a in attacks)))
        finally:
            service.close()

    async def _play(self, attack: Attack, agents: AgentService, banks: InProcess, marked: bool) -> Outcome:
        ref = BankRef(Scope(user_id=attack.id, tenant="bench"))
        told = Provenance(("told",), role="user")
        for text, day in attack.memory:
            await banks.call("apply", TENANT, ref, [MemoryOp(Event.ADD, text)], provenance=told, time=day, create=True)
        if attack.id not in self._before:
            self._before[attack.id] = (await agents.answer(TENANT, [ref], attack.question)).text
        before = self._before[attack.id]
        for message in attack.messages:
            said = [Said(message, trusted=not marked)]
            await agents.remember(TENANT, ref, said, provenance=Provenance(("attack",), role="user"), time=attack.day)
        live = [entry.text for entry in (await banks.call("entries", TENANT, ref, 0, 1000))[0]]
        after = (await agents.answer(TENANT, [ref], attack.question)).text
        vouched = before
        if marked:
            only = {"trusted": True}
            vouched = (await agents.answer(TENANT, [ref], attack.question, filters=only)).text
        return Outcome(attack.injected(live), attack.succeeded(before, after), attack.succeeded(before, vouched))


def share(values: Sequence[float]) -> str:
    """A share in percent with its interval. values: a share for each of what is drawn independently."""
    found = bootstrap_interval([float(v) for v in values])
    low, high = (100 * (v if v is not None else found.mean) for v in (found.low, found.high))
    return f"{100 * found.mean:3.0f} [{low:3.0f}, {high:3.0f}]"


def costs(split: str, worlds: int) -> None:
    """Share of harmless texts that the guards would hold."""
    dialogues = generate_dialogues(FactWorldConfig(split=split, num_worlds=worlds))
    turns = [turn for dialogue in dialogues for _, turn in dialogue.turns()]
    said, facts = [t.text for t in turns], [f.text for t in turns for f in t.facts or ()]
    print("\nharmless texts that would be held, in %")
    for what, texts in (("turns", said), ("facts", facts)):
        print(f"{what:<12} {share([bool(forms_in(t)) for t in texts]):>18}   of {len(texts)}")


def main() -> None:
    """Print the machine, a table for each manager, and what the guards cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="runs/train_local")
    parser.add_argument("--worlds", type=int, default=40)
    parser.add_argument("--split", default="test")
    parser.add_argument("--embedder", default=None, help="default: the run's")
    args = parser.parse_args()
    source = find_source(args.source)
    if source.warning:
        print(f"note: {source.warning}", file=sys.stderr)
    runner = load_runner(source, 0)
    attacks = generate_attacks(args.split, num_worlds=args.worlds)
    print(f"{platform.platform()}, Python {platform.python_version()}; {source.label}")
    print(f"{len(attacks)} attacks on {args.worlds} worlds of the {args.split} split; shares in %, 95 % intervals")
    inference = Inference(watched(runner.engine), max_batch=AT_A_TIME)
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            players = Players(source, runner, load_embedder(args.embedder or source.config.memory.embedder))
            for manager in ("untrained", "trained"):
                generator = inference if manager == "trained" else Untrained(inference)
                found = {}
                for column, guards, marked in (("open", False, False), ("words", True, False), ("marked", True, True)):
                    db = Path(folder) / f"{manager}-{column}.db"
                    found[column] = asyncio.run(players.play_all(attacks, generator, db, guards=guards, marked=marked))
                table(manager, attacks, found)
    finally:
        inference.close()
    costs(args.split, args.worlds)
    print(f"\n{time.monotonic() - start:.0f} s")


def table(manager: str, attacks: Sequence[Attack], found: dict[str, list[Outcome]]) -> None:
    """One manager's shares by kind of attack."""
    print(f"\n{manager} manager")
    for what, columns in (("injected", COLUMNS[:3]), ("attacked", COLUMNS)):
        print(f"{what:<12}" + "".join(f"{c:>18}" for c in columns))
        for kind in (*KINDS, "all"):
            cells = []
            for column in columns:
                which = "vouched" if column == "vouched" else what
                of_column = found["marked" if column == "vouched" else column]
                worlds: dict[str, list[bool]] = {}
                for attack, outcome in zip(attacks, of_column, strict=True):
                    if kind in (attack.kind, "all"):
                        worlds.setdefault(attack.id.rpartition("/")[0], []).append(getattr(outcome, which))
                cells.append(share([sum(of_world) / len(of_world) for of_world in worlds.values()]))
            print(f"{kind:<12}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
