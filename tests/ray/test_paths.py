"""Paths that mean something elsewhere, without a cluster: what runners are made from, what RLlib's checkpoint holds.

With a cluster: test_training.py and test_tune.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from ray.rllib.algorithms.algorithm import Algorithm

from memr1 import storage
from memr1.errors import MemR1Error
from memr1.rllib.algorithm import OWN_CHECKPOINT, MemoryR1, MemoryR1Config
from memr1.rllib.env_runner import DialogueEnvRunner


def test_runners_are_made_from_paths_that_do_not_hang_on_the_working_directory(make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    algorithm: Any = MemoryR1.__new__(MemoryR1)
    config = make_config(tmp_path, "output=runs", "model.name=model", "stages.0.traces=teacher.jsonl")
    algorithm.config = MemoryR1Config().experiment(config)
    algorithm.config.freeze()
    algorithm._storage = None
    made = algorithm._for_runners(algorithm._experiment()).memr1
    assert made.run_dir == tmp_path / "runs" / made.name
    assert made.cache_dir == tmp_path / "runs" / ".cache"
    assert made.model.name == str(tmp_path / "model")
    assert made.stages[0].traces == str(tmp_path / "teacher.jsonl"), "runners read it, in a directory of their own"
    assert algorithm.config.memr1 is config, "the frozen configuration is as it was"
    algorithm.config = MemoryR1Config().experiment(replace(config, data=replace(config.data, cache="kept")))
    assert algorithm._for_runners(algorithm._experiment()).memr1.cache_dir == tmp_path / "kept"


def test_a_node_that_does_not_see_the_run_folder_is_named_with_what_to_do(make_config, tmp_path):
    from memr1.learner.engine import Rendezvous
    from memr1.rllib.learner_group import LearnerActor

    config = make_config(tmp_path)
    with pytest.raises(
        MemR1Error, match=r"output: learner 1 on \S+ does not see .*every node mounts .* or to a bucket"
    ):
        LearnerActor(1).start(config, "answerer", None, Rendezvous(1, 2))
    with pytest.raises(MemR1Error, match=r"output: runner 3 on "):
        DialogueEnvRunner(config=MemoryR1Config().experiment(config), worker_index=3)


def test_rllib_s_checkpoint_of_a_run_on_a_store_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # names without a leading slash, as a bucket's
    store = DirFileSystem(str(tmp_path / "store"), fsspec.filesystem("file", auto_mkdir=True))
    monkeypatch.setattr(storage, "_filesystem", lambda scheme: store)
    checkpoint = tmp_path / "s3:" / "bucket" / "r" / "checkpoints" / "step_000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    storage.put(checkpoint / "state.json")
    with storage.writing(checkpoint / "policies") as written:
        (written / "answerer").mkdir()
        (written / "answerer" / "weights").write_bytes(b"w")
    algorithm: Any = MemoryR1.__new__(MemoryR1)
    algorithm.trainer = SimpleNamespace(state=SimpleNamespace(step=3), save=lambda: checkpoint)
    monkeypatch.setattr(Algorithm, "save_to_path", lambda self, path, **kwargs: path)
    folder = Path(algorithm.save_to_path(str(tmp_path / "saved"))) / OWN_CHECKPOINT
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == ["policies/answerer/weights", "state.json"]
