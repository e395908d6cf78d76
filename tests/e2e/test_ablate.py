"""`memr1 ablate` as a whole: all arms are trained and evaluated, once."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from memr1.config_file import load_config
from memr1.errors import MemR1Error
from memr1.rollout.endpoint import EndpointConfig
from memr1.rollout.judge import PROMPT_ID
from memr1.training import run
from memr1.training.ablate import Study, ablate, plan
from memr1.training.checkpoints import committed
from memr1.training.runlog import read_evaluation, read_metrics
from tests.e2e.plumbing import install
from tests.unit.test_endpoint import Server, said

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
        ablate(config, Study(), "test", Console(file=io.StringIO()))
    monkeypatch.setattr(run, "train", whole)
    rows = ablate(config, Study(), "test", Console(file=io.StringIO()))
    names = ["neither", "manager only", "answerer only", "both, without distillation", "both"]
    assert [r["arm"] for r in rows] == names
    assert [r["system"] for r in rows] == ["untrained", "manager-only", "answerer-only", "trained", "trained"]
    assert all((tmp_path / r["run"] / "evaluation.jsonl").is_file() for r in rows)
    assert all(r["n"] == 7 and "f1" in r["metrics"] for r in rows)
    assert json.loads((tmp_path / "study" / "ablation.json").read_text()) == rows
    before = [read_evaluation(tmp_path / "study" / folder) for folder in ("both", "manager_only")]
    assert ablate(config, Study(), "test", Console(file=io.StringIO())) == rows
    assert [read_evaluation(tmp_path / "study" / folder) for folder in ("both", "manager_only")] == before
    config = replace(config, evaluation=replace(config.evaluation, num_worlds=2))
    larger = ablate(config, Study(), "test", Console(file=io.StringIO()))
    assert [r["n"] for r in larger] == [14] * 5, "what was measured on other questions is measured anew"
    assert len({r["measured_on"] for r in (*rows, *larger)}) == 2
    rows = larger
    with closing(Server()) as server:
        server.script = lambda body, number: said('{"grade": "CORRECT"}')
        judge = EndpointConfig(server.url, "wise")
        part = Study(arms=("manager_only",), judge=True)
        judged = ablate(replace(config, judge=judge), part, "test", Console(file=io.StringIO()))
    assert [r["arm"] for r in judged] == ["neither", "manager only"], "rows of other tables are not beside them"
    assert {r["benchmark"] for r in judged} == {f"factworld-judge=wise.{PROMPT_ID}"}
    assert all(r["metrics"]["judge"]["n"] == 14 and r["judge"]["accepts_vague"] == 1.0 for r in judged)
    assert "accepts 100 % of swapped" in (tmp_path / "study" / "ablation.md").read_text()
    for checkpoints in (tmp_path / "study").glob("*/checkpoints"):
        shutil.rmtree(checkpoints)
    more = Study(baselines=("no-memory",))
    with pytest.raises(MemR1Error, match="study/both: the run was evaluated and its checkpoints are gone"):
        ablate(config, more, "test", Console(file=io.StringIO()))
    monkeypatch.setattr(run, "train", None)
    assert ablate(config, Study(), "test", Console(file=io.StringIO())) == rows, "weights are not needed any more"
    with pytest.raises(MemR1Error, match=r"config.yaml: the run was made with other settings: rollout.group_size"):
        changed = replace(config, rollout=replace(config.rollout, group_size=3))
        ablate(changed, Study(), "test", Console(file=io.StringIO()))


WARM = """stages=[{role: answerer, objective: sft, steps: 2}, {role: answerer, steps: 1},
  {role: manager, steps: 1, group_size: 3}]"""


def test_stages_that_arms_begin_with_alike_are_trained_once_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arm that branched off has the weights, bit for bit, the log and the table of one that was trained alone."""
    install(monkeypatch.setattr)
    config = load_config(None, [*SETTINGS, WARM, f"output={tmp_path / 'all'}"])
    study = Study(seeds=(1, 2), baselines=("no-memory",), controls=True)
    rows = ablate(config, study, "test", Console(file=io.StringIO()))
    assert [(r["arm"], r["seeds"], r["n"]) for r in rows[-4:]] == [
        (name, [1, 2], 14) for name in ("both", "both, rewards shuffled", "both, bank wiped", "no-memory")
    ]
    wiped, nothing = (r["metrics"] for r in rows[-2:])
    assert wiped == nothing, "what is left of a wiped bank is no memory"
    assert [r["over_no_memory"] and r["over_no_memory"]["difference"] for r in rows[-3:]] == [None, 0.0, None]
    page = (tmp_path / "all" / "study" / "ablation.html").read_text()
    assert "both, bank wiped" in page and page.count("data:image/png") == 2
    assert rows[0]["over_neither"] is None and rows[-1]["both_over_it"]["n"] == 7
    both = next(a for a in plan(config, study) if a.name == "both")
    alone = replace(both.config, output=str(tmp_path / "alone"))
    run.train(alone, console=Console(file=io.StringIO()))
    kept = [committed(folder)[-1] / "policies" for folder in (both.config.run_dir, alone.run_dir)]
    files = sorted(path.relative_to(kept[0]) for path in kept[0].rglob("*") if path.is_file())
    assert files and all((kept[0] / name).read_bytes() == (kept[1] / name).read_bytes() for name in files)
    clocks = ("time", "engine/prefill_s", "engine/decode_s", "tokens/per_second")
    logs = [
        [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in read_metrics(folder)]
        for folder in (both.config.run_dir, alone.run_dir)
    ]
    assert [line["stage"] for line in logs[0]] == ["answerer-sft", "answerer-sft", "answerer-grpo", "manager-grpo"]
    assert logs[0] == logs[1]
    began = [line["time"] for line in read_metrics(both.config.run_dir)[:2]]
    neither = next(a for a in plan(config, study) if a.name == "neither")
    assert began == [line["time"] for line in read_metrics(neither.config.run_dir)], "they were trained once"
    part = ablate(config, Study(arms=("answerer_only",), seeds=(1, 2)), "test", Console(file=io.StringIO()))
    rest = [r["arm"] for r in rows if r["arm"] not in ("neither", "answerer only")]
    assert [r["arm"] for r in part] == ["neither", "answerer only", *rest], "rows of earlier calls stay"
