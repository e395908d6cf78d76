"""Is one system better than another? Paired by question, within a run or between runs of several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memr1.errors import MemR1Error
from memr1.evaluation.predictions import Prediction, by_question, load_predictions
from memr1.evaluation.scores import score
from memr1.evaluation.statistics import PairedDifference, crossed_bootstrap, paired_bootstrap


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
    seeds_a: tuple[float, ...] = ()
    """Means of each run of a, where there are several."""
    seeds_b: tuple[float, ...] = ()

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
            f"{self.benchmark} {self.metric}: {self.a} {100 * self.mean_a:.1f}{_seeds(self.seeds_a)} against {self.b} "
            f"{100 * self.mean_b:.1f}{_seeds(self.seeds_b)}, difference {100 * p.difference:+.1f}{span} points, "
            f"p = {p.p_value:.3f}, n = {p.n}: {verdict}{note}"
        )


def compare(
    a: Sequence[Prediction], b: Sequence[Prediction], *, metric: str = "em_set", seed: int = 0, resamples: int = 2000
) -> Comparison:
    """Paired comparison of two systems by question id; questions that only one side has are counted and left out.

    Raises MemR1Error when the sides mix systems, come from different benchmarks, share no scored question, or have
    different ones under one id.
    """
    owners_a, owners_b = {(p.benchmark, p.system) for p in a}, {(p.benchmark, p.system) for p in b}
    if len(owners_a) != 1 or len(owners_b) != 1:
        raise MemR1Error(f"compare: each side needs one system's predictions; found {owners_a} and {owners_b}")
    (benchmark, name_a), (other, name_b) = owners_a.pop(), owners_b.pop()
    if benchmark != other:
        raise MemR1Error(f"compare: {name_a} was run on {benchmark} and {name_b} on {other}; compare on one benchmark")
    left, right = by_question(a), by_question(b)
    keys = [k for k in left if k in right]
    for key in keys:
        if (left[key].question, left[key].gold) != (right[key].question, right[key].gold):
            raise MemR1Error(
                f"compare: question {'/'.join(key)} of {benchmark} or its gold is another one for {name_a} than for "
                f"{name_b}; evaluate both on the same data"
            )
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


def compare_seeds(
    a: Sequence[Sequence[Prediction]],
    b: Sequence[Sequence[Prediction]],
    *,
    paired_seeds: bool = False,
    metric: str = "em_set",
    seed: int = 0,
) -> Comparison:
    """Compare two systems of which each was trained with several seeds: (runs of a) against (runs of b).

    The interval covers the choice of questions and of seeds, see `crossed_bootstrap`. Questions that some run lacks are
    counted and left out; those that some run has no score for, such as a verdict of the judge, are left out.
    paired_seeds: whether run i of a and run i of b are one run, or began as one.
    Raises MemR1Error as `compare` does; one run on either side is compared as `compare` does.
    """
    if len(a) == len(b) == 1:
        return compare(a[0], b[0], metric=metric, seed=seed)
    if not a or not b:
        raise MemR1Error("compare: each side needs the predictions of at least one run")
    pairs = [compare(x, y, metric=metric, resamples=100) for x in a for y in b]  # each pair must be comparable
    runs_a, runs_b = [by_question(run) for run in a], [by_question(run) for run in b]
    shared = [k for k in runs_a[0] if all(k in run for run in (*runs_a, *runs_b))]
    scores = [[score(run[k], metric) for run in (*runs_a, *runs_b)] for k in shared]
    scored = [[s for s in of_question if s is not None] for of_question in scores if None not in of_question]
    if not scored:
        raise MemR1Error("compare: the runs share no scored question; run all on the same questions")
    rows = [list(row) for row in zip(*scored, strict=True)]  # one for each run
    first, second = rows[: len(a)], rows[len(a) :]
    means_a, means_b = ([sum(row) / len(row) for row in side] for side in (first, second))
    return replace(
        pairs[0],
        mean_a=sum(means_a) / len(means_a),
        mean_b=sum(means_b) / len(means_b),
        paired=crossed_bootstrap(first, second, paired_seeds=paired_seeds, seed=seed),
        only_a=len(set().union(*runs_a) - set(shared)),
        only_b=len(set().union(*runs_b) - set(shared)),
        seeds_a=tuple(means_a) if len(a) > 1 else (),
        seeds_b=tuple(means_b) if len(b) > 1 else (),
    )


def compare_runs(
    a: Sequence[Path],
    b: Sequence[Path],
    *,
    benchmark: str,
    system: str | None = None,
    against: str | None = None,
    metric: str = "em_set",
) -> list[Comparison]:
    """`memr1 compare`: systems of the runs a against those of the runs b, from the predictions that evaluation kept.

    system: of a; None is every one that all runs of both sides evaluated, each with its own like.
    against: of b; None is the same as `system`.
    Raises MemR1Error when a run lacks the predictions, or nothing is shared.
    """
    folders = [run / "predictions" / benchmark for run in (*a, *b)]
    for run, folder in zip((*a, *b), folders, strict=True):
        if not folder.is_dir():
            raise MemR1Error(f"{run}: no predictions on {benchmark}; `memr1 eval {run} --benchmark ...` makes them")
    if system is None:
        kept = [{file.stem for file in folder.glob("*.jsonl")} for folder in folders]
        systems = [
            file.stem for file in sorted(folders[0].glob("*.jsonl")) if all(file.stem in names for names in kept)
        ]
        if not systems:
            raise MemR1Error(f"the runs share no system on {benchmark}; name them with --system and --against")
    else:
        systems = [system]
    out = []
    for name in systems:
        other = against or name
        sides = [
            [load_predictions(run / "predictions" / benchmark / f"{chosen}.jsonl") for run in side]
            for chosen, side in ((name, a), (other, b))
        ]
        found = compare_seeds(sides[0], sides[1], paired_seeds=list(a) == list(b), metric=metric)
        out.append(replace(found, a=_label(name, a), b=_label(other, b)))
    return out


def _label(system: str, runs: Sequence[Path]) -> str:
    return f"{system} of {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}"


def _seeds(means: Sequence[float]) -> str:
    return f" ({', '.join(f'{100 * mean:.1f}' for mean in means)})" if means else ""
