"""Whole runs of the `local` backend with the random model: what they leave behind, and that stopping costs nothing.

Not covered: that learning happens (the random model cannot), several processes (tests/ray).
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from memr1.config import Config
from memr1.config_file import load_config, to_yaml
from memr1.data.jsonl import write_jsonl
from memr1.data.types import Dialogue, Fact, Question, Session, Turn
from memr1.errors import MemR1Error
from memr1.evaluation.predictions import load_predictions
from memr1.training.batch import BATCH_FILE
from memr1.training.checkpoints import MARKER, committed, load_state
from memr1.training.run import prepare_folder, train
from memr1.training.runlog import read_evaluation, read_metrics, read_rollouts, rollout_files
from tests.e2e import plumbing

ROOT = Path(__file__).parents[2]
CONFIG = """
backend: local
model: {name: tiny-random, device: cpu, threads: 1, lora: {rank: 4, alpha: 8}}
memory: {embedder: hash, answerer_top_k: 4, manager_top_k: 3}
data:
  factworld: {num_worlds: 3, questions_per_fact_turn: 2, sessions_per_world: 2, people_per_world: 3}
rollout:
  prompts_per_step: 3
  group_size: 4
  answer_max_new_tokens: 12
  manager_max_new_tokens: 12
checkpoint: {every_steps: 2}
evaluation: {num_worlds: 2, systems: [bm25, trained]}
"""
ALL_STAGES = """
stages:
  - {role: answerer, objective: sft, steps: 2, examples_per_step: 3}
  - {role: manager, objective: sft, steps: 2, examples_per_step: 3, learning_rate: 1e-3, schedule: linear}
  - {role: answerer, objective: grpo, steps: 2, bank: manager}
  - {role: manager, objective: grpo, steps: 2, group_size: 6}
"""
TWO_STAGES = """
algo: {kl_coef: 0.05}
stages:
  - {role: manager, objective: grpo, steps: 5, learning_rate: 2e-3}
  - {role: answerer, objective: grpo, steps: 4, learning_rate: 2e-3}
"""


@pytest.fixture(autouse=True, scope="module")
def earning_model() -> Iterator[None]:
    """See `plumbing`; removed after this file, so that no other test meets it."""
    with pytest.MonkeyPatch.context() as patch:
        plumbing.install(patch.setattr)
        yield


def write_config(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(CONFIG + text)
    return path


def run_here(path: Path, name: str, *overrides: str, resume: str = "never") -> tuple[Path, str]:
    """Train in this process; the run folder and what was printed."""
    said = io.StringIO()
    config = load_config(path, [f"output={path.parent}", f"name={name}", *overrides])
    return train(config, resume=resume, console=Console(file=said, width=250)), said.getvalue()


def run_there(path: Path, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Train in a process of its own."""
    command = [sys.executable, str(ROOT / "tests/e2e/plumbing.py"), "train", str(path), f"output={path.parent}"]
    return subprocess.run(
        [*command, f"name={name}", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def clean(record: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what the clock says."""
    timed = ("time", "tokens/per_second")
    return {k: v for k, v in record.items() if k not in timed and not k.startswith("time/") and not k.endswith("_s")}


def assert_same_run(a: Path, b: Path) -> None:
    """Equal in metrics, rollouts, final weights (bit for bit), state and predictions."""
    first, second = [clean(m) for m in read_metrics(a)], [clean(m) for m in read_metrics(b)]
    assert [m["step"] for m in second] == [m["step"] for m in first]
    assert second == first
    assert list(rollout_files(a)) == list(rollout_files(b))
    for step, path in rollout_files(a).items():
        assert read_rollouts(rollout_files(b)[step]) == read_rollouts(path), step
    last = committed(a)[-1]
    files = [p.relative_to(last) for p in (last / "policies").rglob("*.safetensors")]
    assert len(files) == 2
    for file in files:
        assert (b / "checkpoints" / last.name / file).read_bytes() == (last / file).read_bytes(), file
    state, other = load_state(last), load_state(b / "checkpoints" / last.name)
    assert (other.versions, other.stage_ends, other.stage) == (state.versions, state.stage_ends, state.stage)
    for path in (a / "predictions").rglob("*.jsonl"):
        answers = [p.answer for p in load_predictions(path)]
        assert [p.answer for p in load_predictions(b / path.relative_to(a))] == answers


# -- a whole run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(config file, run folder, what was printed) of a run through all four stages, evaluation and report."""
    path = write_config(tmp_path_factory.mktemp("finished"), ALL_STAGES)
    return path, *run_here(path, "r")


def test_a_run_leaves_everything_that_it_promises(finished: tuple[Path, Path, str]) -> None:
    _, run, said = finished
    for name in ("config.yaml", "run.json", "metrics.jsonl", "evaluation.jsonl", "report.html", "report.md"):
        assert (run / name).stat().st_size > 0, name
    names = ["answerer-sft"] * 2 + ["manager-sft"] * 2 + ["answerer-grpo"] * 2 + ["manager-grpo"] * 2
    metrics = read_metrics(run)
    assert [(m["step"], m["stage"], m["stage_step"]) for m in metrics] == [
        (i + 1, name, i % 2 + 1) for i, name in enumerate(names)
    ]
    assert all(m["learner/grad_norm"] > 0 for m in metrics if "learner/skipped" not in m)
    assert sum("learner/skipped" in m for m in metrics) <= 2
    assert list(rollout_files(run)) == [5, 6, 7, 8]
    for step, path in rollout_files(run).items():
        rollouts = read_rollouts(path)
        assert len(rollouts) == 3 * (4 if step < 7 else 6)
        assert len({r["seed"] for r in rollouts}) == len(rollouts)
        assert all(r["reward"] is not None and r["steps"] for r in rollouts)
    assert [p.name for p in committed(run)] == [f"step_00000{i}" for i in (2, 4, 6, 8)]
    assert all((p / MARKER).exists() and (p / "policies/manager").is_dir() for p in committed(run))
    assert [r["system"] for r in read_evaluation(run)] == ["bm25", "trained"]
    assert all(r["n"] == 14 for r in read_evaluation(run))
    assert len(load_predictions(run / "predictions/factworld/trained.jsonl")) == 14
    assert {p.name for p in (run / "plots").glob("*.png")} >= {"loss.png", "reward.png", "operations.png"}
    assert "data:image/png;base64," in (run / "report.html").read_text()
    assert f"run folder: {run}" in said and f"report: {run / 'report.html'}" in said


def test_the_learning_rate_follows_the_stage_s_schedule(finished: tuple[Path, Path, str]) -> None:
    _, run_dir, _ = finished
    rates = [m["learner/learning_rate"] for m in read_metrics(run_dir) if m["stage"] == "manager-sft"]
    assert rates == pytest.approx([1e-3, 5e-4])


def test_the_written_config_is_the_run_s(finished: tuple[Path, Path, str]) -> None:
    path, run, _ = finished
    assert load_config(run / "config.yaml") == load_config(path, [f"output={run.parent}", "name=r"])


def test_weights_move_in_the_stages_of_their_role_only(finished: tuple[Path, Path, str]) -> None:
    _, run, _ = finished

    def weights(step: int, role: str) -> bytes:
        return (run / f"checkpoints/step_{step:06d}/policies/{role}/adapter_model.safetensors").read_bytes()

    assert weights(2, "answerer") == weights(4, "answerer") != weights(6, "answerer") == weights(8, "answerer")
    assert weights(2, "manager") != weights(4, "manager") == weights(6, "manager")
    last = load_state(run / "checkpoints/step_000008")
    assert (last.stage, last.step, list(last.stage_ends.values())) == (4, 8, [p.name for p in committed(run)])


def test_a_second_run_in_the_same_folder_is_refused(finished: tuple[Path, Path, str]) -> None:
    path, run, _ = finished
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(
        MemR1Error, match="a run is there already; --resume auto goes on with it, or set another `name`"
    ):
        run_here(path, "r")
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("seed=1", "seed"),
        ("rollout.group_size=5", "rollout.group_size"),
        ("stages.0.steps=9", "stages"),
        ("data.factworld.num_worlds=4", "data.factworld.num_worlds"),
        ("model.lora.rank=8", "model.lora.rank"),
    ],
)
def test_resuming_with_other_settings_names_them(finished: tuple[Path, Path, str], override: str, field: str) -> None:
    path, run, _ = finished
    written = (run / "config.yaml").read_text()
    with pytest.raises(MemR1Error, match=f"made with other settings: {field}. Resume with the same ones"):
        run_here(path, "r", override, resume="auto")
    assert (run / "config.yaml").read_text() == written


def test_another_number_of_learners_is_refused_only_where_the_optimizer_is_in_shards(
    finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    path, run, _ = finished
    sharded = load_config(path, [f"output={path.parent}", "name=r", "learner.zero_stage=2", "learner.num_learners=2"])
    folder = tmp_path / "r"
    shutil.copytree(run, folder)
    (folder / "config.yaml").write_text(to_yaml(sharded))
    two, one = (
        dataclasses.replace(sharded, output=str(tmp_path), learner=dataclasses.replace(sharded.learner, num_learners=n))
        for n in (2, 1)
    )
    assert prepare_folder(one, "auto") == folder / "checkpoints/step_000008"  # the end of a stage
    (folder / "config.yaml").write_text(to_yaml(two))
    (folder / "checkpoints/step_000008/learner").mkdir()
    with pytest.raises(
        MemR1Error, match=r"step_000008/learner: an optimizer in 2 shards .*zero_stage=2.* resume with 2"
    ):
        prepare_folder(one, "auto")
    whole = dataclasses.replace(one, learner=dataclasses.replace(one.learner, zero_stage=0))
    (folder / "config.yaml").write_text(
        to_yaml(dataclasses.replace(two, learner=dataclasses.replace(two.learner, zero_stage=0)))
    )
    assert prepare_folder(whole, "auto") == folder / "checkpoints/step_000008"


@pytest.mark.parametrize(
    ("torn", "said"),
    [
        ("state.json", "state.json: not readable .* resume from another one"),
        (
            "policies/manager/adapter_model.safetensors",
            "adapter_model.safetensors: is damaged .* restore it from another",
        ),
        ("policies/answerer/adapter_config.json", "adapter_config.json: is not JSON"),
        (
            "learner/learner/mp_rank_00_model_states.pt",
            "learner: not readable as a checkpoint of 1 learners .*--resume FOLDER",
        ),
        ("batch.json", "batch.json: not a readable batch .*use another checkpoint"),
    ],
)
def test_a_torn_checkpoint_is_refused_by_the_name_of_its_file(
    straight: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str, said: str
) -> None:
    path, _ = straight
    with monkeypatch.context() as patch:
        patch.setenv(plumbing.SIGNAL_VARIABLE, "SIGINT:1")
        run, _ = run_here(path, "torn", f"output={tmp_path}", "rollout.max_staleness=1")
    file = committed(run)[-1] / torn
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(MemR1Error, match=said):
        run_here(path, "torn", f"output={tmp_path}", "rollout.max_staleness=1", resume="auto")


def test_a_finished_run_is_not_trained_or_evaluated_again(
    finished: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run, _ = finished
    before = {p: p.read_bytes() for p in (run / "metrics.jsonl", run / "evaluation.jsonl")}
    with monkeypatch.context() as patch:
        patch.setattr("memr1.training.run.make_session", None)  # would fail if it were called
        _, said = run_here(path, "r", resume="auto")
    assert "the run is finished and evaluated already" in said
    assert {p: p.read_bytes() for p in before} == before
    _, said = run_here(path, "r", "evaluation.systems=[no-memory]", resume="auto")
    assert "no-memory: em_set" in said
    assert [r["system"] for r in read_evaluation(run)] == ["bm25", "trained", "no-memory"]
    assert (run / "metrics.jsonl").read_bytes() == before[run / "metrics.jsonl"]


def test_resuming_from_what_is_no_checkpoint_of_the_run_is_refused(finished: tuple[Path, Path, str]) -> None:
    path, run, _ = finished
    with pytest.raises(MemR1Error, match=r"no such checkpoint; the committed ones are \['.*step_000002"):
        run_here(path, "r", resume=str(run / "checkpoints/step_000003"))
    with pytest.raises(MemR1Error, match="checkpoint of another run than|not a checkpoint of"):
        run_here(path, "other", resume=str(run / "checkpoints/step_000002"))
    assert not (path.parent / "other").exists()


def test_the_same_configuration_gives_the_same_run(finished: tuple[Path, Path, str]) -> None:
    path, run, _ = finished
    again, _ = run_here(path, "again", resume="auto")  # nothing is there: auto starts afresh
    assert_same_run(again, run)


# -- stopping and going on --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config file, run folder) of a run that was never stopped."""
    path = write_config(tmp_path_factory.mktemp("straight"), TWO_STAGES)
    run, _ = run_here(path, "straight")
    metrics = read_metrics(run)
    for stage in ("manager-grpo", "answerer-grpo"):  # else the tests below would compare runs that learnt nothing
        assert sum("learner/skipped" not in m for m in metrics if m["stage"] == stage) >= 2
    assert max(m.get("learner/reference_kl") or 0.0 for m in metrics) > 1e-4
    return path, run


@pytest.mark.parametrize("after", [2, 3, 5, 7])
def test_a_run_stopped_by_ctrl_c_and_resumed_equals_one_that_was_not(
    straight: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    path, whole = straight
    monkeypatch.setenv(plumbing.SIGNAL_VARIABLE, f"SIGINT:{after}")
    run, said = run_here(path, f"stopped{after}")
    stopped = committed(run)[-1]
    assert stopped.name == f"step_{after + 1:06d}"  # the step that was under way is finished and kept
    assert f"stopped; checkpoint: {stopped}. Go on with --resume auto" in said
    assert (run / "report.html").exists() and read_evaluation(run) == []
    monkeypatch.delenv(plumbing.SIGNAL_VARIABLE)
    resumed, said = run_here(path, f"stopped{after}", resume="auto")
    assert f"resumed from {stopped.name}" in said
    assert_same_run(resumed, whole)


def test_stopping_again_at_once_after_resuming_loses_nothing(
    straight: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = straight
    monkeypatch.setenv(plumbing.SIGNAL_VARIABLE, "SIGINT:2")
    run, _ = run_here(path, "twice")
    monkeypatch.delenv(plumbing.SIGNAL_VARIABLE)
    before = sorted(p.name for p in (committed(run)[-1] / "learner").rglob("*"))
    original = plumbing.Trainer.resume_from

    def interrupted(self: Any, checkpoint: Path) -> None:
        original(self, checkpoint)
        os.kill(os.getpid(), signal.SIGINT)  # while everything is still being loaded

    with monkeypatch.context() as patch:
        patch.setattr(plumbing.Trainer, "resume_from", interrupted)
        _, said = run_here(path, "twice", resume="auto")
    assert "stopped; checkpoint:" in said
    assert sorted(p.name for p in (committed(run)[-1] / "learner").rglob("*")) == before  # the optimizer is there
    run_here(path, "twice", resume="auto")
    assert_same_run(run, whole)


@pytest.mark.parametrize("after", [3, 7])
def test_a_run_killed_in_the_middle_of_a_step_and_resumed_equals_one_that_was_not(
    straight: tuple[Path, Path], after: int
) -> None:
    path, whole = straight
    killed = run_there(path, f"killed{after}", **{plumbing.SIGNAL_VARIABLE: f"SIGKILL:{after}"})
    run = path.parent / f"killed{after}"
    assert killed.returncode == -signal.SIGKILL
    assert len(read_metrics(run)) == after
    assert committed(run)[-1].name == {3: "step_000002", 7: "step_000007"}[after]
    run_here(path, f"killed{after}", resume="auto")
    assert_same_run(run, whole)


@pytest.fixture(scope="module")
def ahead(straight: tuple[Path, Path]) -> Path:
    """Run folder of the same run, never stopped, with the groups of each step played during the one before."""
    run, _ = run_here(straight[0], "ahead", "rollout.max_staleness=1")
    return run


@pytest.mark.parametrize("after", [3, 7])
def test_a_run_that_plays_ahead_killed_and_resumed_equals_one_that_was_not(
    straight: tuple[Path, Path], ahead: Path, after: int
) -> None:
    path, _ = straight
    name = f"ahead-killed{after}"
    killed = run_there(path, name, "rollout.max_staleness=1", **{plumbing.SIGNAL_VARIABLE: f"SIGKILL:{after}"})
    run = path.parent / name
    assert killed.returncode == -signal.SIGKILL
    last = committed(run)[-1]
    assert last.name == {3: "step_000002", 7: "step_000007"}[after]
    assert (last / BATCH_FILE).exists()  # played with weights that no longer are, so it has to be kept
    run_here(path, name, "rollout.max_staleness=1", resume="auto")
    assert_same_run(run, ahead)


def test_groups_played_ahead_are_one_update_old_and_the_first_of_a_stage_are_not(ahead: Path) -> None:
    metrics = read_metrics(ahead)
    version = {"manager": 0, "answerer": 0}
    for m, (step, path) in zip(metrics, rollout_files(ahead).items(), strict=True):
        role, first = str(m["stage"]).split("-")[0], m["stage_step"] == 1
        late = 0 if first or "learner/skipped" in metrics[step - 2] else 1
        assert m["rollout/staleness"] == late
        used = {s["weight_version"] for r in read_rollouts(path) for s in r["steps"] if s["policy"] == role}
        assert used == {version[role] - late}
        version[role] += "learner/skipped" not in m
    assert sum(m["rollout/staleness"] for m in metrics) >= 4
    assert not (committed(ahead)[-1] / BATCH_FILE).exists()  # nothing is played ahead of the end of a stage


def test_groups_played_ahead_are_those_that_the_weights_before_the_update_play(
    straight: tuple[Path, Path], ahead: Path
) -> None:
    """The second step's rollouts: those of a run whose first update hardly moved. The first step is the same."""
    path, whole = straight
    text = path.read_text().replace("learning_rate: 2e-3", "learning_rate: 1e-30").replace("steps: 5", "steps: 2")
    still = path.with_name("still.yaml")
    still.write_text(text)
    run, _ = run_here(still, "still", "evaluation.at_end=false")

    def said(folder: Path, step: int) -> list[Any]:
        return [[s["completion_text"] for s in r["steps"]] for r in read_rollouts(rollout_files(folder)[step])]

    assert said(ahead, 1) == said(whole, 1)
    assert said(ahead, 2) == said(run, 2) != said(whole, 2)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(straight: tuple[Path, Path]) -> None:
    path, whole = straight
    killed = run_there(path, "early", "checkpoint.every_steps=4", **{plumbing.SIGNAL_VARIABLE: "SIGKILL:2"})
    run = path.parent / "early"
    assert killed.returncode == -signal.SIGKILL
    assert len(read_metrics(run)) == 2 and committed(run) == []
    run_here(path, "early", resume="auto")
    assert_same_run(run, whole)


def test_going_back_to_an_older_checkpoint_forgets_what_came_after_it(straight: tuple[Path, Path]) -> None:
    path, whole = straight
    run, _ = run_here(path, "back", "evaluation.at_end=false")
    run_here(path, "back", resume=str(run / "checkpoints/step_000005"))
    assert_same_run(run, whole)
    assert len(read_evaluation(run)) == 2


def test_ctrl_c_from_a_terminal_ends_a_long_run_well(tmp_path: Path) -> None:
    path = write_config(tmp_path, "stages: [{role: answerer, objective: grpo, steps: 100000}]\n")
    command = [sys.executable, str(ROOT / "tests/e2e/plumbing.py"), "train", str(path), f"output={tmp_path}", "name=r"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        metrics, deadline = tmp_path / "r/metrics.jsonl", time.monotonic() + 120
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "stopped; checkpoint:" in said and "--resume auto" in said and "Traceback" not in said
    assert load_state(committed(tmp_path / "r")[-1]).step == len(read_metrics(tmp_path / "r")) >= 3
    assert (tmp_path / "r/report.md").exists()


# -- other settings ---------------------------------------------------------------------------------------------

SHORT = """
stages:
  - {role: answerer, objective: sft, steps: 1, examples_per_step: 2}
  - {role: manager, objective: grpo, steps: 1}
  - {role: answerer, objective: grpo, steps: 2}
"""


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.weights=full", "evaluation.at_end=true", "algo.kl_coef=0.01"),
        ("agents.protocol=json", "rollout.max_prompt_tokens=4096"),
        ("memory.index=chroma",),
        (
            "agents.extractor=utterance",
            "stages.0.bank=manager",
            "stages.1.bank=add-everything",
            "stages.2.bank=manager",
        ),
        ("algo.aggregation=sequence-mean", "algo.advantage=rloo", "algo.importance_cap=0"),
        (
            "learner.share_prefixes=false",
            "learner.gradient_checkpointing=true",
            "learner.max_tokens_per_microbatch=900",
        ),
        ("rollout.resample_rounds=2", "memory.on_reject=skip", "rollout.temperature=0.7"),
    ],
    ids=lambda o: o[0],
)
def test_runs_with_other_settings_learn_in_every_stage(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    run, _ = run_here(write_config(tmp_path, SHORT), "r", "evaluation.at_end=false", *overrides)
    metrics = read_metrics(run)
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    learnt = {m["stage"] for m in metrics if m.get("learner/grad_norm")}
    expected = {"answerer-sft", "answerer-grpo"} if "agents.protocol=json" not in overrides else {"answerer-sft"}
    assert learnt >= expected
    assert bool(read_evaluation(run)) == ("evaluation.at_end=true" in overrides)
    assert len(committed(run)) == 3


def own_dialogues(number: int) -> list[Dialogue]:
    def dialogue(i: int) -> Dialogue:
        turns = (
            Turn("1", "Ana", f"I moved to town {i}.", (Fact(f"Ana lives in town {i}."),)),
            Turn("2", "Ben", "How nice.", ()),
            Turn("3", "Ben", f"I keep {i} bees.", (Fact(f"Ben keeps {i} bees."),)),
        )
        questions = (
            Question("q1", "Where does Ana live?", f"town {i}", "one", evidence=("1",)),
            Question("q2", "How many bees?", str(i), "one", evidence=("3",)),
        )
        return Dialogue(f"d{i}", ("Ana", "Ben"), (Session("s", None, "", turns),), questions)

    return [dialogue(i) for i in range(number)]


def own_config(tmp_path: Path, text: str) -> tuple[Path, list[str]]:
    write_jsonl(own_dialogues(3), tmp_path / "own.jsonl")
    return write_config(tmp_path, text), ["data.kind=jsonl", f"data.path={tmp_path / 'own.jsonl'}"]


def test_dialogues_of_one_s_own_train_both_roles(tmp_path: Path) -> None:
    path, data = own_config(
        tmp_path,
        "stages: [{role: answerer, steps: 2, bank: add-everything}, {role: manager, steps: 2, bank: add-everything}]",
    )
    run, said = run_here(path, "r", *data)
    assert "no validation data: " in said and "own.jsonl: the run trains on d0" in said
    rollouts = read_rollouts(rollout_files(run)[1])
    assert {r["task_id"].split("/")[0] for r in rollouts} <= {"d0", "d1", "d2"}
    assert {r["outcome"]["question"] for r in rollouts} <= {"Where does Ana live?", "How many bees?"}
    assert {r["task_id"].split("/")[1] for r in read_rollouts(rollout_files(run)[4])} <= {"1", "3"}
    assert [(r["benchmark"], r["system"]) for r in read_evaluation(run)] == [
        ("factworld", "bm25"), ("factworld", "trained")
    ]  # fmt: skip


def test_dialogues_of_one_s_own_are_evaluated_on_their_validation_split(tmp_path: Path) -> None:
    path, data = own_config(tmp_path, "stages: [{role: answerer, steps: 1, bank: add-everything}]")
    a, b, c = own_dialogues(3)
    split = [(a, "train"), (b, "validation"), (c, "test")]
    write_jsonl([replace(d, metadata={"split": name}) for d, name in split], tmp_path / "own.jsonl")
    run, _ = run_here(path, "r", *data, "evaluation.systems=[bm25]")
    (row,) = read_evaluation(run)
    assert (row["benchmark"], row["system"], row["n"]) == ("jsonl-validation", "bm25", len(b.questions))
    kept = load_predictions(run / "predictions" / "jsonl-validation" / "bm25.jsonl")
    assert {p.dialogue_id for p in kept} == {b.id}
    _, said = run_here(path, "r", *data, "evaluation.systems=[bm25]", resume="auto")
    assert "finished and evaluated already" in said


@pytest.mark.parametrize("stage", ["{role: answerer}", "{role: manager}", "{role: manager, objective: sft}"])
def test_an_oracle_that_the_data_have_not_is_one_clear_error_with_the_remedy(tmp_path: Path, stage: str) -> None:
    path, data = own_config(tmp_path, f"stages: [{stage}]")
    with pytest.raises(MemR1Error, match="d0 1: no oracle operations .* else stages.bank=add-everything or manager"):
        run_here(path, "r", *data)


def test_a_stage_without_any_task_says_what_is_missing(tmp_path: Path) -> None:
    path, data = own_config(tmp_path, "stages: [{role: manager, objective: sft, bank: add-everything}]")
    with pytest.raises(MemR1Error, match="stage manager-sft: 3 dialogues gave no task .* needs oracle operations"):
        run_here(path, "r", *data)


def test_a_data_file_that_cannot_be_read_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = write_config(tmp_path, "stages: [{}]")
    with pytest.raises(MemR1Error, match="gone.jsonl"):
        run_here(path, "r", "data.kind=jsonl", f"data.path={tmp_path / 'gone.jsonl'}")
    assert not (tmp_path / "r").exists()


def test_a_run_without_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemR1Error, match="stages: the configuration has none"):
        train(Config(output=str(tmp_path)))


def test_episodes_that_mostly_fail_end_the_run_with_the_first_reason(tmp_path: Path) -> None:
    path = write_config(tmp_path, "stages: [{role: manager, bank: add-everything}]")
    with pytest.raises(MemR1Error, match=r"12 of 12 episodes failed; the first said: .*rollout.max_prompt_tokens=64"):
        run_here(path, "r", "rollout.max_prompt_tokens=64")
    assert json.loads((tmp_path / "r/run.json").read_text())["model"] == "tiny-random"
