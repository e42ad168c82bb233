"""Planted truths, closed forms, and what a verdict may rest on."""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

from reproduce.statistics import (
    RULE,
    Interval,
    PowerLaw,
    StatisticsError,
    budget_ratio,
    decide,
    fit_power_law,
    gap_closed,
    mean_interval,
    more_seeds,
    paired,
    pooled_sd,
)

INF, NAN = math.inf, math.nan
BUDGET = 2000
FRACTIONS = (0.5, 0.625, 0.75, 0.875, 1.0)
REPETITIONS = {"budget_ratio": 300, "gap": 2000}
T2, T4 = 4.302652730, 2.776445105  # 97.5 % of Student's t with 2 and 4 degrees of freedom, from tables
CLAIM: Any = {"claimed": 2.0, "no_effect": 1.0, "log_scale": True}
GAP: Any = {"claimed": 1.0, "no_effect": 0.0}

Losses = dict[int, float | None]
Curves = dict[int, list[tuple[float, float | None]]]


class Planted(NamedTuple):
    """One simulated comparison."""

    candidate: Curves
    half: Losses  # the baseline's at BUDGET / 2
    full: Losses  # and at BUDGET


class Truth(NamedTuple):
    """A family of loss curves, in multiples of the gap that the baseline closes from BUDGET / 2 to BUDGET."""

    budget_ratio: float
    seeds: int
    noise: float  # sd of a run
    beta: float = 0.5
    of_seed: float = 0.5  # sd that the runs of a seed share
    of_arm: float = 0.0  # sd that the candidate's runs of a seed share

    @property
    def gap(self) -> float:
        return float((1 - self.budget_ratio**-self.beta) / (1 - 2**-self.beta))

    def planted(self, draw: np.random.Generator) -> Planted:
        curve = PowerLaw(3.0, BUDGET**self.beta, self.beta)  # 4 nats at BUDGET
        unit = curve.loss(BUDGET / 2) - curve.loss(BUDGET)
        of_seed = unit * self.of_seed * draw.standard_normal(self.seeds)
        of_arm = unit * self.of_arm * draw.standard_normal(self.seeds)
        runs = unit * self.noise * draw.standard_normal((self.seeds, len(FRACTIONS) + 2))
        seeds, budgets = range(self.seeds), [BUDGET * fraction for fraction in FRACTIONS]
        return Planted(
            {
                s: [
                    (n, curve.loss(n * self.budget_ratio) + of_seed[s] + of_arm[s] + runs[s, i])
                    for i, n in enumerate(budgets)
                ]
                for s in seeds
            },
            {s: curve.loss(BUDGET / 2) + of_seed[s] + runs[s, -2] for s in seeds},
            {s: curve.loss(BUDGET) + of_seed[s] + runs[s, -1] for s in seeds},
        )

    def one(self) -> Planted:
        return self.planted(np.random.default_rng(3))


def halves(planted: Planted) -> Losses:
    """The candidate's losses at BUDGET / 2."""
    return {seed: runs[0][1] for seed, runs in planted.candidate.items()}


@cache
def speed_ups(truth: Truth) -> list[Interval]:
    draw = np.random.default_rng(1)
    planted = [truth.planted(draw) for _ in range(REPETITIONS["budget_ratio"])]
    return [budget_ratio(each.candidate, each.full, BUDGET) for each in planted]


@cache
def gaps(truth: Truth) -> list[Interval]:
    draw = np.random.default_rng(2)
    planted = [truth.planted(draw) for _ in range(REPETITIONS["gap"])]
    return [gap_closed(halves(each), each.half, each.full) for each in planted]


def covered(intervals: list[Interval], truth: float) -> float:
    return sum(each.low <= truth <= each.high for each in intervals) / len(intervals)


def share(verdict: str, intervals: list[Interval], claim: Any) -> float:
    return sum(decide(each, **claim) == verdict for each in intervals) / len(intervals)


PLANTED = [Truth(s, seeds, noise) for s in (1.0, 1.4, 2.0) for seeds, noise in ((3, 0.1), (3, 0.3), (5, 0.15))]
ODD = [
    Truth(1.4, 5, 0.15, beta=0.2),
    Truth(1.4, 3, 0.15, beta=1.2),
    Truth(1.4, 3, 0.1, of_seed=3.0),
    Truth(1.4, 3, 0.1, of_arm=0.05),
    Truth(2.0, 5, 0.1, of_arm=0.1),
]


@pytest.mark.parametrize("truth", PLANTED + ODD, ids=str)
def test_the_interval_of_a_speed_up_holds_the_planted_one(truth: Truth) -> None:
    assert covered(speed_ups(truth), truth.budget_ratio) >= 0.93


@pytest.mark.parametrize("truth", PLANTED + ODD, ids=str)
def test_the_interval_of_a_gap_holds_the_planted_one(truth: Truth) -> None:
    assert covered(gaps(truth), truth.gap) >= 0.93


@pytest.mark.parametrize("seeds, noise", [(3, 0.1), (5, 0.15)])
def test_a_true_2x_is_mostly_reproduced_and_never_taken_for_less(seeds: int, noise: float) -> None:
    found = speed_ups(Truth(2.0, seeds, noise))
    assert share("reproduced", found, CLAIM) >= 0.85
    assert share("not reproduced", found, CLAIM) <= 0.05
    found = gaps(Truth(2.0, seeds, noise))
    assert share("reproduced", found, GAP) >= 0.7  # three runs per seed know less than six
    assert share("not reproduced", found, GAP) <= 0.05


@pytest.mark.parametrize("seeds, noise", [(3, 0.1), (3, 0.3), (5, 0.15)])
def test_no_effect_is_mostly_not_reproduced_and_hardly_ever_reproduced(seeds: int, noise: float) -> None:
    found = speed_ups(Truth(1.0, seeds, noise))
    assert share("not reproduced", found, CLAIM) >= 0.85
    assert share("reproduced", found, CLAIM) <= 0.05
    assert share("reproduced", gaps(Truth(1.0, seeds, noise)), GAP) <= 0.05


@pytest.mark.parametrize("true", [0.7, 1.0, 1.4, 2.0, 2.5])
@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_without_noise_the_speed_up_is_exact(true: float, beta: float) -> None:
    planted = Truth(true, 3, 0.0, beta).one()
    found = budget_ratio(planted.candidate, planted.full, BUDGET)
    # the exponent is scanned in steps of 1.17: next to nothing between the runs, 2 % at 1 / 0.7 times the longest
    assert found.estimate == pytest.approx(true, rel=0.005 if 1 <= true <= 2 else 0.025)
    assert found.low <= found.estimate <= found.high < 1.05 * found.low


def test_what_the_runs_of_a_seed_share_changes_no_speed_up() -> None:
    planted = Truth(1.4, 3, 0.2).one()
    shift = {0: 0.3, 1: -0.2, 2: -0.1}  # of mean 0, for a >= 0 is about the mean curve
    moved = {s: [(n, loss + shift[s]) for n, loss in runs if loss] for s, runs in planted.candidate.items()}
    full = {s: loss + shift[s] for s, loss in planted.full.items() if loss}
    found, expected = budget_ratio(moved, full, BUDGET), budget_ratio(planted.candidate, planted.full, BUDGET)
    assert tuple(found) == pytest.approx(tuple(expected), rel=1e-9)


def test_the_unit_of_a_budget_and_the_order_of_seeds_change_nothing() -> None:
    planted = Truth(1.4, 3, 0.2).one()
    found = budget_ratio(planted.candidate, planted.full, BUDGET)
    tokens = {s: [(n * 1e9, loss) for n, loss in runs] for s, runs in reversed(planted.candidate.items())}
    assert tuple(budget_ratio(tokens, planted.full, BUDGET * 1e9)) == pytest.approx(tuple(found), rel=1e-9)
    assert budget_ratio(planted.candidate, planted.full, BUDGET) == found


def test_seeds_that_affect_arms_differently_widen_a_speed_up() -> None:
    planted = Truth(1.4, 3, 0.1).one()
    narrow = budget_ratio(planted.candidate, planted.full, BUDGET)
    shift = {0: 0.1, 1: -0.1, 2: 0.0}  # the gap from half the budget to all of it is 0.41
    wide = budget_ratio(planted.candidate, {s: loss + shift[s] for s, loss in planted.full.items() if loss}, BUDGET)
    assert wide.estimate == pytest.approx(narrow.estimate)
    assert math.log(wide.high / wide.low) > 1.5 * math.log(narrow.high / narrow.low)


def test_a_loss_that_the_candidate_never_reaches_is_a_speed_up_of_zero() -> None:
    runs: Curves = {seed: [(n, 3 + (n / BUDGET) ** -2) for n in (1000, 1500, 2000, 4000)] for seed in range(3)}
    assert budget_ratio(runs, dict.fromkeys(range(3), 2.5), BUDGET).estimate == 0


def test_a_single_seed_bounds_nothing() -> None:
    planted = Truth(2.0, 1, 0.0).one()
    found = budget_ratio(planted.candidate, planted.full, BUDGET)
    assert found.estimate == pytest.approx(2.0, rel=0.01) and found[1:] == (0, INF)
    gap = gap_closed(halves(planted), planted.half, planted.full)
    assert gap.estimate == pytest.approx(1.0) and gap[1:] == (-INF, INF)
    assert mean_interval([2.5]) == (2.5, -INF, INF)
    alone = paired({1: 2.0, 2: 3.0}, {1: 2.5})
    assert alone.difference == (-0.5, -INF, INF) and alone.n == 1
    assert math.isnan(alone.sd) and math.isnan(alone.p_value)


def test_a_mean_has_students_interval() -> None:
    assert mean_interval([1, 2, 3]) == pytest.approx((2, 2 - T2 / math.sqrt(3), 2 + T2 / math.sqrt(3)))
    assert mean_interval([2, 2, 2]) == (2, 2, 2)


def test_a_paired_test_agrees_with_the_closed_form() -> None:
    # differences -1, -2, -6 of the common seeds: mean -3, sd sqrt(7), t = -3 / sqrt(7 / 3)
    found = paired({0: 1.0, 1: 1.0, 2: 1.0, 9: 5.0}, {2: 7.0, 1: 3.0, 0: 2.0, 8: 1.0}, no_effect=0.0)
    assert found.n == 3 and found.sd == pytest.approx(math.sqrt(7))
    half = T2 * math.sqrt(7 / 3)
    assert found.difference == pytest.approx((-3, -3 - half, -3 + half))
    t = 3 / math.sqrt(7 / 3)
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))  # Student's t with 2 degrees of freedom


def test_a_p_value_is_against_the_claims_own_no_effect_or_there_is_none() -> None:
    arms = {0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0, 1: 3.0, 2: 7.0}  # mean -3, sd sqrt(7)
    assert math.isnan(paired(*arms).p_value) and paired(*arms, no_effect=-3.0).p_value == pytest.approx(1.0)
    t = 1 / math.sqrt(7 / 3)
    assert paired(*arms, no_effect=-2.0).p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_the_sd_over_seeds_is_pooled_by_degrees_of_freedom() -> None:
    # variances 2 of 2 runs and 1 of 3, about means of their own: (1 * 2 + 2 * 1) / 3
    arms = [{0: 1.0, 1: 3.0}, {0: 11.0, 1: 10.0, 2: 12.0}, {0: 7.0}]
    assert pooled_sd(arms) == pytest.approx(math.sqrt(4 / 3)) and pooled_sd(arms[:1]) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("difference, p_value", [(0.0, 1.0), (-0.5, 0.0)])
def test_differences_that_are_all_the_same_leave_no_doubt(difference: float, p_value: float) -> None:
    found = paired({0: 1.0 + difference, 1: 2.0 + difference}, {0: 1.0, 1: 2.0}, no_effect=0.0)
    assert found == ((difference, difference, difference), 0, p_value, 2)


@pytest.mark.parametrize(
    "true", [PowerLaw(3, 50, 0.5), PowerLaw(0, 20, 0.3), PowerLaw(2, 1e4, 1.5), PowerLaw(1, 4, 0.05)]
)
def test_a_power_law_is_found_exactly_from_four_runs(true: PowerLaw) -> None:
    budgets = [500, 625, 750, 1000]
    found = fit_power_law(budgets, [true.loss(n) for n in budgets])
    for n in (400, 600, 1500):  # a and b are only as good as beta's sixth digit
        assert found.loss(n) == pytest.approx(true.loss(n), rel=1e-6)
    assert found == pytest.approx(true, rel=1e-3, abs=1e-3)


def test_a_noisy_power_law_stays_within_its_bounds() -> None:
    draw = np.random.default_rng(5)
    for _ in range(100):
        budgets = [1e9 * fraction for fraction in FRACTIONS[-4:]]
        losses = 3 + draw.standard_normal(4)
        found = fit_power_law(budgets, losses.tolist())
        assert found.a >= 0 and found.b >= 0 and 0 < found.beta <= 2
        assert np.mean([found.loss(n) for n in budgets]) == pytest.approx(losses.mean())
        squares = [sum((losses - y) ** 2) for y in (losses.mean(), np.array([found.loss(n) for n in budgets]))]
        assert squares[1] <= squares[0] * (1 + 1e-9)


def test_a_power_law_is_inverted() -> None:
    law = PowerLaw(3, 50, 0.5)
    assert law.loss(100) == pytest.approx(8) and law.budget_for(8) == pytest.approx(100)
    assert law.budget_for(3) == law.budget_for(2.9) == INF
    flat = PowerLaw(3, 0, 0.5)
    assert flat.budget_for(3) == 0 and flat.budget_for(2.9) == INF


def test_the_ends_of_a_gaps_interval_are_what_students_t_cannot_tell_from_the_ratio() -> None:
    planted = Truth(1.4, 3, 0.15).one()
    found = gap_closed(halves(planted), planted.half, planted.full)
    half, full, candidate = (
        np.array([each[s] for s in range(3)], float) for each in (planted.half, planted.full, halves(planted))
    )
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


def test_a_diverged_candidate_is_a_failure_and_never_reproduced() -> None:
    planted = Truth(2.0, 5, 0.05).one()
    sound = budget_ratio(planted.candidate, planted.full, BUDGET)
    assert decide(sound, **CLAIM) == "reproduced"
    planted.candidate[3][2] = (1500.0, None)
    found = budget_ratio(planted.candidate, planted.full, BUDGET)
    assert found.low == 0 and found.estimate == pytest.approx(sound.estimate, rel=0.1)
    assert decide(found, **CLAIM) == "undecided"
    half = halves(planted) | {3: None}
    gap = gap_closed(half, planted.half, planted.full)
    assert gap.low == -INF and 0.5 < gap.estimate < gap.high
    assert decide(gap, **GAP) == "undecided"


def test_a_seed_of_which_every_run_diverged_still_counts() -> None:
    planted = Truth(2.0, 3, 0.05).one()
    planted.candidate[1] = [(n, None) for n, _ in planted.candidate[1]]
    found = budget_ratio(planted.candidate, planted.full, BUDGET)
    assert found.low == 0 and 1.5 < found.estimate < found.high
    weak = Truth(1.0, 3, 0.05).one()
    weak.candidate[1] = [(n, None) for n, _ in weak.candidate[1]]
    assert decide(budget_ratio(weak.candidate, weak.full, BUDGET), **CLAIM) == "not reproduced"


def test_a_candidate_that_always_diverged_is_not_reproduced() -> None:
    planted = Truth(2.0, 3, 0.05).one()
    lost: Curves = {seed: [(n, None) for n, _ in runs] for seed, runs in planted.candidate.items()}
    assert budget_ratio(lost, planted.full, BUDGET) == (0, 0, 0)
    gap = gap_closed(dict.fromkeys(range(3)), planted.half, planted.full)
    assert gap == (-INF, -INF, -INF) and decide(gap, **GAP) == "not reproduced"


def test_too_few_surviving_runs_decide_nothing() -> None:
    planted = Truth(2.0, 3, 0.05).one()
    few: Curves = {seed: [*runs[:2], (2000.0, None)] for seed, runs in planted.candidate.items()}
    estimate, *bounds = budget_ratio(few, planted.full, BUDGET)
    assert math.isnan(estimate) and bounds == [0, INF]


def test_a_diverged_baseline_leaves_the_claim_undecided() -> None:
    planted = Truth(1.0, 3, 0.05).one()
    full = planted.full | {2: None}
    found = budget_ratio(planted.candidate, full, BUDGET)
    assert math.isnan(found.estimate) and found[1:] == (0, INF)
    assert decide(found, **CLAIM) == "undecided"
    for half, end in ((planted.half, full), (planted.half | {0: None}, planted.full)):
        gap = gap_closed(halves(planted), half, end)
        assert math.isnan(gap.estimate) and gap[1:] == (-INF, INF)
        assert decide(gap, **GAP) == "undecided"


@pytest.mark.parametrize(
    "low, high, claimed, no_effect, log_scale, verdict",
    [
        (1.5, 2.1, 2, 1, True, "reproduced"),
        (1.5, 2.0, 2, 1, True, "reproduced"),
        (2.5, 3.0, 2, 1, True, "reproduced"),  # more than claimed
        (1.42, 2.1, 2, 1, True, "reproduced"),  # above sqrt(2)
        (1.41, 2.1, 2, 1, True, "undecided"),
        (1.42, 2.1, 2, 1, False, "undecided"),  # below 1.5
        (1.5, 1.9, 2, 1, True, "not reproduced"),
        (0.5, 0.9, 2, 1, True, "not reproduced"),
        (0, INF, 2, 1, True, "undecided"),
        (-5, -3.2, -4, 0, False, "reproduced"),  # a reduction
        (-3.9, -3.2, -4, 0, False, "not reproduced"),
        (-5, -1.9, -4, 0, False, "undecided"),
        (-9, -5, -4, 0, False, "reproduced"),
        (0.4, 0.7, 0.5, 1, True, "reproduced"),
        (0.4, 0.71, 0.5, 1, True, "undecided"),
        (NAN, NAN, 2, 1, True, "undecided"),
    ],
)
def test_the_rule(low: float, high: float, claimed: float, no_effect: float, log_scale: bool, verdict: str) -> None:
    interval = Interval((low + high) / 2, low, high)
    assert decide(interval, claimed=claimed, no_effect=no_effect, log_scale=log_scale) == verdict


def test_the_rule_is_stated_in_two_sentences_with_its_three_verdicts() -> None:
    assert RULE.count(". ") == 1 and RULE.endswith(".")
    for verdict in ("reproduced", "not reproduced", "undecided"):
        assert f'"{verdict}"' in RULE


def test_more_seeds_are_those_that_shrink_the_interval_until_it_decides() -> None:
    # half width w of three seeds; five have T4 / T2 sqrt(3 / 5) w = 0.500 w, four 3.182 / 4.303 sqrt(3 / 4) w = 0.640 w
    for half, more in ((0.99, 2), (0.78, 1), (0.77, 1)):
        interval = Interval(1.0, 1 - half, 1 + half)
        assert more_seeds(interval, 3, claimed=1.0, no_effect=0.0) == more
    assert T4 / T2 * math.sqrt(3 / 5) * 0.99 < 0.5 < 0.640 * 0.99


def test_more_seeds_shrink_a_ratio_on_its_logarithm() -> None:
    # 2 / 2.2 to 2 * 2.2: four seeds leave log(2.2) * .640 = .505 > log(sqrt 2) = .347, five .394, six .330
    assert more_seeds(Interval(2.0, 2 / 2.2, 2 * 2.2), 3, **CLAIM) == 3


def test_more_seeds_is_at_least_one_and_at_most_100() -> None:
    assert more_seeds(Interval(2.0, 1.9, 2.1), 3, **CLAIM) == 1
    assert more_seeds(Interval(0.5, 0.0, 1.0), 3, claimed=1.0, no_effect=0.0) == 1
    on_the_middle = Interval(0.5, -9.0, 10.0)
    assert more_seeds(on_the_middle, 3, claimed=1.0, no_effect=0.0) > 10
    assert more_seeds(Interval(2.0, 0.0, 2.2), 3, **CLAIM) == 100  # a diverged candidate
    assert more_seeds(Interval(NAN, 0.0, INF), 4, **CLAIM) == 4
    assert more_seeds(Interval(2.0, 0.0, INF), 1, **CLAIM) == 2


@pytest.mark.parametrize("noise, seeds", [(0.25, 3), (0.35, 4)])
def test_the_seeds_asked_for_mostly_decide(noise: float, seeds: int) -> None:
    draw = np.random.default_rng(6)
    decided: list[bool] = []
    while len(decided) < 40:
        planted = Truth(2.0, seeds, noise).planted(draw)
        found = budget_ratio(planted.candidate, planted.full, BUDGET)
        if decide(found, **CLAIM) != "undecided":
            continue
        asked = seeds + more_seeds(found, seeds, **CLAIM)
        again = Truth(2.0, asked, noise).planted(draw)
        decided.append(decide(budget_ratio(again.candidate, again.full, BUDGET), **CLAIM) != "undecided")
    assert np.mean(decided) >= 0.6  # the estimate does not stay, so a forecast cannot do much better than a half


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mean_interval([]), "one or more finite numbers"),
        (lambda: mean_interval([1.0, NAN]), "one or more finite numbers"),
        (lambda: paired({0: 1.0}, {1: 1.0}), r"same seeds, got \[\[0\], \[1\]\]"),
        (lambda: pooled_sd([{0: 1.0}]), "two or more finite losses"),
        (lambda: fit_power_law([1, 2, 2], [3, 2, 2]), r"three or more different budgets, got \[1.0, 2.0\]"),
        (lambda: fit_power_law([0, 1, 2], [3, 2, 2]), "budgets > 0"),
        (lambda: fit_power_law([1, 2, 3], [3, 2]), "one loss per budget"),
        (lambda: fit_power_law([1, 2, 3], [3, 2, INF]), "finite losses"),
        (lambda: budget_ratio({0: [(1, 2.0)]}, {0: 1.0}, 1), "three or more different budgets"),
        (lambda: budget_ratio({0: [(1, 2.0)]}, {0: 1.0}, 0), "budget > 0"),
        (lambda: budget_ratio({0: [(1, 3.0), (2, 2.0), (3, 1.9)]}, {0: NAN}, 3), "pass None for a diverged run"),
        (lambda: gap_closed({0: NAN}, {0: 2.0}, {0: 1.0}), "pass None for a diverged run"),
        (lambda: decide(Interval(1, 1, 1), claimed=1, no_effect=1), "two different finite values"),
        (lambda: decide(Interval(1, 1, 1), claimed=1, no_effect=0, log_scale=True), "values > 0"),
        (lambda: more_seeds(Interval(1, 1, 1), 3, claimed=1, no_effect=1), "two different finite values"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_in_one_line(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(StatisticsError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
