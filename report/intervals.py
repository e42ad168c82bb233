"""A measure's interval as a small picture: where its parts stand, with marks at no effect and at the claim."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from report import numbers
from report.results import Measure

WORDS = {"no_effect": "no effect", "claimed": "claimed"}


class Mark(NamedTuple):
    """A line across the rail. kind: a key of WORDS; words: what stands at it, if anything."""

    kind: str
    x: float
    anchor: str  # where the words begin or end: "start" or "end"
    words: str


class Picture(NamedTuple):
    """In pixels; bar: from where to where the interval reaches, None without one."""

    width: int
    height: int
    dot: float
    bar: tuple[float, float] | None
    marks: list[Mark]


def picture(measure: Measure, *, is_large: bool = False) -> Picture | None:
    """The picture, large with words at its marks; None where there is nothing to see."""
    marks = {"no_effect": measure.no_effect, "claimed": measure.claimed}
    drawn = [value for value in (measure.low, measure.high, *marks.values()) if value is not None]
    if measure.estimate is None or not drawn:
        return None
    width, height = (320, 64) if is_large else (132, 22)
    place = _scale([measure.estimate, *drawn], width, measure.log_scale)
    bar = None
    if (measure.low, measure.high) != (None, None):  # open towards where it has no bound
        low = 0.0 if measure.low is None else place(measure.low)
        high = float(width) if measure.high is None else place(measure.high)
        bar = low, max(high - low, 1.0)
    found = []
    for kind, value in marks.items():
        if value is not None:
            x = place(value)
            words = f"{WORDS[kind]} {numbers.with_unit(numbers.digits(value), measure.unit)}" if is_large else ""
            found.append(Mark(kind, x, "start" if x < width / 2 else "end", words))
    return Picture(width, height, place(measure.estimate), bar, found)


def _scale(values: Sequence[float], width: float, log: bool) -> Callable[[float], float]:
    """Value to place between the edges, with some space at both; logarithmic where all values allow it."""
    bend: Callable[[float], float] = math.log if log and min(values) > 0 else float
    low, high = bend(min(values)), bend(max(values))
    space = 0.1 * (high - low) or 1.0
    return lambda value: width * (bend(value) - low + space) / (high - low + 2 * space)
