"""What a training step spends on anything but the model, from the log of a run: `python benchmarks/overheads.py RUN`.

RUN: a run with stages that play, for example runs/train_local. Of the seconds of its steps, after the first of each
stage, it shows the shares of generation, of the learners' update, of packing, of the weights'
way to the runners, and of the rest: environments, memory banks, rewards and Ray. For runs of one runner that play
nothing ahead: with several, generation goes on in several places at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from memr1.training.runlog import read_info, read_metrics

PARTS = ("generation", "update", "packing", "sync", "rest")


def shares(steps: list[dict[str, float]]) -> dict[str, float]:
    """Seconds of steps by part, summed."""
    out = dict.fromkeys(PARTS, 0.0)
    for m in steps:
        unshared = m.get("learner/sharing_factor", 0.0) * m.get("learner/computed_tokens", 0.0)
        updating = unshared / m["tokens/per_second"] if unshared else 0.0
        out["generation"] += m["engine/prefill_s"] + m["engine/decode_s"]
        out["update"] += updating
        out["packing"] += m["time/update_s"] - updating
        out["sync"] += m["time/sync_s"]
        out["rest"] += m["time/rollout_s"] - m["engine/prefill_s"] - m["engine/decode_s"]
    return out


def main() -> None:
    """One line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    played = [m for m in read_metrics(args.run) if "engine/prefill_s" in m and m["stage_step"] > 1]
    if not played:
        raise SystemExit(f"{args.run}: no second step of a stage that plays is in its metrics.jsonl")
    if any(
        "rollout/staleness" in m or m["engine/prefill_s"] + m["engine/decode_s"] > m["time/rollout_s"] for m in played
    ):
        raise SystemExit(f"{args.run}: several runners, or groups played ahead; their seconds do not add up to steps")
    print(f"{read_info(args.run).get('machine')}; backend {read_info(args.run).get('backend')}")
    print(f"{'stage':<16}{'steps':>6}{'s a step':>10}" + "".join(f"{p:>12}" for p in PARTS))
    for stage in dict.fromkeys(m["stage"] for m in played):
        steps = [m for m in played if m["stage"] == stage]
        seconds = shares(steps)
        whole = sum(seconds.values())
        cells = "".join(f"{s / whole:>12.1%}" for s in seconds.values())
        print(f"{stage:<16}{len(steps):>6}{whole / len(steps):>10.2f}{cells}")


if __name__ == "__main__":
    main()
