"""What a figure must be, and what its drawings for the page and for paper have in common.

A colour and a marker belong to an arm, the same in every figure of a report.
"""

import itertools
import re
from collections.abc import Mapping, Sequence

from report.results import Figure, Series

# For white and for dark pages, same order. Every colour has contrast 3 or more with its page, and every two remain
# apart (CIE Lab distance 18 or more) for people without red, green or blue cones.
PALETTE = {
    "light": ("#1a3fb8", "#c98400", "#00936a", "#a078c0", "#8f3414", "#5b86ff", "#4d3a44"),
    "dark": ("#4a78ff", "#e6b93c", "#3cdb8f", "#b97fd0", "#dd7645", "#b9c8fd", "#8d8484"),
}
MARKERS = (("circle", "o"), ("square", "s"), ("diamond", "D"), ("triangle-up", "^"), ("x", "X"), ("triangle-down", "v"))
KINDS = ("lines", "bars", "points")
FEW = 12  # lines of so few points show them


class FigureError(ValueError):
    """A figure that cannot be drawn; one clear line."""


def slots(arms: Sequence[str]) -> dict[str, int]:
    """The place of each arm in the palette."""
    return {arm: place for place, arm in enumerate(arms)}


def check(figure: Figure) -> None:
    """Raises: FigureError: if its name is no file name, its kind unknown, or its lists differ in length."""
    where = f"figure {figure.name!r}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", figure.name):
        raise FigureError(f"{where} names its files: use letters, digits, '.', '_' and '-'")
    if figure.kind not in KINDS:
        raise FigureError(f"{where} has kind {figure.kind!r}, expected one of {', '.join(KINDS)}")
    for each in figure.series:
        for values in (each.y, each.low, each.high, each.labels):
            if values is not None and len(values) != len(each.x):
                found = f"{len(each.x)} x but {len(values)} y, low, high or labels"
                raise FigureError(f"{where}, series {each.name!r}: {found}")
        if each.hollow and figure.kind != "points":
            raise FigureError(f"{where}, series {each.name!r}: only points can be hollow, not {figure.kind}")
    for label, columns in figure.alternatives.items():
        if [len(column) for column in columns] != [len(each.x) for each in figure.series]:
            raise FigureError(f"{where}: x axis {label!r} needs one value per point of every series")


def places_of(figure: Figure, places: Mapping[str, int]) -> list[int]:
    """Every series' place: its arm's, or a free one where it has none."""
    known = dict(places)
    taken = {known[each.arm] for each in figure.series if each.arm in known}
    free = (place for place in itertools.count() if place not in taken)
    found = []
    for each in figure.series:
        key = each.arm if each.arm is not None else f"series {each.name}"
        if key not in known:
            known[key] = next(free)
        found.append(known[key])
    return found


def categories_of(figure: Figure) -> list[str] | None:
    """The x axis' words in the order they appear, or None if it has numbers."""
    words = [x for each in figure.series for x in each.x if isinstance(x, str)]
    return list(dict.fromkeys(words)) if words else None


def is_grouped(figure: Figure) -> bool:
    """Whether bars of several series share an x, and so stand side by side."""
    counts = [x for each in figure.series for x in dict.fromkeys(map(str, each.x))]
    return len(counts) != len(set(counts))


def is_labelled(figure: Figure) -> bool:
    """Whether the x axis says already what a legend would."""
    return figure.kind == "bars" and all(set(each.x) == {each.name} for each in figure.series)


def limits_of(figure: Figure, series: Series) -> list[tuple[int, float, bool]]:
    """The points that are known by a bound alone: which, the bound, and whether the number lies above it."""
    if figure.kind != "points" or series.low is None or series.high is None:
        return []
    found = []
    for i, (y, low, high) in enumerate(zip(series.y, series.low, series.high, strict=True)):
        if y is None and (low is None) != (high is None):
            found.append((i, low, True) if low is not None else (i, high or 0.0, False))
    return found


def arrow(bound: float) -> float:
    """The length of the arrow from such a bound, on the axis."""
    return 0.25 * abs(bound) or 0.25


def complete(series: Series) -> list[int]:
    """Where the series has an interval."""
    pairs = zip(series.low or [], series.high or [], strict=True)
    return [i for i, pair in enumerate(pairs) if None not in pair]


def reach(series: Series) -> tuple[list[float], list[float]]:
    """How far the intervals reach below and above their points; 0 where there is none."""
    bounds = zip(series.y, series.low or [], series.high or [], strict=True)
    found = [
        (0.0, 0.0) if y is None or low is None or high is None else (max(y - low, 0.0), max(high - y, 0.0))
        for y, low, high in bounds
    ]
    return [below for below, _ in found], [above for _, above in found]
