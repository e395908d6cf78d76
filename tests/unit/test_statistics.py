"""Intervals, paired differences and tables."""

import io
import random
from dataclasses import replace

import pytest

from memr1.errors import MemR1Error
from memr1.evaluation.comparison import compare
from memr1.evaluation.predictions import Prediction, dump_predictions, load_predictions
from memr1.evaluation.rows import Row, summarize, summarize_all
from memr1.evaluation.statistics import bootstrap_interval, paired_bootstrap
from memr1.evaluation.table import markdown_table, rich_table


def prediction(i, *, answer="rome", gold="rome", system="trained", category="temporal", category_id=2, **changes):
    base = Prediction(
        benchmark="locomo",
        system=system,
        dialogue_id="d0",
        question_id=f"q{i}",
        category=category,
        category_id=category_id,
        question="where?",
        gold=gold,
        answer=answer,
        retrieved=("she lives in rome",),
        selected=("1",),
        prompt_tokens=100,
        completion_tokens=10,
        seconds=0.5,
    )
    return replace(base, **changes)


def test_interval_of_a_proportion_matches_the_normal_approximation():
    values = [1.0] * 400 + [0.0] * 600
    interval = bootstrap_interval(values)
    half_width = 1.96 * (0.4 * 0.6 / 1000) ** 0.5
    assert interval.mean == pytest.approx(0.4)
    assert interval.low == pytest.approx(0.4 - half_width, abs=0.004)
    assert interval.high == pytest.approx(0.4 + half_width, abs=0.004)
    assert interval.n == 1000


def test_about_95_of_100_intervals_hold_the_true_mean():
    rng = random.Random(3)
    hits = 0
    for trial in range(100):
        values = [float(rng.random() < 0.3) for _ in range(200)]
        interval = bootstrap_interval(values, resamples=500, seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    assert 88 <= hits <= 100


def test_the_same_seed_gives_the_same_interval():
    values = [i**0.5 for i in range(40)]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_five_of_five_right_is_not_certainty():
    # Clopper-Pearson for 5 of 5: low = 0.025 ** (1/5)
    interval = bootstrap_interval([1.0] * 5)
    assert interval.low == pytest.approx(0.025**0.2, abs=1e-9)
    assert (interval.mean, interval.high) == (1.0, 1.0)
    none_right = bootstrap_interval([0.0] * 5)
    assert (none_right.mean, none_right.low) == (0.0, 0.0)
    assert none_right.high == pytest.approx(1 - 0.025**0.2, abs=1e-9)


def test_one_score_that_is_no_proportion_has_no_interval():
    interval = bootstrap_interval([0.4])
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.4, None, None, 1)
    same = bootstrap_interval([0.4, 0.4])
    assert (same.mean, same.low, same.high) == (0.4, 0.4, 0.4)


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ([], {}, "is empty"),
        ([0.1, float("nan")], {}, r"values\[1\] is nan"),
        ([0.1], {"confidence": 95}, "between 0 and 1"),
        ([0.1], {"resamples": 1}, "at least 100"),
    ],
)
def test_impossible_input_is_refused(values, options, words):
    with pytest.raises(MemR1Error, match=words):
        bootstrap_interval(values, **options)


def test_a_consistent_small_gain_is_real_only_when_paired():
    rng = random.Random(0)
    b = [rng.random() for _ in range(300)]
    a = [min(1.0, x + 0.03 + 0.05 * rng.random()) for x in b]
    result = paired_bootstrap(a, b)
    assert result.real
    assert result.low > 0.03
    assert result.p_value < 0.01
    # unpaired, the two intervals overlap
    assert bootstrap_interval(a).low < bootstrap_interval(b).high


def test_no_difference_is_found_between_two_noises():
    rng = random.Random(1)
    a, b = [rng.random() for _ in range(200)], [rng.random() for _ in range(200)]
    result = paired_bootstrap(a, b)
    assert not result.real
    assert result.p_value > 0.05


def test_three_wins_of_three_prove_nothing_and_ten_of_ten_do():
    three = paired_bootstrap([1.0] * 3, [0.0] * 3)
    assert three.difference == 1.0
    assert three.p_value == pytest.approx(2 / 2**3)
    assert not three.real
    ten = paired_bootstrap([1.0] * 10, [0.0] * 10)
    assert ten.p_value == pytest.approx(2 / 2**10)
    assert ten.real


def test_equal_systems_differ_by_nothing():
    result = paired_bootstrap([1.0, 0.0], [1.0, 0.0])
    assert (result.difference, result.low, result.high, result.p_value, result.real) == (0.0, 0.0, 0.0, 1.0, False)
    one = paired_bootstrap([1.0], [0.0])
    assert (one.low, one.high, one.p_value, one.real) == (None, None, 1.0, False)


def test_pairs_need_equal_lengths():
    with pytest.raises(MemR1Error, match="a has 1 values and b has 2"):
        paired_bootstrap([1.0], [1.0, 0.0])


def test_summary_is_the_micro_average_and_categories_are_ordered_by_id():
    rows = [
        prediction(0, category="single-hop", category_id=4, answer="paris"),
        prediction(1),
        prediction(2),
        prediction(3, answer=None, error="timeout", prompt_cut=True),
        prediction(4, gold=None, answer="anything", category="adversarial", category_id=5),
        prediction(5, category="multi-hop", category_id=1, answer="rome today", evidence_recall=0.5),
    ]
    row = summarize(rows)
    assert (row.n, row.errors, row.unscored, row.prompts_cut) == (5, 1, 1, 1)
    assert row.metrics["em_set"].mean == pytest.approx(2 / 5)
    assert row.metrics["f1"].mean == pytest.approx((1 + 1 + 2 / 3) / 5)
    assert [(c.label, c.n) for c in row.categories] == [("1 multi-hop", 1), ("2 temporal", 3), ("4 single-hop", 1)]
    assert row.categories[1].metrics["em_set"].mean == pytest.approx(2 / 3)
    assert row.evidence_recall == 0.5
    assert (row.prompt_tokens, row.completion_tokens, row.seconds) == (100.0, 10.0, 0.5)


def test_summary_refuses_mixed_systems_repeated_questions_and_no_gold():
    with pytest.raises(MemR1Error, match="one system on one benchmark"):
        summarize([prediction(0), prediction(1, system="bm25")])
    with pytest.raises(MemR1Error, match="one system on one benchmark, found none"):
        summarize([])
    with pytest.raises(MemR1Error, match="two predictions for question d0/q0"):
        summarize([prediction(0), prediction(0)])
    with pytest.raises(MemR1Error, match="none of 1 questions"):
        summarize([prediction(0, gold=" ")])


def test_rows_keep_the_given_order_and_survive_a_round_trip():
    rows = summarize_all([prediction(0, system=s) for s in ("trained", "bm25", "no-memory")])
    assert [r.system for r in rows] == ["trained", "bm25", "no-memory"]
    assert [Row.from_dict({**r.to_dict(), "step": 3}) for r in rows] == rows
    lines = markdown_table(rows).splitlines()
    assert lines[0] == "| system | n | em_strict | em_squad | em_set | f1 | bleu1 |"
    assert lines[2].startswith("| trained | 1 | 100.0 [2.5, 100.0] |")
    assert len(lines) == 5


def test_category_table_shows_id_name_and_count():
    rows = summarize_all(
        [prediction(0), prediction(1, category="update", category_id=None), prediction(0, system="bm25")]
    )
    lines = markdown_table(rows, by_category="em_set").splitlines()
    assert lines[0] == "| system | 2 temporal (n=1) | update (n=1) |"
    assert lines[3] == "| bm25 | 100.0 [2.5, 100.0] | – |"


def test_terminal_table_prints_brackets_as_they_are():
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(rich_table(summarize_all([prediction(0), prediction(1, answer=None)]), title="LoCoMo"))
    text = console.export_text()
    assert "[" in text
    assert "50.0 [0.0, 100.0]" in text
    assert "no answer" in text


def test_predictions_survive_a_round_trip_and_damage_is_named(tmp_path):
    path = tmp_path / "out" / "predictions.jsonl"
    rows = [prediction(0, answer="Zoë | Ω\u2028x"), prediction(1, answer=None, error="no")]
    dump_predictions(rows, path)
    assert load_predictions(path) == rows
    path.write_text(path.read_text(encoding="utf-8") + '{"benchmark": "x"}\n', encoding="utf-8")
    with pytest.raises(MemR1Error, match=r"predictions.jsonl:3: not a prediction"):
        load_predictions(path)
    path.write_text('{"benchmrk": "x"}\n', encoding="utf-8")
    with pytest.raises(MemR1Error, match=r":1: benchmrk is not a field"):
        load_predictions(path)
    with pytest.raises(MemR1Error, match="no such file"):
        load_predictions(tmp_path / "none.jsonl")


def test_comparison_pairs_by_question_and_says_whether_the_difference_is_real():
    a = [prediction(i) for i in range(40)]
    b = [prediction(i, system="bm25", answer="rome" if i % 2 else "paris") for i in reversed(range(42))]
    result = compare(a, b)
    assert (result.mean_a, result.mean_b) == (1.0, 0.5)
    assert (result.paired.n, result.only_a, result.only_b) == (40, 0, 2)
    assert result.real
    assert str(result).startswith("locomo em_set: trained 100.0 against bm25 50.0, difference +50.0 [+35.0, +65.0]")
    assert "a real difference; 2 questions" in str(result)
    few = compare(a[:3], b)
    assert not few.real
    assert "no real difference shown" in str(few)
    with pytest.raises(MemR1Error, match="share no scored question"):
        compare(a[:1], b[:1])
    with pytest.raises(MemR1Error, match="compare on one benchmark"):
        compare(a, [replace(p, benchmark="msc") for p in b])
