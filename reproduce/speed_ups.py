"""Speed-ups of the runs of a comparison, and what tuning and seeds leave uncertain of them."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from inference import curves
from inference.curves import BELOW, SpeedUp
from inference.fitted import FEWEST
from inference.intervals import Interval, pooled_sd
from report import numbers
from report.results import Axis, Figure, Published, Series, Table
from reproduce import records
from reproduce.claim import Claim
from reproduce.protocols import Comparison
from reproduce.training import HALF, steps_of
from reproduce.tuned import USUAL
from reproduce.tuner import Tuning

DRIFT = 0.3  # ours, and rather too large: best rates that are published fall by powers of the length up to this
NOT_TUNED = Tuning([])
SIGNS = {BELOW: "<", curves.ABOVE: ">"}
SPEED_UPS = "speed-ups"  # the figure's name
IN_STEPS = "speed-up in steps"  # the quantity of what others published that is drawn beside ours


class Scatter(NamedTuple):
    """unit: L(T/2) - L(T) of the baseline, mean over seeds, nats. sd: of a run over T over seeds, nats.

    Pooled over the arms that a part of the claim is about: one that is only shown beside them fails no check.
    """

    unit: float | None
    sd: float | None


def scatter(found: Comparison[Any]) -> Scatter:
    """What the compared runs say of it; None where runs are missing or diverged."""
    claim, budget = found.claim, found.claim.fields.budget
    half, full = (records.losses(found.compared, claim.baseline.name, n) for n in (steps_of(claim, HALF), budget))
    gains = [loss - end for seed, loss in half.items() if loss is not None and (end := full.get(seed)) is not None]
    arms = []
    for name in sorted(claim.kind.arms_of_parts(claim)):
        known = {s: loss for s, loss in records.losses(found.compared, name, budget).items() if loss is not None}
        arms += [known] if len(known) > 1 else []
    return Scatter(sum(gains) / len(gains) if gains else None, pooled_sd(arms) if arms else None)


def excess(tuning: Tuning, scatter: Scatter, n_seeds: int) -> float | None:
    """The nats by which the tuned arm may lie above its own optimum, over all axes that were tuned (vertex.py).

    None if an optimum is not inside its bracket, so that nothing bounds it.
    """
    total = 0.0
    for bracket in tuning.brackets.values():
        if bracket.around is None:
            return None
        found = bracket.vertex(_noise(tuning, scatter), n_seeds)
        total += max(0.0, bracket.around[1] - min(bracket.around))  # a move that did not pay
        if found is not None and found.curvature > 0:
            at = None if tuning.took_vertex else 0.0
            total += min(found.excess(at), min(bracket.around[::2]) - bracket.around[1])
    return total


def margin(tuning: Tuning, scatter: Scatter, n_seeds: int) -> float:
    """Two standard errors of a difference between two points of the tuning, each the mean of n_seeds runs, nats."""
    return 2 * _noise(tuning, scatter) * math.sqrt(2 / n_seeds)


def _noise(tuning: Tuning, scatter: Scatter) -> float:
    """Sd of a run of the tuning beside others of its seed; that over seeds, which is larger, where it is not known."""
    return tuning.noise if tuning.noise is not None else scatter.sd or 0.0


def speed_up(found: Comparison[Any], candidate: str, baseline: str) -> SpeedUp | None:
    """The candidate's speed-up in steps; None if the protocol has too few lengths for a curve."""
    ours, theirs = records.budgets(found.compared, candidate), records.budgets(found.compared, baseline)
    if min((len(points) for points in (*ours.values(), *theirs.values())), default=0) < FEWEST:
        return None
    known, fields = scatter(found), found.claim.fields
    tunings = found.tunings.get(candidate, NOT_TUNED), found.tunings.get(baseline, NOT_TUNED)
    unsure = [excess(tuning, known, len(fields.tuning_seeds)) or 0.0 for tuning in tunings]
    ratio = interval(curves.speed_up(ours, theirs, fields.budget, draws=1)).estimate  # which needs no bootstrap
    if math.isfinite(ratio) and ratio > 0:  # the better arm is read at a length for which its rate was not tuned
        better = 0 if ratio > 1 else 1
        unsure[better] += _drift(tunings[better], ratio)
    return curves.speed_up(ours, theirs, fields.budget, candidate_excess=unsure[0], baseline_excess=unsure[1])


def _drift(tuning: Tuning, ratio: float) -> float:
    """Nats that a rate tuned at T loses at T / ratio or T ratio, if the best rate falls as N^-DRIFT."""
    bracket = next(iter(tuning.brackets.values()), None)
    found = None if bracket is None else bracket.vertex()
    return 0.0 if found is None else found.curvature * (DRIFT * math.log2(ratio)) ** 2


def interval(found: SpeedUp) -> Interval:
    """The interval, with the bound as the estimate of one that is censored."""
    return found.interval._replace(estimate=found.bound) if found.censored else found.interval


def sign(found: SpeedUp) -> str:
    """ "<" or ">" for one that is censored; empty otherwise."""
    return SIGNS.get(found.censored or "", "")


def note(found: SpeedUp) -> str:
    """What is to be said beside the number: divergence, a curve that does not fit."""
    parts = []
    for words, arm in (("candidate", found.candidate), ("baseline", found.baseline)):
        if arm.diverged.estimate:
            parts.append(f"{numbers.percent(arm.diverged.estimate)} of the {words}'s runs diverged")
        if arm.fit_p < 0.01:
            parts.append(f"the {words}'s losses are on no curve a + b N^-beta (p = {arm.fit_p:.2g})")
        if arm.slope_p < 0.01:
            parts.append(f"the {words}'s slopes differ over seeds (p = {arm.slope_p:.2g})")
    return "; ".join(parts)


def tuning_sentence(found: Comparison[Any]) -> str:
    """What tuning alone gave the baseline over its usual settings; empty if those were not run."""
    claim, baseline = found.claim, found.claim.baseline
    usual = [run.record.loss for run in found.besides if run.plan.purpose == USUAL]
    known = [loss for loss in usual if loss is not None]
    if not usual:
        return ""
    settings = " ".join(baseline.usual)
    if len(known) < len(usual):
        return f"Tuning alone: {baseline.label} diverges with its usual settings ({settings})."
    target, points = sum(known) / len(known), _mean_points(found, baseline.name)
    reached = _first_at_or_below(points, target)
    if not points:
        return ""
    tuned = points[-1][1]
    losses = f"loss {numbers.loss(target)} with the usual settings ({settings}), {numbers.loss(tuned)} tuned"
    if reached is None:
        return f"Tuning alone: nothing; {baseline.label} has {losses}."
    gain = claim.fields.budget / reached
    bound = "> " if reached == points[0][0] else ""
    return f"Tuning alone: {bound}{gain:.2f}× for {baseline.label}: {losses}."


def fits_table(rows: Sequence[tuple[str, SpeedUp]]) -> Table:
    """What the curves say of themselves, for every comparison by its name."""
    cells = []
    for name, each in rows:
        for words, arm in (("candidate", each.candidate), ("baseline", each.baseline)):
            run = "" if arm.spread is None else f"{arm.spread.run:.4f}"
            cells.append([name, words, run, _p(arm.slope_p), _p(arm.fit_p), numbers.percent(arm.diverged.estimate)])
    columns = ["comparison", "arm", "sd of a run about its curve, nats", "p of equal slopes over seeds"]
    columns += ["p of the curve's form", "diverged runs"]
    return Table("The fitted curves", columns, cells, "Small p-values speak against what is assumed.")


def figure(claim: Claim[Any], rows: Sequence[tuple[str, str, SpeedUp]], size: float, claimed: float | None) -> Figure:
    """Our speed-ups in steps and those that others published, by size of the model; rows: arm, label, speed-up."""
    series = []
    for arm, label, each in rows:
        low, estimate, high = drawn(each)
        series.append(Series(f"{label}, here", [size], [estimate], [low], [high], arm))
    published = [each for each in claim.fields.evidence if each.quantity == IN_STEPS and each.parameters]
    others = " Hollow: published by others, see the table." if published else ""
    for arm in dict.fromkeys(each.arm for each in published):
        series.append(_published(claim, arm, [each for each in published if each.arm == arm]))
    return Figure(
        SPEED_UPS,
        f"Speed-up in steps over {claim.baseline.label}",
        "points",
        Axis("parameters of the model", log=True),
        Axis("speed-up in steps", log=True),
        series,
        caption=f"Filled: measured here, with its 95 % interval.{others}",
        hline=claimed,
        hline_label="claimed" if claimed is not None else "",
    )


def _published(claim: Claim[Any], arm: str, rows: Sequence[Published]) -> Series:
    rows = sorted(rows, key=lambda each: each.parameters or 0.0)
    name = f"{claim.arm(arm).label}, published"
    x, y = [each.parameters or 0.0 for each in rows], [each.value for each in rows]
    return Series(name, x, list(y), arm=arm, hollow=True, labels=[each.label for each in rows])


def drawn(found: SpeedUp) -> tuple[float | None, float | None, float | None]:
    """Low, estimate and high on a logarithmic axis: of a censored one its bound alone, on the side where it is."""
    if found.censored:
        return (None, None, found.bound) if found.censored == BELOW else (found.bound, None, None)
    low = found.interval.low if found.interval.low > 0 else None
    high = found.interval.high if math.isfinite(found.interval.high) else None
    return low, found.interval.estimate, high


def _mean_points(found: Comparison[Any], arm: str) -> list[tuple[float, float]]:
    """(steps, mean loss over seeds) of an arm's lengths that all seeds finished, shortest first."""
    by_length: dict[float, list[float | None]] = {}
    for points in records.budgets(found.compared, arm).values():
        for steps, loss in points:
            by_length.setdefault(steps, []).append(loss)
    complete = {steps: [loss for loss in losses if loss is not None] for steps, losses in by_length.items()}
    n = len(found.claim.fields.seeds)
    return [(steps, sum(each) / n) for steps, each in sorted(complete.items()) if len(each) == n]


def _first_at_or_below(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """The steps at which straight lines over log steps first reach the target; None: never."""
    if not points or min(loss for _, loss in points) > target:
        return None
    if points[0][1] <= target:
        return points[0][0]
    for (n0, y0), (n1, y1) in pairwise(points):
        if y0 > target >= y1:
            return math.exp(math.log(n0) + (math.log(n1) - math.log(n0)) * (y0 - target) / (y0 - y1))
    return None


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
