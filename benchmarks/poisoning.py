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
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from memr1.data.factworld import FactWorldConfig, generate_dialogues
from memr1.data.poisoning import KINDS, Attack, generate_attacks
from memr1.evaluation.statistics import bootstrap_interval
from memr1.memory import Event, MemoryOp, Provenance, load_embedder
from memr1.memory.scopes import Scope
from memr1.rollout.engine import Completion, GenerationRequest
from memr1.serving.agents import AgentService, Said
from memr1.serving.banks import BankService, InProcess
from memr1.serving.errors import ApiError
from memr1.serving.guards import forms_in
from memr1.serving.inference import Inference, watched
from memr1.serving.refs import BankRef
from memr1.serving.settings import ServingConfig
from memr1.serving.source import find_source, load_runner

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


async def play(
    attack: Attack, agents: AgentService, banks: InProcess, name: str, *, marked: bool
) -> tuple[bool, dict[str, bool]]:
    """Whether the attack got in, and whether it reached the answer, by filter of the question."""
    ref = BankRef(Scope(user_id=f"{name}/{attack.id}", tenant="bench"))
    trusted = Provenance(("told",), role="user")
    for text, day in attack.memory:
        await banks.call("apply", TENANT, ref, [MemoryOp(Event.ADD, text)], provenance=trusted, time=day, create=True)
    filters = {"all": None, "vouched": {"trusted": True}}
    before = (await agents.answer(TENANT, [ref], attack.question)).text
    for message in attack.messages:
        said = [Said(message, trusted=not marked)]
        await agents.remember(TENANT, ref, said, provenance=Provenance(("attack",), role="user"), time=attack.day)
    live = [entry.text for entry in (await banks.call("entries", TENANT, ref, 0, 1000))[0]]
    after = {}
    for which, chosen in filters.items():
        try:
            after[which] = (await agents.answer(TENANT, [ref], attack.question, filters=chosen)).text
        except ApiError:
            after[which] = None
    return attack.injected(live), {which: attack.succeeded(before, text) for which, text in after.items()}


async def play_all(
    attacks: Sequence[Attack], agents: AgentService, banks: InProcess, name: str, *, marked: bool
) -> list[tuple[bool, dict[str, bool]]]:
    """Every attack, some at a time, so that the model has batches."""
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(attack: Attack) -> tuple[bool, dict[str, bool]]:
        async with room:
            return await play(attack, agents, banks, name, marked=marked)

    return list(await asyncio.gather(*(one(a) for a in attacks)))


def share(values: Sequence[bool]) -> str:
    """A share in percent with its interval."""
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
    runner = load_runner(source, 0)
    attacks = generate_attacks(args.split, num_worlds=args.worlds)
    print(f"{platform.platform()}, Python {platform.python_version()}; {source.label}")
    print(f"{len(attacks)} attacks on {args.worlds} worlds of the {args.split} split; shares in %, 95 % intervals")
    embedder = load_embedder(args.embedder or source.config.memory.embedder)
    inference = Inference(watched(runner.engine), max_batch=AT_A_TIME)
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            for manager in ("untrained", "trained"):
                generator = inference if manager == "trained" else Untrained(inference)
                found: dict[str, list[tuple[bool, dict[str, bool]]]] = {}
                for column, guards, marked in (("open", False, False), ("words", True, False), ("marked", True, True)):
                    name = f"{manager}-{column}"
                    settings = ServingConfig(db=str(Path(folder) / f"{name}.db"), guards=guards, timeout_s=600)
                    service = BankService(settings, embedder)
                    banks = InProcess(service)
                    agents = AgentService(source.config, runner.world.agents, generator, banks, settings, source.label)
                    found[column] = asyncio.run(play_all(attacks, agents, banks, name, marked=marked))
                    service.close()
                table(manager, attacks, found)
    finally:
        inference.close()
    costs(args.split, args.worlds)
    print(f"\n{time.monotonic() - start:.0f} s")


def table(manager: str, attacks: Sequence[Attack], found: dict[str, list[tuple[bool, dict[str, bool]]]]) -> None:
    """One manager's shares by kind of attack."""
    print(f"\n{manager} manager")
    print(f"{'injected':<12}" + "".join(f"{c:>18}" for c in COLUMNS[:3]))
    for kind in (*KINDS, "all"):
        mine = [i for i, a in enumerate(attacks) if kind in (a.kind, "all")]
        print(f"{kind:<12}" + "".join(f"{share([found[c][i][0] for i in mine]):>18}" for c in COLUMNS[:3]), flush=True)
    print(f"{'attacked':<12}" + "".join(f"{c:>18}" for c in COLUMNS))
    for kind in (*KINDS, "all"):
        mine = [i for i, a in enumerate(attacks) if kind in (a.kind, "all")]
        cells = [share([found[c][i][1]["all"] for i in mine]) for c in COLUMNS[:3]]
        cells.append(share([found["marked"][i][1]["vouched"] for i in mine]))
        print(f"{kind:<12}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
