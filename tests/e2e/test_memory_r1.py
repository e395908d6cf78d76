"""Memory-R1's protocol on a file in LoCoMo's format, from tuples to checkpoints: replays, traces, both roles.

Not covered: whether anything is learnt; extraction by a model (test_extracting.py).
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from memr1.config_file import load_config
from memr1.training.data_build import build
from memr1.training.run import train
from memr1.training.runlog import read_metrics, read_rollouts, rollout_files
from tests.e2e.plumbing import install
from tests.unit.small_locomo import conversation

SETTINGS = (
    *("backend=local", "model.name=tiny-random", "model.device=cpu", "model.threads=1", "memory.embedder=hash"),
    *("name=talk", "data.kind=locomo", "data.window=4", "agents.extractor=utterance", "evaluation.at_end=false"),
    *("rollout.prompts_per_step=2", "rollout.group_size=2", "rollout.questions_per_decision=1"),
    *("rollout.answer_max_new_tokens=4", "rollout.manager_max_new_tokens=4", "rollout.max_prompt_tokens=4000"),
    *("memory.answerer_top_k=4", "memory.per_speaker=true", "memory.manager_top_k=2"),
)


def test_all_stages_of_the_protocol_run_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch.setattr)
    (tmp_path / "talk.json").write_text(json.dumps(conversation()))
    messages = [{"role": "user", "content": "New fact: Pia saw a bird."}]
    (tmp_path / "teacher.jsonl").write_text(
        "".join(json.dumps({"role": "manager", "messages": messages, "completion": c}) + "\n" for c in ("ADD", "NOOP"))
    )
    stages = (
        "{role: answerer, objective: sft, bank: add-everything, steps: 1, examples_per_step: 2}",
        f"{{role: manager, objective: sft, traces: {tmp_path / 'teacher.jsonl'}, steps: 1, examples_per_step: 2}}",
        "{role: answerer, bank: manager, steps: 1, evidence_reward: 0.5}",
        "{role: manager, bank: add-everything, steps: 1}",
        "{role: manager, bank: add-everything, episode: replay, replay_turns: 3, steps: 1}",
    )
    where = (f"data.path={tmp_path / 'talk.json'}", f"output={tmp_path}", f"stages=[{', '.join(stages)}]")
    config = load_config(None, [*SETTINGS, *where])
    silent = Console(file=io.StringIO())
    report = build(config, silent)
    assert report["manager, bank: add-everything, replays"]["replays"] == 4
    made = {p.name: p.read_bytes() for p in (tmp_path / ".cache" / "tuples").iterdir()}
    assert len(made) == 3  # the manager's decisions and replays, the answerer's warm start
    train(config, console=silent)
    after = {p.name: p.read_bytes() for p in (tmp_path / ".cache" / "tuples").iterdir()}
    assert made.items() <= after.items() and len(after) == 3  # banks of a manager that was trained are not kept
    names = [m["stage"] for m in read_metrics(tmp_path / "talk")]
    assert names == ["answerer-sft", "manager-sft", "answerer-grpo", "manager-grpo", "manager-grpo"]
    *_, decisions, replays = [read_rollouts(p) for p in rollout_files(tmp_path / "talk").values()]
    assert {sum(s["trainable"] for s in t["steps"]) for t in decisions} == {1}
    assert {sum(s["trainable"] for s in t["steps"]) for t in replays} == {3}
    assert all(len(t["steps"]) > 3 for t in replays)
