"""How sure a mean is, and whether a difference between two systems is real. Used by tables and reports.

Questions are resampled one by one. Questions of one dialogue share its bank, so with few dialogues the true uncertainty
is larger than these intervals say. Only the crossed ones cover the seed of a training run, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memr1.errors import MemR1Error

# scipy draws (batch, n) indices at a time; this bounds their memory to about 32 MB
_MAX_DRAWS = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval. `low` and `high` are None where the values allow no statement (n = 1)."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over the same questions."""

    difference: float
    low: float | None
    high: float | None
    p_value: float
    n: int
    confidence: float

    @property
    def real(self) -> bool:
        """True when both the interval excludes 0 and the p-value is below 1 - confidence."""
        if self.low is None or self.high is None:
            return False
        return (self.low > 0 or self.high < 0) and self.p_value < 1 - self.confidence


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean (Efron 1979; scipy.stats.bootstrap).

    values: (n,) one score per question. Equal input gives equal output (the seed is fixed).
    Where all values are equal a bootstrap would return a width of 0. All 0 or all 1, as an exact match gives, get the
    exact binomial (Clopper-Pearson) interval instead: 5 of 5 right is [0.48, 1.00]. Other equal values keep the width
    of 0, and a single one has no interval (low and high are None).
    Raises MemR1Error for no values, values that are not finite, and impossible settings.
    """
    data = _checked(values, confidence, resamples, "values")
    n, mean = len(data), sum(data) / len(data)
    if len(set(data)) == 1:
        if data[0] in (0.0, 1.0):
            from scipy.stats import binomtest

            exact = binomtest(round(sum(data)), n).proportion_ci(confidence_level=confidence, method="exact")
            return Interval(mean, float(exact.low), float(exact.high), n)
        return Interval(mean, None, None, n) if n == 1 else Interval(data[0], data[0], data[0], n)
    low, high = _percentile_interval(data, confidence, resamples, seed)
    return Interval(mean, low, high, n)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> PairedDifference:
    """Difference of two systems over the same questions, with its interval and p-value.

    a, b: (n,) scores of the same questions in the same order.
    Interval: percentile bootstrap of the mean of a - b. p-value: two-sided, from the sign-flip permutation test of the
    same differences (scipy.stats.permutation_test), which is exact for few questions, where a bootstrap p-value would
    call three wins out of three certain. All differences equal: the interval has no width and the p-value decides.
    Raises MemR1Error for unequal lengths, and as `bootstrap_interval` does.
    """
    if len(a) != len(b):
        raise MemR1Error(
            f"paired_bootstrap: a has {len(a)} values and b has {len(b)}; give scores of the same questions"
        )
    first, second = _checked(a, confidence, resamples, "a"), _checked(b, confidence, resamples, "b")
    gaps = [x - y for x, y in zip(first, second, strict=True)]
    n, mean = len(gaps), sum(gaps) / len(gaps)
    if not any(gaps):
        return PairedDifference(0.0, None if n == 1 else 0.0, None if n == 1 else 0.0, 1.0, n, confidence)
    if n == 1:
        return PairedDifference(mean, None, None, 1.0, n, confidence)
    p_value = _sign_flip_p(gaps, resamples, seed)
    if len(set(gaps)) == 1:
        return PairedDifference(mean, mean, mean, p_value, n, confidence)
    low, high = _percentile_interval(gaps, confidence, resamples, seed)
    return PairedDifference(mean, low, high, p_value, n, confidence)


def crossed_bootstrap(
    a: Sequence[Sequence[float]],
    b: Sequence[Sequence[float]],
    *,
    paired_seeds: bool = False,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Difference of two ways of training, each run with several seeds, over the same questions.

    a, b: (seeds, n) scores; the questions are paired.
    paired_seeds: whether row i of a and of b have something in common, such as the warm start of one run, so that they
        are drawn together; otherwise the seeds of a and b are drawn apart and may differ in number.
    Seeds and questions are resampled independently of one another (the pigeonhole bootstrap, Owen 2007), since every
    seed answers every question. Of S seeds S - 1 are drawn: drawing S would understate the variance between few seeds
    by (S - 1) / S (Rao and Wu 1988). A side with one seed keeps it, and then its luck is not covered. p-value:
    two-sided, the share of resamples on the other side of 0.
    Raises MemR1Error for rows of unequal length, and as `bootstrap_interval` does.
    """
    import numpy as np

    if not a or not b or len({len(row) for row in (*a, *b)}) != 1:
        raise MemR1Error("crossed_bootstrap: give at least one seed a side, and scores of the same questions for each")
    if paired_seeds and len(a) != len(b):
        raise MemR1Error(f"crossed_bootstrap: {len(a)} seeds and {len(b)} cannot be paired; give as many a side")
    first = np.array([_checked(row, confidence, resamples, "a") for row in a])
    second = np.array([_checked(row, confidence, resamples, "b") for row in b])
    n, rng = first.shape[1], np.random.default_rng(seed)
    difference = float(first.mean() - second.mean())
    drawn = np.empty(resamples)
    step = max(1, _MAX_DRAWS // n)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        left = _seed_weights(rng, len(first), size)
        right = left if paired_seeds else _seed_weights(rng, len(second), size)
        gaps = left @ first - right @ second
        counts = rng.multinomial(n, np.full(n, 1 / n), size=size)
        drawn[start : start + size] = (counts * gaps).sum(axis=1) / n
    tail = (1 - confidence) / 2
    low, high = (float(v) for v in np.quantile(drawn, (tail, 1 - tail)))
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return PairedDifference(difference, low, high, min(1.0, 2 * (beyond + 1) / (resamples + 1)), n, confidence)


def crossed_interval(values: Sequence[Sequence[float]]) -> Interval:
    """Mean over several seeds and the same questions; the interval covers the choice of both, see `crossed_bootstrap`.

    values: (seeds, n) scores. All 0 or all 1 get the exact interval of one seed, as in `bootstrap_interval`. Raises
    MemR1Error as `crossed_bootstrap` does.
    """
    if len({v for row in values for v in row}) == 1 and len({len(row) for row in values}) == 1:
        return bootstrap_interval(values[0])
    found = crossed_bootstrap(values, [[0.0] * len(row) for row in values[:1]])
    return Interval(found.difference, found.low, found.high, found.n)


def _seed_weights(rng: Any, seeds: int, size: int) -> Any:
    """(size, seeds) shares of each seed in a resample."""
    import numpy as np

    if seeds == 1:
        return np.ones((size, 1))
    return rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=size) / (seeds - 1)


def _percentile_interval(data: list[float], confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import bootstrap

    result = bootstrap(
        (np.asarray(data, dtype=float),),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _MAX_DRAWS // len(data)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _sign_flip_p(gaps: list[float], resamples: int, seed: int) -> float:
    import numpy as np
    from scipy.stats import permutation_test

    result = permutation_test(
        (np.asarray(gaps, dtype=float),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _MAX_DRAWS // len(gaps)),
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(result.pvalue))


def _checked(values: Sequence[float], confidence: float, resamples: int, name: str) -> list[float]:
    if not 0 < confidence < 1:
        raise MemR1Error(f"bootstrap: confidence must lie between 0 and 1, is {confidence}; 0.95 is usual")
    if resamples < 100:
        raise MemR1Error(f"bootstrap: resamples must be at least 100, is {resamples}; 2000 is usual")
    data = [float(v) for v in values]
    if not data:
        raise MemR1Error(f"bootstrap: {name} is empty; an interval needs at least one score")
    for i, v in enumerate(data):
        if not math.isfinite(v):
            raise MemR1Error(f"bootstrap: {name}[{i}] is {v}; leave questions without a score out")
    return data
