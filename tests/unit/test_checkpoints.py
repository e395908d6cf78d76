"""Checkpoints: there wholly or not at all, whatever stops the writer.

Not covered: what policies and learners write (test_adapters.py), resuming a run (tests/e2e/test_local_run.py).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from memr1.errors import MemR1Error
from memr1.training import checkpoints
from memr1.training.checkpoints import MARKER, TrainState, committed, discard, load_state, prune, save_checkpoint

STATE = TrainState(
    step=12,
    stage=1,
    stage_step=4,
    versions={"manager": 0, "answerer": 12},
    sampler={"num_items": 7, "seed": 1, "epoch": 2, "position": 3},
    seconds=1.5,
    stage_ends={"0-answerer-sft": "step_000008"},
)


def write(folder: str) -> None:
    Path(folder).mkdir(parents=True)
    (Path(folder) / "weights").write_bytes(b"w" * 100)


def save(run_dir: Path, step: int, learner: bool = False) -> Path:
    return save_checkpoint(run_dir, TrainState(step=step), write, write if learner else None)


def names(run_dir: Path) -> list[str]:
    return [p.name for p in committed(run_dir)]


def test_a_saved_state_reads_back_equal_with_all_its_parts(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, STATE, write, write)
    assert path == tmp_path / "checkpoints" / "step_000012"
    assert load_state(path) == STATE
    files = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    assert files == [MARKER, "learner/weights", "policies/weights", "state.json"]
    assert not (save(tmp_path, 13) / "learner").exists()


def test_the_marker_is_written_after_everything_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    original = checkpoints._sync

    def watch(path: Path) -> None:
        synced.append((path.name, bool(list((tmp_path / "checkpoints").glob(f"step_*/{MARKER}")))))
        original(path)

    monkeypatch.setattr(checkpoints, "_sync", watch)
    save(tmp_path, 1, learner=True)
    before = [name for name, marked in synced if not marked]
    after = [name for name, marked in synced if marked]
    assert sorted(before) == ["state.json", "weights", "weights"]
    assert after == [MARKER, "step_000001", "checkpoints"]


@pytest.mark.parametrize("stage", ["policies", "learner", "replace", "marker"])
def test_a_writer_that_dies_anywhere_leaves_no_committed_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    save(tmp_path, 1)

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    policies, learner = (die if stage == "policies" else write), (die if stage == "learner" else write)
    if stage == "replace":
        monkeypatch.setattr(os, "replace", die)
    if stage == "marker":
        monkeypatch.setattr(Path, "touch", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, TrainState(step=2), policies, learner)
    monkeypatch.undo()
    assert names(tmp_path) == ["step_000001"]
    assert load_state(save(tmp_path, 2)).step == 2  # what was left behind is in nobody's way
    assert names(tmp_path) == ["step_000001", "step_000002"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == names(tmp_path)


def test_saving_over_a_checkpoint_replaces_it_and_never_leaves_half_of_it_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3, learner=True)
    path = save(tmp_path, 3)
    assert names(tmp_path) == ["step_000003"] and not (path / "learner").exists()
    save(tmp_path, 3, learner=True)
    original, seen = shutil.rmtree, []

    def watch(folder: Path, **kwargs: bool) -> None:
        seen.append((Path(folder).name, (Path(folder) / MARKER).exists()))
        original(folder, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", watch)
    save(tmp_path, 3)
    assert ("step_000003", False) in seen  # uncommitted before the first file went
    assert ("step_000003", True) not in seen


def test_folders_without_a_marker_are_no_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in ("step_000002", "step_000003.partial"):
        (tmp_path / "checkpoints" / name / "policies").mkdir(parents=True)
    assert names(tmp_path) == ["step_000001"]
    assert committed(tmp_path / "nowhere") == []


def test_checkpoints_are_listed_in_order_of_steps(tmp_path: Path) -> None:
    for step in (10, 9, 100, 2):
        save(tmp_path, step)
    assert names(tmp_path) == ["step_000002", "step_000009", "step_000010", "step_000100"]


def test_pruning_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step)
    prune(tmp_path, keep=2, protected={"step_000002", "step_000006"})
    assert names(tmp_path) == ["step_000002", "step_000005", "step_000006"]
    prune(tmp_path, keep=9, protected=set())
    assert names(tmp_path) == ["step_000002", "step_000005", "step_000006"]
    discard(tmp_path / "checkpoints" / "step_000005")
    discard(tmp_path / "checkpoints" / "step_000005")  # gone already
    assert names(tmp_path) == ["step_000002", "step_000006"]


def test_a_folder_without_a_marker_cannot_be_resumed_from(tmp_path: Path) -> None:
    (tmp_path / "step_000001").mkdir()
    with pytest.raises(MemR1Error, match=r"step_000001: no committed checkpoint there; .* holds COMMITTED"):
        load_state(tmp_path / "step_000001")


@pytest.mark.parametrize("text", ["{", "[]", '{"stp": 1}', "3", '"x"', ""])
def test_a_damaged_state_is_named_with_the_way_out(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 1)
    (path / "state.json").write_text(text)
    with pytest.raises(MemR1Error, match=r"state.json: not readable .*; resume from another one"):
        load_state(path)


def test_a_missing_state_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "state.json").unlink()
    with pytest.raises(MemR1Error, match="state.json: not readable"):
        load_state(path)


def test_no_space_left_is_one_clear_error_and_the_last_checkpoint_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(tmp_path, 1)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(MemR1Error) as caught:
        save(tmp_path, 2)
    assert str(caught.value).startswith(f"{tmp_path}/checkpoints/step_000002: the checkpoint could not be written")
    assert "No space left on device" in str(caught.value) and "--resume auto" in str(caught.value)
    assert names(tmp_path) == ["step_000001"] and load_state(first).step == 1
    assert not (tmp_path / "checkpoints" / "step_000002.partial").exists()  # it would fill what little room there is


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_met_by_real_weights_too(small_disk: Path, tiny_random: Path) -> None:
    import torch

    from memr1.models.adapters import LoraSettings, PolicyModel

    policies = PolicyModel.create(str(tiny_random), ("manager",), "lora", LoraSettings(rank=16), device="cpu")
    save(small_disk, 1)
    with pytest.raises(MemR1Error, match="step_000002: the checkpoint could not be written"):
        save_checkpoint(small_disk, TrainState(step=2), lambda f: policies.save("manager", f"{f}/manager"), None)
    with pytest.raises(MemR1Error, match="step_000003: the checkpoint could not be written"):
        save_checkpoint(small_disk, TrainState(step=3), write, lambda f: torch.save(torch.zeros(10**6), f"{f}.pt"))
    assert names(small_disk) == ["step_000001"]
    assert json.loads((small_disk / "checkpoints/step_000001/state.json").read_text())["step"] == 1


def test_a_folder_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(MemR1Error, match="the checkpoint could not be written"):
        save(tmp_path, 1)
