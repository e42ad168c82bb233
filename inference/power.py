"""The chance that a comparison of so many seeds and lengths says "reproduced" of a claim that is true."""

from collections.abc import Sequence

import numpy as np

from inference.curves import Losses, speed_up
from inference.fitted import Array, Curve, Spread, shape
from inference.intervals import Interval, StatisticsError, divided, mean_interval
from inference.verdicts import REPRODUCED, verdict

COMPARISONS = 300  # the chance is known to within .05, or .02 where it is near 0 or 1
DRAWS = 400  # of each bootstrap
DIFFERENCES = 1000
EXACT = Interval(1.0, 1.0, 1.0)


def power(
    curve: Curve,
    candidate: Spread,
    baseline: Spread,
    *,
    shares: Sequence[float],
    seeds: int,
    claimed: float,
    least: float,
    no_effect: float = 1.0,
    worse: float | None = None,
    cost: Interval = EXACT,
    comparisons: int = COMPARISONS,
    draws: int = DRAWS,
) -> float:
    """The share of simulated comparisons with the verdict REPRODUCED where the candidate is `claimed` times as fast.

    cost: of a step of the candidate over one of the baseline, if the claim is not about steps; its bounds widen every
    simulated interval, as they do the report's.

    curve: the baseline's, in shares of T; the candidate's is the same curve run through that much faster. Spreads: the
    arms', their levels being what arms of a seed do not share. shares: the lengths of both arms' runs, 1 among them.

    Raises: StatisticsError: if there is no comparison to simulate, or verdict() or speed_up() cannot be asked.
    """
    if comparisons < 1 or seeds < 1:
        raise StatisticsError(f"power needs seeds and comparisons, got {seeds} and {comparisons}; pass 1 or more")
    draw, reproduced, lengths = np.random.default_rng(0), 0, np.asarray(shares, dtype=np.float64)
    along = shape(lengths, curve.beta)
    means = [np.asarray([curve.loss(n * factor) for n in shares]) for factor in (claimed * cost.estimate, 1.0)]
    for _ in range(comparisons):
        ours, theirs = (
            _drawn(draw, mean, along, spread, shares, seeds)
            for mean, spread in zip(means, (candidate, baseline), strict=True)
        )
        interval = divided(speed_up(ours, theirs, 1.0, draws=draws).interval, cost)
        said = verdict(interval, claimed=claimed, least=least, no_effect=no_effect, worse=worse, log_scale=True)
        reproduced += said == REPRODUCED
    return reproduced / comparisons


def power_of_difference(sd: float, seeds: int, *, claimed: float, least: float, no_effect: float) -> float:
    """The share of simulated differences with the verdict REPRODUCED where the true one is `claimed`.

    sd: of a difference over seeds, normal; each simulated sample has Student's interval.

    Raises: StatisticsError: if verdict() or mean_interval() cannot be asked.
    """
    samples = claimed + sd * np.random.default_rng(0).standard_normal((DIFFERENCES, seeds))
    said = [
        verdict(mean_interval(sample), claimed=claimed, least=least, no_effect=no_effect) for sample in samples.tolist()
    ]
    return said.count(REPRODUCED) / DIFFERENCES


def _drawn(
    draw: np.random.Generator, mean: Array, along: Array, spread: Spread, shares: Sequence[float], seeds: int
) -> Losses:
    """One arm's runs about its mean losses; along: what a slope of 1 adds to them."""
    normal = draw.standard_normal((seeds, len(shares) + 2))
    losses = mean + spread.level * normal[:, :1] + spread.slope * normal[:, 1:2] * along + spread.run * normal[:, 2:]
    return {seed: list(zip(shares, row, strict=True)) for seed, row in enumerate(losses.tolist())}
