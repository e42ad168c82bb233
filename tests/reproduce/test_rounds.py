"""The order of rounds and what they tell, by arithmetic; nothing here depends on how fast a machine is."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import pytest

from inference.intervals import Interval
from reproduce.rounds import LEAST_ROUNDS, interleaved, median_interval, ratio, ratios_are_known

Found = Mapping[str, Sequence[float]]


def after(rounds: int) -> Callable[[Found], bool]:
    return lambda found: len(found["a"]) == rounds


def test_rounds_go_around_the_arms_and_every_other_one_backwards() -> None:
    clock, order = 0.0, []

    def block(name: str, seconds: float) -> Callable[[], float]:
        def run() -> float:
            nonlocal clock
            started, clock = clock, clock + seconds
            order.append(name)
            return clock - started

        return run

    found = interleaved({"a": block("a", 1.0), "b": block("b", 2.0), "c": block("c", 4.0)}, after(3))
    assert "".join(order) == "abc" + "cba" + "abc"
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [4.0] * 3}


def test_a_machine_that_slows_down_steadily_does_not_favour_an_arm() -> None:
    speed = iter(range(1, 100))  # every block takes one second longer than the one before
    found = interleaved({"a": lambda: float(next(speed)), "b": lambda: float(next(speed))}, after(4))
    assert sum(found["a"]) == sum(found["b"])


@pytest.mark.parametrize("n", [6, 8, 9, 12])
def test_the_interval_of_a_median_has_the_narrowest_order_statistics_that_hold_95_percent(n: int) -> None:
    interval = median_interval([float(i) for i in range(n, 0, -1)])
    assert interval.estimate == (n + 1) / 2

    def coverage(k: int) -> float:
        """Of [k-th smallest, k-th largest]: at least k values, and at most n - k, lie below the median."""
        samples = [len(list(combinations(range(n), below))) for below in range(k, n - k + 1)]
        return float(sum(samples) / 2**n)

    k = round(interval.low)
    assert interval.high == n + 1 - k
    assert coverage(k) >= 0.95 > coverage(k + 1)


@pytest.mark.parametrize("n", [1, 5])
def test_fewer_than_six_rounds_bound_nothing(n: int) -> None:
    assert median_interval([2.0] * n) == Interval(2.0, 0.0, math.inf)


def test_as_few_rounds_as_are_allowed_bound_a_median() -> None:
    assert math.isfinite(median_interval([2.0] * LEAST_ROUNDS).high)
    assert math.isinf(median_interval([2.0] * (LEAST_ROUNDS - 1)).high)


def test_a_ratio_is_known_once_both_ends_of_its_interval_are_near() -> None:
    theirs, near, far = [1.0] * 6, [2.0, 1.96, 2.04, 2.0, 2.0, 2.0], [2.0, 1.8, 2.0, 2.0, 2.0, 2.0]
    assert ratio(near, theirs) == Interval(2.0, 1.96, 2.04)
    assert ratios_are_known({"a": theirs, "b": near}, 0.03)
    assert not ratios_are_known({"a": theirs, "b": near}, 0.01)
    assert not ratios_are_known({"a": theirs, "b": far}, 0.03)  # low alone is far
    assert not ratios_are_known({"a": theirs, "b": near, "c": far}, 0.03)
    assert not ratios_are_known({"a": theirs[:5], "b": theirs[:5]}, 0.03)
