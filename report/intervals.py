"""A measure's interval as a small picture: where its parts stand, with marks at no effect and at the claim."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from report.numbers import is_known, known_bounds
from report.results import Measure

WIDTH, HEIGHT = 132, 22


class Mark(NamedTuple):
    """A line across the rail. kind: "no_effect" or "claimed"."""

    kind: str
    x: float


class Picture(NamedTuple):
    """In pixels; dot: None where the number lies beyond what was run.

    bar: where the interval begins and how wide it is, None without one.
    """

    width: int
    height: int
    dot: float | None
    bar: tuple[float, float] | None
    marks: list[Mark]


def picture(measure: Measure) -> Picture | None:
    """The picture; None where there is nothing to see."""
    marks = {"no_effect": measure.no_effect, "claimed": measure.claimed}
    low, high = known_bounds(measure)
    others = [value for value in (low, high, *marks.values()) if value is not None]
    if not is_known(measure) or not others:
        return None
    estimate = [measure.estimate] if measure.estimate is not None else []
    place = _scale([*estimate, *others], WIDTH, measure.log_scale)
    bar = None
    if (low, high) != (None, None):  # open towards where it has no bound
        left = 0.0 if low is None else place(low)
        right = float(WIDTH) if high is None else place(high)
        bar = left, max(right - left, 1.0)
    dot = None if measure.censored or measure.estimate is None else place(measure.estimate)
    drawn = [Mark(kind, place(value)) for kind, value in marks.items() if value is not None]
    return Picture(WIDTH, HEIGHT, dot, bar, drawn)


def _scale(values: Sequence[float], width: float, log: bool) -> Callable[[float], float]:
    """Value to place between the edges, with some space at both; logarithmic where all values allow it."""
    bend: Callable[[float], float] = math.log if log and min(values) > 0 else float
    low, high = bend(min(values)), bend(max(values))
    space = 0.1 * (high - low) or 1.0
    return lambda value: width * (bend(value) - low + space) / (high - low + 2 * space)
