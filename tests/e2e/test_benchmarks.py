"""The benchmarks run and count what they say they count. Not covered: how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def grpo_step(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "grpo_step.py"), "--model", "tiny-random", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=150)


def test_grpo_step_measures_both_ways_on_rows_of_a_file(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    prompts = ["Memories: Ana lives in Oslo. Where does Ana live? ", "Memories: Ben keeps bees. What does Ben keep? "]
    rows.write_text("".join(json.dumps({"prompt": p, "answer": "Oslo"}) + "\n" for p in prompts))
    options = ["--rows", str(rows), "--group-size", "3", "--max-new-tokens", "4", "--steps", "1", "--lora-rank", "4"]
    done = grpo_step(*options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    lengths = result["workload"]["prompt_tokens"]
    assert result["workload"]["group_size"] == 3 and len(lengths) == 2
    shared, unshared = result["shared"], result["unshared"]
    assert unshared["prefill_tokens"] == 3 * sum(lengths) > shared["prefill_tokens"]
    assert shared["decode_tokens"] <= 2 * 3 * 4
    assert {"prefill_s", "decode_s", "update_s", "sync_s"} <= shared.keys() & unshared.keys()
    assert result["machine"]
    assert result["gflops"]["update"] > result["gflops"]["rollout"] > 0
    assert 0 <= result["update_fraction_of_peak"] < 1 and result["peak_memory_gib"] > 0.1


def test_grpo_step_makes_prompts_of_the_length_it_is_asked_for() -> None:
    options = ["--prompts", "2", "--prompt-tokens", "700", "--group-size", "2", "--max-new-tokens", "1", "--steps", "1"]
    done = grpo_step(*options, "--no-reference")
    assert done.returncode == 0, done.stderr
    lengths = json.loads(done.stdout.splitlines()[-1])["workload"]["prompt_tokens"]
    assert len(lengths) == 2 and all(560 < n <= 700 for n in lengths)


def test_grpo_step_names_the_line_of_a_bad_row(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "answer": "a"}\n{"prompt": "p"}\n')
    done = grpo_step("--rows", str(rows))
    assert done.returncode == 2
    assert f"{rows}:2: expected" in done.stderr


def test_trl_comes_to_the_same_loss_and_gradients_on_the_same_rows() -> None:
    pytest.importorskip("trl", reason="TRL is not installed; `make bench-trl` fetches it")
    command = [sys.executable, str(ROOT / "benchmarks" / "trl_step.py"), "--model", "tiny-random", "--lora-rank", "4"]
    options = ["--prompts", "2", "--prompt-tokens", "480", "--group-size", "2", "--max-new-tokens", "4", "--steps", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    same = result["trl"]["same_rows"]
    assert same["loss"] == pytest.approx(same["trl_loss"], rel=1e-4, abs=1e-6) != 0
    assert same["gradient_norm"] == pytest.approx(same["trl_gradient_norm"], rel=1e-3) != 0
    assert same["largest_relative_difference"] < 1e-3
    assert result["times_faster"] > 0 and result["trl"]["step_s"] > 0


def test_the_bank_s_benchmark_runs_beside_its_references() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "bank.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    for line in ("durable add, one at a time", "durable decision of 100 adds", "exact search, k 10, 10000 entries"):
        (found,) = (row for row in done.stdout.splitlines() if line in row)
        assert "reference" in found and "ratio" in found
    assert "fork of 1000 entries" in done.stdout and "open a bank of 1000 decisions" in done.stdout


def test_the_check_of_gpus_prints_its_tables_on_a_small_model() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--quick", "--models", "tiny-random"]
    done = subprocess.run(
        [*command, "--zero-model", "tiny-random", "--stages", "0,3"], capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stderr
    titles = ("GRPO step on one device", "update of all weights by ZeRO stage", "weights to another device")
    lines = done.stdout.splitlines()
    starts = [next(n for n, line in enumerate(lines) if title in line) for title in titles]
    rows = ["tiny-random" in line for line in lines]
    counts = [sum(rows[a:b]) for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]
    assert counts == [1, 2, 1], done.stdout + done.stderr


def test_products_of_this_processor_are_compared_by_rows_and_in_a_model() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "cpu_products.py"), "--quick", "--model", "tiny-random"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows, passes = (done.stdout[done.stdout.index(head) :].splitlines()[1:] for head in ("rows  torch", "pass  torch"))
    assert [float(line.split()[2]) > 0 for line in rows[:7]] == [True] * 7
    assert [line.rsplit(maxsplit=3)[0] for line in passes[:2]] == ["forward", "forward and backward"]
    assert float(passes[2].split()[-1].rstrip("x")) > 0 and passes[2].startswith("one token of 8 rows")


def test_scaling_prints_growth_beside_the_formulas_and_marks_what_is_predicted() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--quick", "--model", "tiny-random"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("prompt  group"))
    one, four = (line.split() for line in lines[head + 1 : head + 3])
    assert (one[1], four[1]) == ("1", "4")
    shared, unshared = float(four[7]) / float(one[7]), float(four[9]) / float(one[9])
    assert shared < 2 and unshared > 3, "a group's prompt is computed once"
    (marked,) = (line for line in lines if "7B" in line)
    assert marked.startswith("PREDICTION, not measured")
    lora, full = (next(line.split() for line in lines if line.startswith(f"{w} ")) for w in ("lora", "full"))
    assert lora[1:3] == full[1:3] == ["8", "128"]
    assert 1.3 < float(full[5]) / float(lora[5]) < 1.5, "all weights get a gradient of their own"
    assert float(full[7]) == pytest.approx(7.6e9 * 4 / 50e9, rel=0.01), "float32 through the object store"


def test_overheads_are_what_is_left_of_steps_after_the_model(tmp_path: Path) -> None:
    timed = {"engine/prefill_s": 4.0, "engine/decode_s": 2.0, "time/rollout_s": 6.5, "time/sync_s": 0.5}
    update = {
        "time/update_s": 3.0,
        "learner/sharing_factor": 4.0,
        "learner/computed_tokens": 700,
        "tokens/per_second": 1e3,
    }
    lines = [
        {
            "step": n,
            "stage": "answerer-grpo",
            "stage_step": n,
            "time": 0.0,
            **(timed if n > 1 else {**timed, "time/rollout_s": 99}),
            **update,
        }
        for n in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, str(ROOT / "benchmarks" / "overheads.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == [
        "answerer-grpo",
        "2",
        "10.00",
        "60.0%",
        "28.0%",
        "2.0%",
        "5.0%",
        "5.0%",
    ]


def test_the_controller_drives_simulated_clusters_and_prints_what_it_took() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "controller.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("runners  learners  trajectories"))
    one, four = (line.split() for line in lines[head + 1 : head + 3])
    assert (one[0], four[0]) == ("1", "4") and int(four[2]) >= int(one[2]) > 0
    assert float(one[6]) > 0, "an ideal step takes simulated seconds"
    assert any(line.startswith("0.25 runners lost") for line in lines)
