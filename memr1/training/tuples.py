"""Training tasks as JSON, kept by dialogue: what `memr1 data build` writes and training reads.

An item is one tuple of Memory-R1 (arXiv 2508.19828, section 4): of the manager a turn's facts, its temporal bank (as
the log that leads to it) and the questions linked to it; of the answerer a question, the entries retrieved for it and
the gold answer. Prompts are not in it: they follow from the protocol and the tokenizer.
"""

from __future__ import annotations

import dataclasses
import typing
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from memr1.data.jsonl import dialogue_to_json
from memr1.data.types import Dialogue
from memr1.envs.answering import AnswerTask
from memr1.envs.cache import Cache
from memr1.envs.deciding import DecisionTask
from memr1.envs.episode import World
from memr1.envs.replaying import ReplayTask
from memr1.errors import MemR1Error
from memr1.memory.bank import MemoryBank, Snapshot
from memr1.memory.jsonl import Fields
from memr1.memory.oplog import LogRecord, OpLog
from memr1.memory.state import BankRules
from memr1.models.registry import weights_identity

Task = AnswerTask | DecisionTask | ReplayTask

_TYPES: dict[str, type[Task]] = {"answer": AnswerTask, "decision": DecisionTask, "replay": ReplayTask}


def settings_of(world: World, role: str, bank: str, replay: int | None) -> dict[str, Any]:
    """Everything in the configuration that the tasks of a role depend on. `kind` names the type of task."""
    config = world.config
    memory = dataclasses.asdict(config.memory)
    del memory["pressure"]  # paid at play
    memory["embedder"] = weights_identity(config.memory.embedder)  # decides what is retrieved
    settings: dict[str, Any] = {"kind": "answer", "bank": bank, "memory": memory, "extractor": config.agents.extractor}
    if role == "manager":
        settings["questions"] = config.rollout.questions_per_decision
        if replay is not None:
            return settings | {"kind": "replay", "turns": replay}
        return settings | {"kind": "decision", "window": config.data.window}
    if bank == "manager":
        rollout = config.rollout
        settings |= {"model": weights_identity(config.model.name), "protocol": config.agents.protocol}
        settings |= {"dtype": config.model.dtype, "prompt": rollout.max_prompt_tokens}
        settings |= {"completion": rollout.manager_max_new_tokens}
    return settings


def read_tasks(kept: Cache, dialogue: Dialogue, settings: dict[str, Any], world: World) -> list[Task] | None:
    """The tasks kept for this very dialogue under these settings; None where they have to be made."""
    items = kept.read("tuples", dialogue.id, settings, dialogue_to_json(dialogue))
    return None if items is None else [_from_json(item, settings["kind"], world) for item in items]


def write_tasks(kept: Cache, dialogue: Dialogue, settings: dict[str, Any], tasks: typing.Sequence[Task]) -> None:
    """Keep the tasks of a dialogue."""
    kept.write("tuples", dialogue.id, settings, dialogue_to_json(dialogue), [_to_json(t) for t in tasks])


def _to_json(task: Task) -> dict[str, Any]:
    return {
        name: _snapshot_to_json(value) if isinstance(value, Snapshot) else adapter.dump_python(value, mode="json")
        for name, adapter in _adapters(next(k for k, t in _TYPES.items() if isinstance(task, t))).items()
        for value in [getattr(task, name)]
    }


def _from_json(fields: Fields, kind: str, world: World) -> Task:
    values: dict[str, Any] = {}
    for name, adapter in _adapters(kind).items():
        value = fields.take(name, str, int, float, bool, list, dict, None)
        if name == "snapshot":
            values[name] = _snapshot_from_json(fields.child(name), world)
            continue
        try:
            values[name] = adapter.validate_python(value)
        except ValidationError as error:
            raise fields.fail(name, f"not what was written ({error.errors()[0]['msg']}); delete the file") from error
    fields.end()
    return _TYPES[kind](**values)


@cache
def _adapters(kind: str) -> dict[str, TypeAdapter[Any]]:
    hints = typing.get_type_hints(_TYPES[kind])
    return {name: TypeAdapter(Any if hint is Snapshot else hint) for name, hint in hints.items()}


def _snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    log = [record.to_json() for record in snapshot.log]
    return {"bank_id": snapshot.bank_id, "rules": snapshot.rules.to_json(), "log": log}


def _snapshot_from_json(fields: Fields, world: World) -> Snapshot:
    log = OpLog()
    for record in fields.children("log"):
        log.append(LogRecord.from_json(record))
    bank_id, rules = fields.take("bank_id", str), BankRules.from_json(fields.child("rules"))
    try:
        return MemoryBank.replay(log, world.embedder, bank_id=bank_id, rules=rules).snapshot()
    except MemR1Error as error:
        raise fields.fail("log", f"{error}; delete the file") from error
