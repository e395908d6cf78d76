"""One rank of a learner group as a program: `python -m tests.e2e.learner_worker '<json>'`, started by the tests.

Keys: rank, world, port, zero, weights, dtype, objective, budget, out (folder), save_after (steps before a save; 0
never), steps, restore.
Rank 0 writes `out`/weights.npz; every rank writes `out`/stats-<rank>.json with a list of one dict per step.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from pathlib import Path

import numpy as np
import torch

from memr1.learner.deepspeed_learner import DeepSpeedLearner
from memr1.learner.engine import Rendezvous
from memr1.models.adapters import PolicyModel
from tests.unit.learner_cases import ROLE, make_config, make_plan, make_settings


def save_role(learner: DeepSpeedLearner, folder: Path) -> None:
    """What a runner does at a checkpoint: it has the role's newest weights and writes them."""
    weights = learner.weights()
    if learner.rank == 0:
        m = learner.config.model
        policies = PolicyModel.create(m.name, (ROLE,), m.weights, m.lora, dtype=m.dtype, device="cpu")
        policies.load_weights(ROLE, {n: torch.from_numpy(w) for n, w in weights.items()})
        policies.save(ROLE, folder / ROLE)


def main() -> None:
    faulthandler.dump_traceback_later(220)  # before the test's patience ends
    spec = json.loads(sys.argv[1])
    out, world = Path(spec["out"]), spec["world"]
    config = make_config(
        zero_stage=spec["zero"],
        kl_coef=0.5,
        weights=spec["weights"],
        dtype=spec["dtype"],
        algo={"kl_in": "reward" if spec["objective"] == "ppo" else "loss"},
    )
    restore = Path(spec["restore"]) if spec["restore"] else None
    learner = DeepSpeedLearner(
        config,
        ROLE,
        str(restore / "policies") if restore else None,
        Rendezvous(spec["rank"], world, "127.0.0.1", spec["port"]),
    )
    first = 0
    if restore:
        learner.restore(str(restore / "learner"))
        first = spec["save_after"]
    stats = []
    for step in range(first, spec["steps"]):
        plan = make_plan(step, num_ranks=world, budget=spec["budget"])
        stats.append(learner.update(plan.ranks[spec["rank"]], make_settings(plan, spec["objective"])))
        if step + 1 == spec["save_after"]:
            learner.save(str(out / "learner"))
            save_role(learner, out / "policies")
    weights = learner.weights()
    if spec["rank"] == 0:
        np.savez(out / "weights.npz", **weights)
    (out / f"stats-{spec['rank']}.json").write_text(json.dumps(stats))
    learner.close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
