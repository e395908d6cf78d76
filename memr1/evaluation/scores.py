"""MEASURES: what a prediction can be scored by. A measure gives 0.0 to 1.0, or None where it does not apply.

The text match of `memr1.rewards.match` comes first in every table; the others belong to benchmarks (`Source.measures`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from memr1.errors import MemR1Error
from memr1.evaluation.predictions import Prediction
from memr1.rewards.match import METRICS, declines, locomo_f1

Measure = Callable[[Prediction], float | None]


def score(prediction: Prediction, measure: str) -> float | None:
    """Score of one prediction; None where the measure does not apply. MemR1Error for an unknown measure."""
    if measure not in MEASURES:
        raise MemR1Error(f"measure {measure!r} is not one of {', '.join(MEASURES)}")
    return MEASURES[measure](prediction)


def _match(prediction: Prediction, metric: str) -> float | None:
    """Applies where there is a gold answer; a gold that only explains why there is none is not to be matched."""
    if prediction.abstain or prediction.gold is None or not str(prediction.gold).strip():
        return None
    return 0.0 if prediction.answer is None else METRICS[metric](prediction.answer, prediction.gold)


def _locomo_f1(prediction: Prediction) -> float | None:
    """LoCoMo's official score of its five categories (arXiv 2402.17753)."""
    if prediction.category_id not in (1, 2, 3, 4, 5) or (prediction.category_id != 5 and prediction.gold is None):
        return None
    return 0.0 if prediction.answer is None else locomo_f1(prediction.answer, prediction.gold, prediction.category_id)


def _abstained(prediction: Prediction) -> float | None:
    """1.0 where the answer says that the dialogue does not say; applies where that is right."""
    return float(declines(prediction.answer or "")) if prediction.abstain else None


def _required(prediction: Prediction) -> float | None:
    """Share of the contract's required texts that the answer holds, case and white space aside."""
    if prediction.contract is None or not prediction.contract.required:
        return None
    answer = _plain(prediction.answer)
    return sum(_plain(text) in answer for text in prediction.contract.required) / len(prediction.contract.required)


def _clean(prediction: Prediction) -> float | None:
    """1.0 where the answer holds no prohibited text."""
    if prediction.contract is None:
        return None
    answer = _plain(prediction.answer)
    return float(not any(_plain(text) in answer for text in prediction.contract.prohibited))


def _admissible(prediction: Prediction) -> float | None:
    """Share of the entries shown that come from required or admissible turns; does not apply where none is shown."""
    if prediction.contract is None or not prediction.shown_turns:
        return None
    good = {*prediction.evidence, *prediction.contract.admissible_turns}
    return sum(bool(good & set(turns)) for turns in prediction.shown_turns) / len(prediction.shown_turns)


def _contract(prediction: Prediction) -> float | None:
    """1.0 where the whole contract is kept: the answer holds all that is required (or declines, where it must) and
    nothing prohibited, and no prohibited memory was shown. Much recall cannot make up for a leak; without an answer
    none is kept."""
    if prediction.contract is None:
        return None
    if prediction.answer is None:
        return 0.0
    done = _abstained(prediction) if prediction.abstain else _required(prediction)
    leaked = {t for turns in prediction.shown_turns for t in turns} & set(prediction.contract.prohibited_turns)
    return float(done in (1.0, None) and _clean(prediction) == 1.0 and not leaked)


def _judged(prediction: Prediction) -> float | None:
    """The judge's verdict; does not apply where there is none."""
    return prediction.judged


def _plain(text: str | None) -> str:
    return " ".join((text or "").lower().split())


TEXT_MEASURES = tuple(METRICS)

MEASURES: dict[str, Measure] = {
    **{name: partial(_match, metric=name) for name in METRICS},
    "locomo_f1": _locomo_f1,
    "abstained": _abstained,
    "contract": _contract,
    "required": _required,
    "clean": _clean,
    "admissible": _admissible,
    "judge": _judged,
}
