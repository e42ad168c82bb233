"""How many times less budget a candidate needs than its baseline, from runs of several lengths of both.

The speed-up s lies where D(s) = 0:

    D(s) = L_candidate(T / s) - L_baseline(T)    for s >= 1
    D(s) = L_candidate(T) - L_baseline(s T)      for s < 1

so that the better arm's curve is read where the worse arm ends. D rises with s and is continuous at 1. Neither curve
is read outside the lengths that were run: what lies beyond is censored.

The interval is the wider of two. Student's: all s at which the mean over seeds of D(s), each seed with a line of its
own in the shape of the fitted curve, cannot be told from 0; it holds however the runs of a seed are correlated
(branches of one trunk, a speed that varies over seeds). And the percentiles of a parametric bootstrap about the fitted
curves, which allows for the estimated shape and for three seeds that agree by chance. What the mean curves deviate from
a + b N^-beta, measured beside the runs' noise, is part of both: it is shared by all seeds, so that more of them do not
average it away.

A diverged run costs its budget and is started anew: with a share p of the candidate's runs diverged, the speed-up of
those that finish is multiplied by 1 - p, the share that this experiment kept. The uncertainty of p is part of the high
end, so that diverging by chance refutes no claim (distances from estimates that are multiplied add in squares on the
logarithm: Zou and Donner, Statistics in Medicine 27, 2008). It is no part of the low end: p is known no better where
none of ten runs diverged than where one did, and a low end that the first diverged run moved by more than its cost
would let power fall as seeds are added. So the low end holds for the share that was observed, and p is given beside it
with Clopper and Pearson's interval for the effective number of runs (Korn and Graubard, Survey Methodology 24, 1998):
the branches of a trunk that diverged are one event, not many. Nothing is credited where the baseline's runs diverge.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv, stdtrit  # type: ignore[import-untyped]  # scipy ships no types

from inference.fitted import FEWEST, Array, Curve, Curves, Fitted, Spread, indexed, scaled_normal
from inference.intervals import Interval, StatisticsError

BELOW, ABOVE = "below", "above"  # the range that was run
DRAWS = 20_000
GRID = 200  # values of s on either side of 1, at which Student's interval is tested
ROUNDING = 1e-4  # how far outside the range a number is still its end

Losses = Mapping[int, Sequence[tuple[float, float | None]]]  # by seed: (N, final loss), None of a diverged run
NOTHING = Interval(math.nan, 0.0, math.inf)


class Arm(NamedTuple):
    """What the runs of an arm tell beside the speed-up; p-values are nan where the runs are too few.

    diverged is the share of its runs that did. spread.level is what the two arms of a seed do not share, half of it
    each.
    """

    diverged: Interval
    curve: Curve | None = None  # None: too few runs finished
    spread: Spread | None = None
    slope_p: float = math.nan  # of equal slopes in log N over seeds
    fit_p: float = math.nan  # of the mean losses being on a curve a + b N^-beta


class SpeedUp(NamedTuple):
    """interval.estimate is nan if the speed-up lies BELOW or ABOVE the range that was run, of which bound is the end.

    An interval's end is 0 or inf if it is not within the range. It is the range's end itself, as high of a speed-up
    BELOW or low of one ABOVE, if the whole range is excluded.
    """

    interval: Interval
    candidate: Arm
    baseline: Arm
    censored: str | None = None
    bound: float = math.nan


def speed_up(
    candidate: Losses,
    baseline: Losses,
    budget: float,
    *,
    candidate_excess: float = 0.0,
    baseline_excess: float = 0.0,
    draws: int = DRAWS,
) -> SpeedUp:
    """The candidate's speed-up over the baseline at T = budget, with its 95 % interval.

    Both arms: three or more lengths, T among them, full schedules of their own; seeds that only one has are left out.
    *_excess: nats by which an arm's losses may lie above its own optimum, from imperfect tuning; the true loss is
    lower by 0 to that, so that each moves one end of the interval. A seed takes part with three finished lengths of
    either arm; a single one bounds nothing.

    Raises: StatisticsError: if an arm has fewer than three lengths or none of T, or a number makes no sense.
    """
    seeds = _checked(candidate, baseline, budget, candidate_excess, baseline_excess)
    shares = [_diverged([arm[seed] for seed in seeds]) for arm in (candidate, baseline)]
    if shares[0].estimate == 1 and shares[1].estimate < 1:
        return SpeedUp(Interval(0.0, 0.0, 0.0), Arm(shares[0]), Arm(shares[1]))
    finished = [_finished(arm, seeds, budget) for arm in (candidate, baseline)]
    used = [seed for seed in seeds if all(len({n for n, _ in arm[seed]}) >= FEWEST for arm in finished)]
    if not used or not all(any(n == 1 for seed in used for n, _ in arm[seed]) for arm in finished):
        return SpeedUp(NOTHING, Arm(shares[0]), Arm(shares[1]))
    arms = [Fitted(indexed([(seed, n, loss) for seed in used for n, loss in arm[seed]])) for arm in finished]
    pair = _Pair(*arms)
    estimate = float(pair.root(*(_single(arm.curve) for arm in arms))[0])
    interval = pair.interval(estimate, candidate_excess, baseline_excess, draws) if len(used) > 1 else NOTHING
    level = math.sqrt(pair.excess_level / 2)
    described = [
        Arm(share, arm.curve, arm.spread(level), arm.slope_p, arm.fit_p)
        for share, arm in zip(shares, arms, strict=True)
    ]
    return _reported(interval._replace(estimate=estimate), pair, described[0], described[1])


class _Pair:
    """Two fitted arms, and where their losses are equal."""

    def __init__(self, candidate: Fitted, baseline: Fitted) -> None:
        self.candidate, self.baseline = candidate, baseline
        self.lowest, self.highest = _shortest(baseline), 1 / _shortest(candidate)
        ends = np.asarray([1.0])
        difference = (candidate.losses(ends) - baseline.losses(ends))[:, 0]
        expected = sum(arm.variance * float(arm.leverage(ends)[0]) for arm in (candidate, baseline))
        # what the seeds' levels differ by over arms, beyond what the runs' noise makes of them
        self.excess_level = max(0.0, float(difference.var(ddof=1)) - expected) if difference.size > 1 else 0.0

    def root(self, candidate: Curves, baseline: Curves) -> Array:
        """The s at which D is 0: 0 or inf beyond the range."""
        ahead = candidate.level <= baseline.level
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slope = np.where(ahead, candidate.slope, baseline.slope)
            distance = np.abs(candidate.level - baseline.level)
            beta = np.where(ahead, candidate.beta, baseline.beta)
            factor = (1 + beta * np.where(distance == 0, 0.0, distance / slope)) ** (1 / beta)
        s = np.where(ahead, factor, 1 / factor)
        s = np.where(s > self.highest * (1 + ROUNDING), math.inf, np.minimum(s, self.highest))
        return np.where(s < self.lowest * (1 - ROUNDING), 0.0, np.maximum(s, self.lowest))

    def interval(self, estimate: float, candidate_excess: float, baseline_excess: float, draws: int) -> Interval:
        """The wider of Student's and the bootstrap's."""
        low, high = self._student(candidate_excess, baseline_excess)
        drawn = self._bootstrap(candidate_excess, baseline_excess, draws)
        return Interval(estimate, min(low, drawn[0], estimate), max(high, drawn[1], estimate))

    def _student(self, candidate_excess: float, baseline_excess: float) -> tuple[float, float]:
        candidate, baseline = self.candidate, self.baseline
        log_s = np.concatenate(
            [np.linspace(math.log(self.lowest), 0, GRID)[:-1], np.linspace(0, math.log(self.highest), GRID)]
        )
        at = np.exp(-np.maximum(log_s, 0)), np.exp(np.minimum(log_s, 0))
        distance = candidate.losses(at[0]) - baseline.losses(at[1])  # D, (seeds, K)
        n = len(distance)
        of_seeds = distance.var(0, ddof=1) / n
        # 1: the curve's own deviation where it is read, beside what the others' do to the fit
        of_fit = [arm.misfit * (1 + arm.leverage(x)) for arm, x in zip((candidate, baseline), at, strict=True)]
        known = of_seeds**2 / (n - 1) + sum(
            each**2 / arm.misfit_dof for each, arm in zip(of_fit, (candidate, baseline), strict=True)
        )
        variance = of_seeds + sum(of_fit)
        dof = np.where(known > 0, variance**2 / np.where(known > 0, known, 1), n - 1)  # Welch and Satterthwaite
        half = stdtrit(dof, 0.975) * np.sqrt(variance)
        mean = distance.mean(0)
        low = _crossing(log_s, mean + baseline_excess + half)
        high = -_crossing(-log_s[::-1], -(mean - candidate_excess - half)[::-1])
        return (0.0 if low == -math.inf else math.exp(min(low, log_s[-1]))), (
            math.inf if high == math.inf else math.exp(max(high, log_s[0]))
        )

    def _bootstrap(self, candidate_excess: float, baseline_excess: float, draws: int) -> tuple[float, float]:
        draw = np.random.default_rng(0)
        candidate, baseline = (arm.redrawn(draw, draws) for arm in (self.candidate, self.baseline))
        n = self.candidate.seeds
        level = candidate.level + scaled_normal(draw, self.excess_level / n, n - 1, (draws,))
        tail = max(1, round(0.025 * draws))
        low = np.sort(self.root(candidate._replace(level=level + baseline_excess), baseline))[tail - 1]
        high = np.sort(self.root(candidate._replace(level=level - candidate_excess), baseline))[-tail]
        return float(low), float(high)


def _crossing(at: Array, values: Array) -> float:
    """Where values that start below 0 first reach it: -inf if they never were below, inf if they never do."""
    reached = values >= 0
    if not reached.any():
        return math.inf
    i = int(reached.argmax())
    if i == 0:
        return -math.inf
    return float(at[i - 1] + (at[i] - at[i - 1]) * values[i - 1] / (values[i - 1] - values[i]))


def _reported(interval: Interval, pair: _Pair, candidate: Arm, baseline: Arm) -> SpeedUp:
    """The speed-up with the cost of diverged runs, and what lies beyond the range censored."""
    estimate, low, high = _restarted(interval, candidate.diverged)
    low, high = (0.0 if low < pair.lowest else low), (math.inf if high > pair.highest else high)
    censored = BELOW if estimate < pair.lowest else ABOVE if estimate > pair.highest else None
    if censored is None:
        return SpeedUp(Interval(estimate, low, high), candidate, baseline)
    bound = pair.lowest if censored == BELOW else pair.highest
    return SpeedUp(Interval(math.nan, low, high), candidate, baseline, censored, bound)


def _restarted(interval: Interval, diverged: Interval) -> Interval:
    """The interval times 1 - diverged, whose uncertainty only the high end has."""
    kept, most = 1 - diverged.estimate, 1 - diverged.low
    estimate, low, high = (each * kept for each in interval)
    if not diverged.estimate or not 0 < estimate < math.inf or high == math.inf:
        return Interval(estimate, low, high)
    return Interval(estimate, low, estimate * math.exp(math.hypot(math.log(high / estimate), math.log(most / kept))))


def _diverged(seeds: Sequence[Sequence[tuple[float, float | None]]]) -> Interval:
    """The share of diverged runs."""
    by_seed = np.asarray([np.mean([loss is None for _, loss in runs]) for runs in seeds])
    runs, share = sum(len(each) for each in seeds), float(by_seed.mean())
    n = float(runs)
    if 0 < share < 1:
        variance = float(by_seed.var(ddof=1)) / len(seeds) if len(seeds) > 1 else math.inf
        n = min(max(share * (1 - share) / variance if variance else n, len(seeds)), runs)
    count = share * n
    low = float(betaincinv(count, n - count + 1, 0.025)) if share > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, 0.975)) if share < 1 else 1.0
    return Interval(share, low, high)


def _finished(arm: Losses, seeds: Sequence[int], budget: float) -> dict[int, list[tuple[float, float]]]:
    """The finished runs of the seeds, lengths in shares of the budget."""
    return {seed: [(n / budget, loss) for n, loss in arm[seed] if loss is not None] for seed in seeds}


def _shortest(arm: Fitted) -> float:
    """The shortest length that two seeds finished, or one if there are no two."""
    counts = [np.unique(arm.runs.seed[arm.runs.n == n]).size for n in arm.lengths]
    return float(min(n for n, count in zip(arm.lengths, counts, strict=True) if count >= min(2, arm.seeds)))


def _single(curve: Curve) -> Curves:
    return Curves(*(np.asarray([each]) for each in curve))


def _checked(candidate: Losses, baseline: Losses, budget: float, *excess: float) -> list[int]:
    """The seeds that both arms have. Raises StatisticsError unless a speed-up can be made of the numbers."""
    if not 0 < budget < math.inf:
        raise StatisticsError(f"speed_up needs a finite budget > 0, got {budget}; pass T")
    if not all(0 <= each < math.inf for each in excess):
        raise StatisticsError(f"speed_up needs excesses of 0 nats or more, got {list(excess)}; pass 0 if there is none")
    seeds = sorted(candidate.keys() & baseline.keys())
    if not seeds:
        raise StatisticsError(
            f"speed_up compares runs of the same seeds, got {sorted(candidate)} and {sorted(baseline)}; run common ones"
        )
    for name, arm in (("candidate", candidate), ("baseline", baseline)):
        runs = [run for seed in seeds for run in arm[seed]]
        lengths = sorted({n for n, _ in runs})
        if len(lengths) < FEWEST or budget not in lengths:
            raise StatisticsError(
                f"speed_up needs {FEWEST} or more lengths of the {name}, and T={budget:g}, got {lengths}; add runs"
            )
        if lengths[0] <= 0 or lengths[-1] > budget:
            raise StatisticsError(f"speed_up needs lengths in (0, T={budget:g}], got {lengths} of the {name}; correct")
        if not all(math.isfinite(loss) for _, loss in runs if loss is not None):
            raise StatisticsError(f"speed_up needs finite losses, got inf or nan of the {name}; pass None if diverged")
    return seeds
