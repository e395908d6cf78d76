"""Half steps through the command line: played in one program and trained on in another, they make a whole step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from memr1.cli import app
from memr1.errors import MemR1Error
from memr1.training.batch import Batch
from memr1.training.runlog import read_metrics
from tests.e2e import plumbing
from tests.e2e.test_local_run import clean, run_here, write_config

STAGES = """
stages:
  - {role: answerer, objective: sft, steps: 1, examples_per_step: 2}
  - {role: answerer, objective: grpo, steps: 1, learning_rate: 1e-2}
"""


PPO = ("--set", "stages.1.objective=ppo", "--set", "algo.critic.warmup_steps=0")


@pytest.fixture(autouse=True, scope="module")
def earning_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        plumbing.install(patch.setattr)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(config, run folder, folder of batches played from the checkpoint before the run's second step)."""
    path = write_config(tmp_path_factory.mktemp("debug"), STAGES)
    folder, _ = run_here(path, "r", "evaluation.at_end=false")
    batches = path.parent / "batches"
    said = call("rollout", path, "--out", batches, "--steps", 2, "--stage", 1, "--checkpoint", first(folder))
    assert f"{batches / 'batch_000002.json'}: 12 rollouts" in said
    return path, folder, batches


def first(folder: Path) -> Path:
    return folder / "checkpoints" / "step_000001"


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["debug", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


def shown(said: str) -> dict[str, float]:
    return {k: float(v) for k, v in (line.split() for line in said.splitlines() if line.startswith("  "))}


def test_rollout_and_update_in_two_programs_are_a_step_of_the_run(run: tuple[Path, Path, Path]) -> None:
    path, folder, batches = run
    whole = clean(read_metrics(folder)[1])
    said = shown(call("update", path, batches / "batch_000002.json", "--stage", 1, "--checkpoint", first(folder)))
    played = Batch.load(batches / "batch_000002.json").metrics
    both = {**played, **said}
    compared = {k for k in whole if k.split("/")[0] in ("learner", "reward", "groups", "rollout")}
    assert len(compared) > 12 and whole["learner/grad_norm"] > 0
    for name in compared:
        assert both[name] == pytest.approx(whole[name], rel=1e-5), name


def test_updates_go_on_from_one_batch_to_the_next_and_the_second_is_off_policy(run: tuple[Path, Path, Path]) -> None:
    path, folder, batches = run
    parts = call("update", path, batches, "--stage", 1, "--checkpoint", first(folder)).split("batch_000003.json:")
    before, after = (shown(part)["learner/max_rollout_mismatch"] for part in parts)
    assert before < 1e-4 < after


def test_replay_shows_every_tensor_and_agrees_with_the_rollout(run: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, folder, batches = run
    file = batches / "batch_000002.json"
    out = tmp_path / "tensors.npz"
    said = call("replay", path, file, "--index", 3, "--stage", 1, "--checkpoint", first(folder), "--out", out)
    sequence = Batch.load(file).sequences[3]
    with np.load(out) as tensors:
        assert tensors["targets"].tolist() == list(sequence.completion_ids)
        assert tensors["input_ids"].tolist() == [list(sequence.prompt_ids + sequence.completion_ids[:-1])]
        assert tensors["logprobs"] == pytest.approx(sequence.rollout_logprobs, abs=1e-4)
        assert tensors["importance_weight"] == pytest.approx(1.0, abs=1e-3)
        assert tensors["loss"] == pytest.approx(-sequence.advantage, rel=1e-3)
        for name, value in tensors.items():
            assert f"{name} {value.dtype}{list(value.shape)}" in said
    assert str(sequence.completion_ids[0]) in said


def test_replay_shows_all_steps_of_a_trajectory_and_of_ppo_what_needs_no_critic(
    run: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    path, _, batches = run
    made = Batch.load(batches / "batch_000002.json")
    steps = [replace(s, trajectory=99) if i in (2, 5) else s for i, s in enumerate(made.sequences)]
    file, out = tmp_path / "batch.json", tmp_path / "tensors.npz"
    replace(made, sequences=steps).save(file)
    said = call("replay", path, file, "--index", 5, "--stage", 1, "--out", out)
    assert "sequence 2, of a trajectory of 2" in said and "sequence 5, of a trajectory of 2" in said
    with np.load(out) as tensors:
        for i in (2, 5):
            assert tensors[f"{i}/targets"].tolist() == list(steps[i].completion_ids)
        assert "5/loss" in tensors and not any(name.startswith("3/") for name in tensors)
    said = call("replay", path, file, "--stage", 1, "--out", out, *PPO)
    assert "advantages and loss are the critic's to tell" in said
    with np.load(out) as tensors:
        assert "logprobs" in tensors and not {"loss", "advantages"} & set(tensors)


def test_what_cannot_be_rehearsed_is_told(run: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, _, batches = run
    with pytest.raises(MemR1Error, match="stage 0 is supervised: it plays nothing"):
        call("rollout", path, "--out", tmp_path)
    with pytest.raises(MemR1Error, match="stage 7: the configuration has 2 stages"):
        call("update", path, batches, "--stage", 7)
    with pytest.raises(MemR1Error, match="no batches there; `memr1 debug rollout` writes them"):
        call("update", path, tmp_path, "--stage", 1)
    number = len(json.loads((batches / "batch_000002.json").read_text())["sequences"])
    with pytest.raises(MemR1Error, match=f"--index 99: .* has {number} sequences"):
        call("replay", path, batches / "batch_000002.json", "--index", 99, "--stage", 1)
