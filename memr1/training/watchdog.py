"""A step that does not end says where it hangs: every process that takes part writes its stacks to `<run>/stuck/`."""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)

FOLDER = "stuck"
"""Folder of a run with the stacks."""


@contextmanager
def watched(seconds: float, run_dir: Path, what: str) -> Iterator[None]:
    """Around something that should end within `seconds`, else the stacks of this process are written, once for every
    `seconds` that it goes on. 0 watches nothing. The thing itself is left alone: it may only be slow."""
    if seconds <= 0:
        yield
        return
    ended = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        while not ended.wait(seconds):
            _dump(run_dir / FOLDER, what, time.monotonic() - began)

    thread = threading.Thread(target=watch, name="memr1-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _dump(folder: Path, what: str, seconds: float) -> None:
    path = folder / f"{socket.gethostname()}-{os.getpid()}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}: {what} has taken {seconds:.0f} s\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        _log.warning("%s has taken %.0f s; stacks are in %s", what, seconds, path)
    except OSError as error:  # a full disk must not end a step that may only be slow
        _log.warning("%s has taken %.0f s; stacks could not be written: %s", what, seconds, error)
