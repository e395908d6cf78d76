"""The real `MemoryClient` of mem0 against a running server.

mem0ai wants an older protobuf than memr1's pinned set has, so it lives in an environment of its own: the one that
`MEMR1_MEM0_PYTHON` names, or one that is made once in the cache with pip.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from memr1.models.cache import cache_root
from tests.unit.serving_cases import listening, make_services

VERSION = "2.2.1"

PROGRAM = """
import asyncio, json, sys
from mem0 import AsyncMemoryClient, MemoryClient
from mem0.exceptions import MemoryNotFoundError, ValidationError

host = sys.argv[1]
client = MemoryClient(api_key="none", host=host)
added = client.add("Mara lives in Oslo.", user_id="mara")["results"]
moved = client.add([{"role": "user", "content": "Mara lives in Rome."}], user_id="mara")["results"]
client.add("Ben plays the cello.", user_id="ben", infer=False, metadata={"topic": "music"})
name = added[0]["id"]
out = {"added": [r["event"] for r in added], "moved": [r["event"] for r in moved], "same": moved[0]["id"] == name}
out["get"] = client.get(name)["memory"]
out["search"] = [r["memory"] for r in client.search("Where is Mara?", filters={"user_id": "mara"})["results"]]
both = {"AND": [{"user_id": "ben"}, {"metadata": {"topic": "music"}}]}
out["music"] = [r["memory"] for r in client.search("x", filters=both)["results"]]
page = client.get_all(filters={"user_id": "mara"}, page=1, page_size=10)
out["all"] = [page["count"], [r["memory"] for r in page["results"]]]
client.update(name, text="Mara lives in Bergen.")
out["history"] = [h["event"] for h in client.history(name)]
out["users"] = sorted(u["name"] for u in client.users()["results"])
client.delete(name)
try:
    client.get(name)
except MemoryNotFoundError:
    out["gone"] = True
try:
    client.search("x", filters={"app_id": "y"})
except ValidationError:
    out["refused"] = True
client.delete_all(user_id="ben")
out["left"] = client.get_all(filters={"user_id": "ben"})["count"]

async def also():
    other = AsyncMemoryClient(api_key="none", host=host)
    await other.add("Ada paints.", user_id="ada")
    found = await other.search("paints", filters={"user_id": "ada"})
    return [r["memory"] for r in found["results"]]

out["async"] = asyncio.run(also())
print("RESULT " + json.dumps(out))
"""


@pytest.fixture(scope="session")
def mem0_python() -> str:
    """An interpreter that has mem0ai."""
    named = os.environ.get("MEMR1_MEM0_PYTHON")
    folder = cache_root() / "test-environments" / f"mem0ai-{VERSION}"
    python = Path(named) if named else folder / "bin" / "python"
    if named is None and not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", f"mem0ai=={VERSION}"]
        done = subprocess.run(install, capture_output=True, text=True, timeout=240, check=False)
        if done.returncode:
            pytest.skip(f"mem0ai {VERSION} could not be installed: {done.stderr.strip().splitlines()[-1:]}")
        (folder / "complete").touch()
    found = subprocess.run([str(python), "-c", "import mem0"], capture_output=True, text=True, timeout=120, check=False)
    if found.returncode:
        pytest.skip(f"{python} cannot import mem0: {found.stderr.strip().splitlines()[-1:]}")
    return str(python)


def test_the_client_of_mem0_works_against_this_service(tmp_path: Path, mem0_python: str) -> None:
    environment = {**os.environ, "MEM0_TELEMETRY": "False", "MEM0_DIR": str(tmp_path / "mem0"), "HOME": str(tmp_path)}
    environment.pop("PYTHONPATH", None)
    with listening(make_services(tmp_path)) as url:
        done = subprocess.run(
            [mem0_python, "-c", PROGRAM, url], capture_output=True, text=True, timeout=120, env=environment, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    assert json.loads(line.removeprefix("RESULT ")) == {
        "added": ["ADD"],
        "moved": ["UPDATE"],
        "same": True,
        "get": "Mara lives in Rome.",
        "search": ["Mara lives in Rome."],
        "music": ["Ben plays the cello."],
        "all": [1, ["Mara lives in Rome."]],
        "history": ["ADD", "UPDATE", "UPDATE"],
        "users": ["ben", "mara"],
        "gone": True,
        "refused": True,
        "left": 0,
        "async": ["Ada paints."],
    }
    assert sys.executable != mem0_python
