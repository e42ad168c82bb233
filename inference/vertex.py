"""Where a tuned hyperparameter's optimum lies, and what a run beside it loses: the parabola through three points."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from inference.intervals import StatisticsError


class Vertex(NamedTuple):
    """A parabola about its minimum; positions in steps of the points' (logarithmic) spacing from the middle point."""

    offset: float  # of the minimum
    curvature: float  # kappa: nats above the minimum, per square step
    loss: float  # at the minimum
    sd: float  # of offset, from the noise of the runs

    def excess(self, at: float | None = None) -> float:
        """The nats by which the expected loss of a run `at` steps from the middle lies above that of the true optimum.

        kappa ((at - offset)^2 + sd^2): the distance that was measured, and how far the measurement may be off. The
        run at the offset itself (None) keeps the second term alone.
        """
        distance = 0.0 if at is None else at - self.offset
        return self.curvature * (distance**2 + self.sd**2)


def vertex(points: Sequence[float], *, sd: float = 0.0, seeds: int = 1) -> Vertex:
    """The parabola through the mean losses of three settings at equal steps of the logarithm, the lowest in the middle.

    sd: of a run's loss; seeds: runs behind each mean. With v = sd^2 / seeds the offset's variance is, to first order,
    v (1 + 12 offset^2) / (8 kappa^2): the outer difference has the variance 2 v, the second difference 6 v, and they
    are independent.

    Raises: StatisticsError: if a loss is not finite, or a neighbour is not above the middle: the bracket is open.
    """
    if len(points) != 3 or not all(math.isfinite(each) for each in points):
        raise StatisticsError(f"vertex needs three finite losses, got {list(points)}; run what is missing")
    left, middle, right = points
    if min(left, right) < middle or max(left, right) == middle:
        raise StatisticsError(f"vertex needs no neighbour below the middle, got {list(points)}; extend the bracket")
    if sd < 0 or seeds < 1:
        raise StatisticsError(f"vertex needs sd >= 0 and seeds >= 1, got sd={sd}, seeds={seeds}; correct them")
    curvature = (left + right) / 2 - middle
    offset = (left - right) / (4 * curvature)
    variance = sd**2 / seeds * (1 + 12 * offset**2) / (8 * curvature**2)
    return Vertex(offset, curvature, middle - curvature * offset**2, math.sqrt(variance))
