"""The curve that one arm's runs lie on, fitted to runs of several lengths and seeds, and how well it is known."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import fdtrc  # type: ignore[import-untyped]  # scipy ships no types

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Indices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

BETAS = (0.02, 3.0)  # 0.02 is all but a logarithm; losses of language models fall with exponents below 1
FEWEST = 3  # lengths for a curve, of an arm and of each of its seeds
EXACT = 1e-7  # residuals that are a smaller share of the loss are rounding


class Curve(NamedTuple):
    """loss(n) = level + slope (n^-beta - 1) / beta, n in shares of T: a + b n^-beta, a logarithm as beta goes to 0."""

    level: float  # the loss at T
    slope: float  # nats per factor e of n, at T
    beta: float

    def loss(self, n: float) -> float:
        """The loss after the share n of T."""
        return self.level + self.slope * math.expm1(-self.beta * math.log(n)) / self.beta


class Curves(NamedTuple):
    """Many curves: arrays of one entry each."""

    level: Array
    slope: Array
    beta: Array


class Spread(NamedTuple):
    """How an arm's runs scatter, standard deviations in nats.

    run: of a run about its seed's curve; level and slope: over seeds, of the curve's at T.
    """

    run: float
    level: float = 0.0
    slope: float = 0.0


class Runs(NamedTuple):
    """Finished runs: n in shares of T, seed from 0 on, final loss; one entry for each run."""

    n: Array
    seed: Indices
    loss: Array


class Fitted:
    """A curve with a level per seed, by least squares, and the parts that its residuals fall into.

    The runs' variance about the fit has three parts, told apart as in an analysis of variance over seeds and lengths:
    noise of a run; slopes that differ over seeds (slope_p is F's p-value of none); deviations of the mean
    curve from a + b n^-beta that all seeds share (fit_p of none, misfit their variance). p-values are nan where the
    runs are too few.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs, self.seeds = runs, int(runs.seed.max()) + 1
        self.lengths = np.unique(runs.n)
        self._member = (np.arange(self.seeds)[:, None] == runs.seed).astype(np.float64)
        self._average = self._member / self._member.sum(1, keepdims=True)  # (seeds, runs)
        self.curve = self._best()
        x = shape(runs.n, self.curve.beta)
        rest = x - (self._average @ x)[runs.seed]
        self._x_mean, self._x_square = self._average @ x, self._member @ rest**2  # (seeds,)
        self._slopes = self._member @ (rest * runs.loss) / self._x_square  # each seed's own
        self._levels = self._average @ runs.loss - self._slopes * self._x_mean
        self._analyse(x)

    def losses(self, n: Array) -> Array:
        """Every seed's own line in the shape of the curve, at n (K,): (seeds, K)."""
        return np.asarray(self._levels[:, None] + self._slopes[:, None] * shape(n, self.curve.beta))

    def leverage(self, n: Array) -> Array:
        """The variance of losses(n) for runs of variance 1, the mean over seeds: (K,)."""
        distance = shape(n, self.curve.beta) - self._x_mean[:, None]
        return np.asarray((1 / self._member.sum(1)[:, None] + distance**2 / self._x_square[:, None]).mean(0))

    def redrawn(self, draw: np.random.Generator, draws: int) -> Curves:
        """Curves fitted to runs drawn about this one, with noise and misfit as uncertain as their estimates are."""
        runs, curve = self.runs, self.curve
        at = np.searchsorted(self.lengths, runs.n)
        fitted = curve.slope * shape(runs.n, curve.beta)
        noise = scaled_normal(draw, self.variance, self.dof, (draws, runs.n.size))
        shared = scaled_normal(draw, self.misfit, self.misfit_dof, (draws, self.lengths.size))
        return self._fit(curve.level + fitted + noise + shared[:, at], np.append(np.geomspace(*BETAS, 31), curve.beta))

    def spread(self, level: float) -> Spread:
        """How the runs scatter; level is the caller's, who knows what the arms of a seed share."""
        return Spread(math.sqrt(self.noise), level, math.sqrt(self._slope_variance))

    def _best(self) -> Curve:
        low, high = BETAS
        for _ in range(8):  # each round narrows beta about 20-fold at most
            betas = np.geomspace(low, high, 41)
            found = self._fit(self.runs.loss[None], betas)
            best = int(np.abs(betas - found.beta[0]).argmin())
            low, high = betas[max(best - 1, 0)], betas[min(best + 1, betas.size - 1)]
        return Curve(float(found.level[0]), float(found.slope[0]), float(found.beta[0]))

    def _fit(self, losses: Array, betas: Array) -> Curves:
        """losses (samples, runs), in the order of the runs. Linear but for beta, which is scanned; slopes are >= 0."""
        seed, x = self.runs.seed, shape(self.runs.n, betas[:, None])  # (betas, runs)
        x_mean = x @ self._average.T  # (betas, seeds)
        rest = x - x_mean[:, seed]
        along, square = losses @ rest.T, (rest**2).sum(1)  # (samples, betas): rest has the mean 0 in every seed
        slope = np.maximum(along / square, 0.0)
        best = (slope * (2 * along - slope * square)).argmax(1)  # by how much the squared residuals fall
        slope = slope[np.arange(len(losses)), best]
        level = (losses @ self._average.T).mean(1) - slope * x_mean.mean(1)[best]
        return Curves(level, slope, betas[best])

    def _analyse(self, x: Array) -> None:
        """Sets the parts of the variance, their degrees of freedom and p-values."""
        seeds, lines = self._member.T, self._member.T * x[:, None]
        lengths = (self.runs.n[:, None] == self.lengths).astype(np.float64)
        loss, floor = self.runs.loss, (EXACT * np.abs(self.runs.loss).max()) ** 2
        lines_left, lines_rank = _left(loss, seeds, lines)
        lengths_left, lengths_rank = _left(loss, seeds, lengths)
        both_left, both_rank = _left(loss, seeds, lines, lengths)
        noise_dof, misfit_dof = loss.size - both_rank, both_rank - lines_rank - 1  # 1: beta
        slope_dof = both_rank - lengths_rank
        self.noise = both_left / noise_dof if noise_dof else 0.0
        self.dof = loss.size - lengths_rank
        self.variance = lengths_left / self.dof if self.dof else 0.0  # a run's, with what slopes add
        slopes = max(0.0, lengths_left - both_left) / slope_dof if slope_dof else 0.0
        misfit = max(0.0, lines_left - both_left) / misfit_dof if misfit_dof > 0 else 0.0
        self.slope_p = _p_value(slopes, slope_dof, self.noise, noise_dof, floor)
        self.fit_p = _p_value(misfit, misfit_dof, self.noise, noise_dof, floor)
        known = misfit > floor and noise_dof > 0
        self.misfit = max(0.0, misfit - self.noise) * self.lengths.size / loss.size if known else 0.0
        self.misfit_dof = max(misfit_dof, 1)
        self._slope_variance = max(0.0, slopes - self.noise) / float(self._x_square.mean()) if noise_dof else 0.0


def shape(n: Array, beta: float | Array) -> Array:
    """(n^-beta - 1) / beta, what a curve of slope 1 lies above its level at T."""
    return np.asarray(np.expm1(-beta * np.log(n)) / beta)


def scaled_normal(draw: np.random.Generator, variance: float, dof: float, shape: tuple[int, ...]) -> Array:
    """Normal numbers; the variance of each row is as uncertain as an estimate from dof degrees of freedom."""
    if not variance:
        return np.zeros(shape)
    inflation = np.sqrt(dof / draw.chisquare(dof, (shape[0], *[1] * (len(shape) - 1))))
    return np.asarray(math.sqrt(variance) * inflation * draw.standard_normal(shape))


def _left(loss: Array, *columns: Array) -> tuple[float, int]:
    """The squared residuals of a least-squares fit to the columns, and their rank."""
    design = np.concatenate(columns, axis=1)
    solution, _, rank, _ = np.linalg.lstsq(design, loss, rcond=1e-9)
    return float(((loss - design @ solution) ** 2).sum()), int(rank)


def _p_value(square: float, dof: int, noise: float, noise_dof: int, floor: float) -> float:
    """Of the F test of a mean square beside the noise's."""
    if dof < 1 or noise_dof < 1:
        return math.nan
    if square <= floor:
        return 1.0
    return float(fdtrc(dof, noise_dof, square / max(noise, floor)))


def indexed(rows: Sequence[tuple[int, float, float]]) -> Runs:
    """The runs of (seed, n, loss) in order, seeds renumbered from 0."""
    ordered = sorted(rows)  # the bootstrap draws in this order
    _, seed = np.unique([row[0] for row in ordered], return_inverse=True)
    n, loss = (np.asarray([row[i] for row in ordered], dtype=np.float64) for i in (1, 2))
    return Runs(n, seed, loss)
