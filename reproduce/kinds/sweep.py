"""A claim about a sweep: every arm over a grid of one hyperparameter, then the points that matter with fresh seeds.

Judged are losses at the best point, what is lost from the first point to the last, or diagnostics of the runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from typing_extensions import override

from report.numbers import NATS, loss
from report.results import Axis, Figure, Measure, Series, Table, diagnostic_name
from reproduce import exhibits, records
from reproduce.claim import Claim, Point
from reproduce.evidence import Evidence
from reproduce.fields import ClaimError, limited
from reproduce.judging import Expectation, Expected, check_expectations, difference
from reproduce.kind import Kind
from reproduce.plans import plan
from reproduce.protocols import Comparison, Outcomes, Plan, Protocol, best, waiting
from reproduce.records import Losses, Recorded
from reproduce.training import TrainingFields, check_training

CHOSEN = {"best": "the best point", "ends": "the first and the last point"}


@dataclass
class SweepFields(TrainingFields):
    """axis: what the grid varies, for people. chosen: the points that are run again. near: nats above the best."""

    axis: str = limited()
    chosen: str = limited(choices=tuple(CHOSEN))
    near: list[float] = field(default_factory=lambda: [0.05, 0.2])
    expect: list[Expectation] = limited()  # quantities: those of QUANTITIES, and what `shows` lists


@dataclass(frozen=True)
class GridThenSeeds(Protocol[SweepFields]):
    """Every point of every arm once, then the points that matter again with fresh seeds.

    The fresh seeds keep the best of many noisy losses from being taken at face value.
    """

    name: ClassVar[str] = "sweep"

    @property
    @override
    def description(self) -> str:
        fields, n = self.claim.fields, len(self.claim.arms[0].grid)
        return (
            f"{n} points for every arm at {fields.budget} steps, seed {fields.tuning_seed}, then "
            f"{CHOSEN[fields.chosen]} of each again with seeds {fields.seeds}"
        )

    @override
    def plan(self, outcomes: Outcomes) -> Plan:
        claim, fields = self.claim, self.claim.fields
        run = partial(plan, claim, protocol=self.name, steps=fields.budget)
        grid = [
            run(arm=arm, purpose="sweep", seed=fields.tuning_seed, point=point)
            for arm in claim.arms
            for point in arm.grid
        ]
        if waiting(grid, outcomes):
            return Plan(grid, None, [])
        ends = {arm.name: [arm.grid[0], arm.grid[-1]] for arm in claim.arms}
        points = ends if fields.chosen == "ends" else best(grid, outcomes, 1)
        again = [
            run(arm=arm, purpose="full budget", seed=seed, point=point)
            for arm in claim.arms
            for point in dict.fromkeys(points[arm.name])
            for seed in fields.seeds
        ]
        return Plan(grid, points, again)


class Sweep(Kind[SweepFields]):
    """Judged are the rows of `expect`; all must hold."""

    Fields = SweepFields

    @override
    def check(self, claim: Claim[SweepFields]) -> None:
        check_training(claim)
        if not all(each > 0 for each in claim.fields.near):
            raise ClaimError(f"near={claim.fields.near} must list numbers above 0")
        check_expectations(claim, claim.fields.expect, [*QUANTITIES, *claim.fields.shows])
        for arm in claim.arms:
            if not arm.grid:
                raise ClaimError(f"arm {arm.name}: field 'grid' is missing: the points of the sweep")
            for point in arm.grid:
                try:
                    axis_value(point)
                except (ValueError, IndexError):
                    raise ClaimError(
                        f"arm {arm.name}: the first override of the point {list(point)} must be key=number, its place "
                        "on the axis"
                    ) from None

    @override
    def protocols(self, claim: Claim[SweepFields]) -> list[Protocol[SweepFields]]:
        return [GridThenSeeds(claim)]

    @override
    def conclude(self, found: Comparison[SweepFields]) -> Evidence:
        return Evidence(
            measures=[_expectation(found, row) for row in found.claim.fields.expect],
            figures=[_points_figure(found), exhibits.curves_figure(found, [found.claim.fields.budget])],
            tables=[_summary(found), *exhibits.tuning_tables(found)],
        )


def axis_value(point: Point) -> float:
    """A point's place on the axis: the number in its first override."""
    return float(point[0].partition("=")[2])


def _expectation(found: Comparison[SweepFields], row: Expectation) -> Measure:
    """The quantity of an arm, less that of the arm `against` where it is named."""
    quantity, unit, words = QUANTITIES.get(row.quantity) or _diagnostic(row.quantity)
    arm = found.claim.arm(row.arm)
    name, expected = f"{row.quantity.rpartition('/')[2]}_{arm.name}", Expected(row.claimed, row.no_effect)
    values = quantity(found, arm.name)
    if row.against is None:
        zero = dict.fromkeys(values, 0.0)
        return difference(name, f"{words} of {arm.label}", values, zero, expected, unit)
    other = found.claim.arm(row.against)
    label = f"{words} of {arm.label} less that of {other.label}"
    return difference(name, label, values, quantity(found, other.name), expected, unit)


Quantity = Callable[[Comparison[SweepFields], str], Losses]  # of an arm, by seed


def _final_loss(found: Comparison[SweepFields], arm: str, place: int = 0) -> Losses:
    at = (arm, found.points[arm][place])
    return {run.plan.seed: run.record.loss for run in found.compared if (run.plan.arm, run.plan.point) == at}


def _degradation(found: Comparison[SweepFields], arm: str) -> Losses:
    first, last = _final_loss(found, arm), _final_loss(found, arm, -1)
    values = {seed: (first[seed], last.get(seed)) for seed in first}
    return {seed: None if a is None or b is None else b - a for seed, (a, b) in values.items()}


def _clipped_share(found: Comparison[SweepFields], arm: str) -> Losses:
    return {run.plan.seed: run.record.clipped_share for run in found.compared if run.plan.arm == arm}


def _diagnostic(key: str) -> tuple[Quantity, str, str]:
    def values(found: Comparison[SweepFields], arm: str) -> Losses:
        return {run.plan.seed: run.record.diagnostics.get(key) for run in found.compared if run.plan.arm == arm}

    return values, "", diagnostic_name(key)


QUANTITIES: dict[str, tuple[Quantity, str, str]] = {  # beside the diagnostics: values, unit, words
    "best_loss": (_final_loss, NATS, "best loss"),
    "degradation": (_degradation, NATS, "loss at the last point less that at the first"),
    "clipped_share": (_clipped_share, "", "share of steps with a clipped gradient"),
}


def _points(runs: Sequence[Recorded], arm: str) -> list[tuple[float, float | None]]:
    """(place on the axis, loss) of an arm's runs, by rising place."""
    points = [(axis_value(run.plan.point), run.record.loss) for run in runs if run.plan.arm == arm]
    return sorted(points, key=lambda point: point[0])


def _points_figure(found: Comparison[SweepFields]) -> Figure:
    """Every point of the grid, and fresh seeds of those chosen."""
    axis, series = found.claim.fields.axis, []
    for arm in found.claim.arms:
        points = _points(found.tuned, arm.name)
        series.append(Series(arm.label, [x for x, _ in points], [y for _, y in points], arm=arm.name))
        again = _points(found.compared, arm.name)
        fresh = exhibits.points_series(f"{arm.label}, fresh seeds", arm.name, again, dashed=True)
        series += [fresh] if fresh.x else []
    caption = f"After {found.claim.fields.budget:,} steps. A gap in a line is a run that diverged."
    title, x = f"Loss against {axis}", Axis(axis, log=True)
    return Figure("sweep", title, "lines", x, Axis(exhibits.LOSS), series, caption=caption)


def _summary(found: Comparison[SweepFields]) -> Table:
    """Every arm's best point, and how much of the axis is nearly as good."""
    fields = found.claim.fields
    columns = ["arm", f"best {fields.axis}", "its loss in the sweep", "with fresh seeds"]
    columns += [f"share of the range within {tolerance:g} nats of the best" for tolerance in fields.near]
    rows = []
    for arm in found.claim.arms:
        points = _points(found.tuned, arm.name)
        known = [(y, x) for x, y in points if y is not None]
        y, x = min(known) if known else (None, None)
        fresh = [run.record.loss for run in found.compared if run.plan.arm == arm.name]
        shares = [records.share_near_best(points, tolerance) for tolerance in fields.near]
        own = ["" if y is None else loss(y), _mean_loss(fresh)]
        rows.append([arm.label, exhibits.text(x), *own, *map(exhibits.text, shares)])
    return Table("The sweep in short", columns, rows, "The range is measured on a logarithmic axis.")


def _mean_loss(values: Sequence[float | None]) -> str:
    known, mean = [value for value in values if value is not None], exhibits.average(values)
    failed = f"; {len(values) - len(known)} diverged" if len(known) < len(values) else ""
    return f"{'' if mean is None else loss(mean)} (n = {len(known)}{failed})"
