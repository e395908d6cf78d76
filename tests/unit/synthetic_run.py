"""A small run folder as a training run would leave it, with invented numbers. Shared by the report and view tests."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from memr1.evaluation.memories.base import Footprint, Upkeep
from memr1.evaluation.predictions import Prediction, dump_predictions
from memr1.evaluation.rows import summarize, summarize_all
from memr1.training.metrics import trajectory_record
from memr1.training.runlog import RunLog
from memr1.trajectory import Sequence, Step, Trajectory

STAGES = (("answerer-sft", 12), ("answerer-grpo", 24), ("manager-grpo", 16))
START = 1_700_000_000.0


def sequence(version=0, prompt=6, completion=4):
    return Sequence.sampled(tuple(range(1, prompt + 1)), tuple(range(completion)), (-0.25,) * completion, version)


def answerer_trajectory(i=0, *, reward=1.0, answer="Rome", error=None, version=3):
    """One answerer episode about where somebody lives."""
    step = Step(
        role="answerer",
        policy="answerer",
        trainable=True,
        sequence=sequence(version),
        prompt_text="Memories:\n[0] Ada moved to Rome.\n[1] Ada has a cat. [bold]not markup[/bold]\nQuestion: Where?",
        completion_text=f"0\n**Answer:** {answer}",
        finish_reason="stop",
        parsed={"selected": ["0"], "answer": answer},
    )
    return Trajectory(
        task_id=f"world-1/q{i}",
        group_id=f"g{i}",
        seed=i,
        steps=(step,),
        reward=None if error else reward,
        reward_parts={} if error else {"em_set": reward},
        outcome={
            "question": "Where does Ada live?",
            "answer": answer,
            "gold": "Rome",
            "category": "single-hop",
            "retrieved": [
                {"id": "0", "text": "Ada moved to Rome.", "date": "2024-05-01"},
                {"id": "1", "text": "Ada has a cat.", "date": "2024-05-02"},
            ],
            "selected": ["0"],
        },
        error=error,
    )


def manager_trajectory(i=0, *, reward=0.0, version=5):
    """One manager episode that updates an entry and fails to delete another."""
    manager = Step(
        role="manager",
        policy="manager",
        trainable=True,
        sequence=sequence(version),
        prompt_text="Facts: Ada moved to Oslo.\nOld: [0] Ada lives in Rome.",
        completion_text="UPDATE 0 Ada lives in Oslo.\nDELETE 7",
        finish_reason="length",
        parsed={"operations": [{"event": "UPDATE", "id": "0"}, {"event": "DELETE", "id": "7"}]},
    )
    return Trajectory(
        task_id=f"world-2/t{i}",
        group_id=f"m{i}",
        seed=i,
        steps=(manager,),
        reward=reward,
        reward_parts={"em_set": reward},
        outcome={
            "question": "Where does Ada live?",
            "answer": None,
            "gold": "Oslo",
            "facts": ["Ada moved to Oslo."],
            "bank_before": [{"id": "0", "text": "Ada lives in Rome."}, {"id": "1", "text": "Ada has a cat."}],
            "bank_after": [{"id": "0", "text": "Ada lives in Oslo."}, {"id": "2", "text": "Ada likes ferries."}],
            "operations": [
                {"event": "UPDATE", "id": "0", "text": "Ada lives in Oslo.", "ok": True, "reason": None},
                {"event": "DELETE", "id": "7", "text": "", "ok": False, "reason": "no live entry 7"},
            ],
        },
    )


def write_metrics(log: RunLog, stages=STAGES, seconds=12.0):
    """Metrics of a run that learns, with one hole (NaN)."""
    rng = random.Random(0)
    step = 0
    for stage, steps in stages:
        for stage_step in range(1, steps + 1):
            step += 1
            done = stage_step / steps
            if stage.endswith("sft"):
                metrics = {
                    "learner/loss": 2.4 * math.exp(-2.2 * done) + 0.05 * rng.random(),
                    "learner/learning_rate": 5e-4,
                }
                metrics |= {"time/update_s": 9 + rng.random(), "time/rollout_s": 0.0}
            else:
                reward = 0.55 + 0.3 * done + rng.gauss(0, 0.06)
                metrics = {
                    "reward/mean": reward,
                    "reward/std": 0.4 * (1 - done) + 0.1,
                    "reward/em_set": reward,
                    "groups/zero_variance_fraction": 0.2 + 0.4 * done + 0.05 * rng.random(),
                    "parse/reject_fraction": 0.12 * (1 - done) + 0.02 * rng.random(),
                    "learner/clip_fraction": 0.03 * rng.random(),
                    "learner/approx_kl": 0.002 * rng.random() if stage_step != 3 else float("nan"),
                    "learner/reference_kl": 0.02 * done + 0.002 * rng.random(),
                    "learner/rollout_mismatch": 1e-5 * (1 + rng.random()),
                    "learner/max_rollout_mismatch": 1e-3 * (1 + rng.random()),
                    "learner/entropy": 0.9 - 0.5 * done + 0.03 * rng.random(),
                    "learner/grad_norm": 0.4 + 0.3 * rng.random(),
                    "learner/learning_rate": 2e-4,
                    "tokens/per_second": 110 + 20 * rng.random(),
                    "rollout/completion_tokens": 9 + rng.random(),
                    "time/rollout_s": 5 + rng.random(),
                    "time/update_s": 6 + rng.random(),
                    "time/sync_s": 0.4,
                    "learner/sharing_factor": 4.0 + done,
                }
            if stage == "manager-grpo":
                add, update = 0.5 - 0.1 * done, 0.1 + 0.15 * done
                metrics |= {"ops/add_fraction": add, "ops/update_fraction": update, "ops/delete_fraction": 0.05}
                metrics |= {
                    "ops/noop_fraction": 0.95 - add - update,
                    "ops/rejected_fraction": 0.03,
                    "bank/entries": 20 + done,
                }
            log.metrics(step, stage, stage_step, {**metrics, "time/step_s": seconds}, time=START + seconds * step)
    return step


def predictions(n=60, systems=(("no-memory", 0.05), ("bm25", 0.45), ("untrained", 0.2), ("trained", 0.8))):
    """Seeded answers to n questions of three categories; each system is right with its probability."""
    rng = random.Random(1)
    categories = (("multi-hop", 1), ("temporal", 2), ("update", None))
    out = []
    for system, probability in systems:
        for i in range(n):
            name, number = categories[i % 3]
            right = rng.random() < probability
            answer = "rome" if right else (None if i % 20 == 0 else "paris or rome")
            reached = "nothing" if system == "no-memory" else ("prompt", "memory", "nothing", None)[i % 4]
            base = Prediction("factworld", system, "w0", f"q{i}", name, number, "Where?", "rome", answer, seconds=0.1)
            out.append(replace(base, reached=reached, prompt_tokens=200, completion_tokens=12))
    return out


def footprints(decisions=40):
    """Of a memory that two dialogues grew."""
    done = Upkeep({"ADD": 10, "UPDATE": 6, "NOOP": 20}, decisions, rejected=2, unreadable=4, tokens=6000)
    return [Footprint(9, (4, 6, 9), done, seconds=3.0), Footprint(7, (2, 5, 7), done, seconds=3.0)]


def write_run(path, *, evaluation=True):
    """A whole run folder; returns the number of its last step."""
    with RunLog(path) as log:
        log.info(
            {
                "model": "smollm2-135m",
                "seed": 0,
                "started": START,
                "seconds": 590.0,
                "machine": {"cpus": 2, "memory_gib": 15.6},
            }
        )
        (path / "config.yaml").write_text("seed: 0\nmodel:\n  name: smollm2-135m\nstages: []\n", encoding="utf-8")
        last = write_metrics(log)
        good, bad = answerer_trajectory(0), answerer_trajectory(1, reward=0.0, answer="in `Paris`")
        log.rollouts(13, [trajectory_record(good, 0.7), trajectory_record(bad, -0.7)])
        third, fourth = manager_trajectory(0), manager_trajectory(1, reward=1.0)
        log.rollouts(last, [trajectory_record(third, -1.0), trajectory_record(fourth, 1.0)])
        if evaluation:
            for row in summarize_all(predictions(systems=(("trained", 0.3),))):
                log.evaluation(12, "answerer-sft", row.to_dict(), time=START)
            for system in ("bm25", "trained"):
                kept = [p for p in predictions() if p.system == system]
                dump_predictions(kept, path / "predictions" / "factworld" / f"{system}.jsonl")
            for row in summarize_all(predictions()):
                if row.system in ("trained", "untrained"):
                    own = [p for p in predictions() if p.system == row.system]
                    row = summarize(own, footprints(60 if row.system == "untrained" else 40))
                log.evaluation(last, "manager-grpo", row.to_dict(), time=START)
    return last
