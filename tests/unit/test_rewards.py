"""Text match and rewards. The reference rows of a published evaluation are compared where the data is at hand."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memr1.errors import MemR1Error
from memr1.rewards.base import RewardResult, make_reward
from memr1.rewards.match import METRICS, bleu1, em_set, em_squad, em_strict, f1_set, locomo_f1, word_tokens

SHARED = Path(os.environ.get("MEMR1_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@pytest.fixture(scope="module")
def reference_rows():
    path = SHARED / "locomo" / "metric_reference.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set MEMR1_SHARED_DATA to the folder that holds locomo/")
    return [row for rows in json.loads(path.read_text(encoding="utf-8")).values() for row in rows]


def test_all_385_published_f1_and_bleu_scores_are_reproduced(reference_rows):
    assert len(reference_rows) == 385
    f1_errors = [abs(f1_set(row["response"], row["answer"]) - row["f1_score"]) for row in reference_rows]
    bleu_errors = [abs(bleu1(row["response"], row["answer"]) - row["bleu_score"]) for row in reference_rows]
    assert max(f1_errors) <= 1e-12
    assert max(bleu_errors) <= 1e-12
    # the rows are no trivial set: many distinct values of both
    assert len({row["f1_score"] for row in reference_rows}) > 30
    assert len({row["bleu_score"] for row in reference_rows}) > 30


@pytest.mark.parametrize(
    ("prediction", "gold", "strict", "squad", "as_set"),
    [
        ("June 14, 2031", "14 June 2031", 0.0, 0.0, 1.0),
        ("  14 June 2031\n", "14 June 2031", 1.0, 1.0, 1.0),
        ("the Quiet Harbour.", "Quiet harbour", 0.0, 1.0, 0.0),
        ("Garden tools!", "garden tools", 0.0, 1.0, 1.0),
        ("2022", 2022, 1.0, 1.0, 1.0),
        ("mother-in-law", "mother in law", 0.0, 0.0, 0.0),
        ("very very happy", "very happy", 0.0, 0.0, 1.0),
        ("", "Rome", 0.0, 0.0, 0.0),
        ("", "A", 0.0, 0.0, 0.0),
    ],
)
def test_the_three_exact_matches_differ_in_what_they_forgive(prediction, gold, strict, squad, as_set):
    assert (em_strict(prediction, gold), em_squad(prediction, gold), em_set(prediction, gold)) == (
        strict,
        squad,
        as_set,
    )


def test_f1_of_token_sets_counts_each_token_once():
    # {8, may, 2023} and {7, may, 2023}: precision = recall = 2/3
    assert f1_set("15 June 2031", "14 June, 2031") == pytest.approx(2 / 3, abs=1e-15)
    # {a, b} against {a}: precision 1/2, recall 1, however often a is repeated
    assert f1_set("a a a b", "a") == pytest.approx(2 / 3, abs=1e-15)
    assert f1_set("...", "Rome") == 0.0


def test_bleu1_is_clipped_precision_times_brevity_penalty():
    assert bleu1("15 June 2031", "14 June 2031") == pytest.approx(2 / 3, abs=1e-12)
    assert bleu1("may may may may", "7 may") == pytest.approx(1 / 4, abs=1e-12)  # clipped to the one "may" of the gold
    # shorter than the gold: exp(1 - 6/3) with precision 1
    assert bleu1("25 May 2023", "The sunday before 25 May 2023") == pytest.approx(2.718281828459045**-1, abs=1e-12)
    assert bleu1("Paris", "Rome") == 0.0
    assert bleu1("", "Rome") == 0.0


def test_word_tokens_split_sentences_and_keep_abbreviations():
    assert word_tokens("none. nothing was said.") == ["none", ".", "nothing", "was", "said", "."]
    assert word_tokens("he saw dr. smith at 5 p.m. today.")[2:6] == ["dr.", "smith", "at", "5"]


def test_word_tokens_follow_the_rules_of_nltk_3_9_for_quotes_and_dashes():
    assert word_tokens("'the lean startup'") == ["'the", "lean", "startup", "'"]
    assert word_tokens("1990\u20141992") == ["1990\u20141992"]
    assert word_tokens("caroline's dog can't") == ["caroline", "'s", "dog", "ca", "n't"]


def test_locomo_f1_stems_and_drops_articles():
    assert locomo_f1("The painted pottery", "painting, pottery", 4) == 1.0
    # stems {run, race} of the prediction against {charity, race}: one of two on each side
    assert locomo_f1("running races", "a charity race", 2) == pytest.approx(0.5, abs=1e-15)


def test_locomo_f1_of_category_1_is_the_mean_of_the_best_match_per_gold_part():
    # hiking: 1.0 by "hike"; swimming: no part matches
    assert locomo_f1("hike, camp", "hiking, swimming", 1) == pytest.approx(0.5, abs=1e-15)
    # without the split the same texts share one stem of two
    assert locomo_f1("hike, paint, camp", "hiking", 1) == 1.0
    assert locomo_f1("hike, paint, camp", "hiking", 4) == pytest.approx(0.5, abs=1e-15)


def test_locomo_f1_of_category_3_ignores_what_follows_a_semicolon():
    assert locomo_f1("Likely no", "Likely no; she enjoys quiet evenings", 3) == 1.0
    assert locomo_f1("Likely no", "Likely no; she enjoys quiet evenings", 4) < 0.6


def test_locomo_f1_of_category_5_wants_the_official_words_and_other_numbers_are_refused():
    assert locomo_f1("No information available.", None, 5) == 1.0
    assert locomo_f1("unknown", None, 5) == 0.0
    with pytest.raises(MemR1Error, match="6 is no category of LoCoMo"):
        locomo_f1("x", "y", 6)


@given(st.text(), st.text())
def test_every_metric_stays_between_zero_and_one(prediction, gold):
    for metric in METRICS.values():
        assert 0.0 <= metric(prediction, gold) <= 1.0 + 1e-12


@given(st.lists(st.sampled_from(["may", "7", "2023", "rome", "cat"]), min_size=1, max_size=6))
def test_set_metrics_do_not_depend_on_order(words):
    assert em_set(" ".join(reversed(words)), " ".join(words)) == 1.0
    assert f1_set(" ".join(reversed(words)), " ".join(words)) == 1.0


def test_a_missing_gold_is_an_error_and_never_zero():
    for gold in (None, "", "  "):
        result = make_reward("em_set")("Rome", gold)
        assert result.value is None
        assert "no gold" in result.error


def test_an_unparsable_answer_scores_zero():
    assert make_reward("f1")(None, "Rome") == RewardResult("f1", "trajectory", 0.0, parts={"f1": 0.0})


def test_gold_numbers_are_cast_to_text():
    assert make_reward("em_strict")("2022", 2022).value == 1.0
    assert make_reward("em_set")("0", 0).value == 1.0


def test_weighted_reward_adds_weighted_parts_and_keeps_them_apart():
    reward = make_reward("0.25*em_set + 0.75*f1")
    result = reward("15 June 2031", "14 June 2031")
    assert result.parts == {"em_set": 0.0, "f1": pytest.approx(2 / 3)}
    assert result.value == pytest.approx(0.5)
    assert reward.name == "0.25*em_set+0.75*f1" and make_reward(reward.name) == reward
    assert reward("14 June 2031", "14 June 2031").value == 1.0
    assert make_reward("0.1*em_strict+0.2*em_set+0.7*f1")("Rome", "Rome").value == 1.0  # exactly, not 0.999...
    assert reward("15 June 2031", None).value is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("em_sett", "did you mean em_set"),
        ("1*blue1", "did you mean bleu1"),
        ("zzzzzz", "is not one of em_strict"),
        ("", "'' is not one of em_strict"),
        ("much*f1", "'much' is no weight; write sums like 0.5"),
        ("nan*f1", "weight of f1 must be above 0, is nan"),
        ("2*em_set+-1*f1", "weight of f1 must be above 0, is -1"),
        ("em_set+0.5*f1", "add up to 1.5; make them 1"),
        ("judge", "judge needs a model that judges; set judge.url"),
    ],
)
def test_a_bad_spec_is_refused_with_the_remedy(spec, words):
    with pytest.raises(MemR1Error, match=words):
        make_reward(spec)


def test_a_result_is_a_value_or_an_error():
    with pytest.raises(ValueError, match="value or an error"):
        RewardResult("x", "trajectory", None)
    with pytest.raises(ValueError, match="finite"):
        RewardResult("x", "trajectory", float("nan"))
