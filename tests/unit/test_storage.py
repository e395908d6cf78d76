"""Runs at a URL, opened by several programs on one machine. Over a real S3 server: tests/e2e/test_object_store.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from memr1 import storage
from memr1.training.folders import opened

URL = "s3://bucket/runs/some"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run on the store, as files."""
    import fsspec
    from fsspec.implementations.dirfs import DirFileSystem

    # names without a leading slash, as a bucket's
    store = DirFileSystem(str(tmp_path / "store"), fsspec.filesystem("file", auto_mkdir=True))
    monkeypatch.setattr(storage, "_filesystem", lambda scheme: store)
    monkeypatch.setattr(storage, "SETTLE_S", 0.0)
    monkeypatch.setenv("MEMR1_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "store" / "bucket" / "runs" / "some"
    (run / "rollouts").mkdir(parents=True)
    (run / "config.yaml").write_text("name: some\n")
    (run / "evaluation.jsonl").write_text("old\n")
    (run / "rollouts" / "step_1.jsonl").write_text("x")
    return run


def test_what_a_writer_wrote_survives_readers_of_the_same_url(bucket):
    with opened(URL, writes=True) as writes:
        (writes / "evaluation.jsonl").write_text("old\nnew\n")
        (writes / "memories.jsonl").write_text("{}\n")
        with opened(URL) as reads:
            assert reads != writes and (reads / "evaluation.jsonl").read_text() == "old\n"
        assert (writes / "memories.jsonl").exists()
    assert (bucket / "evaluation.jsonl").read_text() == "old\nnew\n"
    assert (bucket / "memories.jsonl").read_text() == "{}\n"
    with opened(URL) as reads:
        assert (reads / "evaluation.jsonl").read_text() == "old\nnew\n"


def test_what_was_written_reaches_the_store_when_the_writer_fails(bucket):
    with pytest.raises(KeyboardInterrupt), opened(URL, writes=True) as writes:
        (writes / "evaluation.jsonl").write_text("old\nnew\n")
        raise KeyboardInterrupt
    assert (bucket / "evaluation.jsonl").read_text() == "old\nnew\n"


def test_a_push_deletes_what_was_deleted_here_and_nothing_else(bucket):
    with opened(URL, writes=True) as writes:
        (writes / "rollouts" / "step_1.jsonl").unlink()
        (bucket / "rollouts" / "step_2.jsonl").write_text("y")  # by somebody else, meanwhile
    assert sorted(p.name for p in bucket.rglob("*") if p.is_file()) == [
        "config.yaml", "evaluation.jsonl", "step_2.jsonl"
    ]  # fmt: skip


def test_what_is_kept_of_data_at_a_url_is_there_for_every_machine(bucket, tmp_path, monkeypatch):
    from memr1.config_file import load_config
    from memr1.envs.cache import Cache

    def here() -> Cache:
        return Cache(load_config(None, ["output=s3://bucket/runs", "data.cache=s3://bucket/kept"]).cache_dir)

    here().write("facts", "d", {"model": "m"}, "data", [{"a": 1}])
    (kept,) = (tmp_path / "store" / "bucket" / "kept" / "facts").iterdir()
    monkeypatch.setenv("MEMR1_CACHE", str(tmp_path / "another-machine"))
    found = here().read("facts", "d", {"model": "m"}, "data")
    assert found is not None and [line.take("a", int) for line in found] == [1]
    assert here().read("facts", "other", {"model": "m"}, "data") is None
    assert load_config(None, ["output=s3://bucket/runs"]).cache_dir == Path(
        tmp_path / "another-machine/remote/s3:/bucket/runs/.cache"
    )
    assert kept.read_text() == here().path("facts", "d", {"model": "m"}).read_text()


def test_traces_at_a_url_are_refused_with_what_to_do():
    from memr1.config_file import load_config
    from memr1.errors import MemR1Error

    with pytest.raises(MemR1Error, match="stages.0.traces: are read where the runners are; copy them"):
        load_config(None, ["stages=[{objective: sft, traces: 's3://bucket/traces.jsonl'}]"])
