"""Runs against runs: one seed or several, and what `memr1 compare` prints.

Not covered: the paired comparison within a run (test_statistics.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memr1.errors import MemR1Error
from memr1.evaluation.comparison import compare, compare_runs, compare_seeds
from memr1.evaluation.predictions import Prediction, dump_predictions
from memr1.evaluation.statistics import _seed_weights, crossed_bootstrap, crossed_interval


def answers(rights: Sequence[bool], system: str = "trained", benchmark: str = "factworld") -> list[Prediction]:
    return [
        Prediction(benchmark, system, "d", f"q{i}", "c", None, "?", "rome", "rome" if right else "oslo")
        for i, right in enumerate(rights)
    ]


def test_the_crossed_bootstrap_resamples_seeds_and_questions_apart() -> None:
    """Against a plain loop: the same variance, which for seeds alone is the usual s^2 / S."""
    a, b = [[0.5] * 40, [0.6] * 40, [0.7] * 40], [[0.5] * 40]
    found = crossed_bootstrap(a, b, resamples=20000)
    assert found.difference == pytest.approx(0.1)
    assert (found.low, found.high) == (pytest.approx(0.0), pytest.approx(0.2))  # of three seeds, two are drawn
    rng = random.Random(0)
    rows = [[float(rng.random() < 0.5 + 0.1 * s) for _ in range(60)] for s in range(3)]
    other = [[float(rng.random() < 0.3) for _ in range(60)] for _ in range(2)]
    draws = []
    for _ in range(6000):
        chosen, rest = [rng.choice(rows) for _ in range(2)], [rng.choice(other)]
        places = [rng.randrange(60) for _ in range(60)]
        left = sum(row[i] for row in chosen for i in places) / 120
        draws.append(left - sum(row[i] for row in rest for i in places) / 60)
    found = crossed_bootstrap(rows, other, resamples=6000)
    low, high = np.quantile(draws, (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.02) and found.high == pytest.approx(high, abs=0.02)
    assert found.difference == pytest.approx(np.mean(rows) - np.mean(other))


def test_the_variance_between_few_seeds_is_not_understated() -> None:
    values = (0.2, 0.5, 0.6, 0.9)
    spread = np.var(values, ddof=1) / len(values)
    weights = _seed_weights(np.random.default_rng(0), len(values), 40000)
    assert weights.sum(axis=1) == pytest.approx(np.ones(40000))
    assert float(np.var(weights @ np.array(values))) == pytest.approx(spread, rel=0.03)


def test_what_seeds_have_in_common_cancels_where_they_are_paired() -> None:
    """Seeds that differ by far more than a and b do: apart nothing is shown, paired the difference is exact."""
    a, b = [[0.3] * 40, [0.6] * 40, [0.9] * 40], [[0.2] * 40, [0.5] * 40, [0.8] * 40]
    assert not crossed_bootstrap(a, b).real
    paired = crossed_bootstrap(a, b, paired_seeds=True)
    assert paired.low == pytest.approx(0.1) and paired.high == pytest.approx(0.1) and paired.real
    with pytest.raises(MemR1Error, match="3 seeds and 2 cannot be paired"):
        crossed_bootstrap(a, b[:2], paired_seeds=True)


def test_a_mean_over_seeds_is_no_surer_than_its_seeds() -> None:
    found = crossed_interval([[0.3] * 40, [0.6] * 40, [0.9] * 40])
    assert (found.mean, found.n) == (pytest.approx(0.6), 40)
    assert (found.low, found.high) == (pytest.approx(0.3), pytest.approx(0.9))


def test_answers_to_different_questions_under_one_id_are_not_compared() -> None:
    a = answers([True] * 3)
    for other in (replace(a[1], gold="oslo"), replace(a[1], question="who?")):
        with pytest.raises(MemR1Error, match="question d/q1 of factworld or its gold is another one for trained than"):
            compare(a, [a[0], replace(other, system="bm25"), a[2]][1:2])


def test_one_seed_a_side_is_the_paired_comparison() -> None:
    a, b = answers([True] * 30), answers([i % 2 == 0 for i in range(30)])
    assert compare_seeds([a], [b]) == compare(a, b)


def test_a_gain_smaller_than_the_luck_of_seeds_is_not_real() -> None:
    questions = 200
    steady = [answers([i < 120 for i in range(questions)]) for _ in range(3)]
    lucky = [answers([i < right for i in range(questions)]) for right in (90, 125, 190)]
    assert compare(lucky[2], steady[0]).real  # one lucky seed would have said so
    found = compare_seeds(lucky, steady)
    assert not found.real and found.mean_a > found.mean_b
    assert found.seeds_a == (0.45, 0.625, 0.95) and found.seeds_b == (0.6, 0.6, 0.6)
    sure = compare_seeds([answers([i < r for i in range(questions)]) for r in (150, 155, 152)], steady)
    assert sure.real and sure.paired.difference == pytest.approx(0.7617 - 0.6, abs=1e-3)


def test_questions_that_a_run_lacks_are_left_out_and_counted() -> None:
    a, b = [answers([True] * 10), answers([True] * 8)], [answers([False] * 9), answers([False] * 9)]
    found = compare_seeds(a, b)
    assert (found.paired.n, found.only_a, found.only_b) == (8, 2, 1)


def test_a_question_that_one_run_has_no_verdict_on_is_left_out_and_no_zero() -> None:
    def judged(verdicts: Sequence[float | None]) -> list[Prediction]:
        return [replace(p, judged=v) for p, v in zip(answers([True] * len(verdicts)), verdicts, strict=True)]

    runs = [judged([1.0, 1.0, 1.0, 1.0]), judged([1.0, None, 1.0, 1.0])]
    found = compare_seeds(runs, [judged([0.0, 1.0, 1.0, None])], metric="judge")
    assert (found.paired.n, found.seeds_a, found.mean_b) == (2, (1.0, 1.0), 0.5)
    assert (found.only_a, found.only_b) == (0, 0)  # everybody answered all questions
    assert "answered by one system only" not in str(found)


def test_runs_are_compared_system_by_system_or_across(tmp_path: Path) -> None:
    for run, right in (("a-0", 20), ("a-1", 22), ("b", 5)):
        for system in ("trained", "bm25") if run != "b" else ("trained",):
            kept = tmp_path / run / "predictions" / "factworld" / f"{system}.jsonl"
            dump_predictions(answers([i < right for i in range(30)], system), kept)
    seeds, other = [tmp_path / "a-0", tmp_path / "a-1"], [tmp_path / "b"]
    (found,) = compare_runs(seeds, other, benchmark="factworld")
    assert str(found).startswith(
        "factworld em_set: trained of 2 runs 70.0 (66.7, 73.3) against trained of b 16.7, difference +53.3 ["
    )
    assert found.real
    (across,) = compare_runs(seeds[:1], seeds[:1], benchmark="factworld", system="trained", against="bm25")
    assert (across.paired.difference, across.real) == (0.0, False)
    with pytest.raises(MemR1Error, match="b: no predictions on locomo; `memr1 eval"):
        compare_runs(other, seeds, benchmark="locomo")
    with pytest.raises(MemR1Error, match=r"bm25.jsonl: no such file of predictions"):
        compare_runs(other, seeds, benchmark="factworld", system="bm25")


def test_scores_of_different_questions_are_refused() -> None:
    with pytest.raises(MemR1Error, match="at least one seed a side, and scores of the same questions"):
        crossed_bootstrap([[1.0, 0.0]], [[1.0]])
    with pytest.raises(MemR1Error, match="at least one seed a side"):
        crossed_bootstrap([], [[1.0]])
