"""Blocks of work timed in rounds: in what order, for how many rounds, and what is then known of the median."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import TypeVar

from inference.intervals import Interval

K = TypeVar("K")
Block = Callable[[], float]  # does its work, returns the seconds it took
LEAST_ROUNDS = 6  # the median of fewer has no 95 % interval


def interleaved(
    blocks: Mapping[K, Block], is_enough: Callable[[Mapping[K, Sequence[float]]], bool]
) -> dict[K, list[float]]:
    """The seconds of every round of every block; every other round goes backwards.

    is_enough: asked after each round, with the seconds so far.
    """
    order = list(blocks)
    found: dict[K, list[float]] = {name: [] for name in order}
    while True:
        for name in order:
            found[name].append(blocks[name]())
        if is_enough(found):
            return found
        order.reverse()


def median_interval(values: Sequence[float]) -> Interval:
    """The median of positive numbers and its 95 % interval from order statistics; unbounded below LEAST_ROUNDS."""
    ordered, n = sorted(values), len(values)
    outside, k = 0.0, 0  # k numbers may lie outside on each side
    while 2 * (outside + math.comb(n, k) / 2**n) <= 0.05:
        outside += math.comb(n, k) / 2**n
        k += 1
    low, high = (ordered[k - 1], ordered[n - k]) if k else (0.0, math.inf)
    return Interval(statistics.median(ordered), low, high)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The median of the ratios of each round."""
    return median_interval([our / their for our, their in zip(ours, theirs, strict=True)])


def ratios_are_known(found: Mapping[K, Sequence[float]], target: float) -> bool:
    """Whether the interval of every ratio of two blocks is at most `target` of the ratio wide on either side."""
    intervals = [ratio(found[ours], found[theirs]) for ours, theirs in permutations(found, 2)]
    return all(max(each.high - each.estimate, each.estimate - each.low) <= target * each.estimate for each in intervals)
