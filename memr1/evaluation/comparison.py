"""Is one system better than another? Paired by question, within a run or between runs of several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memr1.errors import MemR1Error
from memr1.evaluation.predictions import Prediction, by_question
from memr1.evaluation.scores import score
from memr1.evaluation.statistics import PairedDifference, paired_bootstrap


@dataclass(frozen=True)
class Comparison:
    """System a against system b over the questions that both answered."""

    benchmark: str
    a: str
    b: str
    metric: str
    mean_a: float
    mean_b: float
    paired: PairedDifference
    only_a: int
    only_b: int

    @property
    def real(self) -> bool:
        """True when the difference is unlikely to come from the choice of questions."""
        return self.paired.real

    def __str__(self) -> str:
        p = self.paired
        span = "" if p.low is None or p.high is None else f" [{100 * p.low:+.1f}, {100 * p.high:+.1f}]"
        verdict = "a real difference" if self.real else "no real difference shown"
        left_out = self.only_a + self.only_b
        note = f"; {left_out} questions answered by one system only were left out" if left_out else ""
        return (
            f"{self.benchmark} {self.metric}: {self.a} {100 * self.mean_a:.1f} against {self.b} "
            f"{100 * self.mean_b:.1f}, difference {100 * p.difference:+.1f}{span} points, "
            f"p = {p.p_value:.3f}, n = {p.n}: {verdict}{note}"
        )


def compare(
    a: Sequence[Prediction], b: Sequence[Prediction], *, metric: str = "em_set", seed: int = 0, resamples: int = 2000
) -> Comparison:
    """Paired comparison of two systems by question id; questions that only one side has are counted and left out.

    Raises MemR1Error when the sides mix systems, come from different benchmarks, or share no scored question.
    """
    owners_a, owners_b = {(p.benchmark, p.system) for p in a}, {(p.benchmark, p.system) for p in b}
    if len(owners_a) != 1 or len(owners_b) != 1:
        raise MemR1Error(f"compare: each side needs one system's predictions; found {owners_a} and {owners_b}")
    (benchmark, name_a), (other, name_b) = owners_a.pop(), owners_b.pop()
    if benchmark != other:
        raise MemR1Error(f"compare: {name_a} was run on {benchmark} and {name_b} on {other}; compare on one benchmark")
    left, right = by_question(a), by_question(b)
    keys = [k for k in left if k in right]
    pairs = [(score(left[k], metric), score(right[k], metric)) for k in keys]
    scored = [(x, y) for x, y in pairs if x is not None and y is not None]
    if not scored:
        raise MemR1Error(f"compare: {name_a} and {name_b} share no scored question; run both on the same questions")
    first, second = [x for x, _ in scored], [y for _, y in scored]
    return Comparison(
        benchmark=benchmark,
        a=name_a,
        b=name_b,
        metric=metric,
        mean_a=sum(first) / len(first),
        mean_b=sum(second) / len(second),
        paired=paired_bootstrap(first, second, seed=seed, resamples=resamples),
        only_a=len(left) - len(keys),
        only_b=len(right) - len(keys),
    )
