"""A claim about tuned optimizers that is no speed-up: their best losses, how much of an axis is nearly as good, counts.

Every arm is tuned alike (tuned.py); with `sweep` it is then run at several values of one hyperparameter, everything
else at its tuned value. Judged are the rows of `expect`; all must hold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from typing_extensions import override

from inference.power import power_of_difference
from report.numbers import NATS, loss
from report.results import Axis, Figure, Measure, Table, diagnostic_name
from reproduce import exhibits, records
from reproduce.arms import ArmSpec, Point
from reproduce.claim import Claim
from reproduce.evidence import Evidence
from reproduce.fields import limited, nearest
from reproduce.judging import Expectation, Expected, check_expectations, difference
from reproduce.kind import Kind
from reproduce.mistakes import ClaimError, Mistakes
from reproduce.plans import Planned, plan
from reproduce.protocols import Comparison, Points, Protocol
from reproduce.records import Losses, Recorded
from reproduce.training import TrainingFields, check_training
from reproduce.tuned import Tuned
from reproduce.tuner import Tuning

SWEEP = "sweep"  # the purpose of its runs


@dataclass
class SweepOver:
    """What is varied after tuning: either an axis of every arm by factors of its tuned value, or overrides by value.

    label: for people. axis: the name of an axis of every arm. values: its factors, or the values of `sets`, overrides
    with {} for the value, by arm. near: nats above the best, for the share of the axis that is nearly as good.
    """

    label: str = limited()
    values: list[float] = limited(words="a list of numbers")
    axis: str = ""
    sets: dict[str, list[str]] = field(default_factory=dict)
    near: float = limited(0.05, above=0)


@dataclass
class SweepFields(TrainingFields):
    """The fields of a claim file; expect's quantities: those of QUANTITIES, and what `shows` lists."""

    expect: list[Expectation] = limited()
    sweep: SweepOver | None = None


@dataclass(frozen=True)
class Swept(Tuned[SweepFields]):
    """Equal tuning and comparison, and the sweep with the same seeds."""

    @property
    @override
    def description(self) -> str:
        over = self.claim.fields.sweep
        return f"{super().description}; and over {over.label}" if over else super().description

    @override
    def more(self, points: Points, tunings: dict[str, Tuning]) -> list[Planned]:
        over, fields = self.claim.fields.sweep, self.claim.fields
        if over is None:
            return []
        runs = []
        for arm in self.claim.arms:
            for value in over.values:
                point = _swept_point(arm, over, value, points, tunings)
                own = [plan(self.claim, arm, self.name, SWEEP, seed, fields.budget, point) for seed in fields.seeds]
                runs += [replace(run, value=value) for run in own]
        return runs


class Sweep(Kind[SweepFields]):
    """See the module."""

    Fields = SweepFields

    @override
    def check(self, claim: Claim[SweepFields]) -> None:
        mistakes = Mistakes()
        with mistakes.collected():
            check_training(claim)
        with mistakes.collected():
            check_expectations(claim, claim.fields.expect, [*QUANTITIES, *claim.fields.shows])
        with mistakes.collected():
            if claim.fields.sweep is not None:
                _check_sweep(claim, claim.fields.sweep)
        mistakes.raise_all()

    @override
    def protocols(self, claim: Claim[SweepFields]) -> list[Protocol[SweepFields]]:
        return [Swept(claim)]

    @override
    def power(self, found: Comparison[SweepFields], evidence: Evidence) -> float | None:
        known = [
            power_of_difference(row.sd, row.n, claimed=row.claimed, least=row.least, no_effect=row.no_effect)
            for row in evidence.measures
            if row.sd is not None and row.n and row.claimed is not None and row.least is not None
            if row.no_effect is not None and not row.log_scale
        ]
        return min(known, default=None)

    @override
    def conclude(self, found: Comparison[SweepFields]) -> Evidence:
        over = found.claim.fields.sweep
        figures = [_axis_figure(found, over)] if over else [_judged_figure(found)]
        counts = [row.quantity for row in found.claim.fields.expect if row.quantity not in LOSSES]
        return Evidence(
            measures=[_expectation(found, row) for row in found.claim.fields.expect],
            figures=[*figures, exhibits.curves_figure(found, [found.claim.fields.budget])],
            tables=[*([_summary(found, over)] if over else []), *exhibits.tuning_tables(found)],
            counts=counts,
        )


def _check_sweep(claim: Claim[SweepFields], over: SweepOver) -> None:
    mistakes = Mistakes()
    with mistakes.collected():
        if len(set(over.values)) < 2 or min(over.values) <= 0:
            raise ClaimError(f"sweep.values={over.values} must be two or more different numbers above 0")
    with mistakes.collected():
        if bool(over.axis) == bool(over.sets):
            raise ClaimError("sweep: give one of axis and sets")
        for arm in claim.arms:
            with mistakes.collected():
                _check_swept(arm, over)
    mistakes.raise_all()


def _check_swept(arm: ArmSpec, over: SweepOver) -> None:
    if over.axis and over.axis not in arm.start:
        raise ClaimError(f"sweep.axis: arm {arm.name} has none; {nearest(over.axis, [*arm.start])}")
    if over.sets and not all("{}" in each for each in over.sets.get(arm.name) or [""]):
        raise ClaimError(f"sweep.sets.{arm.name} must list overrides with {{}} for the value")


def _swept_point(arm: ArmSpec, over: SweepOver, value: float, points: Points, tunings: dict[str, Tuning]) -> Point:
    if over.sets:
        text = f"{int(value)}" if float(value).is_integer() else f"{value:g}"
        return (*points[arm.name], *(each.replace("{}", text) for each in over.sets[arm.name]))
    tuned = dict(tunings[arm.name].point or {})
    return arm.point({**tuned, over.axis: float(f"{tuned[over.axis] * value:.4g}")})


def _expectation(found: Comparison[SweepFields], row: Expectation) -> Measure:
    """The quantity of an arm, less that of the arm `against` where it is named."""
    quantity, unit, words = QUANTITIES.get(row.quantity) or _diagnostic(row.quantity)
    arm = found.claim.arm(row.arm)
    name = f"{row.quantity.rpartition('/')[2]}_{arm.name}"
    expected = Expected(row.claimed, row.no_effect, row.least)
    values = quantity(found, arm.name)
    if row.against is None:
        zero = dict.fromkeys(values, 0.0)
        return difference(name, f"{words} of {arm.label}", values, zero, expected, unit)
    other = found.claim.arm(row.against)
    label = f"{words} of {arm.label} less that of {other.label}"
    return difference(name, label, values, quantity(found, other.name), expected, unit)


Quantity = Callable[[Comparison[SweepFields], str], Losses]  # of an arm, by seed


def _final_loss(found: Comparison[SweepFields], arm: str) -> Losses:
    return records.losses(found.compared, arm, found.claim.fields.budget)


def _degradation(found: Comparison[SweepFields], arm: str) -> Losses:
    points = _by_seed(found, arm)
    ends = {seed: (rows[0][1], rows[-1][1]) for seed, rows in points.items()}
    return {seed: None if a is None or b is None else b - a for seed, (a, b) in ends.items()}


def _near_share(found: Comparison[SweepFields], arm: str) -> Losses:
    over = found.claim.fields.sweep
    near = over.near if over else 0.0
    return {seed: records.share_near_best(rows, near) for seed, rows in _by_seed(found, arm).items()}


def _clipped_share(found: Comparison[SweepFields], arm: str) -> Losses:
    return {run.plan.seed: run.record.clipped_share for run in _full(found, arm)}


def _diagnostic(key: str) -> tuple[Quantity, str, str]:
    def values(found: Comparison[SweepFields], arm: str) -> Losses:
        return {run.plan.seed: run.record.diagnostics.get(key) for run in _full(found, arm)}

    return values, "", diagnostic_name(key)


LOSSES = ("best_loss", "degradation", "near_share")
QUANTITIES: dict[str, tuple[Quantity, str, str]] = {  # beside the diagnostics: values, unit, words
    "best_loss": (_final_loss, NATS, "loss"),
    "degradation": (_degradation, NATS, "loss at the last point less that at the first"),
    "near_share": (_near_share, "", "share of the axis that is nearly as good as the best"),
    "clipped_share": (_clipped_share, "", "share of steps with a clipped gradient"),
}


def _full(found: Comparison[SweepFields], arm: str) -> list[Recorded]:
    """An arm's compared runs over T."""
    return records.of_length(found.compared, arm, found.claim.fields.budget)


def _by_seed(found: Comparison[SweepFields], arm: str) -> dict[int, list[tuple[float, float | None]]]:
    """By seed, (value, loss) of an arm's sweep, by rising value."""
    rows: dict[int, list[tuple[float, float | None]]] = {}
    for run in found.besides:
        if run.plan.value is not None and run.plan.arm == arm:
            rows.setdefault(run.plan.seed, []).append((run.plan.value, run.record.loss))
    return {seed: sorted(each, key=lambda row: row[0]) for seed, each in rows.items()}


def _judged_figure(found: Comparison[SweepFields]) -> Figure:
    """Every arm's quantity of the first row that is judged."""
    key = found.claim.fields.expect[0].quantity
    if key == "best_loss":
        return exhibits.losses_figure(found)
    quantity, unit, words = QUANTITIES.get(key) or _diagnostic(key)
    series = exhibits.bars(found, lambda arm: quantity(found, arm).values())
    caption = f"Over runs of {found.claim.fields.budget:,} steps; mean over seeds, and the extremes."
    return Figure("judged", words.capitalize(), "bars", Axis("arm"), Axis(unit or words), series, caption=caption)


def _axis_figure(found: Comparison[SweepFields], over: SweepOver) -> Figure:
    """Every arm's losses over the axis."""
    series = exhibits.lines(found, lambda arm: [row for rows in _by_seed(found, arm).values() for row in rows])
    caption = (
        f"After {found.claim.fields.budget:,} steps; mean over seeds, and the extremes. Diverged runs are left out."
    )
    title, x = f"Loss against {over.label}", Axis(over.label, log=True)
    return Figure("sweep", title, "lines", x, Axis(exhibits.LOSS), series, caption=caption)


def _summary(found: Comparison[SweepFields], over: SweepOver) -> Table:
    """Every arm's losses at each value, and how much of the axis is nearly as good as the best."""
    columns = ["arm", *(f"{value:g}" for value in sorted(over.values)), f"share within {over.near:g} nats of the best"]
    rows = []
    for arm in found.claim.arms:
        by_seed = _by_seed(found, arm.name)
        cells = [_mean_loss([dict(each).get(value) for each in by_seed.values()]) for value in sorted(over.values)]
        share = exhibits.average([records.share_near_best(each, over.near) for each in by_seed.values()])
        rows.append([arm.label, *cells, exhibits.text(share)])
    return Table("The sweep in short", columns, rows, f"Columns: {over.label}. The axis is measured logarithmically.")


def _mean_loss(values: Sequence[float | None]) -> str:
    known, mean = [value for value in values if value is not None], exhibits.average(values)
    failed = f" ({len(values) - len(known)} diverged)" if len(known) < len(values) else ""
    return f"{'' if mean is None else loss(mean)}{failed}"
