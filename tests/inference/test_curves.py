"""A speed-up from two arms' curves: closed forms without noise, laws with it, its range, diverged runs, refusals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from inference.curves import ABOVE, BELOW, speed_up
from inference.fitted import Fitted, Spread, indexed
from inference.intervals import Interval, StatisticsError

INF, NAN = math.inf, math.nan
BUDGET = 2000.0
SHARES = (0.25, 0.5, 0.625, 0.75, 0.875, 1.0)
UNIT = math.sqrt(2) - 1  # what a power law of .5 gains from T/2 to T
Arm = dict[int, list[tuple[float, float | None]]]


def power_law(share: float) -> float:
    return float(3 + share**-0.5)


def arm(
    factor: float,
    noise: float = 0.0,
    *,
    seed: int = 0,
    seeds: int = 3,
    curve: Callable[[float], float] = power_law,
    shares: tuple[float, ...] = SHARES,
) -> Arm:
    """Runs of a curve that is run through `factor` times as fast; noise in units."""
    draw = np.random.default_rng(seed)
    return {
        s: [(n * BUDGET, curve(n * factor) + noise * UNIT * draw.standard_normal()) for n in shares]
        for s in range(seeds)
    }


@pytest.mark.parametrize("true", [0.26, 0.7, 1.0, 1.4, 2.0, 3.9])
@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.5])
def test_without_noise_the_speed_up_is_exact(true: float, exponent: float) -> None:
    arms = [arm(factor, curve=lambda n: float(2 + n**-exponent)) for factor in (true, 1.0)]
    found = speed_up(arms[0], arms[1], BUDGET)
    assert found.interval.estimate == pytest.approx(true, rel=1e-4) and found.censored is None
    assert found.interval.low <= found.interval.estimate <= found.interval.high < 1.001 * found.interval.low
    assert found.candidate.diverged.estimate == found.baseline.diverged.estimate == 0


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_what_lies_beyond_the_range_that_was_run_is_censored(noise: float) -> None:
    below = speed_up(arm(0.2, noise), arm(1.0, noise, seed=1), BUDGET)
    assert (below.censored, below.bound) == (BELOW, 0.25)
    assert math.isnan(below.interval.estimate) and below.interval[1:] == (0, 0.25)
    above = speed_up(arm(5.0, noise), arm(1.0, noise, seed=1), BUDGET)
    assert (above.censored, above.bound) == (ABOVE, 4.0)
    assert math.isnan(above.interval.estimate) and above.interval[1:] == (4.0, INF)


def test_each_arms_shortest_run_bounds_its_side_of_the_range() -> None:
    short, long = SHARES[1:], SHARES
    assert speed_up(arm(2.2, shares=short), arm(1.0, shares=long), BUDGET).bound == 2.0
    assert speed_up(arm(0.45, shares=long), arm(1.0, shares=short), BUDGET).bound == 0.5
    assert speed_up(arm(0.45, shares=short), arm(1.0, shares=long), BUDGET).censored is None


@pytest.mark.parametrize("true", np.geomspace(0.2, 5, 13).tolist())
def test_an_interval_holds_no_number_from_beyond_the_range(true: float) -> None:
    for seed in range(5):
        found = speed_up(arm(true, 0.3, seed=seed), arm(1.0, 0.3, seed=99 - seed), BUDGET, draws=400)
        for bound in found.interval:
            assert math.isnan(bound) or bound in (0, INF) or 0.25 <= bound <= 4


def test_the_interval_is_continuous_where_the_candidate_becomes_the_better_arm() -> None:
    speeds = np.geomspace(0.9, 1.1, 41)
    bounds = []
    for true in speeds:
        found = speed_up(arm(float(true), 0.1), arm(1.0, 0.1, seed=1), BUDGET, draws=2000)
        bounds.append(np.log(found.interval))
    steps = np.diff(bounds, axis=0)
    assert min(bounds[0][0], -bounds[-1][0]) < 0 < bounds[-1][0]  # estimates on either side
    assert steps.min() > 0 and steps.max() < 6 * math.log(speeds[1] / speeds[0])


def test_swapping_the_arms_inverts_the_speed_up() -> None:
    one, other = arm(1.4, 0.1), arm(1.0, 0.1, seed=1)
    found, swapped = (speed_up(*arms, BUDGET).interval for arms in ((one, other), (other, one)))
    assert found.estimate == pytest.approx(1 / swapped.estimate)
    # the bootstrap's draws fall on the other arm
    assert found.low == pytest.approx(1 / swapped.high, rel=0.01)
    assert found.high == pytest.approx(1 / swapped.low, rel=0.01)


def test_units_order_and_what_both_arms_of_a_seed_share_change_nothing() -> None:
    candidate, baseline = arm(1.4, 0.1), arm(1.0, 0.1, seed=1)
    found = speed_up(candidate, baseline, BUDGET).interval
    shift = {0: 0.3, 1: -0.2, 2: 0.5}
    moved = [
        {s: [(n * 1e9, loss + shift[s]) for n, loss in each[s][::-1] if loss] for s in reversed(each)}
        for each in (candidate, baseline)
    ]
    assert tuple(speed_up(*moved, BUDGET * 1e9).interval) == pytest.approx(tuple(found), rel=1e-6)
    assert speed_up(candidate, baseline | {7: baseline[0]}, BUDGET).interval == found  # a seed of one arm alone


def test_the_interval_is_never_narrower_than_students_over_seeds() -> None:
    # every seed's losses are of its own speed, without noise: log speed-ups -.1, 0, .1 about log 1.4
    candidate = {s: arm(1.4 * math.exp((s - 1) / 10), seeds=1)[0] for s in range(3)}
    found = speed_up(candidate, arm(1.0), BUDGET).interval
    half = 4.302652730 * 0.1 / math.sqrt(3)  # Student's with 2 degrees of freedom
    assert found.estimate == pytest.approx(1.4, rel=0.01)
    # the losses of the seeds are averaged, not their logarithms, hence the tolerance
    assert math.log(found.high / found.low) == pytest.approx(2 * half, rel=0.1)


@pytest.mark.parametrize("true", [0.6, 1.0, 1.5])
def test_the_error_of_tuning_moves_the_end_that_it_may_favour(true: float) -> None:
    # a loss of 3 + x at T, x = true^-.5, is one of 3 + x - e at a speed of true x^2 / (x - e)^2 = (x - e)^-2
    x, e = true**-0.5, 0.05
    plain = speed_up(arm(true), arm(1.0), BUDGET).interval
    better = speed_up(arm(true), arm(1.0), BUDGET, candidate_excess=e).interval
    assert better[:2] == pytest.approx(plain[:2]) and better.high > plain.high
    worse = speed_up(arm(true), arm(1.0), BUDGET, baseline_excess=e).interval
    assert worse.estimate == plain.estimate and worse.high == pytest.approx(plain.high) and worse.low < plain.low
    if true == 1.5:  # the candidate's curve, e lower, is 3 + 1 at n with (n true)^-.5 = 1 + e
        assert better.high == pytest.approx(true * (1 + e) ** 2, rel=0.01)
        assert worse.low == pytest.approx(true * (1 - e) ** 2, rel=0.01)
    if true == 0.6:  # the baseline's curve is 3 + x - e at n = (x - e)^-2
        assert better.high == pytest.approx((x - e) ** -2, rel=0.01)
        assert worse.low == pytest.approx((x + e) ** -2, rel=0.01)


def test_a_single_seed_bounds_nothing() -> None:
    found = speed_up(arm(2.0, seeds=1), arm(1.0, seeds=1), BUDGET)
    assert found.interval.estimate == pytest.approx(2.0) and found.interval[1:] == (0, INF)
    assert math.isnan(found.candidate.slope_p) and math.isnan(found.candidate.fit_p)


def test_a_diverged_run_costs_its_share_and_no_more() -> None:
    candidate, baseline = arm(2.0, 0.05, seeds=5), arm(1.0, 0.05, seed=1, seeds=5)
    left_out = candidate | {3: candidate[3][:2] + candidate[3][3:]}
    diverged = candidate | {3: [*left_out[3], (1250.0, None)]}
    expected, found = (speed_up(each, baseline, BUDGET) for each in (left_out, diverged))
    assert found.interval[:2] == pytest.approx([each * 29 / 30 for each in expected.interval[:2]])
    assert expected.interval.high * 29 / 30 < found.interval.high <= expected.interval.high * 1.01
    assert found.candidate.diverged.estimate == pytest.approx(1 / 30)
    assert speed_up(baseline, diverged, BUDGET).interval == speed_up(baseline, left_out, BUDGET).interval


def test_the_share_of_diverged_runs_has_clopper_and_pearsons_interval() -> None:
    baseline = arm(1.0, seeds=10)
    none = speed_up(baseline, baseline, BUDGET).candidate.diverged
    assert none == pytest.approx((0, 0, 1 - 0.025 ** (1 / 60)))  # closed form for none of 60
    trunk = speed_up(baseline | {4: [(n, None) for n, _ in baseline[4]]}, baseline, BUDGET).candidate.diverged
    assert trunk == pytest.approx((0.1, 0.0025, 0.4450), abs=1e-4)  # 1 of 10, from tables: one event, not six


def test_a_candidate_that_always_diverges_has_no_speed() -> None:
    lost: Arm = {s: [(n, None) for n, _ in rows] for s, rows in arm(2.0).items()}
    assert speed_up(lost, arm(1.0), BUDGET).interval == (0, 0, 0)
    nothing = Interval(NAN, 0.0, INF)
    assert speed_up(arm(2.0), lost, BUDGET).interval == pytest.approx(nothing, nan_ok=True)
    assert speed_up(lost, lost, BUDGET).interval == pytest.approx(nothing, nan_ok=True)


def test_too_few_finished_runs_say_nothing() -> None:
    few: Arm = {s: [(n, loss if n in (500, 2000) else None) for n, loss in rows] for s, rows in arm(2.0).items()}
    assert speed_up(few, arm(1.0), BUDGET).interval == pytest.approx((NAN, 0, INF), nan_ok=True)
    never: Arm = {s: [(n, loss if n < 2000 else None) for n, loss in rows] for s, rows in arm(2.0).items()}
    assert speed_up(arm(2.0), never, BUDGET).interval == pytest.approx((NAN, 0, INF), nan_ok=True)


def test_a_length_that_one_seed_alone_finished_is_outside_the_range() -> None:
    candidate = arm(3.5, 0.01)
    for seed in (0, 1):
        candidate[seed][0] = (500.0, None)
    found = speed_up(candidate, arm(1.0, 0.01, seed=1), BUDGET)
    assert found.bound == 2.0 and found.censored == ABOVE


def fitted(arm: Arm) -> Fitted:
    return Fitted(indexed([(s, n / BUDGET, loss) for s, rows in arm.items() for n, loss in rows if loss is not None]))


def p_values(make: Callable[[int], Arm]) -> Any:
    found = [fitted(make(seed)) for seed in range(200)]
    return np.array([(each.slope_p, each.fit_p) for each in found])


def test_without_an_effect_p_values_are_uniform() -> None:
    found = p_values(lambda seed: arm(1.0, 0.1, seed=seed))
    for column in found.T:
        assert abs((column < 0.1).mean() - 0.1) < 0.065 and abs((column < 0.5).mean() - 0.5) < 0.11  # 3 standard errors


def test_slopes_that_differ_over_seeds_are_found_and_measured() -> None:
    def make(seed: int, seeds: int = 3) -> Arm:
        draw, runs = np.random.default_rng(1000 + seed), arm(1.0, 0.1, seed=seed, seeds=seeds)
        slopes = 0.15 * draw.standard_normal(seeds)
        return {
            s: [(n, loss + slopes[s] * 2 * ((n / BUDGET) ** -0.5 - 1)) for n, loss in runs[s] if loss] for s in runs
        }

    found = p_values(make)
    assert (found[:, 0] < 0.01).mean() > 0.6 and (found[:, 1] < 0.01).mean() < 0.05
    assert tuple(fitted(make(0, seeds=60)).spread(0.0)) == pytest.approx(Spread(0.1 * UNIT, 0.0, 0.15), rel=0.25)


def test_a_curve_that_is_no_power_law_is_told() -> None:
    found = p_values(lambda seed: arm(1.0, 0.01, seed=seed, curve=lambda n: 4 - 1.2 / (1 + (n / 0.45) ** -2.5)))
    assert (found[:, 1] < 0.01).mean() > 0.9 and (found[:, 0] < 0.01).mean() < 0.05


def test_a_misfit_that_all_seeds_share_does_not_average_away() -> None:
    def width(seeds: int, curve: Callable[[float], float]) -> float:
        widths = []
        for seed in range(5):
            arms = [arm(true, 0.02, curve=curve, seeds=seeds, seed=2 * seed + i) for i, true in enumerate((1.4, 1.0))]
            found = speed_up(*arms, BUDGET, draws=400).interval
            widths.append(math.log(found.high / found.low))
        return float(np.mean(widths))

    assert width(40, power_law) < width(5, power_law) / 2
    assert width(40, lambda n: 4 - 1.2 / (1 + (n / 0.45) ** -2.5)) > 5 * width(40, power_law)


def test_levels_that_the_arms_of_a_seed_do_not_share_are_measured_and_widen_the_interval() -> None:
    draw = np.random.default_rng(3)
    shift = 0.3 * UNIT * draw.standard_normal(60)
    candidate, baseline = arm(1.4, 0.05, seeds=60), arm(1.0, 0.05, seed=1, seeds=60)
    moved = {s: [(n, loss + shift[s]) for n, loss in rows if loss] for s, rows in candidate.items()}
    found, plain = (speed_up(each, baseline, BUDGET, draws=1000) for each in (moved, candidate))
    for side in (found.candidate, found.baseline):
        assert side.spread and side.spread.level == pytest.approx(0.3 * UNIT / math.sqrt(2), rel=0.25)
    assert math.log(found.interval.high / found.interval.low) > 2 * math.log(plain.interval.high / plain.interval.low)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"budget": 0.0}, "finite budget > 0"),
        ({"candidate_excess": -0.1}, "excesses of 0 nats or more"),
        ({"baseline_excess": NAN}, "excesses of 0 nats or more"),
        ({"candidate": {5: [(1.0, 2.0)]}}, r"same seeds, got \[5\] and \[0, 1, 2\]"),
        ({"candidate": arm(1.0, shares=(0.5, 1.0))}, "3 or more lengths of the candidate"),
        ({"baseline": arm(1.0, shares=(0.25, 0.5, 0.75))}, "lengths of the baseline, and T=2000, got"),
        ({"baseline": arm(1.0, shares=(0.5, 1.0, 2.0))}, r"lengths in \(0, T=2000\]"),
        ({"baseline": {0: [(500.0, INF), (1000.0, 2.0), (2000.0, 1.0)]}}, "pass None if diverged"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_in_one_line(change: Any, message: str) -> None:
    arguments: Any = {"candidate": arm(1.0), "baseline": arm(1.0), "budget": BUDGET} | change
    with pytest.raises(StatisticsError, match=message) as caught:
        speed_up(**arguments)
    assert "\n" not in str(caught.value)
