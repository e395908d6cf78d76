"""Files of a Chroma index that were torn, cut or lost are noticed and made again, and no answer is wrong."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memr1.memory.bank import MemoryBank
from memr1.memory.embed import HashEmbedder
from memr1.memory.types import Event, MemoryOp

NUMBER = 1500  # Chroma writes its graph to files from 1000 vectors on
LARGEST_FILE = 64 * 2**20
QUERIES = ("fact 7 of topic 3", "topic 5", "fact 1201")


def filled(index: Any) -> MemoryBank:
    bank = MemoryBank("b", HashEmbedder(32), index)
    bank.apply([MemoryOp(Event.ADD, f"fact {n} of topic {n % 7}") for n in range(NUMBER)])
    return bank


def found(bank: MemoryBank, k: int = 5) -> list[list[tuple[str, float]]]:
    return [[(h.entry.id, round(h.score, 5)) for h in bank.search(q, k)] for q in QUERIES]


def _write(folder: str, in_order: bool = True) -> None:
    from memr1.memory.chroma_folder import close_folders
    from memr1.memory.chroma_index import ChromaIndex

    bank = filled(ChromaIndex("b", path=folder))
    found(bank)
    if not in_order:
        os._exit(0)
    close_folders()


def _open(folder: str, answers: Any) -> None:
    """Fill a bank over the files: what it finds, and how much had to be embedded and written again."""
    # from a torn link_lists.bin Chroma reads a nonsensical size, and writes files until the disk is full
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    from memr1.memory.chroma_index import ChromaIndex

    index = ChromaIndex("b", path=folder)
    kept = len(index)
    bank = filled(index)
    answers.put((kept, found(bank)))
    bank.verify()
    answers.close()
    answers.join_thread()


def reopened(folder: Path) -> int:
    """How many vectors were taken up again, once it is sure that the searches are right."""
    answers = multiprocessing.get_context("spawn").Queue()
    assert child(_open, str(folder), answers) == 0
    kept, hits = answers.get(timeout=10)
    for approximate, exact in zip(hits, found(filled("exact"), 50), strict=True):
        assert set(map(tuple, approximate)) <= set(exact), "each with its right score"
        assert len(set(map(tuple, approximate)) & set(exact[:10])) >= 4, "and near the best"
    return int(kept)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def lose(path: Path) -> None:
    path.unlink()


def child(target: Callable[..., None], *args: Any) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=args)
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
    return process.exitcode


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chroma")
    assert child(_write, str(folder)) == 0
    assert list(folder.rglob("data_level0.bin")), "the graph is on disk"
    return folder


@pytest.mark.parametrize("tear", [cut, zero, lose])
@pytest.mark.parametrize("name", ["chroma.sqlite3", "data_level0.bin", "header.bin", "length.bin", "link_lists.bin"])
def test_torn_files_are_noticed_and_made_again(
    written: Path, tmp_path: Path, name: str, tear: Callable[[Path], None]
) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(written, folder)
    [path] = folder.rglob(name)
    tear(path)
    assert reopened(folder) == 0
    assert not path.exists(), "the torn index is gone"


def test_files_that_were_closed_in_order_are_taken_up_again(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(written, folder)
    assert reopened(folder) == NUMBER


def test_files_of_a_process_that_was_killed_are_made_again(tmp_path: Path) -> None:
    assert child(_write, str(tmp_path), False) == 0
    assert reopened(tmp_path) == 0


def test_a_folder_belongs_to_one_process_and_what_else_lies_in_it_stays(tmp_path: Path) -> None:
    from memr1.memory.chroma_folder import close_folders
    from memr1.memory.chroma_index import ChromaIndex

    (tmp_path / "chroma.sqlite3").write_bytes(b"the database of somebody else")
    (tmp_path / "memr1-index-7").mkdir()  # of our name, and not made by us
    (tmp_path / "memr1-index-7" / "notes").write_text("mine")
    filled(ChromaIndex("b", path=tmp_path)).search("fact 7", 1)
    assert child(_write, str(tmp_path)) == 1, "another process is refused"
    close_folders()
    assert child(_write, str(tmp_path)) == 0
    assert (tmp_path / "chroma.sqlite3").read_bytes() == b"the database of somebody else"
    assert (tmp_path / "memr1-index-7" / "notes").read_text() == "mine"
