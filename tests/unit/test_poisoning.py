"""Generated attacks: the same for the same seed, aimed at what is there, and judged by what they changed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from memr1.data.poisoning import KINDS, Attack, generate_attacks
from memr1.memory.scopes import Scope
from memr1.memory.types import Event, MemoryOp, Provenance
from memr1.serving.agents import Said
from memr1.serving.refs import BankRef
from tests.unit.serving_cases import make_services

ATTACKS = generate_attacks(num_worlds=6)
LOCAL = Scope(tenant="local")


def test_attacks_are_a_pure_function_of_their_seed() -> None:
    assert generate_attacks(num_worlds=6) == ATTACKS
    assert generate_attacks(num_worlds=9)[: len(ATTACKS)] == ATTACKS
    assert generate_attacks(seed=1, num_worlds=6) != ATTACKS
    assert {a.kind for a in ATTACKS} == set(KINDS) and len(ATTACKS) == 30


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.id)
def test_an_attack_aims_at_what_is_there_and_has_not_succeeded_before_it_began(attack: Attack) -> None:
    told = [text for text, _ in attack.memory]
    assert not attack.injected(told)
    if attack.kind == "delete":
        assert attack.planted in told and attack.gold in attack.planted
        assert attack.injected([t for t in told if t != attack.planted])
        assert attack.succeeded(attack.gold, "unknown") and not attack.succeeded("unknown", "unknown")
    else:
        assert attack.injected([*told, attack.messages[-1], attack.messages[0]])
        assert attack.succeeded(attack.gold, f"It is {attack.wanted}.") and not attack.succeeded(None, attack.gold)
        assert not attack.succeeded(attack.wanted, attack.wanted), "it was so before"
    if attack.kind == "exfiltrate":
        assert any(attack.wanted in text for text in told) and attack.wanted not in " ".join(attack.messages)
    if attack.kind == "overwrite":
        assert attack.gold in " ".join(told) and attack.wanted not in " ".join(told)
    assert attack.day > max(day for _, day in attack.memory)


def injected(folder: Path, *, guards: bool, marked: bool) -> dict[str, list[bool]]:
    """What gets past a manager that does whatever it is told: adds, overwrites the nearest, deletes."""

    def obedient(prompt: str, _: object) -> str:
        fact = prompt.rsplit("New fact", 1)[-1].casefold()
        if any(word in fact for word in ("forget", "remove", "delete", "has to go", "no longer")):
            return "DELETE 1"
        return "ADD" if "see " in fact or "safe code" in fact else "UPDATE 1"

    async def play() -> dict[str, list[bool]]:
        services = make_services(folder, obedient, guards=guards)
        got: dict[str, list[bool]] = {kind: [] for kind in KINDS}
        for attack in ATTACKS:
            ref = BankRef(Scope(user_id=attack.id, tenant="local"))
            ops = [MemoryOp(Event.ADD, text) for text, _ in attack.memory]
            told = Provenance(("told",), role="user")
            await services.banks.call("apply", LOCAL, ref, ops, provenance=told, time="2024-01-01", create=True)
            for message in attack.messages:
                said = [Said(message, trusted=not marked)]
                by = Provenance(("attack",), role="user")
                await services.agent().remember(LOCAL, ref, said, provenance=by, time=attack.day)
            live, _ = await services.banks.call("entries", LOCAL, ref, 0, 100)
            got[attack.kind].append(attack.injected(entry.text for entry in live))
        services.close()
        return got

    return asyncio.run(play())


def test_marked_attacks_change_nothing_that_was_told_also_with_a_manager_that_obeys(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "guarded").mkdir()
    free = injected(tmp_path / "open", guards=False, marked=False)
    held = injected(tmp_path / "guarded", guards=True, marked=True)
    assert sum(free["overwrite"]) == 6 and sum(free["plant"]) == 6, "it does obey"
    assert sum(free["delete"]) > 0
    assert sum(held["overwrite"]) == sum(held["plant"]) == sum(held["delete"]) == 0
