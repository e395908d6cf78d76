"""A real PostgreSQL server for tests: its own folder, a free port on loopback, no password, gone at the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _programs() -> Path | None:
    """The folder of the newest installed server: Debian keeps one for each version, outside of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def postgres() -> Iterator[str]:
    """URL of an empty database; skips, saying why, where no server is installed."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install memr1[postgres])")
    as_server: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="memr1-pg-"))
    if os.geteuid() == 0:  # the server refuses to run as root
        as_server = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        if shutil.which("setpriv") is None or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("PostgreSQL does not run as root, and there is no user `postgres` or no setpriv to become it")
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = {"check": True, "capture_output": True, "timeout": 60, "cwd": folder}
    data = folder / "data"
    try:
        subprocess.run(
            [*as_server, str(programs / "initdb"), "-D", str(data), "-U", "memr1", "-A", "trust", "-E", "UTF8",
             "--locale=C", "--no-sync"],
            **run,
        )  # fmt: skip
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
        subprocess.run(
            [*as_server, str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options,
             "start"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, cwd=folder,
        )  # fmt: skip
        try:
            yield f"postgresql+psycopg://memr1@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*as_server, str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"], **run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
