"""`memr1 ablate` as a whole: five arms are trained and evaluated, once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from memr1.config_file import load_config
from memr1.training import run
from memr1.training.ablate import ablate
from memr1.training.runlog import read_evaluation
from tests.e2e.plumbing import install

SETTINGS = (
    *("backend=local", "model.name=tiny-random", "model.device=cpu", "model.threads=1", "memory.embedder=hash"),
    *("name=study", "data.factworld.num_worlds=2", "data.factworld.questions_per_fact_turn=2"),
    *("rollout.prompts_per_step=2", "rollout.group_size=2", "rollout.questions_per_decision=1"),
    *("rollout.answer_max_new_tokens=4", "rollout.manager_max_new_tokens=4", "rollout.max_prompt_tokens=4000"),
    *("memory.answerer_top_k=3", "memory.manager_top_k=2", "evaluation.num_worlds=1"),
    "stages=[{role: answerer, steps: 1}, {role: manager, steps: 1}]",
)


def test_an_ablation_trains_every_arm_once_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch.setattr)
    config = load_config(None, [*SETTINGS, f"output={tmp_path}"])
    trained: list[str] = []
    whole = run.train

    def interrupted(arm, **options):  # type: ignore[no-untyped-def]
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(arm.name)
        return whole(arm, **options)

    monkeypatch.setattr(run, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ablate(config, (), (), "test", Console(file=io.StringIO()))
    monkeypatch.setattr(run, "train", whole)
    rows = ablate(config, (), (), "test", Console(file=io.StringIO()))
    names = ["neither", "manager only", "answerer only", "both, without distillation", "both"]
    assert [r["arm"] for r in rows] == names
    assert [r["system"] for r in rows] == ["untrained", "manager-only", "answerer-only", "trained", "trained"]
    assert all((tmp_path / r["run"] / "evaluation.jsonl").is_file() for r in rows)
    assert all(r["questions"] == 7 and "f1" in r["metrics"] for r in rows)
    assert json.loads((tmp_path / "study" / "ablation.json").read_text()) == rows
    before = [read_evaluation(tmp_path / "study" / folder) for folder in ("both", "manager_only")]
    assert ablate(config, (), (), "test", Console(file=io.StringIO())) == rows
    assert [read_evaluation(tmp_path / "study" / folder) for folder in ("both", "manager_only")] == before
