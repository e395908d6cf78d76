"""What is refused before a run's folder is touched or a model is loaded.

Not covered: whole runs, resumed with other settings or from local checkpoints (tests/e2e/test_local_run.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from memr1 import storage
from memr1.config import Config
from memr1.config_file import to_yaml
from memr1.errors import MemR1Error
from memr1.training.checkpoints import MARKER, TrainState
from memr1.training.run import check_same_run, prepare_folder, train
from memr1.training.runlog import RunLog
from tests.unit.scripted import make_config


def test_shards_of_an_optimizer_that_lie_on_a_store_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec
    from fsspec.implementations.dirfs import DirFileSystem

    # names without a leading slash, as a bucket's
    store = DirFileSystem(str(tmp_path / "store"), fsspec.filesystem("file", auto_mkdir=True))
    monkeypatch.setattr(storage, "_filesystem", lambda scheme: store)
    output = tmp_path / "s3:" / "bucket"
    settings = ("name=r", f"output={output}", "backend=ray", "learner.zero_stage=2", "learner.num_learners=2")
    config = make_config("stages=[{objective: grpo}]", *settings)
    checkpoint = config.run_dir / "checkpoints" / "step_000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps(asdict(TrainState(step=3, stage_step=3))))
    (checkpoint / MARKER).touch()
    (config.run_dir / "config.yaml").write_text(to_yaml(config))
    assert prepare_folder(config, "auto") == checkpoint
    one = replace(config, learner=replace(config.learner, num_learners=1))
    with storage.writing(checkpoint / "learner") as written:
        (written / "shard").write_bytes(b"1")
    assert not (checkpoint / "learner").exists(), "a working copy holds no optimizer"
    with pytest.raises(MemR1Error, match="step_000003/learner: an optimizer in 2 shards .* resume with 2"):
        prepare_folder(one, "auto")


def test_a_judge_that_pays_nothing_may_come_and_change_and_one_that_pays_may_not(tmp_path: Path) -> None:
    def judged(model: str, reward: str) -> Config:
        url = "judge.url=http://127.0.0.1:1/v1"
        return make_config(f"stages=[{{reward: {reward}}}]", url, f"judge.model={model}")

    check_same_run(make_config("stages=[{reward: em_set}]"), judged("wise", "em_set"), tmp_path)
    check_same_run(judged("wise", "em_set"), judged("kind", "em_set"), tmp_path)
    paid = "0.5*em_set+0.5*judge"
    check_same_run(judged("wise", paid), judged("wise", paid), tmp_path)
    with pytest.raises(MemR1Error, match=r"made with other settings: judge.model"):
        check_same_run(judged("wise", paid), judged("kind", paid), tmp_path)


def test_results_of_a_run_without_its_checkpoints_are_not_discarded(tmp_path: Path) -> None:
    config = make_config("stages=[{objective: sft, steps: 1}]", f"output={tmp_path}", "name=r")
    with RunLog(config.run_dir) as log:
        log.metrics(1, "answerer-sft", 1, {"learner/loss": 0.5})
        log.evaluation(1, "evaluation", {"benchmark": "factworld", "system": "bm25"})
    kept = {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()}
    with pytest.raises(MemR1Error, match="was evaluated and its checkpoints are gone.*restore the checkpoints"):
        prepare_folder(config, "auto")
    assert {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()} == kept
    (config.run_dir / "evaluation.jsonl").unlink()
    assert prepare_folder(config, "auto") is None  # it died before its first checkpoint
    assert not (config.run_dir / "metrics.jsonl").exists()


def test_several_learners_in_one_process_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    config = make_config("stages=[{objective: sft, steps: 1}]", f"output={tmp_path}", "learner.num_learners=2")
    with pytest.raises(MemR1Error, match="learner.num_learners: is 2, and backend=local has one; set it to 1"):
        train(config)
    assert list(tmp_path.iterdir()) == []
