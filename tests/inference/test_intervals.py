"""Closed forms, and a planted gap."""

import math

import numpy as np
import pytest

from inference.intervals import (
    Interval,
    StatisticsError,
    divided,
    gap_closed,
    mean_interval,
    paired,
    pooled_sd,
)

INF, NAN = math.inf, math.nan
T2 = 4.302652730  # 97.5 % of Student's t with 2 degrees of freedom, from tables
Losses = dict[int, float | None]


def planted(gap: float, seeds: int, noise: float, draw: np.random.Generator) -> tuple[Losses, Losses, Losses]:
    """Candidate at T/2, baseline at T/2 and at T; the baseline gains 1 from T/2, seeds share a level."""
    level = 0.5 * draw.standard_normal(seeds)
    runs = 4 + level[:, None] + noise * draw.standard_normal((seeds, 3)) + [-gap, 0, -1]
    candidate, half, full = (dict(enumerate(column.tolist())) for column in runs.T)
    return candidate, half, full


@pytest.mark.parametrize(("seeds", "noise"), [(3, 0.1), (3, 0.3), (5, 0.15)])
@pytest.mark.parametrize("gap", [0.0, 0.5, 1.0])
def test_the_interval_of_a_gap_holds_the_planted_one(gap: float, seeds: int, noise: float) -> None:
    draw = np.random.default_rng(2)
    found = [gap_closed(*planted(gap, seeds, noise, draw)) for _ in range(2000)]
    assert sum(each.low <= gap <= each.high for each in found) >= 0.93 * 2000


def test_the_ends_of_a_gaps_interval_are_what_students_t_cannot_tell_from_the_ratio() -> None:
    arms = planted(0.5, 3, 0.15, np.random.default_rng(3))
    found = gap_closed(*arms)
    candidate, half, full = (np.array(list(arm.values()), float) for arm in arms)
    for f in found[1:]:
        rest = half - candidate - f * (half - full)
        assert abs(rest.mean()) / (rest.std(ddof=1) / math.sqrt(3)) == pytest.approx(T2)
    assert found.low < found.estimate < found.high
    assert found.estimate == pytest.approx((half - candidate).mean() / (half - full).mean())


def test_a_baseline_that_may_gain_nothing_bounds_no_gap() -> None:
    half: Losses = {0: 4.0, 1: 4.0, 2: 4.0}
    candidate: Losses = {0: 3.5, 1: 3.6, 2: 3.7}
    assert gap_closed(candidate, half, {0: 3.8, 1: 4.1, 2: 3.7})[1:] == (-INF, INF)
    estimate, *bounds = gap_closed(candidate, half, {0: 4.2, 1: 4.21, 2: 4.2})  # surely worse
    assert math.isnan(estimate) and bounds == [-INF, INF]


def test_a_candidates_diverged_run_costs_its_share_of_the_gap() -> None:
    candidate, half, full = planted(1.0, 4, 0.01, np.random.default_rng(4))
    others = gap_closed({seed: candidate[seed] for seed in (0, 1, 3)}, half, full)
    found = gap_closed(candidate | {2: None}, half, full)
    assert found == pytest.approx([0.75 * each for each in others])
    assert gap_closed(dict.fromkeys(range(4)), half, full) == (-INF, -INF, -INF)


def test_a_baselines_diverged_run_is_left_out_and_credits_nothing() -> None:
    candidate, half, full = planted(0.5, 4, 0.01, np.random.default_rng(5))
    without = gap_closed({seed: candidate[seed] for seed in (0, 1, 3)}, half, full)
    assert gap_closed(candidate, half, full | {2: None}) == gap_closed(candidate, half | {2: None}, full) == without
    estimate, *bounds = gap_closed(candidate, dict.fromkeys(range(4)), full)
    assert math.isnan(estimate) and bounds == [-INF, INF]


def test_a_single_seed_bounds_nothing() -> None:
    gap = gap_closed({1: 3.0}, {1: 4.0}, {1: 3.0})
    assert gap.estimate == pytest.approx(1.0) and gap[1:] == (-INF, INF)
    assert mean_interval([2.5]) == (2.5, -INF, INF)
    alone = paired({1: 2.0, 2: 3.0}, {1: 2.5})
    assert alone.difference == (-0.5, -INF, INF) and alone.n == 1 and math.isnan(alone.sd)


def test_a_mean_has_students_interval() -> None:
    assert mean_interval([1, 2, 3]) == pytest.approx((2, 2 - T2 / math.sqrt(3), 2 + T2 / math.sqrt(3)))
    assert mean_interval([2, 2, 2]) == (2, 2, 2)


def test_a_paired_difference_agrees_with_the_closed_form() -> None:
    # differences -1, -2, -6 of the common seeds: mean -3, sd sqrt(7)
    found = paired({0: 1.0, 1: 1.0, 2: 1.0, 9: 5.0}, {2: 7.0, 1: 3.0, 0: 2.0, 8: 1.0})
    assert found.n == 3 and found.sd == pytest.approx(math.sqrt(7))
    half = T2 * math.sqrt(7 / 3)
    assert found.difference == pytest.approx((-3, -3 - half, -3 + half))


def test_the_sd_over_seeds_is_pooled_by_degrees_of_freedom() -> None:
    # variances 2 of 2 runs and 1 of 3, about means of their own: (1 * 2 + 2 * 1) / 3
    arms = [{0: 1.0, 1: 3.0}, {0: 11.0, 1: 10.0, 2: 12.0}, {0: 7.0}]
    assert pooled_sd(arms) == pytest.approx(math.sqrt(4 / 3)) and pooled_sd(arms[:1]) == pytest.approx(math.sqrt(2))


def test_a_quotient_has_the_bounds_of_the_worst_cases() -> None:
    assert divided(Interval(2.0, 1.0, 4.0), Interval(2.0, 1.0, 4.0)) == (1.0, 0.25, 4.0)
    assert divided(Interval(2.0, 1.0, 4.0), Interval(1.0, 0.0, 2.0)) == (2.0, 0.5, INF)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mean_interval([]), "one or more finite numbers"),
        (lambda: mean_interval([1.0, NAN]), "one or more finite numbers"),
        (lambda: paired({0: 1.0}, {1: 1.0}), r"same seeds, got \[\[0\], \[1\]\]"),
        (lambda: pooled_sd([{0: 1.0}]), "two or more finite losses"),
        (lambda: gap_closed({0: NAN}, {0: 2.0}, {0: 1.0}), "pass None for a diverged run"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_in_one_line(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(StatisticsError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
