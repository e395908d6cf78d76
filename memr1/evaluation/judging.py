"""Predictions judged by a language model, in a column after all others, with what is needed to weigh it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memr1.evaluation.predictions import Prediction
from memr1.evaluation.rows import JudgeRow
from memr1.rollout.judge import PROMPT_ID, LLMJudge


def judge_predictions(predictions: Sequence[Prediction], judge: LLMJudge) -> tuple[list[Prediction], JudgeRow]:
    """The predictions with verdicts, and a row about the judge.

    A prediction without an answer is wrong without asking; one without a gold answer is not judged. Where the judge
    fails, `judge_error` says why, and the question is left out of the judge's mean and counted.
    """
    asked = [i for i, p in enumerate(predictions) if p.gold and p.gold.strip() and p.answer is not None]
    items = [(p.question, p.answer or "", p.gold or "") for p in (predictions[i] for i in asked)]
    verdicts = dict(zip(asked, judge.verdicts(items), strict=True))
    judged = []
    for i, p in enumerate(predictions):
        value, error = verdicts.get(i, (0.0 if p.gold and p.gold.strip() else None, None))
        judged.append(replace(p, judged=value, judge_error=error))
    leniency = judge.leniency([(p.question, p.gold) for p in predictions if p.gold and p.gold.strip()])
    return judged, JudgeRow(
        model=judge.config.model,
        prompt=PROMPT_ID,
        errors=unjudged(judged),
        accepts_swapped=leniency.swapped,
        accepts_vague=leniency.vague,
        probes=leniency.questions,
    )


def unjudged(predictions: Sequence[Prediction]) -> int:
    """Answers that the judge gave no verdict on."""
    return sum(p.judge_error is not None for p in predictions)
