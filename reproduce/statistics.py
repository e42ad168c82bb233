"""Intervals, paired tests, fitted curves and the rule that gives a verdict: numbers in, numbers out.

Every interval is a 95 % one. The same input gives the same numbers: the bootstrap's draws are fixed.

A diverged run comes as None and never disappears. A candidate's makes the interval's low end the worst value there
is (0 for a speed-up, -inf for a gap), so that comparison cannot be "reproduced"; where nothing of the candidate is
left, all three numbers are the worst. A baseline's leaves nothing to compare with: (nan, worst, best), "undecided".
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student  # type: ignore[import-untyped]  # scipy ships no types

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

RULE = (
    'A claim is "reproduced" if the 95 % interval reaches the claimed value and lies wholly on the claim\'s side of '
    "the middle between no effect and the claim (for ratios the geometric middle). "
    'It is "not reproduced" if the whole interval falls short of the claimed value, and "undecided" otherwise.'
)
MOST_SEEDS = 100  # a forecast beyond this is no advice
DRAWS = 2000
BETAS = (0.02, 2.0)  # 0.02 is all but a logarithm; losses of language models fall with exponents below 1


class StatisticsError(ValueError):
    """Numbers that no statistic can be made of; one clear line."""


class Interval(NamedTuple):
    """An estimate and its 95 % interval; bounds may be infinite, the estimate nan where there is none."""

    estimate: float
    low: float
    high: float


class Paired(NamedTuple):
    """The mean difference over seeds; p_value is nan where none was asked for, sd for a single seed."""

    difference: Interval
    sd: float
    p_value: float
    n: int


class PowerLaw(NamedTuple):
    """loss = a + b N^-beta."""

    a: float
    b: float
    beta: float

    def loss(self, budget: float) -> float:
        """The loss after N = budget."""
        return float(self.a + self.b * budget**-self.beta)

    def budget_for(self, loss: float) -> float:
        """The N at which the loss is reached: inf if never, 0 if a flat curve lies at or below it."""
        if self.b == 0:
            return 0.0 if loss >= self.a else math.inf
        if loss <= self.a:
            return math.inf
        return math.exp((math.log(self.b) - math.log(loss - self.a)) / self.beta)


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


def paired(candidate: Mapping[int, float], baseline: Mapping[int, float], *, no_effect: float | None = None) -> Paired:
    """Candidate minus baseline over the seeds that both have; no_effect: what the p-value is against, None for none."""
    differences = [candidate[seed] - baseline[seed] for seed in _common("paired", candidate, baseline)]
    interval, n = mean_interval(differences), len(differences)
    sd = float(np.std(differences, ddof=1)) if n > 1 else math.nan
    if no_effect is None or n == 1:
        return Paired(interval, sd, math.nan, n)
    if sd == 0:
        return Paired(interval, sd, float(interval.estimate == no_effect), n)
    statistic = abs(interval.estimate - no_effect) * math.sqrt(n) / sd
    return Paired(interval, sd, 2 * float(student.sf(statistic, n - 1)), n)


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


def fit_power_law(budgets: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The least-squares curve a + b N^-beta, a >= 0, b >= 0, beta within BETAS, of those through the mean loss.

    A budget may occur several times (seeds). b is 0 only if the losses do not fall with the budget.
    """
    numbers, values = np.asarray(budgets, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    _check_runs("fit_power_law", numbers, values)
    longest = float(numbers.max())
    low, high = BETAS
    for _ in range(6):  # each round narrows beta about 20-fold
        betas = np.geomspace(low, high, 41)
        curves = _Curves(numbers / longest, np.zeros(numbers.size, dtype=np.int64), betas)
        fit = curves.fit(values[None])
        best = int(fit.which[0])
        low, high = betas[max(best - 1, 0)], betas[min(best + 1, betas.size - 1)]
    beta, slope, level = float(betas[best]), float(fit.slope[0]), float(fit.level[0, 0])
    return PowerLaw(max(0.0, level - slope / beta), slope / beta * longest**beta, beta)


def budget_ratio(
    candidate: Mapping[int, Sequence[tuple[float, float | None]]],
    baseline: Mapping[int, float | None],
    budget: float,
) -> Interval:
    """How many times less budget the candidate needs for the baseline's loss at `budget` (SOAP, arXiv:2409.11321).

    candidate: by seed, (N, final loss) of runs with full schedules of their own, three or more different N. The curve
    fitted to them is inverted at the baseline's mean loss over the seeds that both have.

    Runs of one seed share initialisation and data order, so every seed has a level of its own and only what remains
    counts as noise. The interval is a parametric bootstrap: normal noise about the fitted curve, its sd from the
    residuals and inflated as Student's t asks, and for the baseline larger by what its distance from the candidate
    varies over seeds beyond that. (Resampling three seeds would miss the truth far too often.) With three or five
    seeds of five runs it holds a planted truth in 96 to 97 of 100 simulations; in 93 to 95 where seeds part the arms
    by as much as runs scatter, in 90 where by several times as much: gap_closed holds then too. A single seed bounds
    nothing.

    Raises: StatisticsError: if a number is not finite, a budget not positive, or three different N are missing.
    """
    if not 0 < budget < math.inf:
        raise StatisticsError(f"budget_ratio needs a finite budget > 0, got {budget}; pass the baseline's")
    seeds = _common("budget_ratio", candidate, baseline)
    if any(loss is None for loss in baseline.values()):
        return Interval(math.nan, 0.0, math.inf)
    diverged = any(loss is None for runs in candidate.values() for _, loss in runs)
    runs = [(seed, n, loss) for seed in seeds for n, loss in candidate[seed] if loss is not None]
    if diverged and len({n for _, n, _ in runs}) < 3:
        return Interval(math.nan, 0.0, math.inf) if runs else Interval(0.0, 0.0, 0.0)
    alive, which = np.unique([seed for seed, _, _ in runs], return_inverse=True)
    numbers, losses = (np.asarray([run[i] for run in runs], np.float64) for i in (1, 2))
    targets = np.asarray([baseline[seed] for seed in alive.tolist()], np.float64)
    _check_runs("budget_ratio", numbers, losses, targets)
    interval = _inverted(_Curves(numbers / budget, which, np.geomspace(*BETAS, 31)), losses, targets)
    return interval._replace(low=0.0) if diverged else interval


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
    """
    seeds = _common("gap_closed", candidate_half, baseline_half, baseline_full)
    if any(loss is None for runs in (baseline_half, baseline_full) for loss in runs.values()):
        return Interval(math.nan, -math.inf, math.inf)
    diverged = any(loss is None for loss in candidate_half.values())
    alive = [seed for seed in seeds if candidate_half[seed] is not None]
    if diverged and not alive:
        return Interval(-math.inf, -math.inf, -math.inf)
    halves, candidates, fulls = (
        np.asarray([runs[seed] for seed in alive], np.float64)
        for runs in (baseline_half, candidate_half, baseline_full)
    )
    if not np.isfinite([halves, candidates, fulls]).all():
        raise StatisticsError("gap_closed needs finite losses, got inf or nan; pass None for a diverged run")
    interval = _fieller(halves - candidates, halves - fulls)
    return interval._replace(low=-math.inf) if diverged else interval


def divided(interval: Interval, by: Interval | None) -> Interval | None:
    """The quotient; its bounds are those of the worst cases, so it is never too narrow. None of None."""
    if by is None:
        return None
    high = interval.high / by.low if by.low > 0 else math.inf
    return Interval(interval.estimate / by.estimate, interval.low / by.high, high)


def decide(interval: Interval, *, claimed: float, no_effect: float, log_scale: bool = False) -> str:
    """RULE, applied: "reproduced", "not reproduced" or "undecided"."""
    middle = _middle(claimed, no_effect, log_scale)
    low, high = interval.low, interval.high
    if claimed < no_effect:
        low, high, claimed, middle = -high, -low, -claimed, -middle
    if high >= claimed and low > middle:
        return "reproduced"
    return "not reproduced" if high < claimed else "undecided"


def more_seeds(interval: Interval, n: int, *, claimed: float, no_effect: float, log_scale: bool = False) -> int:
    """About how many more seeds than n decide() needs, 1 to 100, if the estimate stays.

    A forecast: the bounds approach the estimate as Student's t over sqrt(n) does, on the logarithm for a ratio. A
    bound that is infinite stays so; if both are, nothing is known of the noise and the seeds double (3 at least).
    """
    _middle(claimed, no_effect, log_scale)
    estimate, low, high = (_log(each) if log_scale else each for each in interval)
    if n < 2 or not math.isfinite(estimate) or (math.isinf(low) and math.isinf(high)):
        return min(max(n, 3 - n), MOST_SEEDS)
    for more in range(1, MOST_SEEDS):
        shrink = _student(n + more - 1) / _student(n - 1) * math.sqrt(n / (n + more))
        bounds = [estimate + (bound - estimate) * shrink for bound in (low, high)]
        narrow = Interval(estimate, *bounds)
        if log_scale:
            narrow = Interval(*(math.exp(min(each, 700.0)) for each in narrow))
        if decide(narrow, claimed=claimed, no_effect=no_effect, log_scale=log_scale) != "undecided":
            return more
    return MOST_SEEDS


class _Fit(NamedTuple):
    which: np.ndarray[tuple[int, ...], np.dtype[np.int64]]  # (samples,), index of beta
    slope: Array  # (samples,)
    level: Array  # (samples, seeds), the loss at n = 1


class _Curves:
    """Curves of one shape and a level per seed, fitted to many samples of the same runs' losses at once.

    loss = level[seed] + slope x with x = (n^-beta - 1) / beta: a power law that becomes a logarithm as beta goes to 0,
    so that slope, the fall per factor e of budget at n = 1, keeps its meaning. Linear but for beta, which is scanned.
    """

    def __init__(self, n: Array, seed: np.ndarray[tuple[int, ...], np.dtype[np.int64]], betas: Array) -> None:
        self.n, self.seed, self.betas = n, seed, betas
        member = (np.arange(seed.max() + 1)[:, None] == seed).astype(np.float64)
        self.average = member / member.sum(1, keepdims=True)  # (seeds, runs)
        self.x = np.expm1(-betas[:, None] * np.log(n)) / betas[:, None]  # (betas, runs)
        self.x_mean = self.x @ self.average.T  # (betas, seeds)
        self.x_rest = self.x - self.x_mean[:, seed]

    def fit(self, losses: Array) -> _Fit:
        """losses (samples, runs). Slopes lie between 0 and where a, the mean level's limit for large n, is 0."""
        mean = losses @ self.average.T  # (samples, seeds)
        along = (losses - mean[:, self.seed]) @ self.x_rest.T  # (samples, betas)
        square = (self.x_rest**2).sum(1)
        steepest = np.maximum(mean.mean(1), 0.0)[:, None] / (self.x_mean.mean(1) + 1 / self.betas)
        slope = np.clip(along / square, 0.0, steepest)
        which = (slope * (2 * along - slope * square)).argmax(1)  # by how much the squared residuals fall
        slope = slope[np.arange(len(losses)), which]
        return _Fit(which, slope, mean - slope[:, None] * self.x_mean[which])

    def losses(self, fit: _Fit) -> Array:
        """The fitted losses of the runs, (samples, runs)."""
        return np.asarray(fit.level[:, self.seed] + fit.slope[:, None] * self.x[fit.which])

    def budget_ratio(self, fit: _Fit, targets: Array) -> Array:
        """1 / n where the curves are as far above their levels as the targets (samples, seeds) on average are."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            height = (targets - fit.level).mean(1)
            x = np.where(height == 0, 0.0, height / fit.slope)
            beta = self.betas[fit.which]
            return np.asarray(np.maximum(1 + beta * x, 0.0) ** (1 / beta))  # 0: never reached


def _inverted(curves: _Curves, losses: Array, targets: Array) -> Interval:
    """The speed-up with its bootstrap interval; losses (runs,), targets (seeds,)."""
    fit = curves.fit(losses[None])
    estimate = float(curves.budget_ratio(fit, targets[None])[0])
    fitted, distance = curves.losses(fit)[0], targets - fit.level[0]
    dof = losses.size - targets.size - 2  # slope and beta; the levels are as many as the targets
    if targets.size < 2 or dof < 1:
        return Interval(estimate, 0.0, math.inf)
    variance = float(((losses - fitted) ** 2).sum()) / dof
    expected = variance * (1 + (curves.average**2).sum(1).mean())  # of a run and of its seed's level
    excess = max(0.0, float(distance.var(ddof=1)) - expected)
    draw = np.random.default_rng(0)
    runs = fitted + _noise(draw, math.sqrt(variance), dof, losses.size)
    # Welch and Satterthwaite: what only the seeds show is known no better than they are many
    known = (expected + excess) ** 2 / (expected**2 / dof + excess**2 / (targets.size - 1)) if expected else dof
    ends = fit.level[0] + distance.mean() + _noise(draw, math.sqrt(variance + excess), known, targets.size)
    ratios = np.sort(curves.budget_ratio(curves.fit(runs), ends))
    tail = round(0.025 * DRAWS)
    return Interval(estimate, min(estimate, float(ratios[tail - 1])), max(estimate, float(ratios[-tail])))


def _noise(draw: np.random.Generator, sd: float, dof: float, size: int) -> Array:
    """(DRAWS, size) normal numbers whose sd is as uncertain as an estimate from dof degrees of freedom."""
    inflation = np.sqrt(dof / draw.chisquare(dof, (DRAWS, 1)))
    return np.asarray(sd * inflation * draw.standard_normal((DRAWS, size)))


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


def _middle(claimed: float, no_effect: float, log_scale: bool) -> float:
    """Halfway between no effect and the claim."""
    if claimed == no_effect or not math.isfinite(claimed) or not math.isfinite(no_effect):
        raise StatisticsError(
            f"a claim needs two different finite values, got claimed={claimed}, no_effect={no_effect}; correct it"
        )
    if not log_scale:
        return (claimed + no_effect) / 2
    if min(claimed, no_effect) <= 0:
        raise StatisticsError(
            f"a claim with log_scale needs values > 0, got claimed={claimed}, no_effect={no_effect}; drop log_scale"
        )
    return math.sqrt(claimed * no_effect)


def _student(dof: int) -> float:
    """How many standard errors a two-sided 95 % interval reaches."""
    return float(student.ppf(0.975, dof))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _common(who: str, *arms: Mapping[int, object]) -> list[int]:
    """The seeds that all arms have, in order."""
    seeds = sorted(set.intersection(*(set(arm) for arm in arms)))
    if not seeds:
        raise StatisticsError(
            f"{who} compares runs of the same seeds, got {[sorted(arm) for arm in arms]}; run common ones"
        )
    return seeds


def _check_runs(who: str, budgets: Array, losses: Array, targets: Array | None = None) -> None:
    """Raises StatisticsError unless a curve can be fitted to the runs."""
    if budgets.shape != losses.shape:
        raise StatisticsError(f"{who} needs one loss per budget, got {losses.size} for {budgets.size}; pair them")
    if len(set(budgets.tolist())) < 3:
        raise StatisticsError(
            f"{who} needs three or more different budgets, got {sorted(set(budgets.tolist()))}; add runs"
        )
    if not np.isfinite(budgets).all() or budgets.min() <= 0:
        raise StatisticsError(f"{who} needs finite budgets > 0, got {sorted(set(budgets.tolist()))}; correct them")
    if not np.isfinite(losses).all() or (targets is not None and not np.isfinite(targets).all()):
        raise StatisticsError(f"{who} needs finite losses, got inf or nan; pass None for a diverged run")
