"""The parabola of a tuned hyperparameter: closed forms, and its error beside a simulated one."""

import math

import numpy as np
import pytest

from inference.intervals import StatisticsError
from inference.vertex import vertex


def test_a_parabola_is_found_exactly() -> None:
    points = [2.0 + 0.7 * (step - 0.3) ** 2 for step in (-1, 0, 1)]
    found = vertex(points)
    assert found == pytest.approx((0.3, 0.7, 2.0, 0.0))
    assert found.excess(0) == pytest.approx(0.7 * 0.09) and found.excess() == 0


def test_the_error_of_the_optimum_is_the_simulated_one() -> None:
    draw = np.random.default_rng(0)
    for offset in (0.0, 0.4):
        points = np.array([(step - offset) ** 2 for step in (-1, 0, 1)])
        sd, seeds = 0.05, 2
        noisy = points + sd / math.sqrt(seeds) * draw.standard_normal((4000, 3))
        offsets = np.array([vertex(each.tolist()).offset for each in noisy])
        expected = vertex(points.tolist(), sd=sd, seeds=seeds)
        assert offsets.std() == pytest.approx(expected.sd, rel=0.05)
        assert ((offsets - offset) ** 2).mean() == pytest.approx(expected.excess(), rel=0.1)  # kappa is 1


@pytest.mark.parametrize(
    "points, message",
    [
        ([2.0, 1.0], "three finite losses"),
        ([2.0, math.nan, 2.0], "three finite losses"),
        ([2.0, 1.0, 0.9], "extend the bracket"),
        ([1.0, 1.0, 1.0], "extend the bracket"),
    ],
)
def test_an_open_bracket_has_no_vertex(points: list[float], message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        vertex(points)


def test_of_two_equal_lowest_points_the_vertex_lies_between() -> None:
    found = vertex([1.0, 1.0, 1.2])
    assert (found.offset, found.curvature) == (pytest.approx(-0.5), pytest.approx(0.1))


def test_noise_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(StatisticsError, match="sd >= 0 and seeds >= 1, got sd=-1"):
        vertex([2.0, 1.0, 2.0], sd=-1)
