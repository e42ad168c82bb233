"""The rule, in examples and in laws: what precision may do to a verdict, and what a claim's parts make of it."""

import math
from typing import Any

import numpy as np
import pytest

from inference.intervals import Interval, StatisticsError
from inference.verdicts import (
    NO_EFFECT,
    OUT_OF_REGIME,
    REPRODUCED,
    RULE,
    UNDECIDED,
    VERDICTS,
    WEAKER,
    more_seeds,
    overall,
    verdict,
)

INF, NAN = math.inf, math.nan
TWICE: Any = {"claimed": 2.0, "least": 1.75, "no_effect": 1.0, "log_scale": True}
COMPARABLE: Any = {"claimed": 1.0, "least": 0.87, "no_effect": 0.5, "log_scale": True}
LESS: Any = {"claimed": -0.4, "least": -0.35, "no_effect": 0.0}  # a reduction
OVERHEAD: Any = {"claimed": 1.05, "least": 1.075, "no_effect": 1.2, "log_scale": True}  # below no effect
CLAIMS = [TWICE, COMPARABLE, LESS, OVERHEAD]


@pytest.mark.parametrize(
    "low, high, claim, expected",
    [
        (1.5, 1.75, TWICE, REPRODUCED),
        (1.42, INF, TWICE, REPRODUCED),  # above sqrt(2)
        (1.41, 2.1, TWICE, UNDECIDED),
        (2.5, 3.0, TWICE, REPRODUCED),  # more than claimed
        (1.5, 1.74, TWICE, WEAKER),
        (1.0, 1.74, TWICE, WEAKER),
        (0.99, 1.74, TWICE, WEAKER),  # or none: the claim is refuted either way
        (0.5, 1.06, TWICE, WEAKER),
        (0.99, 1.05, TWICE, NO_EFFECT),
        (1.01, 1.04, TWICE, NO_EFFECT),
        (0.0, 0.25, TWICE, NO_EFFECT),
        (0.0, INF, TWICE, UNDECIDED),
        (NAN, NAN, TWICE, UNDECIDED),
        (0.71, 0.87, COMPARABLE, REPRODUCED),
        (0.70, 1.0, COMPARABLE, UNDECIDED),
        (0.71, 0.86, COMPARABLE, WEAKER),
        (0.3, 0.52, COMPARABLE, NO_EFFECT),
        (-0.5, -0.21, LESS, REPRODUCED),
        (-0.5, -0.19, LESS, UNDECIDED),
        (-0.34, -0.1, LESS, WEAKER),
        (-0.02, 0.3, LESS, NO_EFFECT),
        (-0.03, 0.3, LESS, WEAKER),
        (1.06, 1.12, OVERHEAD, REPRODUCED),
        (1.08, 1.19, OVERHEAD, WEAKER),
        (1.17, 1.4, OVERHEAD, NO_EFFECT),  # a quarter of the way to the claim is 1.161
        (1.155, 1.4, OVERHEAD, WEAKER),
    ],
)
def test_the_rule(low: float, high: float, claim: Any, expected: str) -> None:
    assert verdict(Interval(NAN, low, high), **claim) == expected


def test_the_end_of_no_effect_can_be_given() -> None:
    assert verdict(Interval(1.1, 0.9, 1.2), **TWICE) == WEAKER
    assert verdict(Interval(1.1, 0.9, 1.2), **TWICE, worse=1.2) == NO_EFFECT


@pytest.mark.parametrize("claim", CLAIMS)
def test_no_precision_refutes_a_value_within_the_claims_rounding(claim: Any) -> None:
    within = np.linspace(claim["least"], 2 * claim["claimed"] - claim["least"], 21)
    for true in within:
        for width in 10.0 ** -np.arange(0.0, 12.0):
            for place in np.linspace(0.0, 1.0, 11):  # where in the interval the truth lies
                low = true - place * width
                found = verdict(Interval(true, low, low + width), **claim)
                assert found in (REPRODUCED, UNDECIDED), (true, low, low + width)
        assert found == REPRODUCED  # the narrowest


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_narrow_interval_about_no_effect_or_worse_says_so(claim: Any) -> None:
    way = claim["claimed"] - claim["no_effect"]
    for true in (claim["no_effect"], claim["no_effect"] - way / 10):
        assert verdict(Interval(true, true - abs(way) / 100, true + abs(way) / 100), **claim) == NO_EFFECT


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_value_that_is_known_exactly_is_never_undecided(claim: Any) -> None:
    low, high = sorted((claim["no_effect"], 1.5 * claim["claimed"] - 0.5 * claim["no_effect"]))
    for true in np.linspace(low, high, 199):
        assert verdict(Interval(true, true, true), **claim) != UNDECIDED


@pytest.mark.parametrize(
    "verdicts, expected",
    [
        ([REPRODUCED] * 3, REPRODUCED),
        ([NO_EFFECT] * 2, NO_EFFECT),
        ([REPRODUCED, NO_EFFECT], WEAKER),
        ([WEAKER, REPRODUCED, UNDECIDED], WEAKER),
        ([NO_EFFECT, UNDECIDED], WEAKER),
        ([REPRODUCED, UNDECIDED], UNDECIDED),
        ([REPRODUCED, OUT_OF_REGIME], OUT_OF_REGIME),
        ([], UNDECIDED),
    ],
)
def test_a_claim_holds_if_all_its_parts_do(verdicts: list[str], expected: str) -> None:
    assert overall(verdicts) == overall(verdicts[::-1]) == expected


def test_the_rule_in_words_has_every_verdict_that_it_gives() -> None:
    assert all((f'"{each}"' in RULE) == (each != OUT_OF_REGIME) for each in VERDICTS) and RULE.endswith(".")


def test_more_seeds_are_those_that_shrink_the_interval_until_it_decides() -> None:
    # 4.303 / sqrt(3) = 2.484 standard errors of three seeds, 3.182 / sqrt(4) = 1.591 of four, 2.776 / sqrt(5) = 1.242
    claim: Any = {"claimed": 1.0, "least": 0.9, "no_effect": 0.0}
    for half, more in ((0.99, 2), (0.79, 2), (0.77, 1)):  # half a unit from the middle
        assert more_seeds(Interval(1.0, 1 - half, 1 + half), 3, **claim) == more


def test_more_seeds_shrink_a_ratio_on_its_logarithm() -> None:
    # 2 / 2.2 to 2 * 2.2: four seeds leave log(2.2) * .640 = .505 > log(sqrt 2) = .347, five .394, six .330
    assert more_seeds(Interval(2.0, 2 / 2.2, 2 * 2.2), 3, **TWICE) == 3


@pytest.mark.parametrize(
    "interval, n, more",
    [
        (Interval(2.0, 1.9, 2.1), 3, 1),
        (Interval(2.0, 0.0, 2.2), 3, 100),
        (Interval(NAN, 0.0, INF), 4, 4),
        (Interval(2.0, 0.0, INF), 1, 2),
    ],
)
def test_more_seeds_is_at_least_one_and_at_most_100(interval: Interval, n: int, more: int) -> None:
    assert more_seeds(interval, n, **TWICE) == more


@pytest.mark.parametrize(
    "change, message",
    [
        ({"claimed": 1.0}, "not all of them no effect"),
        ({"least": 1.4}, "in this order, got claimed=2.0, least=1.4"),
        ({"least": 2.1}, "in this order"),
        ({"worse": 1.5}, "in this order"),
        ({"worse": 0.9}, "in this order"),
        ({"claimed": INF}, "finite"),
        ({"no_effect": 0.0}, "values > 0"),
    ],
)
def test_a_claim_whose_limits_contradict_each_other_is_refused(change: Any, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        verdict(Interval(1, 1, 1), **(TWICE | change))
    with pytest.raises(StatisticsError, match=message):
        more_seeds(Interval(1, 1, 1), 3, **(TWICE | change))


def test_an_unknown_verdict_is_refused() -> None:
    with pytest.raises(StatisticsError, match="not reproduced"):
        overall([REPRODUCED, "not reproduced"])
