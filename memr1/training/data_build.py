"""`memr1 data build`: makes the training tasks of a configuration ahead of training, and says what they consist of.

Training makes the same tasks in the same way and keeps them in the same place; building them first shows what they
are, and takes the calls of the language model out of the training job. An interrupted build goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from memr1.agents.roles import make_agents
from memr1.config import Config
from memr1.data.types import Dialogue
from memr1.envs.answering import AnswerTask
from memr1.envs.deciding import DecisionTask
from memr1.envs.episode import World
from memr1.envs.extracting import prepared
from memr1.envs.replaying import ReplayTask
from memr1.errors import MemR1Error
from memr1.memory.embed import load_embedder
from memr1.memory.jsonl import canonical, write_lines
from memr1.models.registry import load_tokenizer
from memr1.storage import put, url_of
from memr1.training.data_report import Report, answerer_report, dialogue_report, manager_report, replay_report
from memr1.training.tasks import TrainTask, build_tasks, task_prompt
from memr1.training.tuples import Task
from memr1.training.worlds import training_dialogues

REPORT = "report.json"


def build(config: Config, console: Console | None = None, prompts: Path | None = None) -> dict[str, Report]:
    """Make, and keep in `data.cache`, the tasks of all stages; returns and prints a report, also kept there.

    The language model is loaded only where facts or banks are made by it. The bank of a manager that an earlier stage
    trains cannot be made ahead; it is left to training. Raises MemR1Error for data that give no task.

    prompts: a JSON-lines file to write: every task's prompt as chat messages, to be answered by another model. With its
        `completion` added to each line it is what `stages[].traces` reads.
    """
    console = console or Console()
    if not config.stages:
        raise MemR1Error("stages: the configuration has none, so there are no tasks to make; see configs/")
    dialogues = training_dialogues(config)
    if config.data.kind == "factworld":
        console.print("worlds are generated anew by every run: their tasks are only counted here, not kept")
    world, engine = _world(config)
    dialogues = prepared(dialogues, world, engine)
    report: dict[str, Report] = {"dialogues": dialogue_report(dialogues)}
    asked: list[str] = []
    for role, bank, replay in _parts(config):
        if bank is None:
            console.print(f"{role}: its banks are made by the manager that is trained before, so during training")
            continue
        tasks: list[TrainTask] = []
        for dialogue in dialogues:  # one after the other: what is done is kept when the build is interrupted
            tasks += build_tasks([dialogue], world, engine, role=role, bank=bank, replay=replay)
        if not tasks:
            raise MemR1Error(f"{role}: {len(dialogues)} dialogues gave no task; they hold no fact or no question")
        asked += [canonical(_question(t.playable, role, world)) for t in tasks if prompts and replay is None]
        kind = "" if replay is None else ", replays"
        report[f"{role}, bank: {bank}{kind}"] = _report(config, dialogues, tasks)
    if config.data.kind != "factworld":
        config.cache_dir.mkdir(parents=True, exist_ok=True)
        (config.cache_dir / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        if url_of(config.cache_dir) is not None:
            put(config.cache_dir / REPORT)
        console.print(f"kept in {config.cache_dir}, with {REPORT}", soft_wrap=True, markup=False)
    if prompts is not None:
        write_lines(prompts, asked)
        console.print(f"{len(asked)} prompts in {prompts}", soft_wrap=True, markup=False)
    for name, part in report.items():
        console.print(_table(name, part))
    return report


def _parts(config: Config) -> Iterator[tuple[str, str | None, int | None]]:
    """The different (role, bank, turns of a replay) of the stages; bank None where only training can make it."""
    seen: set[tuple[str, str | None, int | None]] = set()
    manager_trained = False
    for stage in config.stages:
        bank: str | None = stage.bank
        if stage.role == "answerer" and bank == "manager" and manager_trained:
            bank = None
        part = (stage.role, bank, stage.replay)
        if part not in seen and stage.traces is None:
            seen.add(part)
            yield part
        manager_trained = manager_trained or stage.role == "manager"


def _world(config: Config) -> tuple[World, Any]:
    banks = [bank for role, bank, _ in _parts(config) if role == "answerer"]
    if config.agents.extractor == "llm" or "manager" in banks:
        from memr1.rollout.runner import Runner

        runner = Runner(config)
        return runner.world, runner.engine
    tokenizer = load_tokenizer(config.model.name)
    return World(config, make_agents(config, tokenizer), load_embedder(config.memory.embedder)), None


def _question(task: Task, role: str, world: World) -> dict[str, Any]:
    said = [{"role": who, "content": content} for who, content in task_prompt(task, world).messages]
    return {"id": task.id, "role": role, "messages": said}


def _report(config: Config, dialogues: list[Dialogue], tasks: list[TrainTask]) -> Report:
    replays = [t.task for t in tasks if isinstance(t.task, ReplayTask)]
    if replays:
        return replay_report(replays)
    decisions = [t.task for t in tasks if isinstance(t.task, DecisionTask)]
    if decisions:
        return manager_report(dialogues, decisions, config.data.window)
    shown = sum(t.demonstration is not None for t in tasks)
    return answerer_report([t.task for t in tasks if isinstance(t.task, AnswerTask)], shown)


def _table(name: str, report: Report) -> Table:
    table = Table(title=name, show_header=False, title_justify="left")
    for key, value in report.items():
        if isinstance(value, dict):
            for inner, number in value.items():
                table.add_row(f"  {inner}", str(number))
        else:
            table.add_row(key, str(value))
    return table
