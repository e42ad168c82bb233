"""Intervals of means, paired differences and ratios: numbers in, numbers out. Every interval is a 95 % one."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class StatisticsError(ValueError):
    """Numbers that no statistic can be made of; one clear line."""


class Interval(NamedTuple):
    """An estimate and its 95 % interval; bounds may be infinite, the estimate nan where there is none."""

    estimate: float
    low: float
    high: float


class Paired(NamedTuple):
    """The mean difference over n seeds, and its sd over them, nan for a single one."""

    difference: Interval
    sd: float
    n: int


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with Student's interval; a single value bounds nothing."""
    numbers = np.asarray(values, dtype=np.float64)
    if not numbers.size or not np.isfinite(numbers).all():
        raise StatisticsError(f"mean_interval needs one or more finite numbers, got {list(values)}; leave out the rest")
    mean = float(numbers.mean())
    if numbers.size == 1:
        return Interval(mean, -math.inf, math.inf)
    half = _student(numbers.size - 1) * float(numbers.std(ddof=1)) / math.sqrt(numbers.size)
    return Interval(mean, mean - half, mean + half)


def paired(candidate: Mapping[int, float], baseline: Mapping[int, float]) -> Paired:
    """Candidate minus baseline over the seeds that both have."""
    differences = [candidate[seed] - baseline[seed] for seed in _common("paired", candidate, baseline)]
    n = len(differences)
    return Paired(mean_interval(differences), float(np.std(differences, ddof=1)) if n > 1 else math.nan, n)


def pooled_sd(arms: Sequence[Mapping[int, float]]) -> float:
    """The sd over seeds of several arms' losses, each about its own mean: variances weighted by degrees of freedom.

    Raises: StatisticsError: if no arm has two seeds.
    """
    groups = [list(arm.values()) for arm in arms if len(arm) > 1]
    dof = sum(len(group) - 1 for group in groups)
    if not dof or not all(math.isfinite(each) for group in groups for each in group):
        raise StatisticsError(f"pooled_sd needs an arm of two or more finite losses, got {list(arms)}; add a seed")
    squares = sum((each - sum(group) / len(group)) ** 2 for group in groups for each in group)
    return math.sqrt(squares / dof)


def gap_closed(
    candidate_half: Mapping[int, float | None],
    baseline_half: Mapping[int, float | None],
    baseline_full: Mapping[int, float | None],
) -> Interval:
    """The share of what the baseline gains from T/2 to T that the candidate has at T/2 already.

    The half-budget test of Sophia's paper (arXiv:2305.14342) as a number,
    f = (L_b(T/2) - L_c(T/2)) / (L_b(T/2) - L_b(T)): 1 is the paper's 2x, 0 no effect. The interval is Fieller's over
    the seeds that all three have: exact for normal losses, however they vary over seeds and arms. It is infinite, as
    Fieller's is, where the baseline's gain cannot be told from none.

    A seed with a diverged run is left out. A candidate's costs its budget and is started anew, as in curves.py: with a
    share p of them diverged, f is 1 - p times that of the others. None of it is credited where the baseline diverges.
    """
    seeds = _common("gap_closed", candidate_half, baseline_half, baseline_full)
    arms = candidate_half, baseline_half, baseline_full
    rows = [[arm[seed] for arm in arms] for seed in seeds]
    kept = sum(loss is not None for loss, *_ in rows) / len(rows)
    finished = np.asarray([row for row in rows if None not in row], np.float64)
    if not kept:
        return Interval(-math.inf, -math.inf, -math.inf)
    if not len(finished):
        return Interval(math.nan, -math.inf, math.inf)
    if not np.isfinite(finished).all():
        raise StatisticsError("gap_closed needs finite losses, got inf or nan; pass None for a diverged run")
    candidates, halves, fulls = finished.T
    return Interval(*(each * kept for each in _fieller(halves - candidates, halves - fulls)))


def divided(interval: Interval, by: Interval) -> Interval:
    """The quotient; its bounds are those of the worst cases, so it is never too narrow."""
    high = interval.high / by.low if by.low > 0 else math.inf
    return Interval(interval.estimate / by.estimate, interval.low / by.high, high)


def _fieller(numerator: Array, denominator: Array) -> Interval:
    """The ratio of two means over seeds: all f for which numerator - f denominator may have the mean 0."""
    n, top, bottom = numerator.size, float(numerator.mean()), float(denominator.mean())
    estimate = top / bottom if bottom > 0 else math.nan
    if n < 2:
        return Interval(estimate, -math.inf, math.inf)
    covariance = np.cov(numerator, denominator) * _student(n - 1) ** 2 / n
    # leading f^2 - 2 middle f + last <= 0
    leading, middle, last = bottom**2 - covariance[1, 1], top * bottom - covariance[0, 1], top**2 - covariance[0, 0]
    if bottom <= 0 or leading <= 0:
        return Interval(estimate, -math.inf, math.inf)
    root = math.sqrt(max(0.0, middle**2 - leading * last))
    return Interval(estimate, float((middle - root) / leading), float((middle + root) / leading))


def _student(dof: int) -> float:
    """How many standard errors a two-sided 95 % interval reaches."""
    return float(stdtrit(dof, 0.975))


def _common(who: str, *arms: Mapping[int, object]) -> list[int]:
    """The seeds that all arms have, in order."""
    seeds = sorted(set.intersection(*(set(arm) for arm in arms)))
    if not seeds:
        raise StatisticsError(
            f"{who} compares runs of the same seeds, got {[sorted(arm) for arm in arms]}; run common ones"
        )
    return seeds
