"""Learner groups of several processes (gloo): ranks and ZeRO stages change no update, and resuming changes nothing.

Steps alternate with a KL to the reference, whose forward pass is a collective under ZeRO-3, and with micro-batches that
do not divide evenly, so that a rank runs out of work. Ray's side of the group is in tests/ray.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memr1.training.metrics import ONE_FOR_ALL_RANKS
from tests.unit.learner_cases import make_plan

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.timeout(600)

SLOW = pytest.mark.slow
STEPS, SAVE_AFTER, BUDGET = 3, 2, 20


@dataclass(frozen=True)
class Result:
    """What a group of processes left behind."""

    weights: dict[str, np.ndarray]
    stats: list[dict[str, float]]
    """Per step: sums over ranks; the largest for `grad_norm` and `max_*`."""
    folder: Path


def run_group(
    folder: Path,
    *,
    world: int,
    zero: int,
    weights: str = "lora",
    objective: str = "grpo",
    dtype: str = "float32",
    restore: Path | None = None,
) -> Result:
    """Start `world` processes, wait for all, and fail with the output of the first that failed."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spec: dict[str, Any] = {
        "world": world, "zero": zero, "weights": weights, "objective": objective, "port": port, "out": str(folder),
        "steps": STEPS, "save_after": SAVE_AFTER, "restore": str(restore) if restore else None, "budget": BUDGET,
        "dtype": dtype,
    }  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    logs = [folder / f"log-{rank}.txt" for rank in range(world)]
    processes = []
    for rank, log in enumerate(logs):
        command = [sys.executable, "-m", "tests.e2e.learner_worker", json.dumps({**spec, "rank": rank})]
        with log.open("w") as f:
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=f, stderr=subprocess.STDOUT))
    try:
        codes = [p.wait(timeout=240) for p in processes]
    except subprocess.TimeoutExpired:
        pytest.fail("a rank hangs; what they said last:\n" + "\n".join(log.read_text()[-3000:] for log in logs))
    finally:
        for p in processes:
            p.kill()
    for code, log in zip(codes, logs, strict=True):
        assert code == 0, log.read_text()[-3000:]
    by_rank = [json.loads((folder / f"stats-{rank}.json").read_text()) for rank in range(world)]
    stats = []
    for ranks in zip(*by_rank, strict=True):
        names = {n for r in ranks for n in r}
        reduce: dict[str, Any] = {n: max if n in ONE_FOR_ALL_RANKS or n.startswith("max_") else sum for n in names}
        stats.append({n: reduce[n](r.get(n, 0.0) for r in ranks) for n in names})
    with np.load(folder / "weights.npz") as loaded:
        return Result(dict(loaded), stats, folder)


def far(a: Result, b: Result) -> float:
    assert a.weights.keys() == b.weights.keys()
    return max(float(np.abs(a.weights[n] - b.weights[n]).max()) for n in a.weights)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, tiny_random: Path) -> Callable[[str, str], Result]:
    """What a group of one at ZeRO 0 leaves behind, by the kind of weights and the objective."""
    folder = tmp_path_factory.mktemp("one-rank")
    return cache(lambda w, o: run_group(folder / f"{w}-{o}", world=1, zero=0, weights=w, objective=o))


def test_a_rank_runs_out_of_work_in_these_tests() -> None:
    first, second = ([len(b.targets) for b in rank] for rank in make_plan(0, num_ranks=2, budget=BUDGET).ranks)
    assert len(first) == len(second) == 3 and min(first) > 0 == second[-1]


@pytest.mark.parametrize(
    ("zero", "weights", "objective"),
    [
        (3, "lora", "grpo"),
        *(pytest.param(zero, "lora", "grpo", marks=SLOW) for zero in (0, 1, 2)),
        *(pytest.param(zero, "full", "grpo", marks=SLOW) for zero in (0, 3)),
        *(pytest.param(zero, "lora", "ppo", marks=SLOW) for zero in (0, 2, 3)),
    ],
)
def test_two_ranks_at_every_zero_stage_equal_one_rank_and_resume_bit_for_bit(
    zero: int, weights: str, objective: str, one_rank: Callable[[str, str], Result], tmp_path: Path
) -> None:
    alone = one_rank(weights, objective)
    kind: dict[str, Any] = {"world": 2, "zero": zero, "weights": weights, "objective": objective}
    both = run_group(tmp_path / "both", **kind)
    assert far(alone, both) < 1e-6
    assert len(both.stats) == STEPS
    for a, b in zip(alone.stats, both.stats, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
        assert b["tokens"] > 0
    assert abs(both.stats[2]["reference_kl"]) > 0
    resumed = run_group(tmp_path / "resumed", **kind, restore=both.folder)
    assert far(resumed, both) == 0.0
    assert resumed.stats == both.stats[SAVE_AFTER:]


@SLOW
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_two_ranks_with_full_weights_in_bf16_learn_what_one_does_and_resume_bit_for_bit(
    zero: int, one_rank: Callable[[str, str], Result], tmp_path: Path
) -> None:
    kind: dict[str, Any] = {"world": 2, "zero": zero, "weights": "full", "dtype": "bfloat16"}
    both = run_group(tmp_path / "both", **kind)
    for a, b in zip(one_rank("full", "grpo").stats, both.stats, strict=True):
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=0.05)
        assert b["entropy"] == pytest.approx(a["entropy"], rel=0.01)
    resumed = run_group(tmp_path / "resumed", **kind, restore=both.folder)
    assert far(resumed, both) == 0.0
    assert resumed.stats == both.stats[SAVE_AFTER:]


@SLOW
def test_one_rank_resumes_bit_for_bit_in_a_new_process(one_rank: Callable[[str, str], Result], tmp_path: Path) -> None:
    whole = one_rank("lora", "grpo")
    resumed = run_group(tmp_path / "resumed", world=1, zero=0, restore=whole.folder)
    assert far(resumed, whole) == 0.0
    assert resumed.stats == whole.stats[SAVE_AFTER:]
