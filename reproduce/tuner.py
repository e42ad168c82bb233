"""How every arm is tuned alike: bracket, vertex, next axis; which runs that takes, given those that are done.

One axis after the other, the rate first, each varied by factors of 2 around the best point so far, at the full length
and with the tuning seeds, which no comparison sees:
    bracket   run both neighbours of the best value, and move there while one is better; of the other axes than the
              first, while it pays: is better by more than noise. Of the first axis also run on until a value on either
              side is worse by a margin.
    again     if another axis has moved the point, bracket the first one again, and if that moves, the others.
    vertex    of the parabola through the best value of each axis and its two neighbours; the point of all vertices is
              run, and taken if it is better.
A value whose neighbour lies beyond the limits of its axis is an end: the optimum is not inside, and no verdict rests on
it. The same outcomes give the same answer; nothing is remembered.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import variance

from files.reading import number
from inference.vertex import Vertex, vertex
from reproduce.arms import Axis, Coordinates
from reproduce.plans import Planned

FURTHEST = 6  # doublings from the start
MOST_ROUNDS = 3  # over all axes
Outcomes = Mapping[str, float | None]  # configuration hash -> final val/loss; None: it diverged
Wanted = Callable[[Coordinates, int], Planned]  # the run at those values with that seed


@dataclass(frozen=True)
class Bracket:
    """What was run along an axis through the best point.

    losses: value -> mean loss over the tuning seeds, inf if one diverged, by rising value. best: the value with the
    least, or one to move from which did not pay. around: the losses half and twice as far as it, and its own in the
    middle; None if it is an end. noise: sd of a run beside other runs of its seed, from how the differences to the
    neighbours vary over seeds; None: not known.
    """

    axis: Axis
    losses: Mapping[float, float]
    best: float
    around: tuple[float, float, float] | None
    noise: float | None = None

    @property
    def is_inside(self) -> bool:
        """Whether both neighbours of the best value were run, and it did not pay to move there."""
        return self.around is not None

    def vertex(self, sd: float = 0.0, seeds: int = 1) -> Vertex | None:
        """The parabola through the best value and its neighbours; None if there is none. sd, seeds: see vertex.py."""
        if self.around is None or not all(map(math.isfinite, self.around)):
            return None
        if min(self.around) < self.around[1] or max(self.around) == self.around[1]:
            return None  # a plateau
        return vertex(self.around, sd=sd, seeds=seeds)

    def beside(self, side: int) -> list[float]:
        """How far the losses on a side (-1: smaller values, 1: larger) lie above that of the best, nearest first."""
        values = sorted(self.losses)
        at = values.index(self.best)
        there = values[:at][::-1] if side < 0 else values[at + 1 :]
        return [self.losses[value] - self.losses[self.best] for value in there]


@dataclass(frozen=True)
class Tuning:
    """How far the tuning of an arm has come.

    runs: all that it has asked for. point: the best, None while runs are waited for. brackets: by axis, the last of
    each. at_point: the runs at the point, one for each tuning seed.
    """

    runs: list[Planned]
    point: Coordinates | None = None
    brackets: Mapping[str, Bracket] = field(default_factory=dict)
    at_point: Sequence[Planned] = ()
    took_vertex: bool = False

    @property
    def noise(self) -> float | None:
        """Sd of a run beside other runs of its seed, pooled over the brackets; None if nothing is known of it."""
        known = [bracket.noise for bracket in self.brackets.values() if bracket.noise is not None]
        return math.sqrt(sum(each**2 for each in known) / len(known)) if known else None


class _WaitingError(Exception):
    """Runs that are asked for have not ended."""


class _Losses:
    """Mean losses of points, asked for as they are needed."""

    def __init__(self, wanted: Wanted, seeds: Sequence[int], outcomes: Outcomes) -> None:
        self.wanted, self.seeds, self.outcomes = wanted, seeds, outcomes
        self.asked: dict[str, Planned] = {}

    def of(self, points: Sequence[Coordinates]) -> list[list[float]]:
        """By point, the losses of its runs. Raises: _WaitingError: once all are asked for, if one is not there."""
        runs = [self.runs(point) for point in points]
        self.asked |= {run.config_hash: run for each in runs for run in each}
        if any(run.config_hash not in self.outcomes for each in runs for run in each):
            raise _WaitingError
        return [[_or_worst(number(self.outcomes[run.config_hash])) for run in each] for each in runs]

    def runs(self, point: Coordinates) -> list[Planned]:
        """The runs of a point."""
        return [self.wanted(point, seed) for seed in self.seeds]


def tune(
    axes: Sequence[Axis],
    start: Coordinates,
    wanted: Wanted,
    seeds: Sequence[int],
    outcomes: Outcomes,
    margin: float,
    pays: float = 0.0,
) -> Tuning:
    """The tuning along the axes, given what is known; start: the values of all axes, of those not tuned too.

    margin: nats by which a value on either side of the first axis's best must be worse. pays: nats by which a value of
    another axis must be better, to move there.
    """
    losses, brackets, point = _Losses(wanted, seeds, outcomes), dict[str, Bracket](), dict(start)

    def move(along: Sequence[Axis]) -> bool:
        """Brackets the axes one after the other, and goes to the best; whether that is another point."""
        before = dict(point)
        for axis in along:
            how = (margin, 0.0) if axis is axes[0] else (0.0, pays)
            brackets[axis.name] = found = _bracket(axis, point, losses, *how)
            point[axis.name] = found.best
        return point != before

    try:
        move(axes[:1])
        for _ in range(MOST_ROUNDS):
            if not move(axes[1:]) or not move(axes[:1]):
                break
        vertices = {**point, **{axis.name: _at_vertex(brackets[axis.name]) for axis in axes}}
        here, there = map(_mean, losses.of([point, vertices]))
    except _WaitingError:
        return Tuning(list(losses.asked.values()))
    took_vertex = there < here
    point = vertices if took_vertex else point
    return Tuning(list(losses.asked.values()), point, brackets, losses.runs(point), took_vertex)


def _bracket(axis: Axis, point: Coordinates, losses: _Losses, margin: float, pays: float) -> Bracket:
    """Runs along the axis until the best value is inside. Raises: _WaitingError."""
    start, known, by_seed = point[axis.name], dict[int, float](), dict[int, list[float]]()

    def at(doublings: int) -> float:
        return axis.value(start, doublings)

    best, wanted = 0, [0, -1, 1]  # the start first: protocols.expected() takes it for the best
    while wanted:
        there = [n for n in wanted if abs(n) <= FURTHEST and axis.holds(at(n)) and _is_new(axis, at, known, n)]
        by_seed |= zip(there, losses.of([{**point, axis.name: at(n)} for n in there]), strict=True)
        known |= {n: _mean(by_seed[n]) for n in there}
        least = min(known, key=lambda n: (known[n], abs(n)))
        best = least if known[least] < known[best] - pays else best
        wanted = [n for n in _missing(known, best, margin - pays) if abs(n) <= FURTHEST and axis.holds(at(n))]
        wanted = [n for n in wanted if _is_new(axis, at, known, n)]
    is_inside = best - 1 in known and best + 1 in known
    around = (known[best - 1], known[best], known[best + 1]) if is_inside else None
    noise = _noise(by_seed[best], [by_seed[n] for n in (best - 1, best + 1) if n in by_seed])
    return Bracket(axis, {at(n): known[n] for n in sorted(known)}, at(best), around, noise)


def _is_new(axis: Axis, at: Callable[[int], float], known: Mapping[int, float], n: int) -> bool:
    """Whether a place is another value than those that are known: counts of 1 cannot be halved."""
    return n not in known and at(n) not in {at(each) for each in known}


def _missing(known: Mapping[int, float], best: int, margin: float) -> list[int]:
    """The places beside the best that are still to be run."""
    missing = []
    for side in (-1, 1):
        beside = [n for n in known if (n - best) * side > 0]
        if not any(known[n] >= known[best] + margin for n in beside):
            missing.append(max(beside, key=lambda n: n * side, default=best) + side)
    return missing


def _at_vertex(bracket: Bracket) -> float:
    found = bracket.vertex()
    return bracket.best if found is None else bracket.axis.value(bracket.best, found.offset)


def _noise(best: Sequence[float], neighbours: Sequence[Sequence[float]]) -> float | None:
    """Sd of a run beside others of its seed: the variance of a difference is twice its square."""
    differences = [[there - here for there, here in zip(each, best, strict=True)] for each in neighbours]
    known = [each for each in differences if len(each) > 1 and all(map(math.isfinite, each))]
    if not known:
        return None
    return math.sqrt(sum(variance(each) for each in known) / len(known) / 2)


def _or_worst(value: float | None) -> float:
    return math.inf if value is None else value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
