"""What every test tier shares: a quiet, offline environment, the outside data folder, and the skips of markers.

Tiers are folders: tests/unit (no Ray), tests/ray (one shared cluster, see its conftest), tests/e2e (whole programs).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from memr1.config import Config
    from memr1.learner.group import LocalLearnerGroup

ROOT = Path(__file__).resolve().parent.parent

# Set before anything imports the libraries that read them, and inherited by the programs that tests start.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
os.environ.setdefault("MPLBACKEND", "Agg")
# OpenMP threads that spin while they wait starve each other as soon as two processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray reads these once, when it is imported. Left unset, a local cluster turns token authentication on by itself and
# writes a token into the home directory; set later, the driver and its cluster disagree and the start fails.
if "RAY_AUTH_MODE" not in os.environ:
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real datasets that the project may not ship: `MEMR1_SHARED_DATA`, or ../shared/data."""
    named = os.environ.get("MEMR1_SHARED_DATA")
    path = Path(named) if named else ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no datasets at {path}; set MEMR1_SHARED_DATA to the folder that holds locomo/, longmemeval/, ...")
    return path


@pytest.fixture(scope="session")
def tiny_random() -> Path:
    """Directory of the built-in random model; made without network on first use."""
    from memr1.models.packaged import fetch

    return fetch("tiny-random")


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """The group of one that learners in this process join, left at the end: DeepSpeed cannot join a second one."""
    yield
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def learner_process(process_group: None, tiny_random: Path) -> Iterator[None]:
    """For files that make learners here: leaves none of the variables that name a group to the tests of other files."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def make_group(learner_process: None) -> Iterator[Callable[..., LocalLearnerGroup]]:
    """Makes learner groups of one, of a configuration or of options of `learner_cases.make_config`, and closes them."""
    from memr1.learner.group import LocalLearnerGroup
    from tests.unit.learner_cases import ROLE, make_config

    groups: list[LocalLearnerGroup] = []

    def make(config: Config | None = None, **options: Any) -> LocalLearnerGroup:
        groups.append(LocalLearnerGroup(config or make_config(**options), ROLE, None))
        return groups[-1]

    yield make
    for group in groups:
        group.close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("model") is not None:
        from memr1.models.packaged import cached

        absent = [name for name in ("smollm2-135m", "minilm") if cached(name) is None]
        if absent:
            pytest.skip(f"needs the weights of {' and '.join(absent)}: run `make model`")
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
